//! A document as a token of an LLM: `situ.xrag_token`, `situ.xrag_prompt`, `situ.xrag_prompt_embeds`.

use super::generate::Options;
use super::prompt::{Prompt, PromptPiece};
use super::template;
use crate::compute::memory::room_for;
use crate::model::torch_save;
use crate::pg::bridges::xrag;
use crate::pg::ereport::fail_with_hint;
use crate::pg::error::OrRaise;
use crate::pg::llm::{client, target};
use crate::pg::vector::{Vector, read_vector, read_vectors};
use pgrx::PgSqlErrorCode;
use pgrx::datum::AnyElement;
use pgrx::prelude::*;

/// `situ.xrag_token(embedding, bridge)`.
#[pg_extern(sql = false)]
fn xrag_token(embedding: AnyElement, bridge: &str) -> Vector {
    // SAFETY: the function is declared with a vector here.
    let vector = unsafe { read_vector(embedding.datum()) }.or_raise();
    Vector(xrag::open(bridge).token(&vector))
}

/// `situ.xrag_prompt(query, tokens, template, bridge)`.
#[pg_extern(sql = false)]
fn xrag_prompt(
    query: Option<&str>,
    tokens: Option<AnyElement>,
    template: Option<&str>,
    bridge: Option<&str>,
) -> Option<Prompt> {
    let query = query?;
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
        pieces: template::fill(template, query, vectors, " "),
        llm: bridge.and_then(|bridge| xrag::open(bridge).llm().map(str::to_owned)),
    })
}

/// `situ.xrag_prompt_embeds(prompt, llm, system, chat)`.
#[pg_extern(sql = false)]
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
