//! `situ.tune_feedback`: the gate of an index, calibrated on judged queries or on spans of its own documents.

use super::ranking::{answers, judged};
use super::relations::{Asked, Judgements, key_column, needed, needed_index, qrels, queries, with_relevant};
use super::{draws, synthetic_queries};
use crate::bridge::feedback::gate::{Gains, KEEPS, Observation, STRENGTHS, Tried, calibrate};
use crate::bridge::feedback::rounds::last_sharpness;
use crate::bridge::feedback::{Gate, Method, Options};
use crate::eval::report::{Measure, Ranked};
use crate::model::Role;
use crate::pg::catalog::names;
use crate::pg::ereport::fail_with_hint;
use crate::pg::error::OrRaise;
use crate::pg::search::gates;
use crate::pg::search::index_search::model_of;
use crate::pg::search::query::Query;
use crate::pg::service;
use crate::random::Random;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;
use pgrx::prelude::*;
use serde_json::json;

/// Results looked at.
const DEPTH: usize = 100;
/// Least queries: fewer choose by chance.
const LEAST: usize = 20;

const MEASURES: [Measure; 4] = [
    Measure::Ndcg(10),
    Measure::AveragePrecision,
    Measure::ReciprocalRank,
    Measure::Recall(DEPTH),
];

type Tuned = TableIterator<
    'static,
    (
        name!(strength, f32),
        name!(sharp, i32),
        name!(blunt, i32),
        name!(threshold, f64),
        name!(ndcg, f64),
        name!(map, f64),
        name!(mrr, f64),
        name!(recall, f64),
        name!(ndcg_low, f64),
        name!(mrr_low, f64),
        name!(safe, bool),
        name!(chosen, bool),
    ),
>;

/// Synthetic questions of the index's documents, judged by where they come from.
fn own_spans(index: pg_sys::Oid, kind: &str, n: i64, key: &str, seed: i64) -> (Vec<Asked>, Judgements) {
    let synthetic =
        synthetic_queries::make_queries(Some(index), Some(kind), Some(n), Some(seed), Some(key), None, None);
    let (mut asked, mut judgements) = (Vec::new(), Judgements::default());
    for (id, text, document) in synthetic {
        judgements.entry(id.clone()).or_default().insert(document, 1.0);
        asked.push(Asked {
            id,
            text,
            embedding: None,
        });
    }
    (asked, judgements)
}

/// Encodes the questions that bring no vector, all at once.
fn encode(index: pg_sys::Oid, asked: &mut [Asked]) {
    let texts: Vec<String> = asked
        .iter()
        .filter(|asked| asked.embedding.is_none())
        .map(|asked| asked.text.clone())
        .collect();
    if let Some(model) = model_of(index, &Query::default()).filter(|_| !texts.is_empty()) {
        let vectors = service::embed(&model, Role::Query, &texts).or_raise();
        let missing = asked.iter_mut().filter(|asked| asked.embedding.is_none());
        missing
            .zip(vectors)
            .for_each(|(asked, vector)| asked.embedding = Some(vector));
    }
}

/// `situ.tune_feedback(index, queries, qrels, kind, n, key, seed)`.
#[pg_extern(sql = false)]
fn tune_feedback(
    index: Option<pg_sys::Oid>,
    queries_of: Option<pg_sys::Oid>,
    qrels_of: Option<pg_sys::Oid>,
    kind: Option<&str>,
    n: Option<i64>,
    key: Option<&str>,
    seed: Option<i64>,
) -> Tuned {
    let index = needed_index(index);
    names::check_owner(index);
    let key = key_column(index, key);
    let seed = seed.unwrap_or_default();
    let kind = kind.unwrap_or("span8");
    let (mut asked, judgements) = match (queries_of, qrels_of) {
        (None, None) => own_spans(index, kind, n.unwrap_or(400), &key, seed),
        _ => {
            let judgements = qrels(needed("qrels", qrels_of));
            (
                with_relevant(queries(needed("queries", queries_of)), &judgements),
                judgements,
            )
        }
    };
    if asked.len() < LEAST {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("{} judged queries are too few to calibrate by", asked.len()),
            "Give at least 20; some hundred tell more. Without queries and qrels, spans of the documents are used.",
        );
    }
    Random::new(draws(Some(seed)).seed).shuffle(&mut asked);
    encode(index, &mut asked);
    let search = Searched { index, key, judgements };
    let observations: Vec<Observation> = asked.iter().map(|asked| search.observed(asked)).collect();
    let (gate, tried) = calibrate(&observations, draws(Some(seed)));
    let source = if queries_of.is_some() { "judged" } else { kind };
    let chosen = tried.iter().find(|tried| tried.gate == gate);
    let figures = json!({
        "queries": observations.len(),
        "source": source,
        "seed": seed,
        "gains": chosen.map(|tried| json!({
            "ndcg@10": tried.gains[0], "map": tried.gains[1], "mrr": tried.gains[2], "recall@100": tried.gains[3]
        })),
    });
    gates::store(index, &gate, figures);
    let rows: Vec<_> = tried.into_iter().map(|tried| row(tried, &gate)).collect();
    TableIterator::new(rows)
}

/// A setting as a row: what it changes, and whether it was chosen.
#[allow(clippy::type_complexity)] // the columns of the SQL function
fn row(tried: Tried, gate: &Gate) -> (f32, i32, i32, f64, f64, f64, f64, f64, f64, f64, bool, bool) {
    let [ndcg, map, mrr, recall] = tried.gains;
    let [ndcg_low, mrr_low] = tried.low;
    let (sharp, blunt) = (tried.gate.sharp as i32, tried.gate.blunt as i32);
    (
        tried.gate.strength,
        sharp,
        blunt,
        tried.gate.threshold,
        ndcg,
        map,
        mrr,
        recall,
        ndcg_low,
        mrr_low,
        tried.safe,
        tried.gate == *gate,
    )
}

/// What a calibration searches in.
struct Searched {
    index: pg_sys::Oid,
    key: String,
    judgements: Judgements,
}

impl Searched {
    /// The measures of a question under options.
    fn measured(&self, asked: &Asked, options: &Query) -> Gains {
        let one = std::slice::from_ref(asked);
        let answers = answers(self.index, one, options, DEPTH, &self.key);
        let list: Ranked = judged(one, &answers, &self.judgements).swap_remove(0);
        MEASURES.map(|measure| measure.of(&list).unwrap_or_default())
    }

    /// What every setting changes for a question.
    fn observed(&self, asked: &Asked) -> Observation {
        let plain = self.measured(asked, &Query::default());
        let gains = STRENGTHS.map(|strength| {
            KEEPS.map(|keep| {
                let with = self.measured(asked, &setting(strength, keep));
                std::array::from_fn(|at| with[at] - plain[at])
            })
        });
        Observation {
            sharpness: last_sharpness(),
            gains,
        }
    }
}

/// The gated formula at a strength and a number of kept rows, whatever the stored gate says.
fn setting(strength: f32, keep: usize) -> Query {
    Query {
        feedback: Some(Options {
            method: Method::Rocchio,
            depth: Some(2),
            alpha: Some(1.0),
            beta: Some(strength),
            gamma: Some(strength),
            bottom: Some(32),
            keep: i32::try_from(keep).ok(),
            ..Options::default()
        }),
        ..Query::default()
    }
}
