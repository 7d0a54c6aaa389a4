//! The wall for errors: errors of the rooms below become server errors with SQLSTATE, DETAIL and HINT. Those of `src/pg`
//! describe themselves beside their types.

use crate::bridge::BridgeError;
use crate::bridge::feedback::rounds::FeedbackError;
use crate::compute::ComputeError;
use crate::compute::memory::give_up_reserve;
use crate::index::IndexError;
use crate::model::ModelError;
use crate::serve::ipc::failure::{Failure, Kind};
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
    if code == PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY {
        give_up_reserve();
    }
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
    fn raise(&self) -> ! {
        let failure = Failure::from(self);
        raise(failure.code(), failure.message, failure.detail, failure.hint)
    }
}

impl Describe for ComputeError {
    fn code(&self) -> PgSqlErrorCode {
        match self {
            ComputeError::Memory { .. } | ComputeError::DeviceMemory { .. } => PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY,
            _ => PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
        }
    }
    fn hint(&self) -> Option<String> {
        let memory = matches!(self, ComputeError::Memory { .. });
        memory.then(|| "Ask for less at once, or leave the server more memory.".to_owned())
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
