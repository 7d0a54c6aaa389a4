//! The masked-language-model head of a BERT: from a token's state to a logit for each entry of the vocabulary.
//!
//! `logits = LayerNorm(act(h W^T + c)) E^T + b` with `E` the word table, or the head's own decoder where the file has one
//! (`BertForMaskedLM`: `cls.predictions.*`).

use super::weights::Weights;
use super::{Activation, Manifest, ModelError, Precision};
use crate::compute::cpu::Level;
use crate::compute::matmul::parallel::Matmul;
use crate::compute::memory::zeros;
use crate::compute::{LayerNorm, Linear, Pool};

const PREFIX: &str = "cls.predictions.";

/// A head in memory. It computes in f32.
pub struct Head {
    level: Level,
    activation: Activation,
    hidden: usize,
    vocabulary: usize,
    transform: Linear,
    norm: LayerNorm,
    decoder: Linear,
}

impl Head {
    /// Reads the head of a BERT's weights; `None` where they have none.
    ///
    /// # Errors
    /// Where one of its tensors is missing or has another shape than the configuration says.
    pub fn load(manifest: &Manifest, weights: &Weights, level: Level) -> Result<Option<Head>, ModelError> {
        let dense = format!("{PREFIX}transform.dense.weight");
        if !weights.contains(&dense) {
            return Ok(None);
        }
        let (hidden, vocabulary, level) = (manifest.hidden, manifest.vocabulary, level.or_detected());
        let read = |name: &str, shape: &[usize]| weights.read(&format!("{PREFIX}{name}"), shape);
        let linear = |weights: &[f32], bias: &[f32]| Linear::new(level, Precision::F32, weights, bias, hidden);
        let old = weights.contains(&format!("{PREFIX}transform.LayerNorm.gamma"));
        let [scale, shift] = if old { ["gamma", "beta"] } else { ["weight", "bias"] };
        let scale = read(&format!("transform.LayerNorm.{scale}"), &[hidden])?;
        let shift = read(&format!("transform.LayerNorm.{shift}"), &[hidden])?;
        let own = weights.contains(&format!("{PREFIX}decoder.weight"));
        let words = match own {
            true => read("decoder.weight", &[vocabulary, hidden])?,
            false => {
                let bare = "embeddings.word_embeddings.weight";
                let with = format!("bert.{bare}");
                let name = if weights.contains(&with) { with.as_str() } else { bare };
                weights.read(name, &[vocabulary, hidden])?
            }
        };
        let bias = match weights.contains(&format!("{PREFIX}bias")) {
            true => read("bias", &[vocabulary])?,
            false => read("decoder.bias", &[vocabulary])?,
        };
        let transform = read("transform.dense.weight", &[hidden, hidden])?;
        Ok(Some(Head {
            transform: linear(&transform, &read("transform.dense.bias", &[hidden])?)?,
            norm: LayerNorm::new(&scale, &shift, manifest.layer_norm_epsilon)?,
            decoder: linear(&words, &bias)?,
            activation: manifest.activation,
            level,
            hidden,
            vocabulary,
        }))
    }

    /// Bytes of memory that the weights take.
    pub fn memory(&self) -> usize {
        self.transform.memory() + self.norm.memory() + self.decoder.memory()
    }

    /// A logit for each entry of the vocabulary, from the last layer's state of one token.
    ///
    /// # Errors
    /// [`ModelError::Compute`] for a state of another length.
    pub fn logits(&self, pool: &Pool, state: &[f32]) -> Result<Vec<f32>, ModelError> {
        let mut inner = vec![0.0f32; self.hidden];
        Matmul::new(pool, self.hidden)?.run(pool, &self.transform, state, &mut inner)?;
        inner.iter_mut().for_each(|x| *x = activate(self.activation, *x));
        self.norm.apply(self.level, &mut inner);
        let mut logits = zeros::<f32>(self.vocabulary)?;
        Matmul::new(pool, self.hidden)?.run(pool, &self.decoder, &inner, &mut logits)?;
        Ok(logits)
    }
}

/// The non-linearity of one number.
fn activate(activation: Activation, x: f32) -> f32 {
    let x = f64::from(x);
    let y = match activation {
        Activation::Gelu => x / 2.0 * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            x / 2.0 * (1.0 + inner.tanh())
        }
        Activation::Relu => x.max(0.0),
        Activation::Silu => x / (1.0 + (-x).exp()),
    };
    y as f32
}

/// The error function to 1.5e-7 (Abramowitz and Stegun 1964, 7.1.26).
fn erf(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.3275911 * x.abs());
    let polynomial = [1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592]
        .into_iter()
        .fold(0.0, |sum, coefficient| (sum + coefficient) * t);
    (1.0 - polynomial * (-x * x).exp()).copysign(x)
}
