//! Who answers a prompt: an LLM of this server, or one behind the endpoint of the settings.

use super::client::Answer;
use crate::pg::catalog::model_registry::llm_by_name;
use crate::pg::ereport::{fail, fail_full, fail_with_hint};
use crate::pg::error::{Describe, OrRaise};
use crate::pg::service::ModelRef;
use crate::pg::settings;
use crate::serve::endpoint::completions::{Endpoint, EndpointError, Piece, Stream};
use crate::serve::endpoint::http::Address;
use crate::serve::endpoint::key::{self, KeyError};
use crate::serve::llm::wire::{Figures, Item, PromptForm, Sampling};
use pgrx::prelude::*;
use std::time::Duration;

/// What a name begins with that stands for a model of the endpoint.
const PREFIX: &str = "endpoint:";
/// How often a backend that waits for the endpoint looks whether it was cancelled.
const SLICE: Duration = Duration::from_millis(20);

/// Who answers.
pub enum Target {
    Local(ModelRef),
    Remote(Endpoint),
}

impl Target {
    /// The LLM of that name; `endpoint:model` for one of the endpoint. Without a name `situ.default_llm`, or the only one.
    pub fn by_name(name: Option<&str>) -> Target {
        let default = name.is_none().then(settings::default_llm).flatten();
        match name.or(default.as_deref()).and_then(|name| name.strip_prefix(PREFIX)) {
            Some(model) => Target::Remote(endpoint(model)),
            None => Target::Local(llm_by_name(name).or_raise()),
        }
    }

    /// The LLM of this server; `None` for the endpoint's.
    pub fn local(&self) -> Option<&ModelRef> {
        match self {
            Target::Local(llm) => Some(llm),
            Target::Remote(_) => None,
        }
    }

    /// Sends a prompt.
    pub fn ask(&self, prompt: PromptForm, sampling: Sampling) -> Talk {
        match self {
            Target::Local(llm) => Talk::Local(Answer::ask(llm, Item::Generate { prompt, sampling }).or_raise()),
            Target::Remote(endpoint) => Talk::Remote {
                stream: Stream::open(endpoint, &prompt, &sampling).or_raise(),
                done: None,
            },
        }
    }
}

/// The function whose EXECUTE privilege is the right to use the endpoint.
const RIGHT: &str = "situ.llm_endpoint()";

/// Fails unless the current user may spend what the endpoint costs.
fn check_right() {
    let statement = "SELECT pg_catalog.has_function_privilege($1, 'EXECUTE')";
    let may = Spi::get_one_with_args::<bool>(statement, &[RIGHT.into()]);
    match may {
        Ok(Some(true)) => {}
        Ok(_) => fail_full(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            "permission denied for the LLM endpoint".to_owned(),
            "Prompts leave this machine through it, on the server's account there.".to_owned(),
            format!("A superuser can GRANT EXECUTE ON FUNCTION {RIGHT} to the role."),
        ),
        Err(error) => fail(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, error.to_string()),
    }
}

fn endpoint(model: &str) -> Endpoint {
    check_right();
    let Some(text) = settings::llm_endpoint() else {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "no LLM endpoint is set".to_owned(),
            "Set situ.llm_endpoint to its address, as http://127.0.0.1:8080/v1.",
        )
    };
    let Some(address) = Address::parse(&text) else {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            "situ.llm_endpoint is no address of plain http".to_owned(),
            "Use http://host:port/v1; where TLS is needed, a proxy on this machine.",
        )
    };
    let variable = std::env::var(key::VARIABLE).ok();
    Endpoint {
        address,
        key: key::read(settings::llm_endpoint_key_file().as_deref(), variable.as_deref()).or_raise(),
        model: model.to_owned(),
        timeout: settings::llm_endpoint_timeout(),
        retries: settings::llm_endpoint_retries(),
    }
}

/// An answer that is being made. Dropping it ends the work.
pub enum Talk {
    Local(Answer),
    Remote { stream: Stream, done: Option<Figures> },
}

impl Talk {
    /// The next piece of text; `None` at the end. Raises the server's error when the statement is cancelled.
    pub fn next_text(&mut self) -> Option<String> {
        match self {
            Talk::Local(answer) => answer.next_token().or_raise().map(|(_, text)| text),
            Talk::Remote { done: Some(_), .. } => None,
            Talk::Remote { stream, done } => loop {
                match stream.next_within(SLICE).or_raise() {
                    Some(Piece::Text(text)) => return Some(text),
                    Some(Piece::Done(figures)) => {
                        *done = Some(figures);
                        return None;
                    }
                    None => {
                        pgrx::check_for_interrupts!();
                    }
                }
            },
        }
    }

    /// The whole answer, and what it cost.
    pub fn finish(mut self) -> (String, Figures) {
        let mut text = String::new();
        while let Some(piece) = self.next_text() {
            text.push_str(&piece);
        }
        let figures = match &self {
            Talk::Local(answer) => answer.figures(),
            Talk::Remote { done, .. } => *done,
        };
        (text, figures.unwrap_or_default())
    }
}

impl Describe for EndpointError {
    fn code(&self) -> PgSqlErrorCode {
        match self {
            EndpointError::Unreachable(_) => PgSqlErrorCode::ERRCODE_CONNECTION_FAILURE,
            EndpointError::Refused { .. } | EndpointError::Malformed(_) => {
                PgSqlErrorCode::ERRCODE_EXTERNAL_ROUTINE_EXCEPTION
            }
            EndpointError::Timeout => PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
            EndpointError::Vectors => PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        }
    }
    fn hint(&self) -> Option<String> {
        let hint = match self {
            EndpointError::Unreachable(_) => "See situ.llm_endpoint, and whether the endpoint runs.",
            EndpointError::Refused { .. } | EndpointError::Malformed(_) => {
                "The name behind endpoint: is the model's there; see situ.llm_endpoint and situ.llm_endpoint_key_file."
            }
            EndpointError::Timeout => "Raise situ.llm_endpoint_timeout, or lower max_tokens.",
            EndpointError::Vectors => "Register the LLM with situ.register_model, or use mode => 'text'.",
        };
        Some(hint.to_owned())
    }
}

impl Describe for KeyError {
    fn code(&self) -> PgSqlErrorCode {
        PgSqlErrorCode::ERRCODE_CONFIG_FILE_ERROR
    }
    fn hint(&self) -> Option<String> {
        let hint = match self {
            KeyError::Unreadable(_) | KeyError::NoFile => {
                "See situ.llm_endpoint_key_file: the server's operating-system user has to read the file."
            }
            KeyError::Open => "Take the rights of group and others from it, as from a private key: chmod 600.",
            KeyError::Malformed => {
                "The file's first line, or the variable SITU_LLM_ENDPOINT_KEY of the server, is the key and nothing else."
            }
        };
        Some(hint.to_owned())
    }
}

/// Input vectors are made by LLMs of this server only.
pub fn local_only(name: Option<&str>) -> ModelRef {
    match Target::by_name(name) {
        Target::Local(llm) => llm,
        Target::Remote(_) => Err(EndpointError::Vectors).or_raise(),
    }
}
