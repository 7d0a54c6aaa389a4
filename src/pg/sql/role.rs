//! The type `situ.role`: a role as the registries keep it.
//!
//! Inside a database it is the role's OID, so a rename is followed and a new role of an old name inherits nothing. Written, it is
//! the role's name, so a dump finds the role of that name wherever it is restored, whatever OID it has there. A role that
//! is gone is written as `-`; what names no role is read as the current user, so that a restore without the role
//! succeeds and belongs to whoever restores.

use crate::pg::catalog::owner::current_user;
use pgrx::prelude::*;
use pgrx::{PgMemoryContexts, pg_sys};
use std::ffi::{CStr, CString};

/// The role of that name, which is written as an identifier. A bare `-` or number names none, also where a role is called so: its name
/// is written in quotes.
fn named(text: &CStr) -> Option<pg_sys::Oid> {
    let first = text.to_bytes().iter().find(|byte| !byte.is_ascii_whitespace())?;
    if !(first.is_ascii_alphabetic() || matches!(first, b'_' | b'"' | 0x80..)) {
        return None;
    }
    // SAFETY: the server's parser of identifiers works in place on a copy in the current memory context, and gives a list of
    // pointers into it.
    unsafe {
        let copy = pg_sys::pstrdup(text.as_ptr());
        let mut list = std::ptr::null_mut();
        let parsed = pg_sys::SplitIdentifierString(copy, b'.' as std::ffi::c_char, &raw mut list);
        if !parsed || list.is_null() || (*list).length != 1 {
            return None;
        }
        let name = (*(*list).elements).ptr_value.cast::<std::ffi::c_char>();
        let role = pg_sys::get_role_oid(name, true);
        (role != pg_sys::InvalidOid).then_some(role)
    }
}

/// The name of a role as an identifier; `-` for one that is gone.
fn written(role: pg_sys::Oid) -> CString {
    // SAFETY: a catalog look-up that gives null for a role that is gone; the server quotes the name.
    unsafe {
        let name = pg_sys::GetUserNameFromId(role, true);
        match name.is_null() {
            true => c"-".to_owned(),
            false => CStr::from_ptr(pg_sys::quote_identifier(name)).to_owned(),
        }
    }
}

/// Input of `situ.role`.
#[pg_extern(sql = false)]
fn role_in(text: &CStr) -> pg_sys::Oid {
    named(text).unwrap_or_else(current_user)
}

/// Output of `situ.role`.
#[pg_extern(sql = false)]
fn role_out(role: pg_sys::Oid) -> &'static CStr {
    let text = written(role);
    // SAFETY: a copy in the caller's memory context, which frees it.
    unsafe { CStr::from_ptr(PgMemoryContexts::CurrentMemoryContext.pstrdup(&text.to_string_lossy())) }
}

/// Binary output of `situ.role`: the same text.
#[pg_extern(sql = false)]
fn role_send(role: pg_sys::Oid) -> Vec<u8> {
    written(role).into_bytes()
}
