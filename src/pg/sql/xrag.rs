//! A document as a token of an LLM: `situ.xrag_token`, `situ.xrag_prompt`, `situ.xrag_prompt_embeds`, `situ.import_xrag`, and
//! `situ.import_bridge_file` from a file of the server's.

use super::bridges::import_described;
use super::generate::Options;
use super::prompt::{Prompt, PromptPiece};
use super::template;
use crate::bridge::BridgeKind;
use crate::bridge::file::describe;
use crate::bridge::train::acceptance::Verdict;
use crate::bridge::xrag::projector::{self, Projector};
use crate::bridge::xrag::published::{self, Found};
use crate::compute::memory::room_for;
use crate::model::torch_save;
use crate::pg::bridges::registry::{self, Entry};
use crate::pg::bridges::xrag;
use crate::pg::catalog::model_registry::{llm_by_name, model_by_name};
use crate::pg::catalog::owner::as_owner;
use crate::pg::ereport::{fail, fail_with_hint};
use crate::pg::error::OrRaise;
use crate::pg::llm::{client, target};
use crate::pg::service::model_ref::ModelRef;
use crate::pg::settings;
use crate::pg::vector::{Vector, read_vector, read_vectors};
use crate::serve::encoder::models::resolve;
use pgrx::PgSqlErrorCode;
use pgrx::datum::AnyElement;
use pgrx::prelude::*;
use serde_json::{Map, json};
use std::fs::File;

/// `situ.xrag_token(embedding, bridge)`.
#[pg_extern(stable, strict, parallel_safe, sql = false)]
fn xrag_token(embedding: AnyElement, bridge: &str) -> Vector {
    // SAFETY: the function is declared with a vector here.
    let vector = unsafe { read_vector(embedding.datum()) }.or_raise();
    Vector(xrag::open(bridge).token(&vector))
}

/// What a projector is imported as.
struct Import<'a> {
    name: &'a str,
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
fn import(weights: &[u8], import: Import<'_>) -> String {
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

/// `situ.import_xrag(name, weights, model, llm, normalized, replace)`.
#[pg_extern(volatile, sql = false)]
fn import_xrag(
    name: &str,
    weights: &[u8],
    model: Option<&str>,
    llm: Option<&str>,
    normalized: Option<bool>,
    replace: Option<bool>,
) -> String {
    let what = Import {
        name,
        model,
        llm,
        normalized,
        replace,
    };
    import(weights, what)
}

/// `situ.import_bridge_file(kind, path, name, model, llm, normalized, replace)`: a file of the server's.
#[pg_extern(volatile, sql = false)]
fn import_bridge_file(
    kind: Option<&str>,
    path: Option<&str>,
    name: Option<&str>,
    model: Option<&str>,
    llm: Option<&str>,
    normalized: Option<bool>,
    replace: Option<bool>,
) -> String {
    let (Some(kind), Some(path)) = (kind, path) else {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
            "kind and path must not be null".to_owned(),
            "Use situ.import_bridge_file('xrag', 'file.safetensors').",
        )
    };
    let place = resolve(&settings::model_dir(), path).or_raise();
    let stem = place.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let name = name.map(str::to_owned).or(stem).unwrap_or_default();
    let mut file = File::open(&place).unwrap_or_else(|error| {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_IO_ERROR,
            format!("cannot open \"{}\": {error}", place.display()),
            "Put the file below situ.model_dir, readable by the server's operating-system user.",
        )
    });
    let wanted = BridgeKind::parse(kind);
    match published::read(&mut file).or_raise() {
        Found::Projector(weights) if wanted == Some(BridgeKind::Xrag) => {
            let what = Import {
                name: &name,
                model,
                llm,
                normalized,
                replace,
            };
            import(&weights, what)
        }
        Found::Bridge(weights) if wanted == Some(describe(&weights).or_raise().kind) => {
            import_described(&name, &weights, model, replace)
        }
        Found::Projector(_) | Found::Bridge(_) => fail_with_hint(
            PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
            format!("\"{}\" holds no bridge of kind {kind}", place.display()),
            "A published projector is of kind xrag; a file of situ.export_bridge says its kind itself.",
        ),
    }
}

/// `situ.xrag_prompt(question, tokens, template, bridge)`.
#[pg_extern(stable, parallel_safe, sql = false)]
fn xrag_prompt(
    question: Option<&str>,
    tokens: Option<AnyElement>,
    template: Option<&str>,
    bridge: Option<&str>,
) -> Option<Prompt> {
    let question = question?;
    // SAFETY: the function is declared with an array of vectors here.
    let vectors = tokens.map(|tokens| unsafe { read_vectors(tokens.datum()) }.or_raise());
    let vectors: Vec<PromptPiece> = vectors
        .unwrap_or_default()
        .into_iter()
        .map(PromptPiece::Vector)
        .collect();
    let template = template.unwrap_or(match vectors.is_empty() {
        true => template::PLAIN,
        false => template::WITH_DOCUMENTS,
    });
    Some(Prompt {
        pieces: template::fill(template, question, vectors, " "),
        llm: bridge.and_then(|bridge| xrag::open(bridge).llm().map(str::to_owned)),
    })
}

/// `situ.xrag_prompt_embeds(prompt, llm, system, chat)`.
#[pg_extern(volatile, sql = false)]
fn xrag_prompt_embeds(
    prompt: Option<Prompt>,
    llm: Option<&str>,
    system: Option<String>,
    chat: Option<bool>,
) -> Option<Vec<u8>> {
    let prompt = prompt?;
    let llm = target::local_only(llm);
    let options = Options {
        system,
        chat,
        ..Options::default()
    };
    let (columns, values) = client::embeds(&llm, options.form(Some(&llm), &prompt)).or_raise();
    // The numbers as bytes, and the file around them.
    room_for(values.len() * size_of::<f32>() * 3).or_raise();
    let file = torch_save::save(&values, columns as usize);
    Some(file.unwrap_or_else(|| {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            format!("the prompt's {} numbers do not fit a file", values.len()),
            "Take a shorter prompt.",
        )
    }))
}
