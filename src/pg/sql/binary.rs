//! Binary input and output of the types that print as JSON: a version, and the JSON text, as `jsonb` has it.

use crate::pg::ereport::fail_with_hint;
use pgrx::datum::Internal;
use pgrx::{PgSqlErrorCode, pg_sys};
use std::ffi::{CStr, c_void};

/// The version of the form.
static VERSION: u8 = 1;

/// The text of a value of type `name` in a client's message, in the database's encoding.
pub fn received(mut message: Internal, name: &str) -> String {
    // SAFETY: the server calls receive functions with a StringInfo; what it reads past the end of raises an error.
    unsafe {
        let Some(buffer) = message.get_mut::<pg_sys::StringInfoData>() else {
            return String::new();
        };
        let buffer: *mut pg_sys::StringInfoData = buffer;
        let version = pg_sys::pq_getmsgint(buffer, 1);
        if version != u32::from(VERSION) {
            fail_with_hint(
                PgSqlErrorCode::ERRCODE_INVALID_BINARY_REPRESENTATION,
                format!("unsupported version {version} of type {name}"),
                "Send version 1: a byte 1, then the value's JSON.",
            )
        }
        let mut length = 0;
        let rest = (*buffer).len - (*buffer).cursor;
        let text = pg_sys::pq_getmsgtext(buffer, rest, &raw mut length);
        let owned = CStr::from_ptr(text).to_string_lossy().into_owned();
        pg_sys::pfree(text.cast());
        owned
    }
}

/// A value's JSON as a message for a client, in its encoding.
pub fn sent(json: &str) -> Vec<u8> {
    // SAFETY: a buffer of the server's, which it makes, fills and hands over; its text is copied before it is freed.
    unsafe {
        let mut buffer = pg_sys::StringInfoData::default();
        pg_sys::pq_begintypsend(&raw mut buffer);
        pg_sys::pq_sendbytes(&raw mut buffer, (&raw const VERSION).cast::<c_void>(), 1);
        pg_sys::pq_sendtext(&raw mut buffer, json.as_ptr().cast(), json.len() as i32);
        let message = pg_sys::pq_endtypsend(&raw mut buffer);
        let bytes = pgrx::varlena_to_byte_slice(message).to_vec();
        pg_sys::pfree(message.cast());
        bytes
    }
}
