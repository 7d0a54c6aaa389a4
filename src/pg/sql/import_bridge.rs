//! Bridges from outside: `situ.import_bridge` from bytes, `situ.import_bridge_file` from a file of the server's.
//!
//! A file of `situ.export_bridge` says itself what it is. A projector as it is published holds tensors alone; what it leads
//! from and to is said by the caller.

use crate::bridge::BridgeKind;
use crate::bridge::file::describe;
use crate::bridge::kind::check;
use crate::bridge::train::acceptance::Verdict;
use crate::bridge::xrag::projector::{self, Projector};
use crate::bridge::xrag::published::{self, Found};
use crate::pg::bridges::registry::{self, Entry};
use crate::pg::catalog::model_registry::{llm_by_name, model_by_name};
use crate::pg::catalog::owner::as_owner;
use crate::pg::ereport::{fail, fail_full, fail_with_hint};
use crate::pg::error::OrRaise;
use crate::pg::service::model_ref::ModelRef;
use crate::pg::settings;
use crate::serve::encoder::models::resolve;
use pgrx::PgSqlErrorCode;
use pgrx::prelude::*;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{Cursor, Read, Seek};

/// What a bridge is imported as.
#[derive(Clone, Copy)]
struct Import<'a> {
    name: &'a str,
    /// The kind that it has to be; `None` for what the file says.
    kind: Option<&'a str>,
    model: Option<&'a str>,
    llm: Option<&'a str>,
    normalized: Option<bool>,
    replace: Option<bool>,
}

/// Whether the registered model brings its vectors to length 1.
fn gives_unit_vectors(model: &ModelRef) -> bool {
    let statement = "SELECT normalize FROM situ.models WHERE name OPERATOR(pg_catalog.=) $1";
    let found = as_owner(|| Spi::get_one_with_args::<bool>(statement, &[model.name.as_str().into()]));
    found
        .unwrap_or_else(|error| fail(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, error.to_string()))
        .unwrap_or_default()
}

/// Stores a published projector as the caller's.
fn import_projector(weights: &[u8], import: &Import<'_>) -> String {
    let (model, llm) = (
        model_by_name(import.model).or_raise(),
        llm_by_name(import.llm).or_raise(),
    );
    let normalized = import.normalized.unwrap_or(false);
    if !normalized && gives_unit_vectors(&model) {
        warning!(
            "the projector is taken as trained on vectors as they are, but model \"{}\" gives vectors of length 1: what it \
             makes of them is not what it was trained to; register a copy of the model without its Normalize module, or say \
             normalized => true where it was trained on vectors of length 1",
            model.name
        );
    }
    let more = Map::from_iter([
        ("fingerprint".to_owned(), json!(model.fingerprint)),
        ("llm".to_owned(), json!(llm.fingerprint)),
        ("normalized".to_owned(), json!(normalized)),
    ]);
    let weights = projector::import(weights, more).or_raise();
    let outputs = Projector::read(&weights).or_raise().outputs();
    if llm.dimensions == 0 || outputs % llm.dimensions != 0 {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
            format!(
                "the projector gives {outputs} numbers, LLM \"{}\" takes {} a token",
                llm.name, llm.dimensions
            ),
            "Name the LLM that it was trained for.",
        )
    }
    let entry = Entry {
        name: import.name,
        model: &model,
        recipe: json!({"imported": true, "llm": llm.name}),
        figures: json!({}),
        verdict: Verdict::Accepted,
        imported: true,
        weights: &weights,
    };
    registry::store(entry, import.replace.unwrap_or(false)).to_string()
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
fn import_described(weights: &[u8], import: &Import<'_>) -> String {
    let name = import.name;
    let description = check(weights).or_raise();
    let said = |field: &str| description.metadata.get(field).cloned();
    let model = model_by_name(import.model).or_raise();
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
    registry::store(entry, import.replace.unwrap_or(false)).to_string()
}

/// Stores the bridge that a file holds as the caller's, and returns its kind. `place` names the file in messages.
fn import(file: &mut (impl Read + Seek), place: &str, import: &Import<'_>) -> String {
    let wanted = |kind: BridgeKind| import.kind.is_none_or(|wanted| BridgeKind::parse(wanted) == Some(kind));
    match published::read(file).or_raise() {
        Found::Projector(_) if import.kind.is_none() => fail_with_hint(
            PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
            format!("{place} a projector without metadata: what it is for has to be said"),
            "Use kind => 'xrag', with the model whose vectors it takes and the llm that it was trained for.",
        ),
        Found::Projector(weights) if wanted(BridgeKind::Xrag) => import_projector(&weights, import),
        Found::Bridge(weights) if wanted(describe(&weights).or_raise().kind) => import_described(&weights, import),
        Found::Projector(_) | Found::Bridge(_) => fail_with_hint(
            PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
            format!("{place} no bridge of kind {}", import.kind.unwrap_or_default()),
            "A published projector is of kind xrag; a file of situ.export_bridge says its kind itself.",
        ),
    }
}

/// An argument that must not be NULL.
fn needed<T>(function: &str, name: &str, value: Option<T>) -> T {
    value.unwrap_or_else(|| {
        fail_full(
            PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
            format!("{name} must not be null"),
            format!("It is an argument of {function}."),
            "kind, model, llm, normalized and replace may be left out.".to_owned(),
        )
    })
}

/// `situ.import_bridge(name, weights, kind, model, llm, normalized, replace)`.
#[pg_extern(sql = false)]
fn import_bridge(
    name: Option<&str>,
    weights: Option<&[u8]>,
    kind: Option<&str>,
    model: Option<&str>,
    llm: Option<&str>,
    normalized: Option<bool>,
    replace: Option<bool>,
) -> String {
    let function = "situ.import_bridge";
    let what = Import {
        name: needed(function, "name", name),
        kind,
        model,
        llm,
        normalized,
        replace,
    };
    import(
        &mut Cursor::new(needed(function, "weights", weights)),
        "the bytes hold",
        &what,
    )
}

/// `situ.import_bridge_file(path, name, kind, model, llm, normalized, replace)`: a file of the server's.
#[pg_extern(sql = false)]
fn import_bridge_file(
    path: Option<&str>,
    name: Option<&str>,
    kind: Option<&str>,
    model: Option<&str>,
    llm: Option<&str>,
    normalized: Option<bool>,
    replace: Option<bool>,
) -> String {
    let path = needed("situ.import_bridge_file", "path", path);
    let place = resolve(&settings::model_dir(), path).or_raise();
    let stem = place.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let mut file = File::open(&place).unwrap_or_else(|error| {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_IO_ERROR,
            format!("cannot open \"{}\": {error}", place.display()),
            "Put the file below situ.model_dir, readable by the server's operating-system user.",
        )
    });
    let what = Import {
        name: name.or(stem.as_deref()).unwrap_or_default(),
        kind,
        model,
        llm,
        normalized,
        replace,
    };
    import(&mut file, &format!("\"{}\" holds", place.display()), &what)
}
