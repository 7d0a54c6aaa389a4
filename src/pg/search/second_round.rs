//! Feedback of texts at query time: who reads a query together with the passages of a first round, and the second round.
//!
//! A reader is a bridge of kind `feedback` (a trained copy of the index's encoder) or a registered model made for it, such
//! as a published ANCE-PRF. A copy is written to the server's temporary files ([`copies`]) when it is used; the registry's row
//! is what counts.

use super::index_search::{Want, model_of, search_leaf};
use super::query::Query;
use crate::bridge::feedback::{Method, Options};
use crate::bridge::text_feedback::{KIND, MOST_PASSAGES, Reading, TextFeedback};
use crate::model::Manifest;
use crate::model::feedback::Reads;
use crate::pg::bridges::copies;
use crate::pg::bridges::registry::{self, Registered};
use crate::pg::catalog::cache::{Cache, ReadOf};
use crate::pg::catalog::model_registry::model_by_name;
use crate::pg::ereport::{fail_full, fail_with_hint};
use crate::pg::error::OrRaise;
use crate::pg::service::model_ref::ModelRef;
use crate::pg::service::{Kind, Lane, ServiceError, token_features};
use crate::pg::settings;
use crate::serve::encoder::models::resolve;
use pgrx::{PgSqlErrorCode, pg_sys};

/// Passages that are read with a query where neither the query nor the reader says (the published models' k).
const PASSAGES: usize = 3;
/// Copies whose fingerprint a backend keeps.
const KEPT: usize = 16;

/// What a backend keeps of a written copy.
#[derive(Clone)]
struct Copy {
    fingerprint: String,
    reading: Reading,
}

/// Who reads, and how.
struct Reader {
    model: ModelRef,
    reading: Reading,
    /// Of a copy: its bridge and the model that it is a copy of.
    copied: Option<(Registered, ModelRef)>,
}

thread_local! {
    /// By the hash of the bridge.
    static COPIES: Cache<String, Copy> = Cache::new(KEPT);
}

/// The copy of `model` with the bridge's weights, written where it is not there yet.
fn copy(bridge: &Registered, model: &ModelRef) -> Copy {
    let known = COPIES.with(|copies| copies.get(&bridge.hash));
    let folder = copies::name_of(&bridge.hash);
    let there = copies::is_there(&folder);
    if let Some(copy) = known.filter(|_| there) {
        return copy;
    }
    let trained = TextFeedback::read(&registry::weights(&bridge.name)).or_raise();
    if !there {
        let base = resolve(&settings::model_dir(), &model.path)
            .map_err(ServiceError::from)
            .or_raise();
        copies::write(&folder, model, &base, &trained.replaced);
    }
    let copy = Copy {
        fingerprint: Manifest::read(&copies::root().join(&folder)).or_raise().fingerprint,
        reading: trained.reading,
    };
    COPIES.with(|copies| copies.keep(bridge.hash.clone(), copy.clone(), ReadOf::nothing()));
    copy
}

/// A registered model as a reader. One that was made to read says for which encoder and how many passages; any other is
/// no reader but of its own vectors, which it reads as it is, untrained: `usual` passages, or as many as `depth` says.
fn registered(name: &str, encoders: &[ModelRef], depth: Option<i32>, usual: usize) -> Reader {
    let model = model_by_name(Some(name)).or_raise();
    let directory = resolve(&settings::model_dir(), &model.path)
        .map_err(ServiceError::from)
        .or_raise();
    let reads = Reads::read(&directory).or_raise();
    let own = reads.as_ref().map_or(&model.fingerprint, |reads| &reads.encoder);
    if let Some(other) = encoders.iter().find(|encoder| encoder.fingerprint != *own) {
        fail_full(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("model \"{name}\" does not read for model \"{}\"", other.name),
            format!(
                "Its vectors are compared with those of fingerprint {own}, the index's model has {}.",
                other.fingerprint
            ),
            "Name a reader of the index's model: a bridge of kind feedback, or a registered model whose feedback.json \
             names that encoder."
                .into(),
        )
    }
    let reading = match reads {
        Some(reads) => Reading {
            passages: reads.passages,
            passage_tokens: reads.passage_tokens,
        },
        None => Reading {
            passages: depth
                .and_then(|depth| usize::try_from(depth).ok())
                .unwrap_or(usual.min(MOST_PASSAGES)),
            passage_tokens: 0,
        },
    };
    check_depth("model", name, &reading, depth);
    Reader {
        model,
        reading,
        copied: None,
    }
}

/// An error where the query asks for another number of passages than the reader was made for.
fn check_depth(what: &str, name: &str, reading: &Reading, depth: Option<i32>) {
    if let Some(depth) = depth
        && usize::try_from(depth) != Ok(reading.passages)
    {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("{what} \"{name}\" reads {} passages, not {depth}", reading.passages),
            "Leave feedback_depth out.",
        )
    }
}

/// The reader of that name; `encoders` are the models of the index, where they are known. Anything that does not fit is an
/// error.
fn reader(name: &str, encoders: &[ModelRef], depth: Option<i32>) -> Reader {
    if !registry::exists(name) {
        return registered(name, encoders, depth, PASSAGES);
    }
    let bridge = registry::find(name);
    if bridge.kind != KIND {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
            format!("bridge \"{name}\" is of kind {}, not {KIND}", bridge.kind),
            "feedback_model names a bridge that was trained with CALL situ.train('feedback', ...), or a registered model \
             that was made to read passages.",
        )
    }
    let base = model_by_name(Some(&bridge.model)).or_raise();
    registry::check_usable(&bridge, &base);
    encoders
        .iter()
        .for_each(|encoder| registry::check_trained_over(&bridge, encoder));
    let Copy { fingerprint, reading } = copy(&bridge, &base);
    check_depth("bridge", name, &reading, depth);
    Reader {
        model: ModelRef {
            name: name.to_owned(),
            root: Some(copies::root().to_string_lossy().into_owned()),
            path: copies::name_of(&bridge.hash),
            fingerprint,
            ..base.clone()
        },
        reading,
        copied: Some((bridge, base)),
    }
}

/// Whether a query asks for feedback of texts.
fn asked(query: &Query) -> Option<&Options> {
    query.feedback.as_ref().filter(|options| options.method == Method::Text)
}

fn nameless() -> ! {
    fail_with_hint(
        PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
        "feedback of texts needs a model that reads them".into(),
        "Name it: situ.query('...', feedback => 'text', feedback_model => 'name'). CALL situ.train('feedback', ...) makes one.",
    )
}

fn read(reader: &Reader, query: &str, passages: &[String]) -> Vec<f32> {
    let passages = passages
        .iter()
        .take(reader.reading.passages)
        .map(String::as_str)
        .collect();
    let asked = [(query, passages)];
    let ask = || token_features::feedback(&reader.model, Lane::Query, &asked, reader.reading.passage_tokens as u32);
    let mut vectors = ask();
    if let (Err(ServiceError::Failed(failure)), Some((bridge, base))) = (&vectors, &reader.copied)
        && failure.kind == Kind::MissingFile
    {
        // It made room for another one before the worker had read it.
        copy(bridge, base);
        vectors = ask();
    }
    vectors.or_raise().into_iter().next().unwrap_or_default()
}

/// The query of the second round over these leaf indexes: the same with the vector that the reader gives it. A query
/// that does not ask for feedback of texts is left as it is. `relation` is the table whose privileges and policies decide
/// which rows count, as in [`search_leaf`].
pub fn second_round(query: Query, leaves: &[pg_sys::Oid], relation: Option<pg_sys::Oid>) -> Query {
    let Some(options) = asked(&query) else { return query };
    let name = options.model.as_deref().unwrap_or_else(|| nameless());
    // Each leaf's own: partitions may have been indexed with different models.
    let encoders: Vec<ModelRef> = leaves.iter().filter_map(|leaf| model_of(*leaf, &query)).collect();
    let reader = reader(name, &encoders, options.depth);
    let plain = Query {
        feedback: None,
        ..query.clone()
    };
    let passages = reader.reading.passages;
    let mut found: Vec<_> = leaves
        .iter()
        .flat_map(|leaf| search_leaf(*leaf, relation, &plain, passages, &Want::PASSAGE))
        .collect();
    found.sort_by(|a, b| a.distance.total_cmp(&b.distance));
    if found.iter().any(|row| row.place.is_none()) {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            "feedback of texts needs an index over text".into(),
            "Over vectors, read the texts yourself: situ.query(embedding => situ.feedback_text('...', array_of_texts, 'name')).",
        )
    }
    let texts: Vec<String> = found.into_iter().take(passages).filter_map(|row| row.text).collect();
    if texts.is_empty() {
        return plain;
    }
    Query {
        embedding: Some(read(&reader, query.words(), &texts)),
        bridge: None,
        bridges: Vec::new(),
        ..plain
    }
}

/// What a reader makes of a query and passages, nearest first.
pub fn vector(name: &str, query: &str, passages: &[String]) -> Vec<f32> {
    let reader = match registry::exists(name) {
        true => reader(name, &[], None),
        false => registered(name, &[], None, passages.len()),
    };
    read(&reader, query, passages)
}
