//! Short ways to raise an error that no room's error type describes.

use super::error::raise;
use pgrx::PgSqlErrorCode;

/// Raises an error that its message explains.
pub fn fail(code: PgSqlErrorCode, message: String) -> ! {
    raise(code, message, None, None)
}

/// Raises an error and says what to do.
pub fn fail_with_hint(code: PgSqlErrorCode, message: String, hint: &str) -> ! {
    raise(code, message, None, Some(hint.to_owned()))
}

/// Raises an error with all its parts.
pub fn fail_full(code: PgSqlErrorCode, message: String, detail: String, hint: String) -> ! {
    raise(code, message, Some(detail), Some(hint))
}
