//! What a bridge is tested by: queries from words that training never saw, and pairs that it never saw.

use super::queries::{Part, QueryMaker, SyntheticQuery};
use super::{LexSem, Readings, entries};
use crate::bridge::BridgeError;
use crate::bridge::train::acceptance::Evaluation;
use crate::bridge::train::data::Pair;
use crate::bridge::train::early_stopping::mean;
use crate::bridge::train::loss::Candidates;
use crate::compute::Pool;
use crate::eval::bootstrap::Interval;
use crate::random::Random;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Words of the pieces.
const LONG_SPAN: usize = 16;
const SHORT_SPAN: usize = 8;
/// Keywords of a keyword query.
const KEYWORDS: usize = 4;
/// Fewest words of a sentence.
const SENTENCE_WORDS: usize = 6;
/// Fewest words of a sentence without its rare words, and before they are taken out.
const COMMON_WORDS: usize = 4;
/// What the names of tasks about documents begin with that training does not see.
const UNSEEN: &str = "unseen_";
/// The task of the user's pairs.
const PAIRS: &str = "pairs";
/// Queries of a task by which the best epoch is chosen, and by which the bridge is tested.
const VALIDATION: usize = 500;
const TEST: usize = 1500;

/// Encoded queries, each with its passage's position among the candidates.
#[derive(Default)]
pub struct Encoded {
    pub vectors: Vec<f32>,
    pub readings: Vec<Reading>,
    pub targets: Vec<u32>,
}

/// [`Readings`] that own their content.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    pub ids: Vec<u32>,
    pub states: Vec<f32>,
    pub vocabulary: Vec<(u32, f32)>,
}

impl Reading {
    pub fn borrow(&self) -> Readings<'_> {
        Readings {
            ids: &self.ids,
            states: &self.states,
            vocabulary: &self.vocabulary,
        }
    }
}

/// Which measure a task has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measure {
    /// Share of queries whose passage comes first.
    Recall1,
    /// nDCG of the first ten, with the query's one passage as the only relevant one.
    Ndcg10,
}

impl Measure {
    fn name(self) -> &'static str {
        match self {
            Measure::Recall1 => "recall@1",
            Measure::Ndcg10 => "ndcg@10",
        }
    }

    /// Of each query, from its passage's rank.
    fn of(self, ranks: &[u32]) -> Vec<f64> {
        let gain = |rank: &u32| match (self, rank) {
            (Measure::Recall1, 0) => 1.0,
            (Measure::Recall1, _) => 0.0,
            (Measure::Ndcg10, rank) if *rank < 10 => 1.0 / (f64::from(*rank) + 2.0).log2(),
            (Measure::Ndcg10, _) => 0.0,
        };
        ranks.iter().map(gain).collect()
    }
}

/// One kind of query.
pub struct Task {
    name: &'static str,
    measure: Measure,
    validation: Encoded,
    test: Encoded,
    /// Of the plain vectors, each validation and each test query's measure.
    plain: [Vec<f64>; 2],
}

/// Texts of a task, before they are encoded.
pub struct TaskTexts {
    name: &'static str,
    measure: Measure,
    validation: Vec<SyntheticQuery>,
    test: Vec<SyntheticQuery>,
}

/// Queries from the held-out words of the passages at `from` (positions), which all are candidates.
pub fn synthetic(
    maker: &QueryMaker<'_>,
    from: &[usize],
    names: [&'static str; 5],
    random: &mut Random,
) -> Vec<TaskTexts> {
    let mut tasks = Vec::new();
    for (kind, name) in names.into_iter().enumerate() {
        let mut order = from.to_vec();
        random.shuffle(&mut order);
        let mut found = Vec::new();
        for (number, passage) in order.into_iter().enumerate() {
            let part = Part::HeldOut;
            found.extend(match kind {
                0 => maker.span(passage, part, LONG_SPAN, random),
                1 => maker.span(passage, part, SHORT_SPAN, random),
                2 => maker.keyword_query(passage, part, KEYWORDS, number % 2 == 1, random),
                3 => maker.sentence(passage, part, SENTENCE_WORDS, random),
                _ => maker.common_sentence(passage, part, COMMON_WORDS, random),
            });
            if found.len() == VALIDATION + TEST {
                break;
            }
        }
        let measure = if kind >= 3 { Measure::Ndcg10 } else { Measure::Recall1 };
        tasks.extend(task(name, measure, found));
    }
    tasks
}

/// The user's pairs as a task.
pub fn pairs(pairs: &[Pair], random: &mut Random) -> Option<TaskTexts> {
    let mut found: Vec<SyntheticQuery> = pairs
        .iter()
        .map(|pair| SyntheticQuery {
            passage: pair.passage,
            text: pair.query.clone(),
        })
        .collect();
    random.shuffle(&mut found);
    found.truncate(VALIDATION + TEST);
    task(PAIRS, Measure::Ndcg10, found)
}

/// A quarter is for validation, the rest for test.
fn task(name: &'static str, measure: Measure, mut found: Vec<SyntheticQuery>) -> Option<TaskTexts> {
    let test = found.split_off(found.len() / 4);
    (!found.is_empty()).then_some(TaskTexts {
        name,
        measure,
        validation: found,
        test,
    })
}

impl TaskTexts {
    /// Encodes the texts with `encode` and takes the plain vectors' measure.
    pub fn encode(
        self,
        pool: &Pool,
        candidates: &Candidates,
        encode: &mut dyn FnMut(&[SyntheticQuery]) -> Result<Encoded, BridgeError>,
    ) -> Result<Task, BridgeError> {
        let (validation, test) = (encode(&self.validation)?, encode(&self.test)?);
        let plain = |part: &Encoded| -> Result<Vec<f64>, BridgeError> {
            Ok(self.measure.of(&candidates.ranks(pool, &part.vectors, &part.targets)?))
        };
        Ok(Task {
            plain: [plain(&validation)?, plain(&test)?],
            name: self.name,
            measure: self.measure,
            validation,
            test,
        })
    }
}

/// The corrected vectors of queries, row-major.
pub fn corrected(bridge: &LexSem, queries: &Encoded) -> Result<Vec<f32>, BridgeError> {
    let mut vectors = Vec::with_capacity(queries.vectors.len());
    let rows = queries.vectors.chunks_exact(bridge.dimensions.max(1));
    for (vector, reading) in rows.zip(&queries.readings) {
        let parts = entries(bridge, reading.borrow())?;
        let parts = parts.iter().map(|(place, weight)| (bridge.row(*place), *weight));
        vectors.extend(bridge.apply(vector, parts)?);
    }
    Ok(vectors)
}

/// What a bridge makes of the tasks.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Mean relative gain over the tasks whose queries share words with their passage.
    pub gain: f64,
    /// The gain's 95 % interval over all of those tasks' queries.
    pub interval: Option<Interval>,
    /// The 95 % interval of the difference over those tasks' queries.
    pub difference: Option<Interval>,
    /// The 95 % interval of the difference over the user's pairs.
    pub pairs: Option<Interval>,
    /// The same over those about documents that training does not see, where there are any: some tens of queries in a
    /// small corpus, too few for a smallest gain.
    pub unseen: Option<Interval>,
    /// Smallest relative gain of what is to be kept: sentences, sentences without their rare words and pairs, each over
    /// all documents.
    pub guard: f64,
    /// By task: measure, plain, with the bridge, gain, queries.
    pub figures: Map<String, Value>,
}

impl Measured {
    /// Of the gain, from its interval as that of a normal distribution.
    pub fn standard_error(&self) -> f64 {
        self.interval.map_or(0.0, |ends| (ends.high - ends.low) / (2.0 * 1.96))
    }
}

/// Measures a bridge on the validation or the test queries of each task.
pub fn measure(
    pool: &Pool,
    candidates: &Candidates,
    bridge: &LexSem,
    tasks: &[Task],
    test: bool,
    seed: u64,
) -> Result<Measured, BridgeError> {
    let (mut gains, mut figures) = (Vec::new(), Map::new());
    // Before and with the bridge: of what has to be gained, and of each kind of what is to be kept.
    let mut gained = Paired::default();
    let mut unseen = Paired::default();
    let mut kept: BTreeMap<&str, Paired> = BTreeMap::new();
    for task in tasks {
        let (queries, plain_values) = match test {
            true => (&task.test, &task.plain[1]),
            false => (&task.validation, &task.plain[0]),
        };
        let plain = mean(plain_values);
        let ranks = candidates.ranks(pool, &corrected(bridge, queries)?, &queries.targets)?;
        let values = task.measure.of(&ranks);
        let score = mean(&values);
        let gain = if plain > 0.0 { score / plain - 1.0 } else { 0.0 };
        let kind = task.name.strip_prefix(UNSEEN);
        match task.measure {
            Measure::Recall1 => {
                gains.push(gain);
                // Over the task's plain measure, so that tasks count alike where they have as many queries.
                if plain > 0.0 {
                    gained.add(plain_values, &values, plain);
                    if kind.is_some() {
                        unseen.add(plain_values, &values, plain);
                    }
                }
            }
            Measure::Ndcg10 => {
                let all = kept.entry(kind.unwrap_or(task.name)).or_default();
                all.add(plain_values, &values, 1.0);
            }
        }
        let entry = json!({
            "measure": task.measure.name(), "plain": plain, "bridge": score, "gain": gain, "queries": ranks.len(),
        });
        figures.insert(task.name.to_owned(), entry);
    }
    let pairs = kept.get(PAIRS).and_then(|pairs| pairs.evaluation(seed).difference);
    let guard = kept.values().map(Paired::gain).min_by(f64::total_cmp);
    let found = gained.evaluation(seed);
    Ok(Measured {
        interval: found.gain_interval,
        difference: found.difference,
        unseen: unseen.evaluation(seed).difference,
        pairs,
        gain: gains.iter().sum::<f64>() / gains.len().max(1) as f64,
        guard: guard.unwrap_or(0.0),
        figures,
    })
}

/// Queries' values without the bridge and with it.
#[derive(Default)]
struct Paired {
    plain: Vec<f64>,
    with: Vec<f64>,
}

impl Paired {
    fn add(&mut self, plain: &[f64], with: &[f64], over: f64) {
        self.plain.extend(plain.iter().map(|value| value / over));
        self.with.extend(with.iter().map(|value| value / over));
    }

    fn evaluation(&self, seed: u64) -> Evaluation {
        Evaluation::of(&self.plain, &self.with, seed)
    }

    fn gain(&self) -> f64 {
        let plain = mean(&self.plain);
        if plain > 0.0 {
            mean(&self.with) / plain - 1.0
        } else {
            0.0
        }
    }
}
