//! The wall for errors: every room's error becomes a server error with SQLSTATE, DETAIL and HINT.

use super::am::feedback::FeedbackError;
use super::service::{Failure, Kind, ServiceError};
use super::sql::models::RegistryError;
use super::sql::stat_service::sees_all;
use super::vector::VectorError;
use crate::bridge::BridgeError;
use crate::index::IndexError;
use crate::model::ModelError;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode};

/// An error that can be raised in the server.
pub trait Describe: std::fmt::Display {
    /// SQLSTATE.
    fn code(&self) -> PgSqlErrorCode;
    /// DETAIL line.
    fn detail(&self) -> Option<String> {
        None
    }
    /// HINT line.
    fn hint(&self) -> Option<String> {
        None
    }
    /// Raises the error. Rust frames up to the wall are unwound, and every value in them dropped.
    fn raise(&self) -> ! {
        raise(self.code(), self.to_string(), self.detail(), self.hint())
    }
}

/// Raises an error with the given parts.
pub fn raise(code: PgSqlErrorCode, message: String, detail: Option<String>, hint: Option<String>) -> ! {
    let mut report = ErrorReport::new(code, message, "situ");
    if let Some(detail) = detail {
        report = report.set_detail(detail);
    }
    if let Some(hint) = hint {
        report = report.set_hint(hint);
    }
    report.report(PgLogLevel::ERROR);
    unreachable!("an ERROR does not return")
}

/// The value, or the error raised in the server.
pub trait OrRaise<T> {
    fn or_raise(self) -> T;
}

impl<T, E: Describe> OrRaise<T> for Result<T, E> {
    fn or_raise(self) -> T {
        match self {
            Ok(value) => value,
            Err(error) => error.raise(),
        }
    }
}

impl Describe for Failure {
    fn code(&self) -> PgSqlErrorCode {
        match self.kind {
            Kind::MissingFile => PgSqlErrorCode::ERRCODE_UNDEFINED_FILE,
            Kind::Io => PgSqlErrorCode::ERRCODE_IO_ERROR,
            Kind::BadModel => PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
            Kind::Unsupported => PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            Kind::Changed => PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            Kind::Argument => PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            Kind::Memory => PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY,
            Kind::DeviceLost => PgSqlErrorCode::ERRCODE_IO_ERROR,
            Kind::Internal => PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
        }
    }
    fn detail(&self) -> Option<String> {
        self.detail.clone()
    }
    fn hint(&self) -> Option<String> {
        self.hint.clone()
    }
}

impl Describe for ModelError {
    fn code(&self) -> PgSqlErrorCode {
        Failure::from(self).code()
    }
    fn hint(&self) -> Option<String> {
        Failure::from(self).hint
    }
}

impl Describe for BridgeError {
    fn code(&self) -> PgSqlErrorCode {
        Failure::from(self).code()
    }
    fn hint(&self) -> Option<String> {
        Failure::from(self).hint
    }
}

impl Describe for FeedbackError {
    fn code(&self) -> PgSqlErrorCode {
        match self {
            FeedbackError::Index(error) => error.code(),
            FeedbackError::Bridge(error) => error.code(),
        }
    }
    fn hint(&self) -> Option<String> {
        match self {
            FeedbackError::Index(error) => error.hint(),
            FeedbackError::Bridge(error) => error.hint(),
        }
    }
    fn raise(&self) -> ! {
        match self {
            FeedbackError::Index(error) => error.raise(),
            FeedbackError::Bridge(error) => error.raise(),
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

impl Describe for RegistryError {
    fn code(&self) -> PgSqlErrorCode {
        match self {
            RegistryError::Unknown(_) | RegistryError::Empty => PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            RegistryError::Ambiguous => PgSqlErrorCode::ERRCODE_AMBIGUOUS_PARAMETER,
            RegistryError::Taken { .. } => PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
            RegistryError::InUse { .. } => PgSqlErrorCode::ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST,
            RegistryError::NotInstalled => PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            RegistryError::EmptyName => PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            RegistryError::NotOwner(_) => PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            RegistryError::NotEncoder(_) | RegistryError::NotLlm(_) => PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
            RegistryError::UnknownLlm(_) | RegistryError::NoLlm => PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            RegistryError::AmbiguousLlm => PgSqlErrorCode::ERRCODE_AMBIGUOUS_PARAMETER,
        }
    }
    fn detail(&self) -> Option<String> {
        match self {
            RegistryError::Taken { registered, found, .. } => {
                Some(format!("Registered fingerprint {registered}, found {found}."))
            }
            RegistryError::InUse { indexes, .. } => Some(format!("Built with it: {}.", indexes.join(", "))),
            _ => None,
        }
    }
    fn hint(&self) -> Option<String> {
        Some(match self {
            RegistryError::Unknown(_) | RegistryError::Empty => {
                "SELECT * FROM situ.models lists the models; situ.register_model(name, path) adds one.".to_owned()
            }
            RegistryError::Ambiguous => "Name the model, or set situ.default_model.".to_owned(),
            RegistryError::Taken { .. } => {
                "Choose another name, or pass replace => true and REINDEX the indexes that use the model.".to_owned()
            }
            RegistryError::InUse { .. } => {
                "DROP INDEX them first, or ALTER INDEX ... SET (model = ...) and REINDEX them.".to_owned()
            }
            RegistryError::NotInstalled => "CREATE EXTENSION situ CASCADE creates it.".to_owned(),
            RegistryError::EmptyName => "Give the model a name.".to_owned(),
            RegistryError::NotEncoder(_) => "Name an encoder: SELECT name, kind FROM situ.models.".to_owned(),
            RegistryError::NotLlm(_) => "Name an LLM: SELECT name, kind FROM situ.models.".to_owned(),
            RegistryError::UnknownLlm(_) | RegistryError::NoLlm => {
                "SELECT name FROM situ.models WHERE kind = 'llm' lists the LLMs; situ.register_model(name, path) adds \
                 one."
                    .to_owned()
            }
            RegistryError::AmbiguousLlm => "Name the LLM, or set situ.default_llm.".to_owned(),
            RegistryError::NotOwner(_) => {
                "The role that registered the model owns it: SELECT name, owner FROM situ.models.".to_owned()
            }
        })
    }
}

impl Describe for VectorError {
    fn code(&self) -> PgSqlErrorCode {
        match self {
            VectorError::Malformed { .. } => PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
            VectorError::Dimensions(_) => PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            VectorError::NotFinite => PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
        }
    }
}

impl Describe for IndexError {
    fn code(&self) -> PgSqlErrorCode {
        match self {
            IndexError::Cancelled => PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
            IndexError::Corrupted { .. } => PgSqlErrorCode::ERRCODE_INDEX_CORRUPTED,
            IndexError::Format { .. } => PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            IndexError::Dimensions { .. } | IndexError::NotFinite => PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
            IndexError::Memory { .. } | IndexError::OutOfMemory { .. } => PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY,
            IndexError::Store(_) => PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
        }
    }
    fn hint(&self) -> Option<String> {
        match self {
            IndexError::Corrupted { .. } => Some("REINDEX the index; the table is not affected.".to_owned()),
            IndexError::Format { .. } => {
                Some("REINDEX the index, or install the version of situ that wrote it.".to_owned())
            }
            IndexError::Dimensions { .. } => {
                Some("Compare with vectors of as many dimensions as the indexed column has.".to_owned())
            }
            IndexError::NotFinite => Some("Vectors hold finite numbers only.".to_owned()),
            IndexError::OutOfMemory { .. } => {
                Some("Lower maintenance_work_mem or work_mem, or leave the server more memory.".to_owned())
            }
            IndexError::Memory { .. } => Some("Raise maintenance_work_mem or work_mem.".to_owned()),
            _ => None,
        }
    }
    fn raise(&self) -> ! {
        if matches!(self, IndexError::Cancelled) {
            // The server knows better why it was interrupted; its own error wins.
            pgrx::check_for_interrupts!();
        }
        raise(self.code(), self.to_string(), self.detail(), self.hint())
    }
}
