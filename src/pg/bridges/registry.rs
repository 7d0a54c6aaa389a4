//! The registry of bridges, `situ.bridges`: how a bridge is found, used for a vector, and stored.
//!
//! The row is looked up each time ([`super::rows`]), so a bridge that was replaced or dropped is never used from
//! memory. What a file holds is kept by the backend under the hash of its weights. Everybody may use a bridge by its
//! name, and only its owner may read its weights or change it.

pub use super::rows::Registered;

use super::lexsem;
use super::rows::{Row, Snapshot, look};
use crate::bridge::adapter::Side;
use crate::bridge::train::acceptance::Verdict;
use crate::bridge::{Bridge, BridgeError, BridgeKind, file, kind};
use crate::pg::catalog::cache::Cache;
use crate::pg::catalog::model_registry::model_by_name;
use crate::pg::catalog::owner::{PUBLIC, as_owner, current_user, has_rights_of, table, write};
use crate::pg::ereport::{fail, fail_full, fail_with_hint};
use crate::pg::error::OrRaise;
use crate::pg::service::model_ref::ModelRef;
use crate::pg::settings;
use pgrx::JsonB;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;
use pgrx::prelude::*;
use serde_json::{Map, Value};

/// Bridges that a backend keeps.
const KEPT: usize = 8;

thread_local! {
    /// By the hash of their weights.
    static OPEN: Cache<String, Bridge> = Cache::new(KEPT);
}

/// A bridge to be stored.
pub struct Entry<'a> {
    pub name: &'a str,
    pub model: &'a ModelRef,
    pub recipe: Value,
    pub figures: Value,
    pub verdict: Verdict,
    /// It was made elsewhere: what its file says of itself was not measured here.
    pub imported: bool,
    /// Bytes of the safetensors file.
    pub weights: &'a [u8],
}

/// The bridge of that name; one that does not exist is an error.
pub fn find(name: &str) -> Registered {
    let found = look(name, Snapshot::Statement, Row::registered);
    found.unwrap_or_else(|| missing(name)).or_raise()
}

/// The error where there is no bridge of that name.
pub fn missing(name: &str) -> ! {
    fail_with_hint(
        PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
        format!("bridge \"{name}\" does not exist"),
        "SELECT name, kind, model, state FROM situ.bridges lists them; CALL situ.train(...) makes one.",
    )
}

/// Whether there is a bridge of that name.
pub fn exists(name: &str) -> bool {
    look(name, Snapshot::Statement, |_| ()).is_some()
}

/// The bytes of a bridge's file. The caller has checked that they may be read.
pub fn weights(name: &str) -> Vec<u8> {
    look(name, Snapshot::Statement, Row::weights).unwrap_or_default()
}

/// What the file of a bridge holds, from the backend's memory where it is there; `weights` fetches the file's bytes.
pub fn open(bridge: &Registered, weights: impl FnOnce() -> Vec<u8>) -> Bridge {
    OPEN.with(|open| open.get_or(&bridge.hash, || bridge.kind.read(&weights())))
        .or_raise()
}

/// Fails unless the current user owns the bridge, or is a superuser.
pub fn check_owner(bridge: &Registered) {
    if !has_rights_of(bridge.owner) {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("must be owner of bridge \"{}\"", bridge.name),
            "The role that trained or imported a bridge owns it: SELECT name, owner FROM situ.bridges.",
        )
    }
}

/// Fails unless the bridge was accepted.
pub fn check_accepted(bridge: &Registered) {
    if !bridge.verdict.accepts() {
        fail_full(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("bridge \"{}\" was rejected", bridge.name),
            "It did not beat the plain vectors on held-out data; the column figures of situ.bridges says by how much."
                .into(),
            "Train it again with other pairs or options.".into(),
        )
    }
}

/// Fails unless the bridge was accepted and is for that model.
pub fn check_usable(bridge: &Registered, model: &ModelRef) {
    check_accepted(bridge);
    check_trained_over(bridge, model);
}

/// Fails unless the bridge is for that model.
pub fn check_trained_over(bridge: &Registered, model: &ModelRef) {
    if bridge.fingerprint != model.fingerprint {
        fail_full(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!(
                "bridge \"{}\" was not trained over model \"{}\"",
                bridge.name, model.name
            ),
            format!(
                "It is for fingerprint {}, the model has {}.",
                bridge.fingerprint, model.fingerprint
            ),
            "Use the model that it was trained over, or train it again.".into(),
        )
    }
}

/// Bytes that a bridge counts at least: rows and their entries in indexes take room too.
const LEAST_BYTES: i64 = 8192;

/// Fails where the current user's bridges would take more than `situ.bridge_space` with one of `bytes` bytes by that
/// name. Superusers are not counted.
fn check_space(name: &str, bytes: usize) {
    let (user, most) = (current_user(), settings::bridge_space());
    // SAFETY: a catalog look-up.
    if most == 0 || unsafe { pg_sys::superuser_arg(user) } {
        return;
    }
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX).max(LEAST_BYTES);
    if let Some(registry) = table(PUBLIC, c"bridges") {
        // One at a time of each role, to the end of the transaction: what another session has just stored counts.
        // SAFETY: a lock of the server's own kind, released when the transaction ends.
        unsafe { pg_sys::LockDatabaseObject(registry, user, 0, pg_sys::ExclusiveLock as pg_sys::LOCKMODE) };
    }
    let statement = "SELECT coalesce(pg_catalog.sum(CASE WHEN pg_catalog.octet_length(weights) OPERATOR(pg_catalog.<) $3 \
                     THEN $3 ELSE pg_catalog.octet_length(weights) END), 0)::pg_catalog.int8 FROM situ.bridges \
                     WHERE owner::pg_catalog.oid OPERATOR(pg_catalog.=) $1 AND name OPERATOR(pg_catalog.<>) $2";
    let arguments = [user.into(), name.into(), LEAST_BYTES.into()];
    // Not read-only: under a snapshot that is taken behind the lock.
    let taken = as_owner(|| {
        Spi::connect_mut(|client| client.update(statement, Some(1), &arguments)?.first().get_one::<i64>())
            .unwrap_or_else(|error| fail(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, error.to_string()))
    });
    let all = taken.unwrap_or_default().saturating_add(bytes);
    if all > most {
        fail_full(
            PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            format!("bridge \"{name}\" does not fit the space for bridges of its owner"),
            format!("With its {bytes} bytes they would take {all}, and situ.bridge_space allows {most}."),
            "Drop bridges that are not used with situ.drop_bridge, or have a superuser raise situ.bridge_space.".into(),
        )
    }
}

/// Stores a bridge as the current user's. One of that name is replaced where `replace` says so and the current user
/// owns it.
pub fn store(entry: Entry<'_>, replace: bool) -> BridgeKind {
    if entry.name.is_empty() {
        fail(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            "the name of a bridge is empty".into(),
        )
    }
    check_space(entry.name, entry.weights.len());
    let description = kind::check(entry.weights).or_raise();
    if description.dimensions != entry.model.dimensions {
        Err(BridgeError::Vectors {
            expected: entry.model.dimensions,
            found: description.dimensions,
        })
        .or_raise()
    }
    let statement = "INSERT INTO situ.bridges AS b \
           (name, kind, model, fingerprint, dimensions, owner, state, recipe, figures, hash, weights, origin) \
         VALUES ($1, $2, $3, $4, $5, $6::pg_catalog.oid::situ.role, \
                 $7, $8, $9, $10, $11, \
                 CASE WHEN $13 THEN 'imported' ELSE 'trained' END) \
         ON CONFLICT (name) DO UPDATE SET (kind, model, fingerprint, dimensions, owner, state, recipe, figures, hash, \
           weights, origin, trained_at) = (excluded.kind, excluded.model, excluded.fingerprint, excluded.dimensions, \
           excluded.owner, excluded.state, excluded.recipe, excluded.figures, excluded.hash, excluded.weights, \
           excluded.origin, pg_catalog.now()) \
         WHERE $12 AND pg_catalog.pg_has_role($6::pg_catalog.oid, b.owner::pg_catalog.oid, 'USAGE') \
         RETURNING kind";
    let arguments = [
        entry.name.into(),
        description.kind.name().into(),
        entry.model.name.as_str().into(),
        entry.model.fingerprint.as_str().into(),
        (entry.model.dimensions as i32).into(),
        current_user().into(),
        entry.verdict.name().into(),
        JsonB(entry.recipe).into(),
        JsonB(entry.figures).into(),
        file::hash(entry.weights).into(),
        entry.weights.to_vec().into(),
        replace.into(),
        entry.imported.into(),
    ];
    let stored = as_owner(|| {
        Spi::connect_mut(|client| match client.update(statement, None, &arguments)?.next() {
            Some(row) => row.get::<String>(1),
            None => Ok(None),
        })
        .unwrap_or_else(|error: pgrx::spi::SpiError| fail(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, error.to_string()))
    });
    if stored.is_none() {
        check_owner(&find(entry.name));
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
            format!("bridge \"{}\" already exists", entry.name),
            "Choose another name, drop it with situ.drop_bridge, or pass replace => true.",
        )
    }
    description.kind
}

/// Takes back what synthetic queries had accepted, since judged questions show that the bridge loses; `judged` is what
/// they showed. A row that has been replaced meanwhile is left alone.
pub fn overturn(bridge: &Registered, judged: Value) {
    let mark = Map::from_iter([("accepted".to_owned(), Value::Bool(false))]);
    let bytes = file::stamp(&weights(&bridge.name), mark).or_raise();
    let statement = "UPDATE situ.bridges SET state = $3, hash = $4, weights = $5, \
           figures = figures OPERATOR(pg_catalog.||) pg_catalog.jsonb_build_object('judged', $6) \
         WHERE name OPERATOR(pg_catalog.=) $1 AND hash OPERATOR(pg_catalog.=) $2";
    let arguments = [
        bridge.name.as_str().into(),
        bridge.hash.as_str().into(),
        Verdict::Rejected.name().into(),
        file::hash(&bytes).into(),
        bytes.into(),
        JsonB(judged).into(),
    ];
    write(statement, &arguments);
}

/// Whether the current user may change the bridge.
pub fn owns(bridge: &Registered) -> bool {
    has_rights_of(bridge.owner)
}

/// Removes a bridge that the current user owns.
pub fn remove(name: &str) {
    check_owner(&find(name));
    let statement = "DELETE FROM situ.bridges WHERE name OPERATOR(pg_catalog.=) $1";
    write(statement, &[name.into()]);
}

fn no_words(name: &str) -> ! {
    fail_with_hint(
        PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
        format!("bridge \"{name}\" reads the words of the query, and there are none"),
        "Give the query its text beside its embedding.",
    )
}

fn apply(bridge: &Registered, model: &ModelRef, text: Option<&str>, vector: &[f32], side: Option<Side>) -> Vec<f32> {
    check_usable(bridge, model);
    match bridge.kind {
        BridgeKind::Adapter => {
            let adapter = match open(bridge, || weights(&bridge.name)) {
                Bridge::Adapter(adapter) => adapter,
                _ => changes_no_query(bridge, "Bridges of kind adapter and lexsem do."),
            };
            if side.is_some_and(|side| side != adapter.side) {
                fail_with_hint(
                    PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                    format!("bridge \"{}\" changes passages, not queries", bridge.name),
                    "Train one with side => 'query'.",
                )
            }
            let mut mapped = vector.to_vec();
            adapter.apply(&mut mapped).or_raise();
            mapped
        }
        BridgeKind::LexSem => {
            let text = text.unwrap_or_else(|| no_words(&bridge.name));
            lexsem::apply(&bridge.name, model, text, vector).or_raise()
        }
        BridgeKind::TextFeedback => changes_no_query(
            bridge,
            "Name it as what it is: feedback => 'text', feedback_model => the bridge.",
        ),
        BridgeKind::Situate | BridgeKind::Xrag => changes_no_query(bridge, "Bridges of kind adapter and lexsem do."),
    }
}

fn changes_no_query(bridge: &Registered, hint: &str) -> ! {
    fail_with_hint(
        PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        format!(
            "bridge \"{}\" of kind {} does not change a query's vector",
            bridge.name, bridge.kind
        ),
        hint,
    )
}

/// The vector of a query as the bridge `name` changes it. `vector` is the query's, `text` its words, `model` the
/// encoder of both; without one, the model that the bridge is for. A bridge that does not exist, was rejected, is for
/// another encoder or for passages raises an error.
pub fn apply_query(name: &str, model: Option<&ModelRef>, text: Option<&str>, vector: &[f32]) -> Vec<f32> {
    let bridge = find(name);
    match model {
        Some(model) => apply(&bridge, model, text, vector, Some(Side::Query)),
        None => apply(&bridge, &model_of(&bridge), text, vector, Some(Side::Query)),
    }
}

/// What a bridge makes of a vector of its model, a query's or a passage's.
pub fn apply_any(name: &str, text: Option<&str>, vector: &[f32]) -> Vec<f32> {
    let bridge = find(name);
    apply(&bridge, &model_of(&bridge), text, vector, None)
}

fn model_of(bridge: &Registered) -> ModelRef {
    model_by_name(Some(&bridge.model)).or_raise()
}
