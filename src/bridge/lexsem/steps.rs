//! One step of the training: vectors, loss, gradients, update.

use super::held_out::{Encoded, Reading};
use super::options::Options;
use super::{Fusion, LexSem, Scheme, entries, fuse, weigh};
use crate::bridge::BridgeError;
use crate::bridge::train::adam::Adam;
use crate::bridge::train::loss::Candidates;
use crate::bridge::train::matrix::{product, transposed};
use crate::compute::Pool;
use crate::random::Random;
use std::collections::HashMap;

/// Moments of everything that is trained.
pub struct Optimiser {
    rows: Adam,
    bias: Adam,
    scale: Adam,
    projection: Adam,
    shift: Adam,
    map: Adam,
}

impl Optimiser {
    pub fn new(bridge: &LexSem) -> Optimiser {
        Optimiser {
            rows: Adam::new(bridge.rows.len()),
            bias: Adam::new(bridge.bias.len()),
            scale: Adam::new(1),
            projection: Adam::new(bridge.gate.projection.len()),
            shift: Adam::new(bridge.gate.shift.len()),
            map: Adam::new(bridge.map.as_ref().map_or(0, Vec::len)),
        }
    }

    fn all(&mut self) -> [&mut Adam; 6] {
        [
            &mut self.rows,
            &mut self.bias,
            &mut self.scale,
            &mut self.projection,
            &mut self.shift,
            &mut self.map,
        ]
    }

    /// The moments, for a checkpoint.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for adam in [
            &self.rows,
            &self.bias,
            &self.scale,
            &self.projection,
            &self.shift,
            &self.map,
        ] {
            bytes.extend(adam.steps.to_le_bytes());
            for number in adam.first.iter().chain(&adam.second) {
                bytes.extend(number.to_le_bytes());
            }
        }
        bytes
    }

    /// Takes the moments of [`Optimiser::bytes`]; false where they are of another bridge.
    pub fn restore(&mut self, bytes: &[u8]) -> bool {
        let wanted: usize = self.all().iter().map(|adam| 4 + 8 * adam.first.len()).sum();
        if bytes.len() != wanted {
            return false;
        }
        let mut words = bytes.as_chunks::<4>().0.iter();
        for adam in self.all() {
            adam.steps = words.next().map_or(0, |word| u32::from_le_bytes(*word));
            for (number, word) in adam.first.iter_mut().chain(&mut adam.second).zip(words.by_ref()) {
                *number = f32::from_le_bytes(*word);
            }
        }
        true
    }
}

/// Gradients of a batch. Rows are gathered by place.
pub struct Gradients {
    pub loss: f64,
    pub rows: HashMap<usize, Vec<f32>>,
    pub bias: Vec<f32>,
    pub scale: f32,
    pub projection: Vec<f32>,
    pub shift: Vec<f32>,
    /// Empty without a map.
    pub map: Vec<f32>,
}

/// What every step has.
#[derive(Clone, Copy)]
pub struct Steps<'a> {
    pub pool: &'a Pool,
    pub candidates: &'a Candidates,
    pub queries: &'a Encoded,
    /// The queries' vectors after the metric.
    pub starts: &'a [f32],
    pub options: &'a Options,
}

/// The gradients of the mean loss of a batch of training queries (positions).
pub fn gradients(
    steps: Steps<'_>,
    bridge: &LexSem,
    batch: &[usize],
    random: &mut Random,
) -> Result<Gradients, BridgeError> {
    let Steps {
        pool,
        candidates,
        queries,
        starts,
        options,
    } = steps;
    let d = bridge.dimensions;
    let start = |query: usize| starts.get(query * d..(query + 1) * d).unwrap_or_default();
    let known = |query: &&usize| queries.readings.len() > **query && queries.targets.len() > **query;
    let rows: Vec<f32> = batch
        .iter()
        .filter(known)
        .flat_map(|query| start(*query))
        .copied()
        .collect();
    let mapped = mapped(pool, bridge, &rows)?;
    let mut mapped = mapped.chunks_exact(d.max(1));
    let (mut parts, mut fused, mut vectors, mut targets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for &query in batch {
        let (Some(reading), Some(target)) = (queries.readings.get(query), queries.targets.get(query)) else {
            continue;
        };
        let used = dropped_out(entries(bridge, reading.borrow())?, options.dropout, random);
        let one = fuse::forward(bridge.fusion, mapped.next().unwrap_or_default(), &words(bridge, &used));
        vectors.extend_from_slice(&one.output);
        targets.push(*target);
        fused.push(one);
        parts.push((used, reading));
    }
    let (loss, by_output) = candidates.loss(pool, &vectors, &targets, options.tau)?;
    let mut gradients = Gradients::none(bridge, loss);
    let mut by_mapped = Vec::with_capacity(rows.len());
    for (((used, reading), fused), by_output) in parts.iter().zip(&fused).zip(by_output.chunks_exact(d)) {
        let by_z = fuse::backward(bridge.fusion, fused, by_output);
        by_mapped.extend_from_slice(&by_z);
        gradients.bias.iter_mut().zip(&by_z).for_each(|(sum, g)| *sum += g);
        for (place, weight) in used {
            let row = gradients.rows.entry(*place).or_insert_with(|| vec![0.0; d]);
            row.iter_mut().zip(&by_z).for_each(|(sum, g)| *sum += weight * g);
        }
        by_weights(bridge, used, reading, &by_z, options.dropout, &mut gradients);
    }
    if bridge.map.is_some() {
        // The fusion is a sum, so the gradient by `e + e M` is that by `z`.
        gradients.map = product(pool, &transposed(&rows, d)?, &transposed(&by_mapped, d)?, targets.len())?;
    }
    Ok(gradients)
}

/// `e + e M` of row-major vectors, or the vectors where the bridge has no map.
fn mapped(pool: &Pool, bridge: &LexSem, rows: &[f32]) -> Result<Vec<f32>, BridgeError> {
    let Some(map) = &bridge.map else {
        return Ok(rows.to_vec());
    };
    let mut mapped = product(pool, rows, &transposed(map, bridge.dimensions)?, bridge.dimensions)?;
    mapped.iter_mut().zip(rows).for_each(|(sum, x)| *sum += x);
    Ok(mapped)
}

/// Weights of which a share is left out by chance, the others larger by as much.
fn dropped_out(mut used: Vec<(usize, f32)>, dropout: f32, random: &mut Random) -> Vec<(usize, f32)> {
    if dropout > 0.0 {
        used.retain_mut(|(_, weight)| {
            *weight /= 1.0 - dropout;
            random.unit() >= f64::from(dropout)
        });
    }
    used
}

/// `z = sum_t w_t W_t + b`.
fn words(bridge: &LexSem, used: &[(usize, f32)]) -> Vec<f32> {
    let mut z = bridge.bias.clone();
    for (place, weight) in used {
        z.iter_mut()
            .zip(bridge.row(*place))
            .for_each(|(sum, x)| *sum += weight * x);
    }
    z
}

impl Gradients {
    /// Zeros for a bridge.
    fn none(bridge: &LexSem, loss: f64) -> Gradients {
        Gradients {
            loss,
            rows: HashMap::new(),
            bias: vec![0.0; bridge.dimensions],
            scale: 0.0,
            projection: vec![0.0; bridge.gate.projection.len()],
            shift: vec![0.0; bridge.gate.shift.len()],
            map: Vec::new(),
        }
    }
}

/// Adds the gradient by the scheme's own parameters.
fn by_weights(
    bridge: &LexSem,
    used: &[(usize, f32)],
    reading: &Reading,
    by_z: &[f32],
    dropout: f32,
    gradients: &mut Gradients,
) {
    let by_weight = |place: usize| -> f32 { bridge.row(place).iter().zip(by_z).map(|(x, g)| x * g).sum() };
    let kept = 1.0 / (1.0 - dropout);
    match bridge.scheme {
        Scheme::Slr => {
            gradients.scale += used.iter().map(|(place, _)| kept * by_weight(*place)).sum::<f32>();
        }
        Scheme::Llr => {
            let shift = bridge.gate.shift.first().copied().unwrap_or_default();
            let d = bridge.dimensions;
            for (id, _, position) in weigh::llr_positions(&reading.ids, &reading.states, &bridge.gate.projection, shift)
            {
                let place = bridge.place(id);
                // Weights of 0 are not among the used, nor are those that were left out.
                let Some(place) = place.filter(|place| used.iter().any(|(other, _)| other == place)) else {
                    continue;
                };
                let g = kept * by_weight(place);
                let state = reading.states.get(position * d..(position + 1) * d).unwrap_or_default();
                let sums = gradients.projection.iter_mut();
                sums.zip(state).for_each(|(sum, h)| *sum += g * h);
                gradients.shift.iter_mut().for_each(|sum| *sum += g);
            }
        }
        Scheme::Bag | Scheme::SlrPaper | Scheme::LlrPaper | Scheme::Clr => {}
    }
}

/// One step over a batch of training queries; gives the batch's mean loss.
pub fn step(
    steps: Steps<'_>,
    bridge: &mut LexSem,
    optimiser: &mut Optimiser,
    batch: &[usize],
    random: &mut Random,
) -> Result<f64, BridgeError> {
    let options = steps.options;
    let gradients = gradients(steps, bridge, batch, random)?;
    let (rate, d) = (options.rate, bridge.dimensions);
    optimiser.all().into_iter().for_each(Adam::begin);
    for (place, gradient) in &gradients.rows {
        let rows = &mut bridge.rows;
        optimiser.rows.update(rows, place * d, gradient, rate, options.decay);
    }
    // A sum's bias would pull every query, with words or without, to one place.
    if bridge.fusion != Fusion::Sum {
        let bias = &mut bridge.bias;
        optimiser.bias.update(bias, 0, &gradients.bias, rate, options.decay);
    }
    if let Some(map) = &mut bridge.map {
        optimiser
            .map
            .update(map, 0, &gradients.map, options.map_rate, options.decay);
    }
    let gate = &mut bridge.gate;
    match bridge.scheme {
        Scheme::Slr => {
            let scale = std::slice::from_mut(&mut gate.scale);
            optimiser.scale.update(scale, 0, &[gradients.scale], rate, 0.0);
        }
        Scheme::Llr => {
            optimiser
                .projection
                .update(&mut gate.projection, 0, &gradients.projection, rate, 0.0);
            optimiser.shift.update(&mut gate.shift, 0, &gradients.shift, rate, 0.0);
        }
        Scheme::Bag | Scheme::SlrPaper | Scheme::LlrPaper | Scheme::Clr => {}
    }
    Ok(gradients.loss)
}
