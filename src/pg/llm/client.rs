//! The backend's end of the LLM worker.

use crate::pg::error::Describe;
use crate::pg::service::channel::{Channel, wait};
use crate::pg::service::shared::Shared;
use crate::pg::service::{ModelRef, ServiceError};
use crate::pg::settings;
use crate::serve::ipc::wire::{BadMessage, Lane, WHOLE_CALL};
use crate::serve::llm::wire::{Figures, Item, LlmKey, PromptForm, Reply, Request, decode_reply, encode_request};
use pgrx::PgSqlErrorCode;

/// Why the LLM worker gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum LlmError {
    #[error("the situ LLM worker is not running: the library was not preloaded")]
    NotPreloaded,
    #[error("the situ LLM worker does not start")]
    NoWorker(#[source] ServiceError),
    #[error("the situ LLM worker ended while it had this request")]
    WorkerLost(#[source] ServiceError),
    #[error("the LLM did not answer within {milliseconds} ms")]
    Timeout { milliseconds: i32 },
    #[error("the request to the LLM was cancelled by {by}")]
    Cancelled { by: String },
    #[error(transparent)]
    Service(ServiceError),
}

impl From<ServiceError> for LlmError {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::NotPreloaded => LlmError::NotPreloaded,
            ServiceError::NoWorker { .. } => LlmError::NoWorker(error),
            ServiceError::WorkerLost { .. } => LlmError::WorkerLost(error),
            ServiceError::Timeout { milliseconds } => LlmError::Timeout { milliseconds },
            ServiceError::Cancelled { by } => LlmError::Cancelled { by },
            other => LlmError::Service(other),
        }
    }
}

impl Describe for LlmError {
    fn code(&self) -> PgSqlErrorCode {
        match self {
            LlmError::NotPreloaded => PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            LlmError::Timeout { .. } | LlmError::Cancelled { .. } => PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
            LlmError::NoWorker(error) | LlmError::WorkerLost(error) | LlmError::Service(error) => error.code(),
        }
    }
    fn detail(&self) -> Option<String> {
        match self {
            LlmError::NoWorker(error) | LlmError::WorkerLost(error) | LlmError::Service(error) => error.detail(),
            _ => None,
        }
    }
    fn hint(&self) -> Option<String> {
        match self {
            LlmError::NotPreloaded => {
                Some("Add situ to shared_preload_libraries and restart the server.".to_owned())
            }
            LlmError::NoWorker(_) => Some(
                "See \"situ llm\" and \"situ launcher\" in the server log; max_worker_processes must leave room for both."
                    .to_owned(),
            ),
            LlmError::WorkerLost(_) => {
                Some("The worker is started again: see the lines of \"situ llm\" in the server log.".to_owned())
            }
            LlmError::Cancelled { .. } => {
                Some("The statement was ended with situ.cancel_request; its connection goes on.".to_owned())
            }
            LlmError::Timeout { .. } => Some("Raise situ.request_timeout, or set it to 0.".to_owned()),
            LlmError::Service(error) => error.hint(),
        }
    }
}

fn protocol(error: impl std::fmt::Display) -> LlmError {
    LlmError::Service(ServiceError::Protocol(error.to_string()))
}

/// A request that the worker works on. Dropping it ends the work.
pub struct Answer {
    channel: Channel,
    done: Option<Figures>,
}

/// The number of a call's only item.
const ITEM: u64 = 0;

impl Answer {
    /// Sends an item. Waits (cancellable) while all places are taken.
    pub fn ask(llm: &ModelRef, item: Item) -> Result<Answer, LlmError> {
        let queue = Shared::llm().ok_or(ServiceError::NotPreloaded)?;
        let mut channel = Channel::open_in(queue, Lane::Query, &llm.name)?;
        let request = Request {
            generation: channel.generation(),
            number: ITEM,
            model: LlmKey {
                root: settings::model_dir(),
                path: llm.path.clone(),
                fingerprint: llm.fingerprint.clone(),
            },
            item,
        };
        let bytes = request.item.bytes();
        let message = encode_request(&request).map_err(|error| match error {
            BadMessage::Malformed(_) => ServiceError::TooLarge { bytes },
            memory => memory.into(),
        })?;
        channel.send(ITEM, message);
        Ok(Answer { channel, done: None })
    }

    /// The next reply. Waits for it; raises the server's error when the statement is cancelled.
    pub fn receive(&mut self) -> Result<Reply, LlmError> {
        loop {
            let Some(message) = self.channel.poll_message()? else {
                self.channel.check_worker()?;
                wait(self.channel.since_answer())?;
                continue;
            };
            let (number, reply) = decode_reply(&message).map_err(ServiceError::from)?;
            if let (WHOLE_CALL, Reply::Failed(failure)) = (number, &reply) {
                return Err(ServiceError::from(failure.clone()).into());
            }
            self.channel.answered(number, reply.is_last())?;
            return match reply {
                Reply::Failed(failure) => Err(ServiceError::from(failure).into()),
                reply => Ok(reply),
            };
        }
    }

    /// What a complete answer has cost.
    pub fn figures(&self) -> Option<Figures> {
        self.done
    }

    /// The next piece of text of an answer, with its token; `None` at its end.
    pub fn next_token(&mut self) -> Result<Option<(Option<u32>, String)>, LlmError> {
        if self.done.is_some() {
            return Ok(None);
        }
        match self.receive()? {
            Reply::Token { id, text } => Ok(Some((id, text))),
            Reply::Done(figures) => {
                self.done = Some(figures);
                Ok(None)
            }
            _ => Err(protocol("a prompt was answered with something else")),
        }
    }
}

/// The input vectors of a prompt: their dimensions, and the numbers row by row.
pub fn embeds(llm: &ModelRef, prompt: PromptForm) -> Result<(u32, Vec<f32>), LlmError> {
    match Answer::ask(llm, Item::Embeds { prompt })?.receive()? {
        Reply::Embeds { columns, values } => Ok((columns, values)),
        _ => Err(protocol("no input vectors")),
    }
}

/// Loads an LLM: seconds that took, and bytes of its weights.
pub fn warm(llm: &ModelRef) -> Result<(f64, u64), LlmError> {
    match Answer::ask(llm, Item::Warm)?.receive()? {
        Reply::Warmed { seconds, bytes } => Ok((seconds, bytes)),
        _ => Err(protocol("no report")),
    }
}

/// Drops an LLM that works on nothing from memory: bytes of its weights, 0 where it stays or was not there.
pub fn unload(llm: &ModelRef) -> Result<u64, LlmError> {
    match Answer::ask(llm, Item::Unload)?.receive()? {
        Reply::Unloaded { bytes } => Ok(bytes),
        _ => Err(protocol("no report")),
    }
}
