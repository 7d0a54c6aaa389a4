//! `situ.rag`: retrieval, prompt and answer in one call, with what each part cost.
//!
//! Retrieval is that of `situ.search`, as the caller: privileges and row security decide which passages get into the
//! prompt.

use super::generate::{Options, stops};
use super::prompt::{Prompt, PromptPiece};
use super::search::{nearest, positive};
use super::template;
use crate::model::Role;
use crate::pg::bridges::xrag;
use crate::pg::catalog::names::qualified;
use crate::pg::ereport::fail_with_hint;
use crate::pg::error::OrRaise;
use crate::pg::llm::target::{self, Target};
use crate::pg::search::index_search::{Found, Want, model_of};
use crate::pg::search::named::{Over, index_of};
use crate::pg::search::query::Query;
use crate::pg::service::{self, ModelRef};
use pgrx::pg_sys;
use pgrx::prelude::*;
use pgrx::{JsonB, PgSqlErrorCode};
use std::time::Instant;

/// What of the passages gets into the prompt.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Their text.
    Text,
    /// A vector in the place of a token, or a few, for each.
    Xrag,
    /// Nothing: no retrieval.
    None,
}

fn bad(message: String, hint: &str) -> ! {
    fail_with_hint(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message, hint)
}

fn mode(name: Option<&str>, bridge: Option<&str>) -> Mode {
    let mode = match name {
        None if bridge.is_some() => Mode::Xrag,
        None | Some("text") => Mode::Text,
        Some("xrag") => Mode::Xrag,
        Some("none") => Mode::None,
        Some(name) => bad(format!("mode \"{name}\" does not exist"), "Use text, xrag or none."),
    };
    if (mode == Mode::Xrag) != bridge.is_some() {
        bad(
            "mode xrag and the argument bridge belong together".to_owned(),
            "Give the name of a bridge of kind xrag: mode => 'xrag', bridge => 'name'.",
        )
    }
    mode
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

type Answers = TableIterator<
    'static,
    (
        name!(answer, String),
        name!(sources, JsonB),
        name!(prompt_tokens, i32),
        name!(answer_tokens, i32),
        name!(retrieval_ms, f64),
        name!(encoding_ms, f64),
        name!(prefill_ms, f64),
        name!(decode_ms, f64),
    ),
>;

/// The passages' texts; an entry without one cannot be put into a prompt.
fn texts(found: &[Found]) -> Vec<String> {
    let texts = found.iter().map(|row| row.text.clone());
    texts.collect::<Option<Vec<String>>>().unwrap_or_else(|| {
        bad(
            "the index has no text to put into a prompt".to_owned(),
            "Name the column with the text: body => 'column'. Its values must not be NULL.",
        )
    })
}

/// A row that was used, as JSON.
fn source(row: &Found) -> serde_json::Value {
    serde_json::json!({
        "relation": qualified(row.relation),
        "ctid": format!("({},{})", row.tid >> 16, row.tid & 0xffff),
        "key": row.key,
        "ordinal": row.place.map(|(ordinal, _)| ordinal),
        "passage": row.text,
        "distance": row.distance,
    })
}

/// What stands for the passages in a prompt, by mode.
fn documents(
    mode: Mode,
    found: &[Found],
    encoder: Option<ModelRef>,
    bridge: Option<&str>,
    llm: Option<&ModelRef>,
) -> Prompt {
    let mut prompt = Prompt::default();
    match (mode, bridge.zip(llm)) {
        (Mode::Text, _) => prompt.pieces = texts(found).into_iter().map(PromptPiece::Text).collect(),
        (Mode::Xrag, Some((bridge, llm))) => {
            let Some(encoder) = encoder else {
                bad(
                    "the index does not say which model its passages are encoded by".to_owned(),
                    "Name it in the options of the search: search => situ.query(model => 'name').",
                )
            };
            let bridge = xrag::open(bridge);
            bridge.check(&encoder, llm);
            let texts = texts(found);
            let vectors = match texts.is_empty() {
                true => Vec::new(),
                false => service::embed(&encoder, Role::Passage, &texts).or_raise(),
            };
            let tokens = vectors.iter().map(|vector| PromptPiece::Vector(bridge.token(vector)));
            prompt.pieces = tokens.collect();
            prompt.llm = Some(llm.fingerprint.clone());
        }
        _ => {}
    }
    prompt
}

/// Who answers: vectors can be read by an LLM of this server alone.
fn target_of(mode: Mode, model: Option<&str>) -> Target {
    match mode {
        Mode::Xrag => Target::Local(target::local_only(model)),
        Mode::Text | Mode::None => Target::by_name(model),
    }
}

/// The rows that a prompt is made of, with their passages or a column.
fn retrieved(index: pg_sys::Oid, search: &Query, question: &str, k: usize, body: Option<&str>) -> Vec<Found> {
    let query = search.asking(question.to_owned(), search.embedding.clone());
    let want = Want {
        key: true,
        ..body.map_or(Want::PASSAGE, Want::column)
    };
    nearest(index, &query, k, &want)
}

/// The template, or the mode's own, with question and documents in their places.
fn filled(mode: Mode, template: Option<&str>, question: &str, documents: Prompt) -> Prompt {
    let template = template.unwrap_or(match mode {
        Mode::None => template::PLAIN,
        Mode::Text | Mode::Xrag => template::WITH_DOCUMENTS,
    });
    let separator = match mode {
        Mode::Xrag => " ",
        Mode::Text | Mode::None => "\n\n",
    };
    Prompt {
        pieces: template::fill(template, question, documents.pieces, separator),
        llm: documents.llm,
    }
}

/// `situ.rag(index, query, k, mode, model, bridge, ...)`: one row.
#[pg_extern(sql = false)]
#[allow(clippy::too_many_arguments)] // the arguments of the SQL function
fn rag(
    index: Option<pg_sys::Oid>,
    query: Option<String>,
    k: Option<i64>,
    mode_name: Option<&str>,
    model: Option<&str>,
    bridge: Option<&str>,
    max_tokens: Option<i64>,
    temperature: Option<f32>,
    sample_top_k: Option<i64>,
    sample_top_p: Option<f32>,
    seed: Option<i64>,
    stop: Option<Array<'_, &str>>,
    system: Option<String>,
    template: Option<&str>,
    body: Option<&str>,
    search: Option<Query>,
) -> Answers {
    let mode = mode(mode_name, bridge);
    let index = index.map(|index| index_of(index, Over::Any, None));
    let (Some(index), Some(question)) = (index, query) else {
        return TableIterator::new(Vec::new());
    };
    let options = Options {
        max_tokens,
        temperature,
        top_k: sample_top_k,
        top_p: sample_top_p,
        seed,
        stop: stops(stop),
        system,
        chat: None,
    };
    let target = target_of(mode, model);
    let k = positive("k", k.unwrap_or(3));

    let since = Instant::now();
    let search = search.unwrap_or_default();
    let found = match mode {
        Mode::None => Vec::new(),
        Mode::Text | Mode::Xrag => retrieved(index, &search, &question, k, body),
    };
    let retrieval_ms = milliseconds(since);

    let since = Instant::now();
    let encoder = (mode == Mode::Xrag).then(|| model_of(index, &search)).flatten();
    let documents = documents(mode, &found, encoder, bridge, target.local());
    let encoding_ms = milliseconds(since);

    let prompt = filled(mode, template, &question, documents);
    let form = options.form(target.local(), &prompt);
    let (answer, figures) = target.ask(form, options.sampling()).finish();
    TableIterator::new(vec![(
        answer,
        JsonB(found.iter().map(source).collect()),
        figures.prompt_tokens as i32,
        figures.tokens as i32,
        retrieval_ms,
        encoding_ms,
        figures.prefill_ms,
        figures.decode_ms,
    )])
}
