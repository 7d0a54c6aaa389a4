//! `situ.tune`: which options of `situ.query` serve an index best, chosen on one half of the judged queries, confirmed
//! on the other, and stored as a profile.
//!
//! Without candidates of the caller's own, every accepted bridge that fits the index is tried alone, then feedback
//! alone and with the best bridge. What wins on the first half is stored only where it also beats plain search on the
//! second: otherwise the profile is plain search.

use super::ranking::{answers, judged};
use super::relations::{Asked, key_column, needed, qrels, queries, with_relevant};
use super::{Judgements, draws};
use crate::eval::random::Random;
use crate::eval::report::{Compared, Measure, compared, values};
use crate::pg::fail::{fail, fail_with_hint};
use crate::pg::sql::profiles;
use crate::pg::sql::query::Query;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;
use pgrx::prelude::*;
use serde_json::json;

/// Least queries in each half: fewer choose by chance.
const LEAST: usize = 5;

/// The queries that a profile is chosen and confirmed on.
struct Tuning {
    index: pg_sys::Oid,
    key: String,
    measure: Measure,
    depth: usize,
    judgements: Judgements,
    choosing: Vec<Asked>,
    confirming: Vec<Asked>,
}

impl Tuning {
    fn values(&self, half: &[Asked], options: &Query) -> Vec<f64> {
        let answers = answers(self.index, half, options, self.depth, &self.key);
        values(self.measure, &judged(half, &answers, &self.judgements))
    }
}

/// A candidate with its mean on the choosing half.
struct Tried {
    options: Query,
    value: f64,
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The best of `tried`; of equals the one that was tried first, which is the simpler.
fn best(tried: &[Tried]) -> usize {
    let mut best = 0;
    for (place, candidate) in tried.iter().enumerate() {
        if tried.get(best).is_some_and(|best| candidate.value > best.value) {
            best = place;
        }
    }
    best
}

fn options_json(options: &Query) -> String {
    // Serialising strings and numbers into memory does not fail.
    serde_json::to_string(options).unwrap_or_default()
}

type Tuned = TableIterator<
    'static,
    (
        name!(options, Option<pgrx::JsonB>),
        name!(value, f64),
        name!(chosen, bool),
        name!(confirmed, Option<bool>),
        name!(held_out, Option<f64>),
        name!(held_out_plain, Option<f64>),
        name!(difference, Option<f64>),
        name!(difference_low, Option<f64>),
        name!(difference_high, Option<f64>),
        name!(p, Option<f64>),
    ),
>;

/// `situ.tune(index, queries, qrels, name, measure, candidates, depth, key, seed)`.
#[pg_extern(sql = false)]
#[allow(clippy::too_many_arguments)] // the arguments of the SQL function
fn tune(
    index: Option<pg_sys::Oid>,
    queries_of: Option<pg_sys::Oid>,
    qrels_of: Option<pg_sys::Oid>,
    name: Option<&str>,
    measure: Option<&str>,
    candidates: Option<Vec<Option<Query>>>,
    depth: Option<i32>,
    key: Option<&str>,
    seed: Option<i64>,
) -> Tuned {
    let index = needed("index", index);
    let name = name.unwrap_or("best");
    if name.is_empty() {
        fail(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            "the name of a profile is empty".into(),
        );
    }
    profiles::check_owner(index);
    let measure_name = measure.unwrap_or("ndcg@10");
    let Some(measure) = Measure::from_name(measure_name) else {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("measure \"{measure_name}\" does not exist"),
            "Use ndcg@10, map, mrr, recall@10 or another number behind the @.",
        )
    };
    let judgements = qrels(needed("qrels", qrels_of));
    let mut choosing = with_relevant(queries(needed("queries", queries_of)), &judgements);
    let draws = draws(seed);
    Random::new(draws.seed).shuffle(&mut choosing);
    let confirming = choosing.split_off(choosing.len().div_ceil(2));
    if confirming.len() < LEAST {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!(
                "{} judged queries are too few to choose by",
                choosing.len() + confirming.len()
            ),
            "Give at least ten; some hundred tell more. situ.make_queries makes them from the corpus.",
        );
    }
    let depth = super::positive("depth", depth.unwrap_or(100)).max(measure.cut().unwrap_or(1));
    let key = key_column(index, key);
    let tuning = Tuning {
        index,
        key,
        measure,
        depth,
        judgements,
        choosing,
        confirming,
    };

    let try_one = |options: Query| {
        let value = mean(&tuning.values(&tuning.choosing, &options));
        Tried { options, value }
    };
    let mut tried = vec![try_one(Query::default())];
    match candidates {
        Some(given) => tried.extend(given.into_iter().flatten().map(try_one)),
        None => {
            tried.extend(candidates::bridges(index).into_iter().map(try_one));
            let bridge = tried
                .get(best(&tried))
                .map(|best| best.options.clone())
                .unwrap_or_default();
            let mut starts = vec![Query::default()];
            if bridge != Query::default() {
                starts.push(bridge);
            }
            for start in starts {
                tried.extend(candidates::feedback(&start).into_iter().map(try_one));
            }
        }
    }
    let chosen = best(&tried);
    let plain = tuning.values(&tuning.confirming, &Query::default());
    let options = tried.get(chosen).map(|best| best.options.clone()).unwrap_or_default();
    let other = tuning.values(&tuning.confirming, &options);
    let found = compared(&plain, &other, draws);
    let confirmed = chosen != 0 && found.is_some_and(|found| found.difference.value > 0.0);
    let kept = if confirmed { options } else { Query::default() };
    let figures = json!({
        "queries": [tuning.choosing.len(), tuning.confirming.len()],
        "seed": seed.unwrap_or_default(),
        "confirmed": confirmed,
        "plain": mean(&plain),
        "best": mean(&other),
        "difference": found.map(|found| [found.difference.interval.low, found.difference.value, found.difference.interval.high]),
        "p": found.map(|found| found.randomisation),
    });
    profiles::store(index, name, &options_json(&kept), measure_name, &figures);
    rows(tried, chosen, confirmed, mean(&plain), found)
}

fn rows(tried: Vec<Tried>, chosen: usize, confirmed: bool, plain: f64, found: Option<Compared>) -> Tuned {
    let rows = tried.into_iter().enumerate().map(|(place, candidate)| {
        let found = found.filter(|_| place == chosen);
        (
            serde_json::to_value(&candidate.options).ok().map(pgrx::JsonB),
            candidate.value,
            place == chosen,
            found.map(|_| confirmed || place == 0),
            found.map(|found| found.mean.value),
            found.map(|_| plain),
            found.map(|found| found.difference.value),
            found.map(|found| found.difference.interval.low),
            found.map(|found| found.difference.interval.high),
            found.map(|found| found.randomisation),
        )
    });
    TableIterator::new(rows.collect::<Vec<_>>())
}

/// What is tried where the caller names nothing.
mod candidates {
    use super::*;
    use crate::bridge::feedback::{Method, Options};
    use crate::bridge::text_feedback;
    use crate::pg::sql::leaf::model_of;
    use pgrx::spi::SpiError;

    /// Each accepted bridge that fits the index's model, alone: those of the query side, and readers of feedback.
    pub fn bridges(index: pg_sys::Oid) -> Vec<Query> {
        let there = Spi::get_one::<bool>("SELECT pg_catalog.to_regclass('situ.bridges') IS NOT NULL");
        let model = match model_of(index, &Query::default()) {
            Some(model) if there == Ok(Some(true)) => model,
            _ => return Vec::new(),
        };
        let statement = "SELECT name, kind FROM situ.bridges WHERE state = 'accepted' AND fingerprint = $1 \
                         AND kind IN ('adapter', 'lexsem', 'feedback') \
                         AND coalesce(recipe->>'side', 'query') = 'query' ORDER BY name";
        let names = Spi::connect(|client| {
            let table = client.select(statement, None, &[model.fingerprint.as_str().into()])?;
            let mut names = Vec::new();
            for row in table {
                names.extend(row.get::<String>(1)?.zip(row.get::<String>(2)?));
            }
            Ok::<_, SpiError>(names)
        });
        let names = names.unwrap_or_else(|error| fail(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, error.to_string()));
        names
            .into_iter()
            .filter_map(|(name, kind)| {
                let more = match kind.as_str() {
                    text_feedback::KIND => json!({ "feedback": Options {
                        method: Method::Text,
                        model: Some(name),
                        ..Options::default()
                    } }),
                    _ => json!({ "bridge": name }),
                };
                with(&Query::default(), more)
            })
            .collect()
    }

    /// The feedback settings that can be added to `start`: each method with its own defaults.
    pub fn feedback(start: &Query) -> Vec<Query> {
        let methods = [Method::Average, Method::Rocchio, Method::Gated].into_iter();
        methods
            .map(|method| Query {
                feedback: Some(Options {
                    method,
                    ..Options::default()
                }),
                ..start.clone()
            })
            .collect()
    }

    /// `start` with further fields.
    fn with(start: &Query, more: serde_json::Value) -> Option<Query> {
        let mut fields = serde_json::to_value(start).ok()?;
        for (name, value) in more.as_object()? {
            fields.as_object_mut()?.insert(name.clone(), value.clone());
        }
        serde_json::from_value(fields).ok()
    }
}
