//! The projector of a bridge of kind `xrag`: `W2 gelu(W1 x + b1) + b2` with the exact GELU, from a passage's vector to
//! the vectors that stand for it in the input of an LLM (xRAG, arXiv 2405.13792).
//!
//! The file has the published tensors: `projector.projector.0.weight` (F32, hidden x dimensions), `.0.bias`,
//! `projector.projector.2.weight` (F32, tokens * width x hidden), `.2.bias`. The metadata may say `llm` (the
//! fingerprint of the LLM) and `normalized` (whether it was trained on vectors of length 1).

use crate::bridge::file::{self, Tensors};
use crate::bridge::{BridgeError, BridgeKind};
use crate::compute::memory::collected;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value};

/// This kind of bridge.
pub const KIND: BridgeKind = BridgeKind::Xrag;

/// One affine map, `outputs` rows of weights.
#[derive(Clone, Debug, PartialEq)]
struct Layer {
    inputs: usize,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Layer {
    fn read(tensors: &mut Tensors, number: usize, inputs: usize) -> Result<Layer, BridgeError> {
        let name = |part: &str| format!("projector.projector.{number}.{part}");
        let bad = |what: &str| BridgeError::File(format!("{what} \"{}\"", name("bias")));
        let (shape, bias) = tensors.take_any(&name("bias")).ok_or_else(|| bad("it has no tensor"))?;
        if shape.len() != 1 || bias.is_empty() {
            return Err(bad("it is no bias:"));
        }
        let weight = tensors.take(&name("weight"), &[bias.len(), inputs])?;
        Ok(Layer { inputs, weight, bias })
    }

    fn apply(&self, x: &[f32]) -> Vec<f32> {
        let rows = self.weight.chunks_exact(self.inputs).zip(&self.bias);
        let dot = |row: &[f32]| {
            row.iter()
                .zip(x)
                .map(|(w, x)| f64::from(*w) * f64::from(*x))
                .sum::<f64>()
        };
        rows.map(|(row, bias)| (dot(row) + f64::from(*bias)) as f32).collect()
    }
}

/// A projector as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Projector {
    /// Fingerprint of the LLM that it is for; none where the file does not say.
    pub llm: Option<String>,
    /// Whether it was trained on vectors of length 1.
    pub normalized: bool,
    first: Layer,
    second: Layer,
}

/// `x Phi(x)`, the exact GELU.
pub(super) fn gelu(x: f32) -> f32 {
    let x = f64::from(x);
    (0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2))) as f32
}

/// `Phi(x)` and its derivative.
pub(super) fn normal(x: f32) -> (f32, f32) {
    let x = f64::from(x);
    let phi = 0.5 * (1.0 + erf(x / std::f64::consts::SQRT_2));
    let density = (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    (phi as f32, density as f32)
}

/// The error function: its Maclaurin series below 3, the continued fraction of its complement above.
fn erf(x: f64) -> f64 {
    let size = x.abs();
    let value = if size < 3.0 {
        let (mut term, mut sum, mut n) = (size, size, 0.0);
        while term.abs() > 1e-17 * sum.abs() {
            n += 1.0;
            term *= -size * size / n;
            sum += term / (2.0 * n + 1.0);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    } else {
        let fraction = (1..=40).rev().fold(size, |below, n| size + f64::from(n) / 2.0 / below);
        1.0 - (-size * size).exp() / (fraction * std::f64::consts::PI.sqrt())
    };
    value.copysign(x)
}

/// The tensors of a projector.
pub(super) const TENSORS: [&str; 4] = [
    "projector.projector.0.weight",
    "projector.projector.0.bias",
    "projector.projector.2.weight",
    "projector.projector.2.bias",
];

/// A bridge's bytes from a published safetensors file of a projector in F32, F16 or BF16. `more` is added to the
/// metadata.
///
/// # Errors
/// [`BridgeError::File`] for bytes that are no projector.
pub fn import(bytes: &[u8], more: Map<String, Value>) -> Result<Vec<u8>, BridgeError> {
    let corrupt = |what: String| BridgeError::File(what);
    let file = SafeTensors::deserialize(bytes).map_err(|error| corrupt(error.to_string()))?;
    let mut tensors = Vec::new();
    for name in TENSORS {
        let view = file.tensor(name).map_err(|error| corrupt(error.to_string()))?;
        let pairs = || view.data().as_chunks::<2>().0.iter().copied();
        let numbers: Vec<f32> = match view.dtype() {
            Dtype::F32 => {
                let fours = view.data().as_chunks::<4>().0.iter();
                collected(fours.map(|four| f32::from_le_bytes(*four)))?
            }
            Dtype::F16 => collected(pairs().map(|two| half::f16::from_le_bytes(two).to_f32()))?,
            Dtype::BF16 => collected(pairs().map(|two| half::bf16::from_le_bytes(two).to_f32()))?,
            other => {
                return Err(corrupt(format!(
                    "tensor \"{name}\" is of type {other:?}, not F32, F16 or BF16"
                )));
            }
        };
        tensors.push((name, view.shape().to_vec(), numbers));
    }
    let dimensions = tensors.first().and_then(|(_, shape, _)| shape.get(1)).copied();
    let views: Vec<(&str, Vec<usize>, &[f32])> = tensors
        .iter()
        .map(|(name, shape, numbers)| (*name, shape.clone(), numbers.as_slice()))
        .collect();
    let written = file::write(KIND, dimensions.unwrap_or_default(), more, &views)?;
    Projector::read(&written).map(|_| written)
}

impl Projector {
    /// Reads a bridge's bytes.
    ///
    /// # Errors
    /// [`BridgeError::File`] for bytes that are no projector.
    pub fn read(bytes: &[u8]) -> Result<Projector, BridgeError> {
        let mut tensors = Tensors::read(bytes, KIND)?;
        let dimensions = tensors.description.dimensions;
        let said = |field: &str| tensors.description.metadata.get(field).cloned();
        let llm = said("llm").and_then(|llm| llm.as_str().map(str::to_owned));
        let normalized = said("normalized") == Some(Value::Bool(true));
        let first = Layer::read(&mut tensors, 0, dimensions)?;
        let second = Layer::read(&mut tensors, 2, first.bias.len())?;
        Ok(Projector {
            llm,
            normalized,
            first,
            second,
        })
    }

    /// Numbers of the vector of a passage.
    pub fn inputs(&self) -> usize {
        self.first.inputs
    }

    /// Numbers of what [`Projector::project`] gives: the LLM's width, once for each token of a passage.
    pub fn outputs(&self) -> usize {
        self.second.bias.len()
    }

    /// The vectors that stand for a passage, one after the other.
    ///
    /// # Errors
    /// [`BridgeError::Vectors`] for a vector of another length, [`BridgeError::NotFinite`] where it overflows.
    pub fn project(&self, vector: &[f32]) -> Result<Vec<f32>, BridgeError> {
        if vector.len() != self.first.inputs {
            return Err(BridgeError::Vectors {
                expected: self.first.inputs,
                found: vector.len(),
            });
        }
        let mut hidden = self.first.apply(vector);
        hidden.iter_mut().for_each(|x| *x = gelu(*x));
        let projected = self.second.apply(&hidden);
        match projected.iter().all(|x| x.is_finite()) {
            true => Ok(projected),
            false => Err(BridgeError::NotFinite {
                what: "projected vector",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn bytes(more: Map<String, Value>) -> Vec<u8> {
        let tensors: [(&str, Vec<usize>, &[f32]); 4] = [
            ("projector.projector.0.weight", vec![2, 2], &[1.0, 0.0, -1.0, 2.0]),
            ("projector.projector.0.bias", vec![2], &[0.5, 0.0]),
            (
                "projector.projector.2.weight",
                vec![3, 2],
                &[1.0, 0.0, 0.0, 1.0, 2.0, -2.0],
            ),
            ("projector.projector.2.bias", vec![3], &[0.0, 1.0, 0.0]),
        ];
        file::write(KIND, 2, more, &tensors).expect("written")
    }

    #[test]
    fn the_published_tensors_give_the_published_formula() {
        let more = Map::from_iter([("llm".to_owned(), json!("f")), ("normalized".to_owned(), json!(true))]);
        let projector = Projector::read(&bytes(more)).expect("read");
        assert_eq!(projector.llm.as_deref(), Some("f"));
        assert!(projector.normalized);
        assert_eq!(projector.outputs(), 3);
        // W1 x + b1 = (1.5, 1) for x = (1, 1); gelu(1.5) = 1.3997892, gelu(1) = 0.8413447 (tables of the normal
        // distribution).
        let found = projector.project(&[1.0, 1.0]).expect("projected");
        let expected = [1.399_789_2, 1.841_344_7, 2.0 * (1.399_789_2 - 0.841_344_7)];
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
        assert!(matches!(
            projector.project(&[1.0]),
            Err(BridgeError::Vectors { expected: 2, found: 1 })
        ));
    }

    #[test]
    fn published_files_are_imported_in_half_precision_as_well() {
        let expected = Projector::read(&bytes(Map::new())).expect("read");
        for kind in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            let whole = bytes(Map::new());
            let file = SafeTensors::deserialize(&whole).expect("a file");
            let mut parts = Vec::new();
            for (name, view) in file.tensors() {
                let numbers = view
                    .data()
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|four| f32::from_le_bytes(*four));
                let data: Vec<u8> = match kind {
                    Dtype::F16 => numbers.flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect(),
                    Dtype::BF16 => numbers.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(),
                    _ => view.data().to_vec(),
                };
                parts.push((name, view.shape().to_vec(), data));
            }
            let views = parts.iter().map(|(name, shape, data)| {
                let view = safetensors::tensor::TensorView::new(kind, shape.clone(), data).expect("a view");
                (name.as_str(), view)
            });
            let published = safetensors::serialize(views.collect::<Vec<_>>(), None).expect("written");
            let more = Map::from_iter([("llm".to_owned(), json!("f"))]);
            let found = Projector::read(&import(&published, more).expect("imported")).expect("read");
            // The numbers of the example are exact in every type.
            assert_eq!(found.first, expected.first, "{kind:?}");
            assert_eq!(found.second, expected.second, "{kind:?}");
            assert_eq!(found.llm.as_deref(), Some("f"));
            assert!(import(&published[..published.len() - 1], Map::new()).is_err());
        }
    }

    #[test]
    fn the_error_function_is_the_tabulated_one() {
        let table = [
            (0.0, 0.0),
            (0.5, 0.520_499_877_8),
            (1.0, 0.842_700_792_9),
            (2.0, 0.995_322_265_0),
            (2.999_999_999, 0.999_977_909_5),
            (3.0, 0.999_977_909_5),
            (5.0, 1.0 - 1.537e-12),
        ];
        for (x, expected) in table {
            assert!((erf(x) - expected).abs() < 1e-7, "{x}: {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
    }

    #[test]
    fn other_files_are_refused() {
        let other: [(&str, Vec<usize>, &[f32]); 1] = [("map", vec![1], &[1.0])];
        let bad = file::write(KIND, 1, Map::new(), &other).expect("written");
        assert!(matches!(Projector::read(&bad), Err(BridgeError::File(_))));
        let adapter = file::write(BridgeKind::Adapter, 1, Map::new(), &other).expect("written");
        assert!(matches!(Projector::read(&adapter), Err(BridgeError::File(_))));
        let whole = bytes(Map::new());
        for cut in 0..whole.len() {
            assert!(Projector::read(&whole[..cut]).is_err(), "{cut}");
        }
    }
}
