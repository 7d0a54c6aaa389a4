//! The library and the SQL of the extension must be of one version: `pg_extension` says which the SQL is.
//!
//! They part where the package was replaced and neither `ALTER EXTENSION situ UPDATE` nor a restart of the server followed (a
//! preloaded library stays in memory). Functions would then be called with other arguments than they take, and tables read by
//! columns that they do not have. What uses models, bridges or an index asks here first; it is asked once a session.

use super::ereport::fail_full;
use pgrx::prelude::*;
use pgrx::{FromDatum, pg_sys};
use std::sync::atomic::{AtomicBool, Ordering};

/// The version that the library was built as.
pub const LIBRARY: &str = env!("CARGO_PKG_VERSION");

/// Whether this process has found its versions to be the same. It is connected to one database for good.
static SAME: AtomicBool = AtomicBool::new(false);

/// Fails where the database's SQL of the extension is of another version than the library. In a transaction.
pub fn check() {
    if SAME.load(Ordering::Relaxed) {
        return;
    }
    // Without the extension there is nothing to compare; its script is running, or the function was made by hand.
    let Some(sql) = sql_version() else { return };
    if sql != LIBRARY {
        fail_full(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("the library of situ is version {LIBRARY}, its SQL in this database is version {sql}"),
            "A server that preloads the library keeps the one it started with.".into(),
            "ALTER EXTENSION situ UPDATE where the SQL is older; restart the server, or install the newer package, where the library is."
                .into(),
        )
    }
    SAME.store(true, Ordering::Relaxed);
}

/// The version of the extension in this database.
fn sql_version() -> Option<String> {
    let place = |attribute: u32| attribute as usize - 1;
    let (name, version) = (
        place(pg_sys::Anum_pg_extension_extname),
        place(pg_sys::Anum_pg_extension_extversion),
    );
    let mut found = None;
    // SAFETY: a catalog that is opened and closed here; the columns are those of the server's headers. It has some rows.
    unsafe {
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let table = pg_sys::table_open(pg_sys::ExtensionRelationId, lock);
        let (snapshot, keys) = (std::ptr::null_mut(), std::ptr::null_mut());
        let scan = pg_sys::systable_beginscan(table, pg_sys::InvalidOid, false, snapshot, 0, keys);
        let columns = (*(*table).rd_att).natts as usize;
        let (mut values, mut nulls) = (vec![pg_sys::Datum::null(); columns], vec![false; columns]);
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            pg_sys::heap_deform_tuple(tuple, (*table).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
            let called = values[name].cast_mut_ptr::<pg_sys::NameData>();
            if std::ffi::CStr::from_ptr((*called).data.as_ptr()) == c"situ" {
                found = String::from_datum(values[version], nulls[version]);
                break;
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(table, lock);
    }
    found
}
