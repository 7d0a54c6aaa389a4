//! How the words' part `z` and a query's vector `e` become one vector of unit length, and the gradient of that.
//!
//! - [`Fusion::Softmax`], as published: `e' = softmax(z) * e`, element by element.
//! - [`Fusion::Exp`]: `e' = exp(z) * e`. The same direction as the published form with the same `z` (the softmax's
//!   divisor is one number for all elements, and the length is divided out), kept apart because files name their form.
//! - [`Fusion::Sum`], ours: `e' = e + z`. It may turn the signs of elements, which the published form cannot.

use serde::{Deserialize, Serialize};

/// See the head of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fusion {
    Softmax,
    Exp,
    Sum,
}

impl Fusion {
    /// The names that users write.
    pub const NAMES: &'static str = "softmax, exp or sum";

    /// The fusion of that name.
    pub fn from_name(name: &str) -> Option<Fusion> {
        Some(match name {
            "softmax" => Fusion::Softmax,
            "exp" => Fusion::Exp,
            "sum" => Fusion::Sum,
            _ => return None,
        })
    }
}

/// A fused vector with what its gradient needs.
pub struct Fused {
    /// Unit length.
    pub output: Vec<f32>,
    /// Before its length was divided out.
    raw: Vec<f32>,
    length: f32,
}

/// Fuses a vector with the words' part. Where `z` changes nothing, the output is `e` to the last bit.
pub fn forward(fusion: Fusion, e: &[f32], z: &[f32]) -> Fused {
    let raw: Vec<f32> = match fusion {
        Fusion::Sum => e.iter().zip(z).map(|(e, z)| e + z).collect(),
        Fusion::Exp => e.iter().zip(z).map(|(e, z)| e * z.exp()).collect(),
        Fusion::Softmax => {
            // `dimensions * softmax(z)`: 1 where `z` is the same everywhere; the factor goes with the length.
            let most = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let powers: Vec<f32> = z.iter().map(|z| (z - most).exp()).collect();
            let mean = powers.iter().sum::<f32>() / powers.len().max(1) as f32;
            e.iter().zip(&powers).map(|(e, power)| e * (power / mean)).collect()
        }
    };
    let length = raw.iter().map(|x| x * x).sum::<f32>().sqrt();
    let output = if raw == e || length == 0.0 {
        raw.clone()
    } else {
        raw.iter().map(|x| x / length).collect()
    };
    Fused { output, raw, length }
}

/// The gradient by `z`, from the gradient by the output (and what [`forward`] gave).
pub fn backward(fusion: Fusion, fused: &Fused, by_output: &[f32]) -> Vec<f32> {
    if fused.length == 0.0 {
        return vec![0.0; by_output.len()];
    }
    let along: f32 = fused.output.iter().zip(by_output).map(|(o, g)| o * g).sum();
    let by_raw = fused
        .output
        .iter()
        .zip(by_output)
        .map(|(o, g)| (g - o * along) / fused.length);
    match fusion {
        Fusion::Sum => by_raw.collect(),
        // The softmax's own divisor moves along `raw`, to which `by_raw` is orthogonal: the gradient is the same.
        Fusion::Exp | Fusion::Softmax => by_raw.zip(&fused.raw).map(|(g, raw)| g * raw).collect(),
    }
}
