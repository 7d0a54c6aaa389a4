//! Who the statement runs for, and how the extension's own tables are written.
//!
//! Rights are those of the current user: whoever called, or the owner of the code that calls (a function with SECURITY
//! DEFINER, the functions of an index while the server builds or analyses it). The role of the session or of the outermost call
//! says nothing about who wrote the code that runs. Only a statement on the extension's own tables runs as their owner, and
//! what it may do was checked for the current user before.

use crate::pg::ereport::fail;
use crate::pg::version;
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use std::ffi::CStr;

/// The role whose rights the statement runs with.
pub fn current_user() -> pg_sys::Oid {
    // SAFETY: a field of this backend, set while a transaction runs.
    unsafe { pg_sys::GetUserId() }
}

/// Whether the current user has the rights of `owner`: is it, is a member of it, or is a superuser. Of a role that is gone
/// only superusers have them.
pub fn has_rights_of(owner: pg_sys::Oid) -> bool {
    // SAFETY: a catalog look-up inside a transaction.
    unsafe { pg_sys::has_privs_of_role(current_user(), owner) }
}

/// The schema of what users name.
pub const PUBLIC: &CStr = c"situ";
/// The schema of what only the extension's own objects and this library name.
pub const INTERNAL: &CStr = c"situ_internal";

/// A table of the extension in one of its schemas.
pub fn table(schema: &CStr, name: &CStr) -> Option<pg_sys::Oid> {
    // SAFETY: catalog look-ups inside a transaction.
    let relation = unsafe {
        let schema = pg_sys::get_namespace_oid(schema.as_ptr(), true);
        match schema == pg_sys::InvalidOid {
            true => pg_sys::InvalidOid,
            false => pg_sys::get_relname_relid(name.as_ptr(), schema),
        }
    };
    (relation != pg_sys::InvalidOid).then_some(relation)
}

/// The owner of the extension's tables.
fn owner() -> pg_sys::Oid {
    let Some(relation) = table(PUBLIC, c"bridges") else {
        fail(
            PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
            "the extension situ is not installed in this database".into(),
        )
    };
    // SAFETY: a relation that exists, open while its entry is read.
    unsafe {
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let table = pg_sys::table_open(relation, lock);
        let owner = (*(*table).rd_rel).relowner;
        pg_sys::table_close(table, lock);
        owner
    }
}

/// Does something as the owner of the extension's tables. The search path stays the caller's, so its statements name the
/// schema of everything, operators too: an operator of the caller's must not run as the owner. After an error the abort of
/// the transaction gives the user back.
pub fn as_owner<T>(work: impl FnOnce() -> T) -> T {
    version::check();
    let owner = owner();
    // SAFETY: the user is set back below, with what was read here.
    unsafe {
        let (mut user, mut context) = (pg_sys::InvalidOid, 0);
        pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut context);
        pg_sys::SetUserIdAndSecContext(owner, context | pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32);
        let result = work();
        pg_sys::SetUserIdAndSecContext(user, context);
        result
    }
}

/// Runs a statement on the extension's tables as their owner. What it does was checked for the current user before.
pub fn write(statement: &str, arguments: &[DatumWithOid<'_>]) {
    if let Err(error) = as_owner(|| Spi::run_with_args(statement, arguments)) {
        fail(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, error.to_string());
    }
}

/// Whether the current role may see what is others': members of `pg_read_all_stats`, so of `pg_monitor`, and superusers.
pub fn sees_all() -> bool {
    // SAFETY: in a transaction.
    unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), pg_sys::ROLE_PG_READ_ALL_STATS.into()) }
}
