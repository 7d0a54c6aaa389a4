//! Texts to vectors, documents to passages: `situ.embed`, `situ.embed_batch`, `situ.chunks`, `situ.situate`,
//! `situ.situate_chunks`.

use crate::bridge::situate::{Situate, SituateOptions};
use crate::compute::memory;
use crate::model::Role;
use crate::pg::am::kind::read_text;
use crate::pg::bridges::passages::{self, PassageBridge};
use crate::pg::catalog::model_registry::model_by_name;
use crate::pg::ereport::fail_with_hint;
use crate::pg::error::OrRaise;
use crate::pg::raw::{argument, function, kept, null};
use crate::pg::service::model_ref::Forms;
use crate::pg::service::{self, Lane, ModelRef, SituatedPassage};
use crate::pg::vector::{Vector, VectorArray, write_vector};
use crate::text::Span;
use pgrx::prelude::*;
use sha2::Digest;
use std::collections::VecDeque;
use std::rc::Rc;

/// Largest `chunk_tokens`.
const MOST_CHUNK_TOKENS: i64 = 8192;

fn bad(message: String, hint: &str) -> ! {
    fail_with_hint(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message, hint)
}

/// What a text is to the model; `None` for the model's one form.
fn role(name: Option<&str>) -> Option<Role> {
    Some(match name? {
        "plain" => Role::Plain,
        "query" => Role::Query,
        "passage" => Role::Passage,
        name => bad(
            format!("role \"{name}\" does not exist"),
            "Use query, passage or plain.",
        ),
    })
}

/// The role that was named, or the model's one form; an error where the model has different ones for queries and passages.
fn role_by(model: &ModelRef, named: Option<Role>) -> Role {
    match (named, model.forms) {
        (Some(role), _) => role,
        (None, Forms::Plain) => Role::Plain,
        (None, Forms::Same) => Role::Passage,
        (None, Forms::Different) => bad(
            format!("model \"{}\" has different forms for queries and passages", model.name),
            "Say what the text is: role => 'query', or role => 'passage'; 'plain' takes neither form.",
        ),
    }
}

fn chunk_tokens(value: Option<i64>) -> u32 {
    match value.unwrap_or(128) {
        tokens @ 1..=MOST_CHUNK_TOKENS => tokens as u32,
        tokens => bad(
            format!("chunk_tokens = {tokens} is out of range"),
            "It may be 1 to 8192; 128 is the default.",
        ),
    }
}

fn situate_mode(name: Option<&str>, title: Option<&str>) -> Situate {
    match name {
        None if title.is_some() => Situate::Header,
        None | Some("none") => Situate::None,
        Some("header") => Situate::Header,
        Some("late") => Situate::Late,
        Some("residual") => Situate::Residual,
        Some("bridge") => Situate::Bridge,
        Some(name) => bad(
            format!("mode \"{name}\" does not exist"),
            "Use none, header, late, residual or bridge.",
        ),
    }
}

/// Vectors that one expression of a statement keeps.
const KEPT: usize = 8;

/// The vectors that a call of `situ.embed` gave last: a constant question in ORDER BY or WHERE is asked for once a row.
#[derive(Default)]
struct Embedded(VecDeque<([u8; 32], Vec<f32>)>);

impl Embedded {
    fn vector(&mut self, model: &ModelRef, role: Role, text: String) -> Option<Vec<f32>> {
        let mut digest = sha2::Sha256::new();
        for part in [&model.fingerprint, model.precision().name(), &format!("{role:?}")] {
            digest.update(part.as_bytes());
            digest.update([0]);
        }
        digest.update(text.as_bytes());
        let key: [u8; 32] = digest.finalize().into();
        if let Some((_, vector)) = self.0.iter().find(|(known, _)| *known == key) {
            return Some(vector.clone());
        }
        let vector = service::embed(model, role, &[text]).or_raise().into_iter().next()?;
        if self.0.len() >= KEPT {
            self.0.pop_front();
        }
        self.0.push_back((key, vector.clone()));
        Some(vector)
    }
}

function! {
    /// `situ.embed(text, model, role)`.
    situ_embed, pg_finfo_situ_embed, embed_text
}

unsafe fn embed_text(call: pgrx::pg_sys::FunctionCallInfo) -> pgrx::pg_sys::Datum {
    // SAFETY: a call in progress with three texts.
    unsafe {
        let [text, model, role_name] = [0, 1, 2].map(|at| argument(call, at).map(|text| read_text(text)));
        let role = role(role_name.as_deref());
        let Some(text) = text else { return null(call) };
        let model = model_by_name(model.as_deref()).or_raise();
        let role = role_by(&model, role);
        let mut own = Embedded::default();
        let embedded = kept::<Embedded>(call).unwrap_or(&mut own);
        match embedded.vector(&model, role, text) {
            Some(vector) => write_vector(&vector).or_raise(),
            None => null(call),
        }
    }
}

/// `situ.embed_batch(texts, model, role)`.
#[pg_extern(sql = false)]
fn embed_texts(texts: Option<Array<'_, &str>>, model: Option<&str>, role_name: Option<&str>) -> Option<VectorArray> {
    let role = role(role_name);
    let given = texts?;
    let texts: Vec<Option<&str>> = given.iter().collect();
    let present = || texts.iter().flatten();
    memory::room_for(present().map(|text| text.len()).sum()).or_raise();
    let present: Vec<String> = present().map(|text| (*text).to_owned()).collect();
    if present.is_empty() {
        return Some(VectorArray(texts.iter().map(|_| None).collect()));
    }
    let model = model_by_name(model).or_raise();
    let role = role_by(&model, role);
    let mut vectors = service::embed(&model, role, &present).or_raise().into_iter();
    let placed = texts.iter().map(|text| text.and_then(|_| vectors.next()));
    Some(VectorArray(placed.collect()))
}

/// The piece of the body that a passage covers.
fn passage_text(body: &str, passage: &SituatedPassage) -> String {
    passage.span.of(body).unwrap_or_default().to_owned()
}

/// Where counting the characters of a body has come to: passages lie one after another, so each byte is counted once.
#[derive(Default)]
struct Place {
    byte: usize,
    character: i32,
}

impl Place {
    /// Goes to a byte, back to the beginning where it lies before the last one.
    fn go(&mut self, body: &str, byte: u32) -> i32 {
        let byte = byte as usize;
        if byte < self.byte {
            *self = Place::default();
        }
        let between = body.get(self.byte..byte).unwrap_or_default();
        self.character += between.chars().count() as i32;
        self.byte = byte;
        self.character
    }

    /// First character of a span of the body, and the one behind its last.
    fn characters(&mut self, body: &str, span: Span) -> [i32; 2] {
        [self.go(body, span.start), self.go(body, span.end)]
    }
}

type Chunks = TableIterator<
    'static,
    (
        name!(ordinal, i32),
        name!(start_byte, i32),
        name!(end_byte, i32),
        name!(start_char, i32),
        name!(end_char, i32),
        name!(passage, String),
        name!(tokens, i32),
    ),
>;

/// `situ.chunks(body, model, chunk_tokens)`.
#[pg_extern(sql = false)]
fn chunks(body: Option<&str>, model: Option<&str>, tokens: Option<i64>) -> Chunks {
    let tokens = chunk_tokens(tokens);
    let Some(body) = body else {
        return TableIterator::new(Vec::new());
    };
    let model = model_by_name(model).or_raise();
    let passages = service::chunk_document(&model, Lane::Query, body, tokens).or_raise();
    let mut last = Place::default();
    let rows = passages.iter().map(|passage| {
        let (bytes, ordinal) = (passage.span, passage.ordinal as i32);
        let [from, to] = last.characters(body, bytes);
        let text = passage_text(body, passage);
        let tokens = passage.tokens as i32;
        (ordinal, bytes.start as i32, bytes.end as i32, from, to, text, tokens)
    });
    TableIterator::new(rows.collect::<Vec<_>>())
}

type Passages = TableIterator<
    'static,
    (
        name!(ordinal, i32),
        name!(start_byte, i32),
        name!(end_byte, i32),
        name!(start_char, i32),
        name!(end_char, i32),
        name!(passage, String),
        name!(tokens, i32),
        name!(embedding, Vector),
    ),
>;

/// `situ.situate(body, model, title, mode, chunk_tokens, window_tokens, weight, bridge)`.
#[pg_extern(sql = false)]
#[allow(clippy::too_many_arguments)] // one for each argument of the function
fn situate(
    body: Option<&str>,
    model: Option<&str>,
    title: Option<&str>,
    mode: Option<&str>,
    tokens: Option<i64>,
    window_tokens: Option<i64>,
    weight: Option<f32>,
    bridge: Option<&str>,
) -> Passages {
    let window = window_tokens.unwrap_or(0);
    let Ok(window) = u32::try_from(window) else {
        bad(
            format!("window_tokens = {window} is out of range"),
            "It may be 0, which is for the model's limit, to 4294967295.",
        )
    };
    let Some(body) = body else {
        return TableIterator::new(Vec::new());
    };
    let model = model_by_name(model).or_raise();
    let (options, bridge) = situate_options(&model, title, mode, weight, bridge);
    let options = SituateOptions {
        chunk_tokens: chunk_tokens(tokens),
        window_tokens: window,
        ..options
    };
    let mut passages = service::situate_document(&model, Lane::Bulk, title, body, &options).or_raise();
    if let Some(bridge) = bridge {
        bridge.apply(&mut passages);
    }
    let body = memory::text(body).or_raise();
    let mut last = Place::default();
    TableIterator::new(passages.into_iter().map(move |passage| {
        let bytes = passage.span;
        let [from, to] = last.characters(&body, bytes);
        let text = passage_text(&body, &passage);
        let (ordinal, tokens) = (passage.ordinal as i32, passage.tokens as i32);
        let vector = Vector(passage.vector);
        (
            ordinal,
            bytes.start as i32,
            bytes.end as i32,
            from,
            to,
            text,
            tokens,
            vector,
        )
    }))
}

/// Mode, weight and bridge of a call; chunks and windows as they are by default.
fn situate_options(
    model: &ModelRef,
    title: Option<&str>,
    mode: Option<&str>,
    weight: Option<f32>,
    bridge: Option<&str>,
) -> (SituateOptions, Option<Rc<PassageBridge>>) {
    if weight.is_some_and(|weight| !(0.0..=1.0).contains(&weight)) {
        bad(
            format!("weight = {} is out of range", weight.unwrap_or_default()),
            "It may be 0 to 1; NULL means the mode's own.",
        );
    }
    let mode = match (mode, bridge) {
        (None, Some(_)) => Situate::Bridge,
        (name, _) => situate_mode(name, title),
    };
    if (mode == Situate::Bridge) != bridge.is_some() {
        bad(
            "mode bridge and the argument bridge belong together".to_owned(),
            "Give the name of a bridge: mode => 'bridge', bridge => 'name'.",
        );
    }
    let bridge = bridge.map(|name| passages::open(name, model));
    let weight = match &bridge {
        Some(bridge) => bridge.share(),
        None => weight.unwrap_or(-1.0),
    };
    let options = SituateOptions {
        mode,
        chunk_tokens: chunk_tokens(None),
        window_tokens: 0,
        weight,
    };
    (options, bridge)
}

/// `situ.situate_chunks(chunks, model, title, mode, weight, bridge)`: the chunks of one document, in order.
#[pg_extern(sql = false)]
fn situate_chunks(
    chunks: Option<Array<'_, &str>>,
    model: Option<&str>,
    title: Option<&str>,
    mode: Option<&str>,
    weight: Option<f32>,
    bridge: Option<&str>,
) -> Option<VectorArray> {
    let chunks: Vec<Option<String>> = chunks?.iter().map(|text| text.map(str::to_owned)).collect();
    let present = chunks.iter().flatten().filter(|text| !text.trim().is_empty());
    let present: Vec<&str> = present.map(String::as_str).collect();
    let mut vectors = Vec::new();
    if !present.is_empty() {
        let model = model_by_name(model).or_raise();
        let (options, bridge) = situate_options(&model, title, mode, weight, bridge);
        let mut passages = service::situate_chunks(&model, title, &present, &options).or_raise();
        if let Some(bridge) = bridge {
            bridge.apply(&mut passages);
        }
        vectors = passages.into_iter().map(|passage| passage.vector).collect();
    }
    let mut vectors = vectors.into_iter();
    let mut place = |text: &Option<String>| match text {
        Some(text) if !text.trim().is_empty() => vectors.next(),
        _ => None,
    };
    Some(VectorArray(chunks.iter().map(&mut place).collect()))
}
