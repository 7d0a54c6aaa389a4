//! Training of the bridge: passages with their documents, pairs of query and passage, documents held out.
//!
//! Two are trained on the same pairs with the same optimiser: the bridge, and the chunk-only control (`V = 0`, no
//! places). Of the bridge, `V = CONTEXT (I + M)`: a source goes through the chunk's own map, so that what is learned of
//! the document is how much each source counts, and not a second map, which some thousand pairs do not determine.
//!
//! Documents are split: most train, some choose the pass and which of the two is stored, some test. All figures are of
//! those that test. Where the document adds nothing the bridge is a map of the passage's vector and says so.

use super::bridge::{Bridge, Document, Shape};
use super::gradient::{Rows, Target, loss};
use super::linear::dot;
use super::material::{BATCH_PASSAGES, Material, Segment};
use super::options::Options;
use super::{context_header, synthetic};
use crate::bridge::BridgeError;
use crate::bridge::train::acceptance::{Evaluation, Verdict};
use crate::bridge::train::data::{Monitor, Progress, Trained};
use crate::bridge::train::early_stopping::{EarlyStopping, mean, standard_error};
use crate::bridge::train::run::Run;
use crate::bridge::train::split::Split;
use crate::eval::bootstrap::{Draws, of_mean};
use crate::random::Random;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Queries of a step, at most.
const BATCH_QUERIES: usize = 128;
/// Fewest steps of a pass: few pairs are gone through several times before they are measured.
const LEAST_STEPS: usize = 48;
/// `V` over `I + M`: what the sources count together at most, against the chunk's own 1.
const CONTEXT: f32 = 2.0;
/// Where `beta` begins: each source then counts about 0.05.
const FIRST_BIAS: f32 = -3.5;
/// Steps of `beta` over those of the maps: it is seven numbers, and has some hundred steps to find their size.
const BIAS_RATE: f32 = 100.0;

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
    stopping: EarlyStopping,
}

/// What a checkpoint holds.
#[derive(Serialize, Deserialize)]
struct Checkpoint {
    /// The control when it is done.
    control: Option<State>,
    current: State,
}

/// Trains a bridge. Without pairs, they are made from the passages ([`synthetic`]).
///
/// # Errors
/// [`BridgeError::TooLittle`] for too few documents or pairs, [`BridgeError::Option`] for options out of range, what
/// the encoder says, and [`BridgeError::Stopped`] from the monitor.
pub fn train(run: Run<'_>) -> Result<Trained, BridgeError> {
    let options = Options::read(run.options)?;
    let synthetic = run.pairs.is_empty();
    let pairs = match synthetic {
        true => synthetic::pairs(run.passages, run.seed),
        false => run.pairs.to_vec(),
    };
    let material = Material::gather(run.passages, pairs, options, run.encode)?;
    let (control, bridge) = material.fit(run.checkpoint, run.monitor)?;
    let better = bridge
        .as_ref()
        .filter(|bridge| bridge.best_figure > control.best_figure);
    let used = better.is_some();
    let (figures, verdict) = material.figures(&control, bridge.as_ref(), used, synthetic);
    let more = Map::from_iter([
        ("figures".to_owned(), figures.clone()),
        ("recipe".to_owned(), json!(material.options)),
    ]);
    let stored = Bridge {
        shape: material.shape,
        numbers: better.unwrap_or(&control).best.clone(),
        share: match used && material.options.place {
            true => context_header::SHARE,
            false => 0.0,
        },
    };
    Ok(Trained {
        weights: stored.write(more)?,
        verdict,
        figures,
    })
}

impl Material {
    /// Trains the control and, where the options want one, the bridge behind it, from the checkpoint on.
    fn fit(&self, checkpoint: Option<&[u8]>, monitor: &mut dyn Monitor) -> Result<(State, Option<State>), BridgeError> {
        let resumed: Option<Checkpoint> = checkpoint.and_then(|bytes| postcard::from_bytes(bytes).ok());
        let fits = |state: &State| state.numbers.len() == self.shape.parameters();
        let (mut control, mut current) = match resumed.filter(|resumed| fits(&resumed.current)) {
            Some(resumed) => (resumed.control, resumed.current),
            None => (None, State::new(self, false)),
        };
        if !current.context {
            self.run(&mut current, None, monitor)?;
            if !self.options.document {
                return Ok((current, None));
            }
            control = Some(std::mem::replace(&mut current, State::new(self, true)));
        }
        let Some(control) = control else {
            return Err(BridgeError::File("the checkpoint lacks the control".to_owned()));
        };
        self.run(&mut current, Some(&control), monitor)?;
        Ok((control, Some(current)))
    }

    /// What the test pairs say of plain vectors, control and bridge, each with its 95 % interval, of the bridge against
    /// the control, and of what is stored against plain vectors; and the verdict on that.
    fn figures(&self, control: &State, bridge: Option<&State>, used: bool, synthetic: bool) -> (Value, Verdict) {
        let measure = |numbers: &[f32], context| self.values(numbers, context, Split::Test);
        let plain = measure(&vec![0.0; self.shape.parameters()], false);
        let with_control = measure(&control.best, false);
        let with_bridge = bridge.map(|bridge| measure(&bridge.best, true));
        let seed = self.options.seed;
        let draws = Draws {
            seed,
            ..Draws::default()
        };
        let ends = |values: &[f64]| of_mean(values, draws).map(|interval| [interval.low, interval.high]);
        let over_control = with_bridge
            .as_ref()
            .map(|values| Evaluation::of(&with_control, values, seed));
        let stored = with_bridge.as_ref().filter(|_| used).unwrap_or(&with_control);
        let gained = Evaluation::of(&plain, stored, seed);
        let figures = json!({
            "measure": "nDCG@10 of held-out pairs among the passages of their documents",
            "plain": gained.base, "control": mean(&with_control), "bridge": with_bridge.as_deref().map(mean),
            "intervals": {
                "plain": ends(&plain), "control": ends(&with_control), "bridge": with_bridge.as_deref().and_then(ends),
            },
            "bridge_over_control": over_control.map(|over| json!({
                "difference": over.with - over.base, "gain": over.gain,
                "low": over.difference.map(|ends| ends.low), "high": over.difference.map(|ends| ends.high),
            })),
            "gain": gained.gain,
            "low": gained.gain_interval.map(|ends| ends.low), "high": gained.gain_interval.map(|ends| ends.high),
            "document": used, "epochs": bridge.filter(|_| used).unwrap_or(control).best_epoch,
            "pairs": if synthetic { "synthetic" } else { "given" },
            "trained_pairs": self.count(Split::Training), "validation_pairs": self.count(Split::Validation),
            "held_out_pairs": self.count(Split::Test),
        });
        (figures, Verdict::of(&[gained.difference], synthetic))
    }

    /// nDCG@10 of each pair of a split, each with its one passage, among the passages of the split's documents.
    fn values(&self, numbers: &[f32], context: bool, split: Split) -> Vec<f64> {
        let segments: Vec<&Segment> = self.segments.iter().filter(|segment| segment.split == split).collect();
        let mut vectors = Vec::new();
        for segment in &segments {
            let document = Document {
                shape: self.shape,
                rows: &segment.rows[usize::from(context)],
                count: segment.passages.len(),
            };
            vectors.extend(document.forward(numbers, context).vectors);
        }
        let d = self.shape.dimensions;
        let (mut values, mut start) = (Vec::new(), 0);
        for segment in segments {
            for &pair in &segment.pairs {
                let own = start + self.pairs[pair].passage as usize - segment.passages.start;
                let query = self.query(pair);
                let score = dot(query, &vectors[own * d..(own + 1) * d]);
                let before = |(at, row): (usize, &[f32])| at != own && dot(query, row) >= score;
                let rank = vectors.chunks_exact(d).enumerate().filter(|&at| before(at)).count();
                values.push(if rank < 10 {
                    1.0 / (rank as f64 + 2.0).log2()
                } else {
                    0.0
                });
            }
            start += segment.passages.len();
        }
        values
    }

    /// The steps of an epoch: segments that are read together, and the pairs asked of them.
    fn steps(&self, epoch: u32) -> Vec<(Vec<usize>, Vec<usize>)> {
        let mut random = Random::new(self.options.seed.wrapping_mul(0x5851_F42D_4C95_7F2D) ^ u64::from(epoch));
        let mut steps = self.round(&mut random);
        let once = steps.len();
        while once > 0 && steps.len() < LEAST_STEPS {
            steps.extend(self.round(&mut random));
        }
        steps
    }

    /// Steps that go through all pairs once.
    fn round(&self, random: &mut Random) -> Vec<(Vec<usize>, Vec<usize>)> {
        let mut order: Vec<usize> = (0..self.segments.len())
            .filter(|&segment| {
                self.segments[segment].split == Split::Training && !self.segments[segment].pairs.is_empty()
            })
            .collect();
        random.shuffle(&mut order);
        let mut steps = Vec::new();
        let mut rest = order.as_slice();
        while !rest.is_empty() {
            let mut passages = 0;
            let fits = rest.iter().take_while(|&&segment| {
                passages += self.segments[segment].passages.len();
                passages <= BATCH_PASSAGES
            });
            let (together, others) = rest.split_at(fits.count().max(1));
            let asked = together
                .iter()
                .flat_map(|&segment| self.segments[segment].pairs.iter().copied());
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
    fn run(&self, state: &mut State, control: Option<&State>, monitor: &mut dyn Monitor) -> Result<(), BridgeError> {
        let mut gradient = vec![0.0f32; state.numbers.len()];
        let plain = self.values(&vec![0.0; state.numbers.len()], false, Split::Validation);
        if state.epoch == 0 {
            state.best_figure = mean(&plain);
            state.stopping = EarlyStopping::new(state.best_figure);
        }
        while state.epoch < self.options.epochs {
            let steps = self.steps(state.epoch);
            let all = steps.len() as u64 * u64::from(self.options.epochs);
            let mut held_out = Some(state.best_figure).filter(|_| state.epoch > 0);
            for (segments, pairs) in steps {
                let loss = self.gradient(state, &segments, &pairs, &mut gradient);
                if !loss.is_finite() {
                    return Err(BridgeError::NotFinite { what: "loss" });
                }
                state.adam(self.shape, &gradient, self.options.rate);
                monitor.step(&Progress {
                    step: state.step.min(all) + if state.context { all } else { 0 },
                    steps: 2 * all,
                    loss,
                    held_out: held_out.take(),
                })?;
            }
            state.epoch += 1;
            let values = self.values(&state.numbers, state.context, Split::Validation);
            let figure = mean(&values);
            if state.stopping.keeps(figure, standard_error(&plain, &values)) {
                state.best_figure = figure;
                state.best_epoch = state.epoch;
                state.best.clone_from(&state.numbers);
            }
            let bytes = postcard::to_stdvec(&(control, &*state));
            monitor.checkpoint(&bytes.map_err(|error| BridgeError::File(error.to_string()))?)?;
        }
        Ok(())
    }

    fn gradient(&self, state: &State, segments: &[usize], pairs: &[usize], gradient: &mut [f32]) -> f64 {
        gradient.fill(0.0);
        let mut starts = Vec::with_capacity(segments.len());
        let mut documents = Vec::with_capacity(segments.len());
        let mut start = 0;
        for &segment in segments {
            let segment = &self.segments[segment];
            starts.push((segment.passages.clone(), start));
            start += segment.passages.len();
            documents.push(Rows {
                rows: &segment.rows[usize::from(state.context)],
                count: segment.passages.len(),
            });
        }
        let target = |&pair: &usize| {
            let passage = self.pairs[pair].passage as usize;
            let (segment, start) = starts.iter().find(|(segment, _)| segment.contains(&passage))?;
            Some(Target {
                query: self.query(pair),
                passage: start + passage - segment.start,
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
        let [map, values, ..] = self.shape.ranges();
        if state.context {
            let (maps, rest) = gradient.split_at_mut(values.start);
            for (gradient, by_values) in maps[map.clone()].iter_mut().zip(&rest[..values.len()]) {
                *gradient += CONTEXT * by_values;
            }
            rest[..values.len()].fill(0.0);
        }
        // Decay acts on the map: the attention's matrices have no size of their own in the output.
        for (gradient, number) in gradient[map.clone()].iter_mut().zip(&state.numbers[map]) {
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
            let mut random = Random::new(material.options.seed);
            let [_, _, query, _, bias] = shape.ranges();
            // Keys begin at zero: all sources count alike, and part as the pairs say.
            numbers[query]
                .iter_mut()
                .for_each(|number| *number = random.symmetric() * 0.35);
            numbers[bias].fill(FIRST_BIAS);
            tie(shape, &mut numbers);
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
            best_figure: 0.0,
            best_epoch: 0,
            stopping: EarlyStopping::new(0.0),
        }
    }

    /// Adam (Kingma and Ba, 2015) with its usual constants; `V` follows `M`.
    fn adam(&mut self, shape: Shape, gradient: &[f32], rate: f32) {
        self.step += 1;
        let power = self.step.min(1 << 20) as i32;
        let (left, right) = (1.0 - 0.9f32.powi(power), 1.0 - 0.999f32.powi(power));
        let bias = shape.ranges()[4].start;
        let moments = self.first.iter_mut().zip(&mut self.second);
        for (at, ((number, change), (first, second))) in self.numbers.iter_mut().zip(gradient).zip(moments).enumerate()
        {
            let rate = if at < bias { rate } else { rate * BIAS_RATE };
            *first = 0.9 * *first + 0.1 * change;
            *second = 0.999 * *second + 0.001 * change * change;
            *number -= rate * (*first / left) / ((*second / right).sqrt() + 1e-8);
        }
        if self.context {
            tie(shape, &mut self.numbers);
        }
    }
}

/// `V = CONTEXT (I + M)`.
fn tie(shape: Shape, numbers: &mut [f32]) {
    let [map, values, ..] = shape.ranges();
    let (maps, rest) = numbers.split_at_mut(values.start);
    rest.iter_mut()
        .zip(&maps[map])
        .for_each(|(value, number)| *value = CONTEXT * number);
    rest[..values.len()]
        .iter_mut()
        .step_by(shape.dimensions + 1)
        .for_each(|diagonal| *diagonal += CONTEXT);
}
