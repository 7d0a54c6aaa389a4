//! The type `situ.prompt`: text with vectors in the places of tokens.

use super::binary;
use crate::pg::ereport::{fail_full, fail_with_hint};
use crate::pg::error::OrRaise;
use crate::pg::service::ModelRef;
use crate::serve::endpoint::completions::EndpointError;
use crate::serve::llm::wire::Part;
use pgrx::PgSqlErrorCode;
use pgrx::datum::Internal;
use pgrx::prelude::*;
use serde::{Deserialize, Serialize};
use std::ffi::CStr;

/// Most bytes of text and most vectors of a prompt.
pub(super) const MOST_TEXT: usize = 4 << 20;
const MOST_VECTORS: usize = 1024;

/// A piece of a prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptPiece {
    Text(String),
    /// Stands in the place of one token.
    Vector(Vec<f32>),
}

/// Text and vectors in their order. In SQL it prints as JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, PostgresType)]
#[inoutfuncs]
#[serde(deny_unknown_fields)]
pub struct Prompt {
    pub pieces: Vec<PromptPiece>,
    /// Fingerprint of the LLM that the vectors are for; none where nobody said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub llm: Option<String>,
}

impl Prompt {
    /// Raises an error where the prompt is empty or too long, or a vector holds no finite numbers.
    fn check(&self) {
        let (mut bytes, mut vectors) = (0, 0);
        for piece in &self.pieces {
            match piece {
                PromptPiece::Text(text) => bytes += text.len(),
                PromptPiece::Vector(vector) => {
                    vectors += 1;
                    if vector.is_empty() || !vector.iter().all(|x| x.is_finite()) {
                        bad(
                            "a vector of the prompt is empty, or holds NaN or infinity".to_owned(),
                            "Vectors hold finite numbers only.",
                        )
                    }
                }
            }
        }
        if bytes > MOST_TEXT || vectors > MOST_VECTORS {
            fail_with_hint(
                PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
                format!("a prompt of {bytes} bytes and {vectors} vectors is too long"),
                "A prompt may have 4 MB of text and 1024 vectors.",
            )
        }
        if bytes == 0 && vectors == 0 {
            bad("the prompt is empty".to_owned(), "Give it some text.")
        }
    }

    /// Parts for the worker and the vectors' numbers. A vector that is several times as long as the LLM's own stands for as
    /// many tokens. Raises an error where the prompt is not one for that LLM.
    pub fn parts(&self, llm: Option<&ModelRef>) -> (Vec<Part>, Vec<f32>) {
        self.check();
        let mut values = Vec::new();
        let parts = self.pieces.iter().map(|piece| match piece {
            PromptPiece::Text(text) => Part::Text(text.clone()),
            PromptPiece::Vector(vector) => {
                let llm = llm.ok_or(EndpointError::Vectors).or_raise();
                if llm.dimensions == 0 || vector.len() % llm.dimensions != 0 {
                    bad(
                        format!(
                            "a vector of the prompt has {} dimensions, LLM \"{}\" takes {}",
                            vector.len(),
                            llm.name,
                            llm.dimensions
                        ),
                        "Vectors of a prompt come from situ.xrag_token with a bridge that was trained for this LLM.",
                    )
                }
                values.extend_from_slice(vector);
                let rows = (vector.len() / llm.dimensions) as u32;
                Part::Vectors { rows }
            }
        });
        (parts.collect(), values)
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Prompt {
        Prompt {
            pieces: vec![PromptPiece::Text(text)],
            llm: None,
        }
    }
}

fn bad(message: String, hint: &str) -> ! {
    fail_with_hint(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message, hint)
}

impl InOutFuncs for Prompt {
    /// A JSON object with the pieces; any other text is the prompt itself.
    fn input(input: &CStr) -> Prompt {
        Prompt::read(&input.to_string_lossy())
    }

    fn output(&self, buffer: &mut pgrx::StringInfo) {
        buffer.push_str(&self.printed());
    }
}

impl Prompt {
    /// The prompt that a text stands for; see [`InOutFuncs::input`].
    fn read(text: &str) -> Prompt {
        if !text.trim_start().starts_with('{') {
            return Prompt::from(text.to_owned());
        }
        let prompt: Prompt = serde_json::from_str(text).unwrap_or_else(|error| {
            fail_full(
                PgSqlErrorCode::ERRCODE_INVALID_TEXT_REPRESENTATION,
                "invalid input for type situ.prompt".into(),
                error.to_string(),
                "Use {\"pieces\": [{\"text\": \"...\"}, {\"vector\": [...]}]}, or situ.xrag_prompt.".into(),
            )
        });
        prompt.check();
        prompt
    }

    /// The prompt as JSON.
    fn printed(&self) -> String {
        // Serialising strings and numbers into memory does not fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Binary input of `situ.prompt`.
#[pg_extern(sql = false)]
fn prompt_recv(message: Internal) -> Prompt {
    Prompt::read(&binary::received(message, "situ.prompt"))
}

/// Binary output of `situ.prompt`.
#[pg_extern(sql = false)]
fn prompt_send(prompt: Prompt) -> Vec<u8> {
    binary::sent(&prompt.printed())
}
