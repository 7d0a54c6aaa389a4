//! Indexes over text: which model, how chunks are cut and situated, and the way from a document to its entries.
//!
//! An index over an empty table may name a model or a bridge that the registry does not have yet (a restored schema, whose
//! rows follow): it is undecided, and its first text asks the registry.

use super::kind::{self, Key, KeyKind};
use super::options::{self, IndexSettings};
use crate::bridge::situate::{Situate, SituateOptions};
use crate::index::{IndexError, IndexOptions, Meta, Metric};
use crate::model::Similarity;
use crate::pg::bridges::passages::{self, PassageBridge};
use crate::pg::catalog::model_registry::{RegistryError, model_by_name};
use crate::pg::ereport::{fail_full, fail_with_hint};
use crate::pg::error::{Describe, OrRaise};
use crate::pg::search::query::Query;
use crate::pg::service::model_ref::ModelRef;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;
use serde::{Deserialize, Serialize};
use std::ffi::CStr;
use std::rc::Rc;

/// What a text index keeps in its meta page beside the index's own options: inserts after the build follow it, not
/// the relation options of the day.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextRecord {
    /// Name under which the model was registered at the build.
    pub model: String,
    pub situate: SituateOptions,
    /// Whether a title column is read beside the body.
    pub title: bool,
    /// Tokens of all chunks encoded by the build.
    pub tokens: u64,
    /// Milliseconds the build spent reading and encoding.
    pub encode_milliseconds: u64,
    /// Name of the bridge that changes the passages. Records of indexes without one may end before it.
    pub bridge: Option<String>,
}

impl TextRecord {
    /// The record of a new index.
    pub fn new(model: &ModelRef, bridge: Option<&PassageBridge>, key: Key, settings: &IndexSettings) -> TextRecord {
        TextRecord {
            model: model.name.clone(),
            situate: SituateOptions {
                mode: mode(key, settings),
                chunk_tokens: settings.chunk_tokens,
                window_tokens: settings.window_tokens,
                weight: bridge.map_or(settings.situate_weight, PassageBridge::share),
            },
            title: key.title,
            tokens: 0,
            encode_milliseconds: 0,
            bridge: settings.bridge.clone(),
        }
    }

    /// Reads the record from a meta page.
    pub fn read(meta: &Meta) -> Result<TextRecord, IndexError> {
        let bytes = &meta.options.extra;
        let older = || postcard::from_bytes(&[bytes.as_slice(), &[0]].concat());
        postcard::from_bytes(bytes)
            .or_else(|_| older())
            .map_err(|_| IndexError::Corrupted {
                block: 0,
                what: "the text options cannot be read".into(),
            })
    }

    /// The bytes for a meta page.
    pub fn write(&self) -> Result<Vec<u8>, IndexError> {
        postcard::to_stdvec(self).map_err(|error| IndexError::Store(error.to_string()))
    }
}

/// How the chunks of an index are situated; an error where its options contradict each other.
pub fn mode(key: Key, settings: &IndexSettings) -> Situate {
    let bridge = settings.bridge.is_some();
    let mode = settings.situate.unwrap_or(match (bridge, key.title) {
        (true, _) => Situate::Bridge,
        (false, true) => Situate::Header,
        (false, false) => Situate::None,
    });
    if (mode == Situate::Bridge) != bridge {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            "situate = 'bridge' and the option bridge belong together".into(),
            "Use WITH (situate = 'bridge', bridge = 'name of a row of situ.bridges').",
        );
    }
    mode
}

/// How vectors of texts are compared: as the model's are, where they are the model's own.
pub fn metric(model: &ModelRef, mode: Situate) -> Metric {
    match (mode, model.similarity) {
        // The mix is not normalised: its inner product with a question is the mix of both scores.
        (Situate::Residual, _) => Metric::InnerProduct,
        // These come out with length 1.
        (Situate::Late | Situate::Bridge, _) | (_, Similarity::Cosine) => Metric::Cosine,
        (Situate::None | Situate::Header, Similarity::Dot) => Metric::InnerProduct,
    }
}

/// What a text index becomes when it is built, or decided, now.
pub struct TextPlan {
    pub options: IndexOptions,
    pub record: TextRecord,
    pub model: ModelRef,
    pub bridge: Option<Rc<PassageBridge>>,
}

/// Why there is no plan yet: what the registry lacks. Anything else that is wrong is an error.
///
/// # Safety
/// `index` is an open text index.
pub unsafe fn missing(index: pg_sys::Relation) -> Option<String> {
    // SAFETY: the caller's promise.
    let settings = unsafe { options::settings(index) };
    match model_by_name(settings.model.as_deref()) {
        Err(RegistryError::NotEncoder(name)) => RegistryError::NotEncoder(name).raise(),
        Err(error) => return Some(error.to_string()),
        Ok(_) => {}
    }
    let bridge = settings.bridge?;
    (!passages::is_known(&bridge)).then(|| format!("bridge \"{bridge}\" does not exist"))
}

/// The plan of a text index by its options and the registry of now.
///
/// # Safety
/// `index` is an open text index.
pub unsafe fn plan(index: pg_sys::Relation) -> TextPlan {
    // SAFETY: the caller's promise.
    let (key, settings) = unsafe { (kind::read_key(index), options::settings(index)) };
    let model = model_by_name(settings.model.as_deref()).or_raise();
    mode(key, &settings);
    let bridge = settings.bridge.as_deref().map(|name| passages::open(name, &model));
    let record = TextRecord::new(&model, bridge.as_deref(), key, &settings);
    let options = IndexOptions {
        dimensions: model.dimensions as u32,
        metric: metric(&model, record.situate.mode),
        element: KeyKind::Text.element(),
        lists: settings.lists,
        documents: true,
        model: Some(fingerprint(&model, bridge.as_deref())),
        extra: record.write().or_raise(),
    };
    TextPlan {
        options,
        record,
        model,
        bridge,
    }
}

/// The name of a relation, for messages.
///
/// # Safety
/// `relation` is open.
pub unsafe fn relation_name(relation: pg_sys::Relation) -> String {
    // SAFETY: the caller's promise.
    unsafe {
        CStr::from_ptr((*(*relation).rd_rel).relname.data.as_ptr())
            .to_string_lossy()
            .into_owned()
    }
}

/// What makes the vectors of an index: the model's fingerprint, and behind it the hash of the bridge's weights.
pub fn fingerprint(model: &ModelRef, bridge: Option<&PassageBridge>) -> String {
    match bridge {
        Some(bridge) => format!("{}+{}", model.fingerprint, bridge.hash),
        None => model.fingerprint.clone(),
    }
}

/// A text index that is open, with the model that it was built with.
pub struct TextIndex {
    pub record: TextRecord,
    pub model: ModelRef,
    /// What changes the passages.
    pub bridge: Option<Rc<PassageBridge>>,
    pub metric: Metric,
}

impl TextIndex {
    /// Reads the index's record and finds its model; a model that changed since the build is an error. An undecided
    /// index is taken for what it would become now.
    ///
    /// # Safety
    /// `index` is an open text index and `meta` its meta page.
    pub unsafe fn open(index: pg_sys::Relation, meta: &Meta) -> TextIndex {
        if !meta.is_decided() {
            // SAFETY: the caller's promise.
            let plan = unsafe { plan(index) };
            return TextIndex {
                record: plan.record,
                model: plan.model,
                bridge: plan.bridge,
                metric: plan.options.metric,
            };
        }
        let record = TextRecord::read(meta).or_raise();
        // SAFETY: the caller's promise.
        let settings = unsafe { super::options::settings(index) };
        let name = settings.model.as_deref().unwrap_or(&record.model);
        let model = model_by_name(Some(name)).or_raise();
        let bridge = record.bridge.as_deref().map(|name| passages::open(name, &model));
        let (built, now) = (
            meta.options.model.as_deref().unwrap_or("(none)"),
            fingerprint(&model, bridge.as_deref()),
        );
        if built.split('+').next() == Some(model.fingerprint.as_str()) && built != now {
            // SAFETY: the caller's promise.
            let relation = unsafe { relation_name(index) };
            let name = record.bridge.as_deref().unwrap_or_default();
            fail_full(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("bridge \"{name}\" is not the one that index \"{relation}\" was built with"),
                format!("The index holds vectors of {built}, the registered model and bridge are {now}."),
                format!("REINDEX INDEX {relation}; or import the bridge of the build again."),
            );
        }
        if built != now {
            // SAFETY: as above.
            let relation = unsafe { relation_name(index) };
            fail_full(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("model \"{name}\" is not the one that index \"{relation}\" was built with"),
                format!(
                    "The index holds vectors of model fingerprint {}, the registered model has {}.",
                    meta.options.model.as_deref().unwrap_or("(none)"),
                    model.fingerprint
                ),
                format!("REINDEX INDEX {relation}; or register the model of the build again."),
            );
        }
        TextIndex {
            record,
            model,
            bridge,
            metric: meta.options.metric,
        }
    }

    /// The vector of a question: the one it carries, or its text encoded by the index's model; changed by its bridge.
    pub fn embed_query(&self, query: &Query) -> Vec<f32> {
        query.vector(&self.model)
    }
}
