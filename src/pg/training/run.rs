//! One job from its row to the stored bridge.

use super::jobs::{self, Job};
use super::material::{
    Bounds, Service, bad, beside, bounded, cut_long, each_key_once, read_pairs, relation_passages, unknown,
};
use super::monitor::{JobMonitor, transaction};
use super::stored::{Stored, index_passages};
use crate::bridge::train::acceptance::Verdict;
use crate::bridge::train::data::{Pair, Passage};
use crate::bridge::train::run::Run;
use crate::bridge::{BridgeError, BridgeKind, file};
use crate::pg::bridges::registry::{self, Entry};
use crate::pg::catalog::model_registry::model_by_name;
use crate::pg::catalog::names::name_of;
use crate::pg::catalog::names::qualified;
use crate::pg::error::OrRaise;
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

/// A relation among a job's arguments.
fn relation(job: &Job, name: &str) -> Option<pg_sys::Oid> {
    let number = job.arguments.get(name).and_then(Value::as_u64)?;
    u32::try_from(number).ok().map(pg_sys::Oid::from_u32)
}

fn read(job: &Job) -> Material {
    let text = |name: &str| job.arguments.get(name).and_then(Value::as_str);
    let options = job.arguments.get("options").cloned().unwrap_or_default();
    let index = relation(job, "index");
    let bounds = Bounds {
        memory: settings::training_memory(),
        seed: options.get("seed").and_then(Value::as_u64).unwrap_or(1),
    };
    let reads = kind_of(&job.kind).reads(&options);
    let of_index = |index| {
        let found = index_passages(index, reads.stored_vectors, bounds);
        if text("model").is_some_and(|name| name != found.model.name) {
            bad(
                format!("index \"{}\" has model \"{}\"", name_of(index), found.model.name),
                "Leave model out: a bridge of an index is trained over its model.",
            )
        }
        found
    };
    // `searched` are passages that no pair speaks of.
    let (model, passages, searched, out) = match (index, relation(job, "passages")) {
        (Some(index), None) => {
            let Stored { model, passages, out } = of_index(index);
            (model, passages, Vec::new(), out)
        }
        (None, Some(passages)) => {
            let model = model_by_name(text("model")).or_raise();
            let (passages, out) = relation_passages(passages, model.dimensions, bounds);
            (model, passages, Vec::new(), out)
        }
        (Some(index), Some(passages)) if reads.index_beside_passages => {
            let Stored {
                model,
                passages: searched,
                out: out_of_index,
            } = of_index(index);
            let (passages, out) = relation_passages(passages, model.dimensions, bounds);
            (model, passages, searched, out + out_of_index)
        }
        _ => bad(
            "one of index and passages is needed".into(),
            "index => 'a text index' or passages => 'a relation with id, document, ordinal and body'; an adapter takes both.",
        ),
    };
    let mlm = options.get("mlm").and_then(Value::as_str).map(|mlm| {
        let most = options.get("vocabulary_top").and_then(Value::as_u64).unwrap_or(64);
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        (model_by_name(Some(mlm)).or_raise(), most)
    });
    let start = options.get("start").and_then(Value::as_str).map(|name| {
        let bridge = registry::find(name);
        registry::check_owner(&bridge);
        registry::check_trained_over(&bridge, &model);
        registry::weights(name)
    });
    let mut service = Service { model, mlm, start };
    let cut = reads.chunks && relation(job, "passages").is_some();
    let mut passages = passages;
    if !reads.given_vectors {
        passages.iter_mut().for_each(|passage| passage.vector = None);
    }
    let passages = if cut {
        if relation(job, "pairs").is_some() {
            each_key_once(&passages);
        }
        let searched = unknown(searched, &passages);
        beside(cut_long(passages, &mut service), searched)
    } else {
        passages
    };
    let (passages, out_of_chunks) = bounded(passages, service.model.dimensions, bounds);
    let found = passages.len() + out + out_of_chunks;
    let chunked = index.is_some() || cut;
    let pairs = relation(job, "pairs").map(|pairs| read_pairs(pairs, &passages, chunked, &mut service, bounds));
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

/// Where the vectors of the passages come from, for the recipe.
fn vectors_of(passages: &[Passage], index: bool) -> &'static str {
    match (passages.iter().any(|passage| passage.vector.is_some()), index) {
        (true, true) => "index",
        (true, false) => "given",
        (false, _) => "encoded",
    }
}

/// Reads, trains and stores. Errors are raised.
pub fn run(id: i64) -> Outcome {
    let begun = transaction(|| jobs::begin(id));
    // In a transaction of its own, whose snapshot sees what the one before may have waited for.
    let job = begun.then(|| transaction(|| jobs::load(id, true)));
    let Some(job) = job else { return Outcome::Nothing };
    let Material {
        mut service,
        passages,
        found,
        pairs,
        pairs_found,
        index,
    } = transaction(|| {
        Spi::run_with_args(
            "SELECT pg_catalog.set_config('search_path', $1, false)",
            &[job.search_path.as_str().into()],
        )
        .unwrap_or_else(|error| pgrx::error!("{error}"));
        read(&job)
    });
    let trainer = kind_of(&job.kind).trainer();
    let options = job.arguments.get("options").cloned().unwrap_or_else(|| json!({}));
    let recipe = json!({
        "kind": job.kind, "options": options, "index": index, "pairs": pairs.as_ref().map(Vec::len),
        "passages": passages.len(), "passages_found": found, "precision": service.model.precision(),
        "vectors": vectors_of(&passages, index.is_some()),
    });
    let model = service.model.clone();
    let pairs = pairs.unwrap_or_default();
    let mut monitor = JobMonitor::new(id);
    let checkpoint = job.checkpoint.as_deref();
    let begun = Run::new(&passages, &pairs, &options, &mut service, &mut monitor, checkpoint);
    let mut trained = match trainer(begun) {
        Err(BridgeError::Stopped) if monitor.paused => return Outcome::Paused,
        Err(BridgeError::Stopped) => return Outcome::Cancelled,
        result => result.or_raise(),
    };
    if let Some(figures) = trained.figures.as_object_mut() {
        if found > passages.len() {
            figures.insert("passages_found".to_owned(), json!(found));
        }
        if pairs_found > pairs.len() {
            figures.insert("pairs_found".to_owned(), json!(pairs_found));
        }
    }
    let stamp = Map::from_iter([
        ("fingerprint".to_owned(), json!(model.fingerprint)),
        ("model".to_owned(), json!(model.name)),
        ("accepted".to_owned(), json!(trained.verdict.accepts())),
        (
            "synthetic_queries".to_owned(),
            json!(trained.verdict == Verdict::AcceptedSynthetic),
        ),
        ("recipe".to_owned(), recipe.clone()),
        ("figures".to_owned(), trained.figures.clone()),
    ]);
    let weights = file::stamp(&trained.weights, stamp).or_raise();
    let replace = job.arguments.get("replace").and_then(Value::as_bool).unwrap_or(false);
    transaction(|| {
        let entry = Entry {
            name: &job.name,
            model: &model,
            recipe,
            figures: trained.figures,
            verdict: trained.verdict,
            imported: false,
            weights: &weights,
        };
        registry::store(entry, replace);
    });
    match trained.verdict.accepts() {
        true => Outcome::Accepted,
        false => Outcome::Rejected,
    }
}
