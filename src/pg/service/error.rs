//! Why a call of a worker failed.

use super::Failure;
use crate::pg::catalog::owner::sees_all;
use crate::pg::error::Describe;
use pgrx::PgSqlErrorCode;

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The library was not in `shared_preload_libraries`: there is no queue.
    #[error("the situ encoder is not running: the library was not preloaded")]
    NotPreloaded,
    /// No worker could be started.
    #[error("the situ encoder worker does not start")]
    NoWorker { last_error: String },
    /// The worker crashed twice while processing this request.
    #[error("the situ encoder worker crashed twice while processing this request")]
    WorkerLost { last_error: String },
    /// The device does not work, and nothing may step in.
    #[error("the encoder's device {device} is lost")]
    DeviceLost { device: String, last_error: String },
    /// `situ.cancel_request` was called.
    #[error("the request to the encoder was cancelled by {by}")]
    Cancelled { by: String },
    /// `situ.request_timeout` ran out.
    #[error("the encoder did not answer within {milliseconds} ms")]
    Timeout { milliseconds: i32 },
    /// The model gives vectors of another size than its registration says.
    #[error("model \"{model}\" was registered with {expected} dimensions, its vectors have {found}")]
    Dimensions {
        model: String,
        expected: usize,
        found: usize,
    },
    /// The session has as many answers in progress as one may have.
    #[error("the session has {most} answers in progress, as many as one may have")]
    TooMany { most: usize },
    /// A text that cannot be sent.
    #[error("a text of {bytes} bytes cannot be encoded")]
    TooLarge { bytes: usize },
    /// A message that does not parse: a fault of ours.
    #[error("encoder protocol: {0}")]
    Protocol(String),
    /// The worker answered with an error.
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl From<crate::compute::ComputeError> for ServiceError {
    fn from(error: crate::compute::ComputeError) -> ServiceError {
        ServiceError::Failed(error.into())
    }
}

impl From<crate::serve::ipc::wire::BadMessage> for ServiceError {
    fn from(error: crate::serve::ipc::wire::BadMessage) -> ServiceError {
        match error {
            crate::serve::ipc::wire::BadMessage::Malformed(what) => ServiceError::Protocol(what),
            crate::serve::ipc::wire::BadMessage::Memory { .. } => {
                ServiceError::Failed(error.failure(error.to_string()))
            }
        }
    }
}

impl Describe for ServiceError {
    fn code(&self) -> PgSqlErrorCode {
        match self {
            ServiceError::NotPreloaded => PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            ServiceError::NoWorker { .. } => PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            ServiceError::WorkerLost { .. } => PgSqlErrorCode::ERRCODE_CONNECTION_FAILURE,
            ServiceError::DeviceLost { .. } => PgSqlErrorCode::ERRCODE_IO_ERROR,
            ServiceError::Timeout { .. } | ServiceError::Cancelled { .. } => PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
            ServiceError::Dimensions { .. } => PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
            ServiceError::TooLarge { .. } => PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            ServiceError::TooMany { .. } => PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            ServiceError::Protocol(_) => PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
            ServiceError::Failed(failure) => failure.code(),
        }
    }
    fn detail(&self) -> Option<String> {
        match self {
            ServiceError::NoWorker { last_error }
            | ServiceError::WorkerLost { last_error }
            | ServiceError::DeviceLost { last_error, .. } => {
                // It may be another role's, and names files.
                (!last_error.is_empty() && sees_all()).then(|| format!("Its last error was: {last_error}"))
            }
            ServiceError::Failed(failure) => failure.detail(),
            _ => None,
        }
    }
    fn hint(&self) -> Option<String> {
        match self {
            ServiceError::NotPreloaded => {
                Some("Add situ to shared_preload_libraries and restart the server.".to_owned())
            }
            ServiceError::NoWorker { .. } => Some(
                "See \"situ encoder\" and \"situ launcher\" in the server log; max_worker_processes must leave room for both."
                    .to_owned(),
            ),
            ServiceError::DeviceLost { .. } => Some(
                "See situ.stat_service; with situ.device_fallback = on the processor takes over what a lost device had."
                    .to_owned(),
            ),
            ServiceError::WorkerLost { .. } => Some("See the lines of \"situ encoder\" in the server log.".to_owned()),
            ServiceError::Cancelled { .. } => {
                Some("The statement was ended with situ.cancel_request; its connection goes on.".to_owned())
            }
            ServiceError::Timeout { .. } => Some("Raise situ.request_timeout, or set it to 0.".to_owned()),
            ServiceError::TooMany { .. } => Some(
                "Close cursors over situ.generate_stream; a session may have a quarter of situ.llm_queue_memory.".to_owned(),
            ),
            ServiceError::Dimensions { .. } => {
                Some("Register the model again with situ.register_model(..., replace => true).".to_owned())
            }
            ServiceError::Failed(failure) => failure.hint(),
            _ => None,
        }
    }
}
