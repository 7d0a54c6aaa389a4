//! One job from its row to the stored bridge.

use super::jobs::{self, Job};
use super::material::{bad, each_key_once, read_pairs, relation_passages};
use super::monitor::{JobMonitor, transaction};
use super::service::{Service, cut_long};
use super::stored::{Stored, index_passages};
use crate::bridge::kind::Reads;
use crate::bridge::train::acceptance::Verdict;
use crate::bridge::train::data::{Pair, Passage, Trained};
use crate::bridge::train::passages::{beside, unknown};
use crate::bridge::train::run::Run;
use crate::bridge::train::sample::{Bounds, sampled};
use crate::bridge::{BridgeError, BridgeKind, file};
use crate::pg::bridges::registry::{self, Entry};
use crate::pg::catalog::model_registry::model_by_name;
use crate::pg::catalog::names::{name_of, qualified};
use crate::pg::error::OrRaise;
use crate::pg::service::model_ref::ModelRef;
use crate::pg::settings;
use pgrx::pg_sys;
use pgrx::prelude::*;
use serde_json::{Map, Value, json};

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Accepted,
    Rejected,
    Cancelled,
    /// The job says so already, and holds a checkpoint.
    Paused,
    /// It was over before.
    Nothing,
}

/// The kind of that name; an error where there is none.
pub fn kind_of(name: &str) -> BridgeKind {
    BridgeKind::parse(name).unwrap_or_else(|| {
        bad(
            format!("there is no training of kind \"{name}\""),
            &format!("Use {}.", BridgeKind::names()),
        )
    })
}

/// What was read for a training.
struct Material {
    service: Service,
    passages: Vec<Passage>,
    /// Passages before some were left out for memory.
    found: usize,
    pairs: Option<Vec<Pair>>,
    /// Pairs before some were left out for memory.
    pairs_found: usize,
    index: Option<String>,
}

/// What a job asks for.
struct Asked<'a> {
    job: &'a Job,
    options: Value,
    reads: Reads,
    bounds: Bounds,
}

/// Passages as they were read.
struct Source {
    model: ModelRef,
    passages: Vec<Passage>,
    /// Passages that no pair speaks of.
    searched: Vec<Passage>,
    /// How many were left out for memory.
    out: usize,
}

impl<'a> Asked<'a> {
    fn of(job: &'a Job) -> Asked<'a> {
        let options = job.arguments.get("options").cloned().unwrap_or_else(|| json!({}));
        Asked {
            job,
            reads: kind_of(&job.kind).reads(&options),
            bounds: Bounds {
                memory: settings::training_memory(),
                seed: options.get("seed").and_then(Value::as_u64).unwrap_or(1),
            },
            options,
        }
    }

    /// A relation among the arguments.
    fn relation(&self, name: &str) -> Option<pg_sys::Oid> {
        let number = self.job.arguments.get(name).and_then(Value::as_u64)?;
        u32::try_from(number).ok().map(pg_sys::Oid::from_u32)
    }

    /// The model that is named.
    fn model(&self) -> Option<&str> {
        self.job.arguments.get("model").and_then(Value::as_str)
    }

    fn option(&self, name: &str) -> Option<&str> {
        self.options.get(name).and_then(Value::as_str)
    }

    fn of_index(&self, index: pg_sys::Oid) -> Stored {
        let found = index_passages(index, self.reads.stored_vectors, self.bounds);
        if self.model().is_some_and(|name| name != found.model.name) {
            bad(
                format!("index \"{}\" has model \"{}\"", name_of(index), found.model.name),
                "Leave model out: a bridge of an index is trained over its model.",
            )
        }
        found
    }

    /// Reads the passages of an index, of a relation, or of both.
    fn source(&self) -> Source {
        match (self.relation("index"), self.relation("passages")) {
            (Some(index), None) => {
                let Stored { model, passages, out } = self.of_index(index);
                Source {
                    model,
                    passages,
                    searched: Vec::new(),
                    out,
                }
            }
            (None, Some(passages)) => {
                let model = model_by_name(self.model()).or_raise();
                let (passages, out) = relation_passages(passages, model.dimensions, self.bounds);
                Source {
                    model,
                    passages,
                    searched: Vec::new(),
                    out,
                }
            }
            (Some(index), Some(passages)) if self.reads.index_beside_passages => {
                let of_index = self.of_index(index);
                let (passages, out) = relation_passages(passages, of_index.model.dimensions, self.bounds);
                Source {
                    model: of_index.model,
                    passages,
                    searched: of_index.passages,
                    out: out + of_index.out,
                }
            }
            _ => bad(
                "one of index and passages is needed".into(),
                "index => 'a text index' or passages => 'a relation with id, document, ordinal and body'; an adapter takes both.",
            ),
        }
    }

    /// The encoder service, with the masked language model and the first bridge that the options name.
    fn service(&self, model: ModelRef) -> Service {
        let mlm = self.option("mlm").map(|mlm| {
            let most = self.options.get("vocabulary_top").and_then(Value::as_u64).unwrap_or(64);
            let most = u32::try_from(most).unwrap_or(u32::MAX);
            (model_by_name(Some(mlm)).or_raise(), most)
        });
        let start = self.option("start").map(|name| {
            let bridge = registry::find(name);
            registry::check_owner(&bridge);
            registry::check_trained_over(&bridge, &model);
            registry::weights(name)
        });
        Service { model, mlm, start }
    }

    /// Whether passages of a relation are cut in chunks.
    fn cuts(&self) -> bool {
        self.reads.chunks && self.relation("passages").is_some()
    }

    /// The passages as the kind's trainer wants them.
    fn prepared(&self, mut passages: Vec<Passage>, searched: Vec<Passage>, service: &mut Service) -> Vec<Passage> {
        if !self.reads.given_vectors {
            passages.iter_mut().for_each(|passage| passage.vector = None);
        }
        if !self.cuts() {
            return passages;
        }
        if self.relation("pairs").is_some() {
            each_key_once(&passages);
        }
        let searched = unknown(searched, &passages);
        beside(cut_long(passages, service), searched)
    }

    fn read(&self) -> Material {
        let Source {
            model,
            passages,
            searched,
            out,
        } = self.source();
        let mut service = self.service(model);
        let passages = self.prepared(passages, searched, &mut service);
        let (passages, out_of_chunks) = sampled(passages, service.model.dimensions, self.bounds);
        let found = passages.len() + out + out_of_chunks;
        let index = self.relation("index");
        let chunked = index.is_some() || self.cuts();
        let pairs = self.relation("pairs");
        let pairs = pairs.map(|pairs| read_pairs(pairs, &passages, chunked, &mut service, self.bounds));
        let (pairs, pairs_out) = pairs.unzip();
        let pairs_found = pairs.as_ref().map_or(0, Vec::len) + pairs_out.unwrap_or(0);
        if pairs.as_ref().is_some_and(Vec::is_empty) {
            Err(BridgeError::TooLittle("no pair has a passage that can be read".into())).or_raise()
        }
        Material {
            service,
            passages,
            found,
            pairs,
            pairs_found,
            index: index.map(qualified),
        }
    }
}

impl Material {
    /// Where the vectors of the passages come from, for the recipe.
    fn vectors(&self) -> &'static str {
        let given = self.passages.iter().any(|passage| passage.vector.is_some());
        match (given, self.index.is_some()) {
            (true, true) => "index",
            (true, false) => "given",
            (false, _) => "encoded",
        }
    }

    fn recipe(&self, kind: BridgeKind, options: &Value) -> Value {
        json!({
            "kind": kind.name(), "options": options, "index": self.index, "pairs": self.pairs.as_ref().map(Vec::len),
            "passages": self.passages.len(), "passages_found": self.found, "precision": self.service.model.precision(),
            "vectors": self.vectors(),
        })
    }

    /// Says in the figures what was left out for memory.
    fn count(&self, figures: &mut Value) {
        let Some(figures) = figures.as_object_mut() else { return };
        if self.found > self.passages.len() {
            figures.insert("passages_found".to_owned(), json!(self.found));
        }
        if self.pairs_found > self.pairs.as_ref().map_or(0, Vec::len) {
            figures.insert("pairs_found".to_owned(), json!(self.pairs_found));
        }
    }
}

/// Reads, trains and stores. Errors are raised.
pub fn run(id: i64) -> Outcome {
    let begun = transaction(|| jobs::begin(id));
    // In a transaction of its own, whose snapshot sees what the one before may have waited for.
    let job = begun.then(|| transaction(|| jobs::load(id, true)));
    let Some(job) = job else { return Outcome::Nothing };
    let (mut material, options) = transaction(|| {
        Spi::run_with_args(
            "SELECT pg_catalog.set_config('search_path', $1, false)",
            &[job.search_path.as_str().into()],
        )
        .unwrap_or_else(|error| pgrx::error!("{error}"));
        let asked = Asked::of(&job);
        (asked.read(), asked.options)
    });
    let kind = kind_of(&job.kind);
    let recipe = material.recipe(kind, &options);
    let mut monitor = JobMonitor::new(id);
    let Material {
        service,
        passages,
        pairs,
        ..
    } = &mut material;
    let pairs = pairs.as_deref().unwrap_or_default();
    let training = Run::new(
        passages,
        pairs,
        &options,
        service,
        &mut monitor,
        job.checkpoint.as_deref(),
    );
    let mut trained = match kind.trainer()(training) {
        Err(BridgeError::Stopped) if monitor.paused => return Outcome::Paused,
        Err(BridgeError::Stopped) => return Outcome::Cancelled,
        result => result.or_raise(),
    };
    material.count(&mut trained.figures);
    store(&job, &material.service.model, recipe, trained)
}

/// Stores what was trained, with what it says of itself in its file.
fn store(job: &Job, model: &ModelRef, recipe: Value, trained: Trained) -> Outcome {
    let Trained {
        weights,
        figures,
        verdict,
    } = trained;
    let stamp = Map::from_iter([
        ("fingerprint".to_owned(), json!(model.fingerprint)),
        ("model".to_owned(), json!(model.name)),
        ("accepted".to_owned(), json!(verdict.accepts())),
        (
            "synthetic_queries".to_owned(),
            json!(verdict == Verdict::AcceptedSynthetic),
        ),
        ("recipe".to_owned(), recipe.clone()),
        ("figures".to_owned(), figures.clone()),
    ]);
    let weights = file::stamp(&weights, stamp).or_raise();
    let replace = job.arguments.get("replace").and_then(Value::as_bool).unwrap_or(false);
    transaction(|| {
        let entry = Entry {
            name: &job.name,
            model,
            recipe,
            figures,
            verdict,
            imported: false,
            weights: &weights,
        };
        registry::store(entry, replace);
    });
    match verdict.accepts() {
        true => Outcome::Accepted,
        false => Outcome::Rejected,
    }
}
