//! `situ.evaluate` and its kin: an index judged on the caller's own queries.
//!
//! Queries run through `situ.search`'s own scan as the caller, so privileges and row security decide what is found,
//! and the judgements name documents by a column of the indexed table. The arithmetic is that of `crate::eval`.

mod feedback;
mod ranking;
pub mod relations;
mod runs;
mod synthetic_queries;
mod tune;

use crate::eval::bootstrap::Draws;
use crate::eval::report::{Compared, Mean, Measure, Ranked, Row, compared, mean_of, report};
use crate::pg::ereport::fail_with_hint;
use crate::pg::search::query::Query;
use crate::pg::sql::search::positive;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;
use pgrx::prelude::*;
use ranking::{Answer, answers, judged};
use relations::{Asked, Judgements, key_column, needed, needed_index, with_relevant};

/// What is asked of an index: which queries, under which judgements, how deep.
struct Task {
    index: pg_sys::Oid,
    asked: Vec<Asked>,
    judgements: Judgements,
    key: String,
    depth: usize,
}

impl Task {
    fn read(
        index: Option<pg_sys::Oid>,
        queries: Option<pg_sys::Oid>,
        qrels: Option<pg_sys::Oid>,
        key: Option<&str>,
        depth: usize,
    ) -> Task {
        let index = needed_index(index);
        let judgements = relations::qrels(needed("qrels", qrels));
        let asked = relations::queries(needed("queries", queries));
        Task {
            index,
            asked: with_relevant(asked, &judgements),
            judgements,
            key: key_column(index, key),
            depth,
        }
    }

    fn answers(&self, options: &Query) -> Vec<Answer> {
        answers(self.index, &self.asked, options, self.depth, &self.key)
    }

    fn judged(&self, answers: &[Answer]) -> Vec<Ranked> {
        judged(&self.asked, answers, &self.judgements)
    }
}

/// The depth that every measure of a report needs.
fn depth(k: Option<i64>, depth: Option<i64>) -> (usize, usize) {
    let k = positive("k", k.unwrap_or(10));
    (k, positive("depth", depth.unwrap_or(100)).max(k))
}

fn draws(seed: Option<i64>) -> Draws {
    Draws {
        seed: seed.unwrap_or_default() as u64,
        ..Draws::default()
    }
}

type Columns = (
    Option<String>,
    Option<f64>,
    Option<f64>,
    Option<f64>,
    i64,
    Option<f64>,
    Option<f64>,
    Option<f64>,
    Option<f64>,
    Option<f64>,
    Option<f64>,
    Option<f64>,
    Option<f64>,
    Option<f64>,
    Option<f64>,
    Option<f64>,
);

type Evaluation = TableIterator<
    'static,
    (
        name!(measure, Option<String>),
        name!(value, Option<f64>),
        name!(low, Option<f64>),
        name!(high, Option<f64>),
        name!(queries, i64),
        name!(compared, Option<f64>),
        name!(compared_low, Option<f64>),
        name!(compared_high, Option<f64>),
        name!(difference, Option<f64>),
        name!(difference_low, Option<f64>),
        name!(difference_high, Option<f64>),
        name!(gain, Option<f64>),
        name!(gain_low, Option<f64>),
        name!(gain_high, Option<f64>),
        name!(p, Option<f64>),
        name!(p_t, Option<f64>),
    ),
>;

fn rows(report: Vec<Row>) -> Evaluation {
    let rows = report
        .into_iter()
        .map(|row| columns(Some(row.measure.name()), row.queries, row.mean, row.compared));
    TableIterator::new(rows.collect::<Vec<_>>())
}

fn columns(name: Option<String>, queries: usize, mean: Option<Mean>, compared: Option<Compared>) -> Columns {
    let gain = compared.and_then(|second| second.gain);
    (
        name,
        mean.map(|mean| mean.value),
        mean.map(|mean| mean.interval.low),
        mean.map(|mean| mean.interval.high),
        queries as i64,
        compared.map(|second| second.mean.value),
        compared.map(|second| second.mean.interval.low),
        compared.map(|second| second.mean.interval.high),
        compared.map(|second| second.difference.value),
        compared.map(|second| second.difference.interval.low),
        compared.map(|second| second.difference.interval.high),
        gain.map(|gain| gain.value),
        gain.map(|gain| gain.interval.low),
        gain.map(|gain| gain.interval.high),
        compared.map(|second| second.randomisation),
        compared.and_then(|second| second.t_test),
    )
}

/// `situ.compare(base, other, seed)`: two runs by the values of the same queries in the same order.
#[pg_extern(sql = false)]
fn compare(base: Option<Vec<f64>>, other: Option<Vec<f64>>, seed: Option<i64>) -> Evaluation {
    let (base, other) = (needed("base", base), needed("other", other));
    if base.len() != other.len() {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_ARRAY_ELEMENT_ERROR,
            format!("{} values cannot be compared with {}", base.len(), other.len()),
            "Give the values of the same queries in the same order.",
        );
    }
    let draws = draws(seed);
    let row = columns(None, base.len(), mean_of(&base, draws), compared(&base, &other, draws));
    TableIterator::new(vec![row])
}

/// `situ.evaluate(index, queries, qrels, options, compare, k, depth, key, seed)`.
#[pg_extern(sql = false)]
#[allow(clippy::too_many_arguments)] // the arguments of the SQL function
fn evaluate(
    index: Option<pg_sys::Oid>,
    queries: Option<pg_sys::Oid>,
    qrels: Option<pg_sys::Oid>,
    query: Option<Query>,
    compare: Option<Query>,
    k: Option<i64>,
    depth_asked: Option<i64>,
    key: Option<&str>,
    seed: Option<i64>,
) -> Evaluation {
    let (k, depth) = depth(k, depth_asked);
    let task = Task::read(index, queries, qrels, key, depth);
    let run = task.judged(&task.answers(&query.unwrap_or_default()));
    let second = compare.map(|options| task.judged(&task.answers(&options)));
    rows(report(&Measure::all(k, depth), &run, second.as_deref(), draws(seed)))
}

type EachQuery = TableIterator<
    'static,
    (
        name!(query_id, String),
        name!(measure, String),
        name!(value, Option<f64>),
        name!(compared, Option<f64>),
    ),
>;

/// `situ.evaluate_queries(index, queries, qrels, query, compare, k, depth, key)`.
#[pg_extern(sql = false)]
#[allow(clippy::too_many_arguments)] // the arguments of the SQL function
fn evaluate_queries(
    index: Option<pg_sys::Oid>,
    queries: Option<pg_sys::Oid>,
    qrels: Option<pg_sys::Oid>,
    query: Option<Query>,
    compare: Option<Query>,
    k: Option<i64>,
    depth_asked: Option<i64>,
    key: Option<&str>,
) -> EachQuery {
    let (k, depth) = depth(k, depth_asked);
    let task = Task::read(index, queries, qrels, key, depth);
    let answers = task.answers(&query.unwrap_or_default());
    let compared = compare.map(|options| task.answers(&options));
    let run = task.judged(&answers);
    let second = compared.as_ref().map(|answers| task.judged(answers));
    let mut rows = Vec::new();
    for (place, asked) in task.asked.iter().enumerate() {
        let other = second.as_ref().and_then(|second| second.get(place));
        for measure in Measure::all(k, depth) {
            let value = run.get(place).and_then(|list| measure.of(list));
            let compared = other.and_then(|list| measure.of(list));
            rows.push((asked.id.clone(), measure.name(), value, compared));
        }
        let took = |answers: &[Answer]| answers.get(place).map(|answer| answer.milliseconds);
        let (value, other) = (took(&answers), compared.as_deref().and_then(took));
        rows.push((asked.id.clone(), "milliseconds".to_owned(), value, other));
    }
    TableIterator::new(rows)
}

/// `situ.evaluate_run(run, qrels, compare, k, depth, seed)`.
#[pg_extern(sql = false)]
fn evaluate_run(
    run: Option<pg_sys::Oid>,
    qrels: Option<pg_sys::Oid>,
    compare: Option<pg_sys::Oid>,
    k: Option<i64>,
    depth_asked: Option<i64>,
    seed: Option<i64>,
) -> Evaluation {
    let (k, depth) = depth(k, depth_asked);
    let judgements = relations::qrels(needed("qrels", qrels));
    // In the order of the queries' names, so that the same seed draws the same.
    let ordered: std::collections::BTreeMap<_, _> = judgements.iter().collect();
    let judged = |relation: pg_sys::Oid| -> Vec<Ranked> {
        let rankings = relations::run(relation);
        let lists = ordered.iter().map(|(query, judged)| {
            let documents = rankings.get(query.as_str()).into_iter().flatten();
            relations::judge(documents.take(depth), judged)
        });
        lists.collect()
    };
    let first = judged(needed("run", run));
    let second = compare.map(judged);
    rows(report(&Measure::all(k, depth), &first, second.as_deref(), draws(seed)))
}
