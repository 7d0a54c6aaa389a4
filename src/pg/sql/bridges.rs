//! The registry of bridges in SQL: `situ.export_bridge`, `situ.drop_bridge`, `situ.apply_bridge`.

use crate::pg::am::users::{Needed, needed_by};
use crate::pg::bridges::registry;
use crate::pg::catalog::cache;
use crate::pg::catalog::owner::{PUBLIC, table};
use crate::pg::ereport::fail_full;
use crate::pg::error::OrRaise;
use crate::pg::vector::{Vector, read_vector};
use pgrx::datum::AnyElement;
use pgrx::prelude::*;
use pgrx::{PgSqlErrorCode, pg_guard, pg_sys};

/// Tells the server that [`situ_bridges_changed`] uses the version-1 calling convention.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_finfo_situ_bridges_changed() -> *const pg_sys::Pg_finfo_record {
    static RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &raw const RECORD
}

/// The statement trigger on the registry: every backend hears of the change when it commits.
///
/// # Safety
/// Called by the server.
#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn situ_bridges_changed(_call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    cache::tell(table(PUBLIC, c"bridges"));
    pg_sys::Datum::from(0)
}

/// `situ.export_bridge(name)`.
#[pg_extern(sql = false)]
fn export_bridge(name: &str) -> Vec<u8> {
    registry::check_owner(&registry::find(name));
    registry::weights(name)
}

/// `situ.drop_bridge(name)`.
#[pg_extern(sql = false)]
fn drop_bridge(name: &str) {
    registry::check_owner(&registry::find(name));
    let indexes = needed_by(Needed::Bridge(name));
    if !indexes.is_empty() {
        fail_full(
            PgSqlErrorCode::ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST,
            format!("cannot drop bridge \"{name}\" because indexes use it"),
            format!("Built with it: {}.", indexes.join(", ")),
            "DROP INDEX them first.".into(),
        )
    }
    registry::remove(name);
}

/// `situ.apply_bridge(name, embedding, text)`.
#[pg_extern(sql = false)]
fn apply_bridge(name: Option<&str>, embedding: Option<AnyElement>, text: Option<&str>) -> Option<Vector> {
    // SAFETY: the function is declared with a vector here.
    let vector = unsafe { read_vector(embedding?.datum()) }.or_raise();
    Some(Vector(registry::apply_any(name?, text, &vector)))
}
