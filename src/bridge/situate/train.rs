//! Training of the bridge: passages with their documents, pairs of query and passage, documents held out.
//!
//! Two are trained on the same pairs with the same optimiser: the bridge, and the chunk-only control (`V = 0`, no
//! places). What is
//! stored is the better of the two on the held-out pairs; both figures are kept. Where the document adds nothing the
//! bridge is a map of the passage's vector and says so.

use super::bridge::{Bridge, Document, Shape, with_mean};
use super::gradient::{Rows, Target, loss};
use super::linear::dot;
use super::options::{Options, Random};
use super::{made, place};
use crate::bridge::BridgeError;
use crate::bridge::train::data::{Encode, Pair, Passage, Progress, Trained, Vectors, Watch};
use crate::model::Role;
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};
use std::ops::Range;

/// Passages of a batch: documents are added while they fit, and cut where one alone is longer.
const BATCH_PASSAGES: usize = 400;
/// Queries of a step, at most.
const BATCH_QUERIES: usize = 128;
/// Of so many documents one is held out.
const HELD_OUT: u64 = 8;

/// A run of consecutive passages of one document: all of it, unless it is too long for a batch.
struct Run {
    passages: Range<usize>,
    /// Rows with the mean behind them: of the chunks alone for the control, mixed with their places for the bridge.
    rows: [Vec<f32>; 2],
    /// Indices of the pairs whose passage is one of these.
    pairs: Vec<usize>,
    held_out: bool,
}

/// Everything that steps read.
struct Material {
    shape: Shape,
    runs: Vec<Run>,
    queries: Vectors,
    pairs: Vec<Pair>,
    options: Options,
}

/// Where one of the two trainings is.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct State {
    context: bool,
    epoch: u32,
    step: u64,
    numbers: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
    best: Vec<f32>,
    best_figure: f64,
    best_epoch: u32,
}

/// What a checkpoint holds.
#[derive(Serialize, Deserialize)]
struct Checkpoint {
    /// The control when it is done.
    control: Option<State>,
    current: State,
}

/// Trains a bridge. `pairs` empty: they are made from the passages ([`made`]).
///
/// # Errors
/// [`BridgeError::TooLittle`] for too few documents or pairs, [`BridgeError::Option`] for options out of range, what the
/// encoder says, and [`BridgeError::Stopped`] from the watch.
pub fn train(
    passages: &[Passage],
    pairs: &[Pair],
    options: &serde_json::Value,
    encode: &mut dyn Encode,
    watch: &mut dyn Watch,
    checkpoint: Option<&[u8]>,
) -> Result<Trained, BridgeError> {
    let options: Options = match options {
        serde_json::Value::Null => Options::default(),
        given => serde_json::from_value(given.clone()).map_err(|error| BridgeError::Option {
            name: "options",
            value: error.to_string(),
            range: "epochs, rate, temperature, decay, rank, seed, document",
        })?,
    };
    options.check()?;
    let made = pairs.is_empty();
    let pairs = if made {
        made::pairs(passages, options.seed)
    } else {
        pairs.to_vec()
    };
    let material = Material::gather(passages, pairs, options, encode)?;
    let resumed: Option<Checkpoint> = checkpoint.and_then(|bytes| postcard::from_bytes(bytes).ok());
    let fits = |state: &State| state.numbers.len() == material.shape.parameters();
    let (mut control, mut current) = match resumed.filter(|resumed| fits(&resumed.current)) {
        Some(resumed) => (resumed.control, resumed.current),
        None => (None, State::new(&material, false)),
    };
    let plain = material.figure(&vec![0.0; material.shape.parameters()], false);
    while !current.context {
        material.run(&mut current, None, watch)?;
        control = Some(current.clone());
        if !material.options.document {
            break;
        }
        current = State::new(&material, true);
    }
    let Some(control) = control else {
        return Err(BridgeError::File("the checkpoint lacks the control".to_owned()));
    };
    if current.context {
        material.run(&mut current, Some(&control), watch)?;
    }
    let bridge = Some(current).filter(|state| state.context);
    let better = bridge
        .as_ref()
        .filter(|bridge| bridge.best_figure > control.best_figure);
    let used = better.is_some();
    let better = better.unwrap_or(&control);
    let figures = json!({
        "measure": "nDCG@10 of held-out pairs among the passages of held-out documents",
        "plain": plain, "control": control.best_figure, "bridge": bridge.as_ref().map(|bridge| bridge.best_figure),
        "document": used, "epochs": better.best_epoch,
        "pairs": if made { "made" } else { "given" },
        "trained_pairs": material.count(false), "held_out_pairs": material.count(true),
    });
    let mut more = Map::new();
    more.insert("figures".to_owned(), figures.clone());
    more.insert("recipe".to_owned(), json!(material.options));
    let stored = Bridge {
        shape: material.shape,
        numbers: better.best.clone(),
        share: if used { place::SHARE } else { 0.0 },
    };
    Ok(Trained {
        weights: stored.write(more)?,
        accepted: better.best_figure > plain,
        figures,
    })
}

impl Material {
    fn gather(
        passages: &[Passage],
        pairs: Vec<Pair>,
        options: Options,
        encode: &mut dyn Encode,
    ) -> Result<Material, BridgeError> {
        let outside = pairs.iter().find(|pair| pair.passage as usize >= passages.len());
        if let Some(pair) = outside {
            return Err(BridgeError::Outside(format!(
                "passage {} of a pair does not exist",
                pair.passage
            )));
        }
        let mut order: Vec<usize> = (0..passages.len()).collect();
        order.sort_by_key(|&at| (passages[at].document, passages[at].ordinal));
        let texts: Vec<&str> = order.iter().map(|&at| passages[at].text.as_str()).collect();
        let vectors = encode.embed(Role::Passage, &texts)?;
        let at = |place: usize| order.get(place).map(|&at| &passages[at]);
        let before = |place: usize| {
            at(place.checked_sub(1)?).filter(|other| Some(other.document) == at(place).map(|own| own.document))
        };
        let places: Vec<String> = texts
            .iter()
            .enumerate()
            .map(|(place, text)| place::text(None, before(place).map(|other| other.text.as_str()), text))
            .collect();
        let places: Vec<&str> = places.iter().map(String::as_str).collect();
        let situated = encode.embed(Role::Passage, &places)?;
        let texts: Vec<&str> = pairs.iter().map(|pair| pair.query.as_str()).collect();
        let queries = encode.embed(Role::Query, &texts)?;
        let d = vectors.dimensions;
        for (vectors, count) in [
            (&vectors, passages.len()),
            (&situated, passages.len()),
            (&queries, pairs.len()),
        ] {
            if vectors.dimensions != d || d == 0 || vectors.values.len() != count * d {
                return Err(BridgeError::Vectors {
                    expected: count,
                    found: vectors.values.len() / d.max(1),
                });
            }
            if !vectors.values.iter().all(|number| number.is_finite()) {
                return Err(BridgeError::NotFinite {
                    what: "training vectors",
                });
            }
        }
        let mut placed = vectors.values.clone();
        for (own, other) in placed.chunks_exact_mut(d).zip(situated.values.chunks_exact(d)) {
            place::mix(own, other);
        }
        let shape = Shape {
            dimensions: d,
            rank: options.rank,
        };
        let mut of_passage = vec![Vec::new(); passages.len()];
        for (number, pair) in pairs.iter().enumerate() {
            of_passage[pair.passage as usize].push(number);
        }
        let mut runs: Vec<Run> = Vec::new();
        let mut start = 0;
        while start < order.len() {
            let document = passages[order[start]].document;
            let same = order[start..]
                .iter()
                .take_while(|&&at| passages[at].document == document);
            let end = start + same.take(BATCH_PASSAGES).count();
            let hashed = Random(options.seed ^ (u64::from(document) << 20)).next();
            runs.push(Run {
                rows: [&vectors.values, &placed].map(|rows| with_mean(d, &rows[start * d..end * d])),
                pairs: order[start..end]
                    .iter()
                    .flat_map(|&at| of_passage[at].iter().copied())
                    .collect(),
                passages: start..end,
                held_out: hashed.is_multiple_of(HELD_OUT),
            });
            start = end;
        }
        // From here on a pair's passage is its place in the order of the runs.
        let mut place = vec![0u32; passages.len()];
        order
            .iter()
            .enumerate()
            .for_each(|(at, &passage)| place[passage] = at as u32);
        let pairs = pairs.into_iter().map(|pair| Pair {
            passage: place[pair.passage as usize],
            ..pair
        });
        let material = Material {
            shape,
            runs,
            queries,
            pairs: pairs.collect(),
            options,
        };
        for held_out in [false, true] {
            let found = material.count(held_out);
            if found < 8 {
                let what = if held_out { "held out" } else { "trained on" };
                return Err(BridgeError::TooLittle(format!(
                    "{found} pairs are {what}; one of {HELD_OUT} documents is held out, and both sides need 8 pairs"
                )));
            }
        }
        Ok(material)
    }

    fn count(&self, held_out: bool) -> usize {
        let runs = self.runs.iter().filter(|run| run.held_out == held_out);
        runs.map(|run| run.pairs.len()).sum()
    }

    fn query(&self, pair: usize) -> &[f32] {
        let d = self.shape.dimensions;
        &self.queries.values[pair * d..(pair + 1) * d]
    }

    /// nDCG@10 of the held-out pairs, each with its one passage, among the passages of held-out documents.
    fn figure(&self, numbers: &[f32], context: bool) -> f64 {
        let runs: Vec<&Run> = self.runs.iter().filter(|run| run.held_out).collect();
        let mut vectors = Vec::new();
        for run in &runs {
            let document = Document {
                shape: self.shape,
                rows: &run.rows[usize::from(context)],
                count: run.passages.len(),
            };
            vectors.extend(document.forward(numbers, context).vectors);
        }
        let d = self.shape.dimensions;
        let (mut total, mut count, mut start) = (0.0, 0usize, 0);
        for run in runs {
            for &pair in &run.pairs {
                let own = start + self.pairs[pair].passage as usize - run.passages.start;
                let query = self.query(pair);
                let score = dot(query, &vectors[own * d..(own + 1) * d]);
                let before = |(at, row): (usize, &[f32])| at != own && dot(query, row) >= score;
                let rank = vectors.chunks_exact(d).enumerate().filter(|&at| before(at)).count();
                total += if rank < 10 {
                    1.0 / (rank as f64 + 2.0).log2()
                } else {
                    0.0
                };
                count += 1;
            }
            start += run.passages.len();
        }
        total / count.max(1) as f64
    }

    /// The steps of an epoch: runs that are read together, and the pairs asked of them.
    fn steps(&self, epoch: u32) -> Vec<(Vec<usize>, Vec<usize>)> {
        let mut random = Random(self.options.seed.wrapping_mul(0x5851_F42D_4C95_7F2D) ^ u64::from(epoch));
        let mut order: Vec<usize> = (0..self.runs.len())
            .filter(|&run| !self.runs[run].held_out && !self.runs[run].pairs.is_empty())
            .collect();
        random.shuffle(&mut order);
        let mut steps = Vec::new();
        let mut rest = order.as_slice();
        while !rest.is_empty() {
            let mut passages = 0;
            let fits = rest.iter().take_while(|&&run| {
                passages += self.runs[run].passages.len();
                passages <= BATCH_PASSAGES
            });
            let (together, others) = rest.split_at(fits.count().max(1));
            let asked = together.iter().flat_map(|&run| self.runs[run].pairs.iter().copied());
            let mut asked: Vec<usize> = asked.collect();
            random.shuffle(&mut asked);
            steps.extend(
                asked
                    .chunks(BATCH_QUERIES)
                    .map(|part| (together.to_vec(), part.to_vec())),
            );
            rest = others;
        }
        random.shuffle(&mut steps);
        steps
    }

    /// The epochs that a training has left.
    fn run(&self, state: &mut State, control: Option<&State>, watch: &mut dyn Watch) -> Result<(), BridgeError> {
        let mut gradient = vec![0.0f32; state.numbers.len()];
        while state.epoch < self.options.epochs {
            let steps = self.steps(state.epoch);
            let all = steps.len() as u64 * u64::from(self.options.epochs);
            let mut held_out = Some(state.best_figure).filter(|_| state.epoch > 0);
            for (runs, pairs) in steps {
                let loss = self.gradient(state, &runs, &pairs, &mut gradient);
                if !loss.is_finite() {
                    return Err(BridgeError::NotFinite { what: "loss" });
                }
                state.adam(&gradient, self.options.rate);
                watch.step(&Progress {
                    step: state.step.min(all) + if state.context { all } else { 0 },
                    steps: 2 * all,
                    loss,
                    held_out: held_out.take(),
                })?;
            }
            state.epoch += 1;
            let figure = self.figure(&state.numbers, state.context);
            if figure > state.best_figure {
                state.best_figure = figure;
                state.best_epoch = state.epoch;
                state.best.clone_from(&state.numbers);
            }
            let bytes = postcard::to_stdvec(&(control, &*state));
            watch.checkpoint(&bytes.map_err(|error| BridgeError::File(error.to_string()))?)?;
        }
        Ok(())
    }

    fn gradient(&self, state: &State, runs: &[usize], pairs: &[usize], gradient: &mut [f32]) -> f64 {
        gradient.fill(0.0);
        let mut starts = Vec::with_capacity(runs.len());
        let mut documents = Vec::with_capacity(runs.len());
        let mut start = 0;
        for &run in runs {
            let run = &self.runs[run];
            starts.push((run.passages.clone(), start));
            start += run.passages.len();
            documents.push(Rows {
                rows: &run.rows[usize::from(state.context)],
                count: run.passages.len(),
            });
        }
        let target = |&pair: &usize| {
            let passage = self.pairs[pair].passage as usize;
            let (run, start) = starts.iter().find(|(run, _)| run.contains(&passage))?;
            Some(Target {
                query: self.query(pair),
                passage: start + passage - run.start,
            })
        };
        let targets: Vec<Target> = pairs.iter().filter_map(target).collect();
        let temperature = self.options.temperature;
        let found = loss(
            self.shape,
            &state.numbers,
            &documents,
            &targets,
            temperature,
            state.context,
            gradient,
        );
        // Decay acts on the maps: the attention's matrices have no size of their own in the output.
        let end = self.shape.ranges()[1].end;
        for (gradient, number) in gradient[..end].iter_mut().zip(&state.numbers) {
            *gradient += 2.0 * self.options.decay * number;
        }
        found
    }
}

impl State {
    fn new(material: &Material, context: bool) -> State {
        let shape = material.shape;
        let mut numbers = vec![0.0; shape.parameters()];
        if context {
            let mut random = Random(material.options.seed);
            let [_, _, query, key, _] = shape.ranges();
            // Scores of unit vectors spread by about 1/3, so that sources begin nearly equal and can part.
            numbers[query.start..key.end]
                .iter_mut()
                .for_each(|number| *number = random.symmetric() * 0.35);
        }
        let zeros = vec![0.0; numbers.len()];
        State {
            context,
            epoch: 0,
            step: 0,
            first: zeros.clone(),
            second: zeros.clone(),
            best: zeros,
            numbers,
            best_figure: f64::MIN,
            best_epoch: 0,
        }
    }

    /// Adam (Kingma and Ba, 2015) with its usual constants.
    fn adam(&mut self, gradient: &[f32], rate: f32) {
        self.step += 1;
        let power = self.step.min(1 << 20) as i32;
        let (left, right) = (1.0 - 0.9f32.powi(power), 1.0 - 0.999f32.powi(power));
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((number, change), (first, second)) in self.numbers.iter_mut().zip(gradient).zip(moments) {
            *first = 0.9 * *first + 0.1 * change;
            *second = 0.999 * *second + 0.001 * change * change;
            *number -= rate * (*first / left) / ((*second / right).sqrt() + 1e-8);
        }
    }
}
