//! `situ.tune`: which options of `situ.query` serve an index best, chosen by the judged queries and stored as a profile.
//!
//! The rule and the figure are those of `eval/selection.rs`: a part is added where the evidence says that it helps, and the figure is of
//! queries that did not choose. The profile is stored where that figure is above plain search: otherwise the profile
//! is plain search.
//!
//! Stages, without candidates of the caller's own: a bridge that fits the index; a second one of another kind before or
//! behind it; feedback, of vectors or of texts. The caller's own are one stage.

use super::ranking::{answers, judged};
use super::relations::{Asked, key_column, needed, needed_index, qrels, queries, with_relevant};
use super::{Judgements, draws};
use crate::bridge::train::acceptance::Verdict;
use crate::eval::bootstrap::Draws;
use crate::eval::report::{Compared, Measure, compared, values};
use crate::eval::selection::{Candidates, Prior, Step, cross_fit};
use crate::pg::bridges::registry;
use crate::pg::catalog::names;
use crate::pg::ereport::{fail, fail_with_hint};
use crate::pg::search::profiles;
use crate::pg::search::query::Query;
use crate::random::Random;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;
use pgrx::prelude::*;
use serde_json::json;

/// Least queries: fewer choose by chance.
const LEAST: usize = 10;

/// A candidate with its values, one a query.
struct Tried {
    options: Query,
    values: Vec<f64>,
}

/// The queries that a profile is chosen by, and what was tried on them; the first is plain search.
struct Tuning {
    index: pg_sys::Oid,
    key: String,
    measure: Measure,
    depth: usize,
    judgements: Judgements,
    asked: Vec<Asked>,
    parts: Parts,
    tried: Vec<Tried>,
}

/// What candidates are made of.
enum Parts {
    /// The caller's own candidates.
    Given(Vec<Query>),
    /// The accepted bridges that fit the index, and feedback.
    Found(Vec<candidates::Bridge>),
}

impl Tuning {
    /// The number of the candidate with these options, measured where it is new.
    fn number(&mut self, options: Query) -> usize {
        if let Some(known) = self.tried.iter().position(|tried| tried.options == options) {
            return known;
        }
        let answers = answers(self.index, &self.asked, &options, self.depth, &self.key);
        let values = values(self.measure, &judged(&self.asked, &answers, &self.judgements));
        self.tried.push(Tried { options, values });
        self.tried.len() - 1
    }

    fn values_of(&self, number: usize) -> &[f64] {
        self.tried.get(number).map_or(&[], |tried| &tried.values)
    }
}

impl Candidates for Tuning {
    fn stage(&mut self, stage: usize, base: usize) -> Option<Vec<Step>> {
        let start = self.tried.get(base)?.options.clone();
        let plain = mean(self.values_of(0));
        let options: Vec<(Query, Option<Prior>)> = match (&self.parts, stage) {
            (Parts::Given(given), 0) => given.iter().map(|options| (options.clone(), None)).collect(),
            (Parts::Found(bridges), 0) => bridges
                .iter()
                .filter_map(|bridge| Some((bridge.alone()?, bridge.prior(self.measure, plain))))
                .collect(),
            (Parts::Found(bridges), 1) => candidates::pairs(&start, bridges)
                .into_iter()
                .map(|options| (options, None))
                .collect(),
            (Parts::Found(bridges), 2) => candidates::feedback(&start, bridges)
                .into_iter()
                .map(|options| (options, None))
                .collect(),
            _ => return None,
        };
        let step = |(options, prior)| Step {
            candidate: self.number(options),
            prior,
        };
        Some(options.into_iter().map(step).collect())
    }

    fn values(&self, candidate: usize) -> &[f64] {
        self.values_of(candidate)
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
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

/// The measure of that name.
fn measure_of(name: &str) -> Measure {
    Measure::from_name(name).unwrap_or_else(|| {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("measure \"{name}\" does not exist"),
            "Use ndcg@10, map, mrr, recall@10 or another number behind the @.",
        )
    })
}

/// The name of the profile that is stored.
fn profile_name(name: Option<&str>) -> &str {
    let name = name.unwrap_or("best");
    if name.is_empty() {
        fail(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            "the name of a profile is empty".into(),
        );
    }
    name
}

/// A difference with the ends of its interval around it.
fn interval(found: Compared) -> [f64; 3] {
    let difference = found.difference;
    [difference.interval.low, difference.value, difference.interval.high]
}

/// Raises an error where there are too few judged queries to choose by.
fn check_enough(asked: &[Asked]) {
    if asked.len() < LEAST {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("{} judged queries are too few to choose by", asked.len()),
            "Give at least ten; some hundred tell more. situ.make_queries makes them from the corpus.",
        );
    }
}

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
    depth: Option<i64>,
    key: Option<&str>,
    seed: Option<i64>,
) -> Tuned {
    let index = needed_index(index);
    let name = profile_name(name);
    names::check_owner(index);
    let measure_name = measure.unwrap_or("ndcg@10");
    let measure = measure_of(measure_name);
    let judgements = qrels(needed("qrels", qrels_of));
    let mut asked = with_relevant(queries(needed("queries", queries_of)), &judgements);
    let draws = draws(seed);
    // Folds are parted by place.
    Random::new(draws.seed).shuffle(&mut asked);
    check_enough(&asked);
    let depth = super::positive("depth", depth.unwrap_or(100)).max(measure.cut().unwrap_or(1));
    let parts = match candidates {
        Some(given) => Parts::Given(given.into_iter().flatten().collect()),
        None => Parts::Found(candidates::bridges(index)),
    };
    let mut tuning = Tuning {
        index,
        key: key_column(index, key),
        measure,
        depth,
        judgements,
        asked,
        parts,
        tried: Vec::new(),
    };
    tuning.number(Query::default());
    let queries = tuning.values_of(0).len();
    let fitted = cross_fit(&mut tuning, queries);
    let (chosen, plain) = (fitted.chosen, tuning.values_of(0));
    let found = compared(plain, &fitted.held_out, draws);
    let confirmed = chosen != 0 && found.is_some_and(|found| found.difference.value > 0.0);
    let kept = match tuning.tried.get(chosen) {
        Some(best) if confirmed => best.options.clone(),
        _ => Query::default(),
    };
    let plain = mean(plain);
    let figures = json!({
        "queries": queries,
        "folds": fitted.folds.len(),
        "folds_agreed": fitted.folds.iter().filter(|fold| **fold == chosen).count(),
        "seed": seed.unwrap_or_default(),
        "confirmed": confirmed,
        "plain": plain,
        "held_out": mean(&fitted.held_out),
        "difference": found.map(interval),
        "p": found.map(|found| found.randomisation),
    });
    profiles::store(index, name, &options_json(&kept), measure_name, &figures);
    overturn(&tuning, measure_name, draws);
    rows(tuning.tried, chosen, confirmed, plain, found)
}

/// Rejects each bridge that was accepted by synthetic queries alone and that loses on these, by more than chance.
fn overturn(tuning: &Tuning, measure: &str, draws: Draws) {
    for tried in &tuning.tried {
        let Some(name) = &tried.options.bridge else { continue };
        let alone = Query {
            bridge: Some(name.clone()),
            ..Query::default()
        };
        let found = compared(tuning.values_of(0), &tried.values, draws);
        let Some(found) = found.filter(|found| found.difference.interval.high < 0.0) else {
            continue;
        };
        let bridge = registry::find(name);
        if tried.options != alone || bridge.verdict != Verdict::AcceptedSynthetic {
            continue;
        }
        let difference = found.difference;
        let judged = json!({
            "index": names::qualified(tuning.index), "measure": measure, "queries": tried.values.len(),
            "plain": mean(tuning.values_of(0)), "bridge": mean(&tried.values),
            "difference": difference.value, "low": difference.interval.low, "high": difference.interval.high,
        });
        let lost = format!("bridge \"{name}\", which synthetic queries had accepted, loses on these questions");
        if registry::owns(&bridge) {
            registry::overturn(&bridge, judged);
            warning!("{lost}: it is rejected now");
        } else {
            warning!("{lost}; its owner can have it rejected by situ.tune");
        }
    }
}

fn rows(tried: Vec<Tried>, chosen: usize, confirmed: bool, plain: f64, found: Option<Compared>) -> Tuned {
    let rows = tried.into_iter().enumerate().map(|(place, candidate)| {
        let found = found.filter(|_| place == chosen);
        (
            serde_json::to_value(&candidate.options).ok().map(pgrx::JsonB),
            mean(&candidate.values),
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
    use crate::bridge::BridgeKind;
    use crate::bridge::feedback::{Method, Options};
    use crate::bridge::prior;
    use crate::pg::search::index_search::model_of;
    use pgrx::spi::SpiError;
    use serde_json::Value;

    /// An accepted bridge.
    pub struct Bridge {
        name: String,
        kind: BridgeKind,
        /// What its training here measured on held-out queries; nothing of one that was imported, whose figures say what its
        /// importer wrote.
        figures: Value,
    }

    impl Bridge {
        fn reads_texts(&self) -> bool {
            self.kind == BridgeKind::TextFeedback
        }

        /// The query with this bridge alone; none for a reader of texts, which is feedback.
        pub fn alone(&self) -> Option<Query> {
            (!self.reads_texts()).then(|| Query {
                bridge: Some(self.name.clone()),
                ..Query::default()
            })
        }

        /// `start`, which has the bridge `other`, with this one as well, behind it and before it; nothing where the two are of one
        /// kind or a query takes one bridge only.
        pub fn beside(&self, other: &Bridge, start: &Query) -> Vec<Query> {
            if self.reads_texts() || self.kind == other.kind {
                return Vec::new();
            }
            let orders = [[&other.name, &self.name], [&self.name, &other.name]];
            orders
                .into_iter()
                .filter_map(|bridges| {
                    // By its written form, which refuses what a query does not have.
                    let mut fields = serde_json::to_value(start).ok()?;
                    let object = fields.as_object_mut()?;
                    object.remove("bridge");
                    object.insert("bridges".to_owned(), json!(bridges));
                    serde_json::from_value(fields).ok()
                })
                .collect()
        }

        /// What its training says of its gain over plain search, whose mean is `plain`. Of recall figures say nothing.
        pub fn prior(&self, measure: Measure, plain: f64) -> Option<Prior> {
            match measure {
                Measure::Recall(_) => None,
                _ => prior::prior(&self.figures, plain),
            }
        }
    }

    /// Each accepted bridge that fits the index's model: those of the query side, and readers of feedback.
    pub fn bridges(index: pg_sys::Oid) -> Vec<Bridge> {
        let there = Spi::get_one::<bool>("SELECT pg_catalog.to_regclass('situ.bridges') IS NOT NULL");
        let model = match model_of(index, &Query::default()) {
            Some(model) if there == Ok(Some(true)) => model,
            _ => return Vec::new(),
        };
        let statement = "SELECT name, kind, CASE origin WHEN 'trained' THEN figures END FROM situ.bridges \
                         WHERE state <> 'rejected' AND fingerprint = $1 \
                         AND kind = ANY ($2) AND coalesce(recipe->>'side', 'query') = 'query' ORDER BY name";
        let kinds = BridgeKind::ALL.iter().filter(|kind| kind.serves_queries());
        let kinds: Vec<&str> = kinds.map(|kind| kind.name()).collect();
        let bridges = Spi::connect(|client| {
            let arguments = [model.fingerprint.as_str().into(), kinds.into()];
            let table = client.select(statement, None, &arguments)?;
            let mut bridges = Vec::new();
            for row in table {
                let kind = row.get::<String>(2)?.and_then(|kind| BridgeKind::parse(&kind));
                if let (Some(name), Some(kind)) = (row.get(1)?, kind) {
                    let figures = row.get::<pgrx::JsonB>(3)?.map_or(Value::Null, |figures| figures.0);
                    bridges.push(Bridge { name, kind, figures });
                }
            }
            Ok::<_, SpiError>(bridges)
        });
        bridges.unwrap_or_else(|error| fail(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, error.to_string()))
    }

    /// The query with a second bridge beside the one that `start` has.
    pub fn pairs(start: &Query, bridges: &[Bridge]) -> Vec<Query> {
        let known = |bridge: &&Bridge| start.bridge.as_ref() == Some(&bridge.name);
        let Some(first) = bridges.iter().find(known) else {
            return Vec::new();
        };
        bridges.iter().flat_map(|bridge| bridge.beside(first, start)).collect()
    }

    /// The feedback that can be added to `start`: each method with its own defaults, and each reader.
    pub fn feedback(start: &Query, bridges: &[Bridge]) -> Vec<Query> {
        let methods = [Method::Average, Method::Rocchio, Method::Gated].map(|method| (method, None));
        let readers = bridges
            .iter()
            .filter(|bridge| bridge.reads_texts())
            .map(|reader| (Method::Text, Some(reader.name.clone())));
        methods
            .into_iter()
            .chain(readers)
            .map(|(method, model)| Query {
                feedback: Some(Options {
                    method,
                    model,
                    ..Options::default()
                }),
                ..start.clone()
            })
            .collect()
    }
}
