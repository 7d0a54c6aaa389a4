//! The projector as it is trained.
//!
//! `o = W2 gelu(W1 x + b1) + b2`; with `do` from the decoder, `dW2 = do^T a`, `dz = (do W2) gelu'(z)`, `dW1 = dz^T x`,
//! and `gelu'(z) = Phi(z) + z phi(z)`.

use super::projector::{KIND, gelu, normal};
use crate::bridge::BridgeError;
use crate::bridge::file::{self, Tensors};
use crate::bridge::train::adam::Adam;
use crate::bridge::train::matrix::{product, transposed};
use crate::compute::Pool;
use crate::random::Random;
use serde_json::{Map, Value, json};

/// Longest gradient of a step.
const CLIP: f32 = 1.0;
/// How much larger outputs begin than the decoder's own inputs are: what a larger one says lasts longer beside what the
/// layers add to it.
const LARGER: f32 = 10.0;
/// The first layer's rate, as a share of the second's: slower, it fits what is not trained on better.
const FIRST: f32 = 0.15;
/// Vectors that sizes are taken from.
const SIZED: usize = 256;

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
    /// The parts' rates where the rate is 1.
    units: [f32; 4],
}

/// `sqrt(mean(x^2))`.
fn size(numbers: &[f32]) -> f32 {
    let squares: f64 = numbers.iter().map(|x| f64::from(*x).powi(2)).sum();
    (squares / numbers.len().max(1) as f64).sqrt() as f32
}

impl Trainee {
    /// Random weights whose outputs over `vectors` are [`LARGER`] times as large as `scale`, the size of the decoder's
    /// own inputs.
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
            moments: Trainee::fresh(sizes),
            units: [0.0; 4],
        };
        let (_, _, out) = trainee.forward(pool, trainee.some(vectors))?;
        let factor = LARGER * scale / size(&out).max(f32::MIN_POSITIVE);
        trainee.parts[2].iter_mut().for_each(|w| *w *= factor);
        trainee.begin_anew(pool, vectors)?;
        Ok(trainee)
    }

    fn some<'a>(&self, vectors: &'a [f32]) -> &'a [f32] {
        &vectors[..vectors.len().min(SIZED * self.sizes.inputs)]
    }

    /// The projector of a bridge's file, for a decoder of `width` numbers a token and such `vectors`.
    ///
    /// # Errors
    /// [`BridgeError::File`] for a file that is no projector for vectors of `inputs` numbers and that decoder.
    pub fn read(
        pool: &Pool,
        bytes: &[u8],
        inputs: usize,
        width: usize,
        vectors: &[f32],
    ) -> Result<Trainee, BridgeError> {
        let mut tensors = Tensors::read(bytes, KIND)?;
        let bad = || BridgeError::File("it is no projector from this encoder to this LLM".to_owned());
        let mut part = |name: &str| tensors.take_any(name).ok_or_else(bad);
        let (first, weights) = part("projector.projector.0.weight")?;
        let (_, first_bias) = part("projector.projector.0.bias")?;
        let (second, second_weights) = part("projector.projector.2.weight")?;
        let (_, second_bias) = part("projector.projector.2.bias")?;
        let sizes = Sizes {
            inputs,
            hidden: first_bias.len(),
            outputs: second_bias.len(),
        };
        let fits = first == [sizes.hidden, inputs] && second == [sizes.outputs, sizes.hidden];
        if !fits || sizes.hidden == 0 || sizes.outputs == 0 || !sizes.outputs.is_multiple_of(width.max(1)) {
            return Err(bad());
        }
        let mut trainee = Trainee {
            sizes,
            parts: [weights, first_bias, second_weights, second_bias],
            moments: Trainee::fresh(sizes),
            units: [0.0; 4],
        };
        trainee.begin_anew(pool, vectors)?;
        Ok(trainee)
    }

    /// The same weights, of which Adam knows nothing.
    pub fn copy(&self) -> Trainee {
        Trainee {
            sizes: self.sizes,
            parts: self.parts.clone(),
            moments: Trainee::fresh(self.sizes),
            units: self.units,
        }
    }

    /// With the rates of another, as a stage began with them.
    pub fn take_rates(&mut self, of: &Trainee) {
        self.units = of.units;
    }

    fn fresh(sizes: Sizes) -> [Adam; 4] {
        [
            sizes.hidden * sizes.inputs,
            sizes.hidden,
            sizes.outputs * sizes.hidden,
            sizes.outputs,
        ]
        .map(Adam::new)
    }

    /// Forgets what Adam knows, and takes the rates from the weights as they are now over `vectors`: the rate counts in
    /// sizes of a part's numbers, and for a bias in those of the sums that it is part of. So one rate serves encoders
    /// and decoders of any scale.
    pub fn begin_anew(&mut self, pool: &Pool, vectors: &[f32]) -> Result<(), BridgeError> {
        self.moments = Trainee::fresh(self.sizes);
        let (z, _, out) = self.forward(pool, self.some(vectors))?;
        let [first, _, second, _] = &self.parts;
        self.units = [FIRST * size(first), FIRST * size(&z), size(second), size(&out)];
        Ok(())
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

    /// A step of Adam against the gradient by the outputs of the rows `x`; the rate counts in sizes of the parts
    /// ([`Trainee::begin_anew`]).
    pub fn step(&mut self, pool: &Pool, x: &[f32], out: &[f32], rate: f32, decay: f32) -> Result<(), BridgeError> {
        let Sizes {
            inputs,
            hidden,
            outputs,
        } = self.sizes;
        let rows = x.len() / inputs;
        let (z, a, _) = self.forward(pool, x)?;
        let da = product(pool, out, &transposed(&self.parts[2], hidden)?, outputs)?;
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
            product(pool, &transposed(&dz, hidden)?, &transposed(x, inputs)?, rows)?,
            sums(&dz, hidden),
            product(pool, &transposed(out, outputs)?, &transposed(&a, hidden)?, rows)?,
            sums(out, outputs),
        ];
        let square: f64 = gradients.iter().flatten().map(|x| f64::from(*x).powi(2)).sum();
        let scale = (CLIP / (square.sqrt() as f32).max(1e-12)).min(1.0);
        let parts = self.parts.iter_mut().zip(&mut self.moments).zip(&mut gradients);
        for (((part, moments), gradient), unit) in parts.zip(self.units) {
            gradient.iter_mut().for_each(|x| *x *= scale);
            // Decay apart from the gradient, as AdamW has it.
            part.iter_mut().for_each(|w| *w *= 1.0 - rate * decay);
            moments.begin();
            moments.update(part, 0, gradient, rate * unit, 0.0);
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

    /// The state for a checkpoint; `state` says where the training is, `begun` is what its stage began with, where that
    /// is kept.
    pub fn checkpoint(&self, state: Value, begun: Option<&[Vec<f32>; 4]>) -> Result<Vec<u8>, BridgeError> {
        let mut tensors = Vec::new();
        for (part, (name, shape)) in begun.into_iter().flatten().zip(self.names()) {
            tensors.push((format!("begun.{name}"), shape, part));
        }
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

    /// Takes over a checkpoint; gives its state, and what its stage began with.
    #[allow(clippy::type_complexity)]
    pub fn resume(&mut self, bytes: &[u8]) -> Result<(Value, Option<[Vec<f32>; 4]>), BridgeError> {
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
        let state = tensors.description.metadata.get("state").cloned().ok_or_else(damaged)?;
        let begun = self
            .names()
            .map(|(name, shape)| tensors.take(&format!("begun.{name}"), &shape));
        let begun = match begun {
            [Ok(first), Ok(first_bias), Ok(second), Ok(second_bias)] => Some([first, first_bias, second, second_bias]),
            _ => None,
        };
        Ok((state, begun))
    }
}
