//! The registry of bridges in SQL: `situ.import_bridge`, `situ.export_bridge`, `situ.drop_bridge`, `situ.apply_bridge`.

use crate::bridge::kind::check;
use crate::bridge::train::acceptance::Verdict;
use crate::pg::am::users::{Needed, needed_by};
use crate::pg::bridges::registry::{self, Entry};
use crate::pg::catalog::cache;
use crate::pg::catalog::model_registry::model_by_name;
use crate::pg::catalog::owner::table;
use crate::pg::ereport::{fail_full, fail_with_hint};
use crate::pg::error::OrRaise;
use crate::pg::vector::{Vector, read_vector};
use pgrx::datum::AnyElement;
use pgrx::prelude::*;
use pgrx::{PgSqlErrorCode, pg_guard, pg_sys};
use serde_json::{Value, json};

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
    cache::tell(table(c"bridges"));
    pg_sys::Datum::from(0)
}

fn needed<T>(name: &str, value: Option<T>) -> T {
    value.unwrap_or_else(|| {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
            format!("{name} must not be null"),
            "Only model may be left out.",
        )
    })
}

/// `situ.import_bridge(name, weights, model, replace)`.
#[pg_extern(sql = false)]
fn import_bridge(name: Option<&str>, weights: Option<&[u8]>, model: Option<&str>, replace: Option<bool>) -> String {
    import_described(needed("name", name), needed("weights", weights), model, replace)
}

/// The verdict that a file carries; one that carries none is accepted, on its importer's word.
fn verdict(said: &dyn Fn(&str) -> Option<Value>) -> Verdict {
    match (said("accepted"), said("synthetic_queries")) {
        (Some(Value::Bool(false)), _) => Verdict::Rejected,
        (_, Some(Value::Bool(true))) => Verdict::AcceptedSynthetic,
        _ => Verdict::Accepted,
    }
}

/// Stores a bridge whose file says itself what it is for.
pub(super) fn import_described(name: &str, weights: &[u8], model: Option<&str>, replace: Option<bool>) -> String {
    let description = check(weights).or_raise();
    let said = |field: &str| description.metadata.get(field).cloned();
    let model = model_by_name(model).or_raise();
    if let Some(Value::String(fingerprint)) = said("fingerprint")
        && fingerprint != model.fingerprint
    {
        fail_full(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("bridge \"{name}\" was not trained over model \"{}\"", model.name),
            format!(
                "It is for fingerprint {fingerprint}, the model has {}.",
                model.fingerprint
            ),
            "Name the model that it was trained over.".into(),
        )
    }
    let entry = Entry {
        name,
        model: &model,
        recipe: said("recipe").unwrap_or_else(|| json!({})),
        figures: said("figures").unwrap_or_else(|| json!({})),
        verdict: verdict(&said),
        imported: true,
        weights,
    };
    registry::store(entry, replace.unwrap_or(false)).to_string()
}

/// `situ.export_bridge(name)`.
#[pg_extern(strict, stable, parallel_safe, sql = false)]
fn export_bridge(name: &str) -> Vec<u8> {
    registry::check_owner(&registry::find(name));
    registry::weights(name)
}

/// `situ.drop_bridge(name)`.
#[pg_extern(strict, sql = false)]
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
#[pg_extern(stable, parallel_safe, sql = false)]
fn apply_bridge(name: Option<&str>, embedding: Option<AnyElement>, text: Option<&str>) -> Option<Vector> {
    // SAFETY: the function is declared with a vector here.
    let vector = unsafe { read_vector(embedding?.datum()) }.or_raise();
    Some(Vector(registry::apply_any(name?, text, &vector)))
}
