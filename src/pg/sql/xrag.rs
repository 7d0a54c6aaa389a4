//! A document as a token of an LLM: `situ.xrag_token`, `situ.xrag_prompt`, `situ.xrag_prompt_embeds`, `situ.import_xrag`.

use super::generate::Options;
use super::models::{llm_by_name, model_by_name};
use super::prompt::{Prompt, PromptPiece};
use super::template;
use crate::pg::bridges::{self, Entry};
use crate::pg::error::OrRaise;
use crate::pg::fail::fail_with_hint;
use crate::pg::llm::projector::{self, Projector};
use crate::pg::llm::{client, target, torch};
use crate::pg::vector::{Vector, read_vector, read_vectors};
use crate::pg::xrag;
use pgrx::PgSqlErrorCode;
use pgrx::datum::AnyElement;
use pgrx::pg_sys;
use pgrx::prelude::*;
use serde_json::{Map, json};

/// `situ.xrag_token(embedding, bridge)`.
#[pg_extern(stable, strict, parallel_safe, sql = false)]
fn xrag_token(embedding: AnyElement, bridge: &str) -> Vector {
    // SAFETY: the function is declared with a vector here.
    let vector = unsafe { read_vector(embedding.datum()) }.or_raise();
    Vector(xrag::open(bridge).token(&vector))
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
    let (model, llm) = (model_by_name(model).or_raise(), llm_by_name(llm).or_raise());
    let more = Map::from_iter([
        ("fingerprint".to_owned(), json!(model.fingerprint)),
        ("llm".to_owned(), json!(llm.fingerprint)),
        ("normalized".to_owned(), json!(normalized.unwrap_or(true))),
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
        name,
        model: &model,
        recipe: json!({"imported": true, "llm": llm.name}),
        figures: json!({}),
        accepted: true,
        weights: &weights,
    };
    // SAFETY: in a transaction. The role that calls, not the one that this function runs as.
    let caller = unsafe { pg_sys::GetOuterUserId() };
    bridges::store(entry, caller, replace.unwrap_or(false))
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
    let file = torch::save(&values, columns as usize);
    Some(file.unwrap_or_else(|| {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            format!("the prompt's {} numbers do not fit a file", values.len()),
            "Take a shorter prompt.",
        )
    }))
}
