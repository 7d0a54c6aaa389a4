//! The projector as it is trained, and the passes that its gradient comes from.
//!
//! `o = W2 gelu(W1 x + b1) + b2`; with `do` from the decoder, `dW2 = do^T a`, `dz = (do W2) gelu'(z)`, `dW1 = dz^T x`, and
//! `gelu'(z) = Phi(z) + z phi(z)`.

use super::projector::{KIND, gelu, normal};
use super::prompts::Prompt;
use crate::bridge::BridgeError;
use crate::bridge::file::{self, Tensors};
use crate::bridge::train::adam::Adam;
use crate::bridge::train::matrix::{product, transposed};
use crate::compute::Pool;
use crate::eval::random::Random;
use crate::model::llm::gradient::{Differentiable, Target};
use serde_json::{Map, Value, json};

/// Sequences of a pass: what a pass keeps for the way back is most of the memory.
pub const AT_ONCE: usize = 4;
/// Longest gradient of a step.
const CLIP: f32 = 1.0;

/// Sizes of the projector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub inputs: usize,
    pub hidden: usize,
    pub outputs: usize,
}

/// Weights, and what Adam knows of them.
pub struct Trainee {
    pub sizes: Sizes,
    /// `W1`, `b1`, `W2`, `b2`.
    pub parts: [Vec<f32>; 4],
    moments: [Adam; 4],
}

/// What stands in the place of a passage.
pub enum Given<'a> {
    /// Vectors of the projector, one after another.
    Vectors(&'a [f32]),
    Ids(&'a [u32]),
}

/// A prompt with something in the passage's place, and the text that is wanted behind it.
pub struct Example<'a> {
    pub prompt: &'a Prompt,
    pub given: Given<'a>,
    pub text: &'a [u32],
}

/// What passes over examples gave.
pub struct Passed {
    /// Mean of `-log2 p` over the text's tokens, of each example.
    pub bits: Vec<f64>,
    /// By the vectors of each example, where there are any and the way back was gone.
    pub gradients: Vec<Vec<f32>>,
}

impl Trainee {
    /// Random weights whose outputs over `vectors` are as large as `scale`, the decoder's own inputs.
    pub fn new(pool: &Pool, sizes: Sizes, vectors: &[f32], scale: f32, seed: u64) -> Result<Trainee, BridgeError> {
        let mut random = Random::new(seed);
        let mut numbers = |count: usize, range: f32| -> Vec<f32> {
            let unit = |bits: u64| (bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
            (0..count).map(|_| unit(random.bits()) * range).collect()
        };
        let Sizes {
            inputs,
            hidden,
            outputs,
        } = sizes;
        // Inputs have length 1: a number of them is about 1 / sqrt(inputs).
        let first = numbers(hidden * inputs, 3.0f32.sqrt());
        let second = numbers(outputs * hidden, (3.0 / hidden as f32).sqrt());
        let mut trainee = Trainee {
            sizes,
            parts: [first, vec![0.0; hidden], second, vec![0.0; outputs]],
            moments: [hidden * inputs, hidden, outputs * hidden, outputs].map(Adam::new),
        };
        let some = vectors.len().min(256 * inputs);
        let (_, _, out) = trainee.forward(pool, &vectors[..some])?;
        let size = (out.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / out.len().max(1) as f64).sqrt();
        let factor = scale / (size as f32).max(f32::MIN_POSITIVE);
        trainee.parts[2].iter_mut().for_each(|w| *w *= factor);
        Ok(trainee)
    }

    /// `z`, `a` and `o` of rows of inputs.
    #[allow(clippy::type_complexity)]
    pub fn forward(&self, pool: &Pool, x: &[f32]) -> Result<(Vec<f32>, Vec<f32>, Vec<f32>), BridgeError> {
        let Sizes {
            inputs,
            hidden,
            outputs,
        } = self.sizes;
        let mut z = product(pool, x, &self.parts[0], inputs)?;
        let add = |rows: &mut [f32], bias: &[f32]| {
            for row in rows.chunks_exact_mut(bias.len()) {
                row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
            }
        };
        add(&mut z, &self.parts[1]);
        let a: Vec<f32> = z.iter().map(|z| gelu(*z)).collect();
        let mut o = product(pool, &a, &self.parts[2], hidden)?;
        debug_assert_eq!(o.len(), x.len() / inputs * outputs);
        add(&mut o, &self.parts[3]);
        Ok((z, a, o))
    }

    /// A step of Adam against the gradient by the outputs of the rows `x`.
    pub fn step(&mut self, pool: &Pool, x: &[f32], out: &[f32], rate: f32, decay: f32) -> Result<(), BridgeError> {
        let Sizes {
            inputs,
            hidden,
            outputs,
        } = self.sizes;
        let rows = x.len() / inputs;
        let (z, a, _) = self.forward(pool, x)?;
        let da = product(pool, out, &transposed(&self.parts[2], hidden), outputs)?;
        let dz: Vec<f32> = da
            .iter()
            .zip(&z)
            .map(|(da, z)| {
                let (phi, density) = normal(*z);
                da * (phi + z * density)
            })
            .collect();
        let sums = |rows: &[f32], width: usize| {
            let mut sums = vec![0.0f32; width];
            for row in rows.chunks_exact(width) {
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
            sums
        };
        let mut gradients = [
            product(pool, &transposed(&dz, hidden), &transposed(x, inputs), rows)?,
            sums(&dz, hidden),
            product(pool, &transposed(out, outputs), &transposed(&a, hidden), rows)?,
            sums(out, outputs),
        ];
        let square: f64 = gradients.iter().flatten().map(|x| f64::from(*x).powi(2)).sum();
        let scale = (CLIP / (square.sqrt() as f32).max(1e-12)).min(1.0);
        for ((part, moments), gradient) in self.parts.iter_mut().zip(&mut self.moments).zip(&mut gradients) {
            gradient.iter_mut().for_each(|x| *x *= scale);
            // Decay apart from the gradient, as AdamW has it.
            part.iter_mut().for_each(|w| *w *= 1.0 - rate * decay);
            moments.begin();
            moments.update(part, 0, gradient, rate, 0.0);
        }
        Ok(())
    }

    fn names(&self) -> [(&'static str, Vec<usize>); 4] {
        let Sizes {
            inputs,
            hidden,
            outputs,
        } = self.sizes;
        [
            ("projector.projector.0.weight", vec![hidden, inputs]),
            ("projector.projector.0.bias", vec![hidden]),
            ("projector.projector.2.weight", vec![outputs, hidden]),
            ("projector.projector.2.bias", vec![outputs]),
        ]
    }

    /// The bridge's bytes. `more` is added to the metadata.
    pub fn write(&self, more: Map<String, Value>) -> Result<Vec<u8>, BridgeError> {
        let names = self.names();
        let tensors = names
            .iter()
            .zip(&self.parts)
            .map(|((name, shape), part)| (*name, shape.clone(), part.as_slice()));
        file::write(KIND, self.sizes.inputs, more, &tensors.collect::<Vec<_>>())
    }

    /// The state for a checkpoint; `state` says where the training is.
    pub fn checkpoint(&self, state: Value) -> Result<Vec<u8>, BridgeError> {
        let mut tensors = Vec::new();
        for (((name, shape), part), moments) in self.names().into_iter().zip(&self.parts).zip(&self.moments) {
            tensors.push((name.to_owned(), shape.clone(), part));
            tensors.push((format!("first.{name}"), shape.clone(), &moments.first));
            tensors.push((format!("second.{name}"), shape, &moments.second));
        }
        let views: Vec<(&str, Vec<usize>, &[f32])> = tensors
            .iter()
            .map(|(name, shape, numbers)| (name.as_str(), shape.clone(), numbers.as_slice()))
            .collect();
        let more = Map::from_iter([
            ("state".to_owned(), state),
            ("steps".to_owned(), json!(self.moments[0].steps)),
        ]);
        file::write(KIND, self.sizes.inputs, more, &views)
    }

    /// Takes over a checkpoint; gives its state.
    pub fn resume(&mut self, bytes: &[u8]) -> Result<Value, BridgeError> {
        let damaged = || BridgeError::File("the checkpoint is of another training".to_owned());
        let mut tensors = Tensors::read(bytes, KIND)?;
        let steps = tensors.description.metadata.get("steps").and_then(Value::as_u64);
        let steps = steps.and_then(|steps| u32::try_from(steps).ok()).ok_or_else(damaged)?;
        for (place, (name, shape)) in self.names().into_iter().enumerate() {
            self.parts[place] = tensors.take(name, &shape)?;
            self.moments[place].first = tensors.take(&format!("first.{name}"), &shape)?;
            self.moments[place].second = tensors.take(&format!("second.{name}"), &shape)?;
            self.moments[place].steps = steps;
        }
        tensors.description.metadata.get("state").cloned().ok_or_else(damaged)
    }
}

/// Runs examples through the decoder, a few at a time; `weight` of each token's loss in the gradient, 0 for none.
///
/// # Errors
/// [`BridgeError::Stopped`] where `stop` says so.
pub fn pass(
    pool: &Pool,
    decoder: &Differentiable,
    examples: &[Example<'_>],
    weight: f32,
    stop: &dyn Fn() -> bool,
) -> Result<Passed, BridgeError> {
    let hidden = decoder.config().hidden;
    let mut passed = Passed {
        bits: Vec::new(),
        gradients: Vec::new(),
    };
    for part in examples.chunks(AT_ONCE) {
        let (mut vectors, mut starts, mut targets, mut places) = (Vec::new(), vec![0], Vec::new(), Vec::new());
        for example in part {
            let first = vectors.len() / hidden;
            let ids = |vectors: &mut Vec<f32>, ids: &[u32]| {
                for id in ids {
                    let start = vectors.len();
                    vectors.resize(start + hidden, 0.0);
                    decoder.embed(*id, &mut vectors[start..]);
                }
            };
            ids(&mut vectors, &example.prompt.before);
            let at = vectors.len();
            match example.given {
                Given::Vectors(given) => vectors.extend_from_slice(given),
                Given::Ids(given) => ids(&mut vectors, given),
            }
            places.push(at..vectors.len());
            ids(&mut vectors, &example.prompt.after);
            let last = vectors.len() / hidden;
            if last == first || example.text.is_empty() {
                return Err(BridgeError::TooLittle(
                    "a prompt or a passage without tokens".to_owned(),
                ));
            }
            ids(&mut vectors, &example.text[..example.text.len() - 1]);
            targets.extend(example.text.iter().enumerate().map(|(number, id)| Target {
                row: last - 1 + number,
                id: *id,
                teacher: None,
            }));
            starts.push(vectors.len() / hidden);
        }
        let back = weight > 0.0;
        let result = decoder.pass(pool, &vectors, &starts, &targets, weight, 0.0, back, stop);
        let (loss, gradient) = match result {
            Err(crate::compute::ComputeError::Stopped) => return Err(BridgeError::Stopped),
            result => result?,
        };
        let mut nats = loss.nats.as_slice();
        for (example, place) in part.iter().zip(places) {
            let (own, rest) = nats.split_at(example.text.len());
            nats = rest;
            let sum: f64 = own.iter().map(|nats| f64::from(*nats)).sum();
            passed.bits.push(sum / own.len() as f64 / std::f64::consts::LN_2);
            passed.gradients.push(match (back, &example.given) {
                (true, Given::Vectors(_)) => gradient[place].to_vec(),
                _ => Vec::new(),
            });
        }
    }
    Ok(passed)
}
