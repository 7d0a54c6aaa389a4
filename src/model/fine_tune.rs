//! A BERT whose upper layers are trained: its forward pass in f32 with gradients (candle's), one sequence at a time.
//!
//! The embeddings and the lower layers are frozen. The maths is the model's own; what serves its vectors later are the
//! kernels of `compute`, over the weights that come out of here (`overlay.rs`).

use super::bert::Names;
use super::embedding_head::{self, DENSE, EPSILON, NORM};
use super::manifest::Family;
use super::weights::Weights;
use super::{Activation, Manifest, ModelError, Pooling, Read, Sequence};
use candle_core::{D, Device, Tensor, Var};
use std::path::Path;

fn failed(error: candle_core::Error) -> ModelError {
    ModelError::Tensor(error.to_string())
}

/// Weight and bias, of a linear layer or a layer norm.
struct Pair {
    weight: Tensor,
    bias: Tensor,
}

struct Layer {
    query: Pair,
    key: Pair,
    value: Pair,
    output: Pair,
    attention_norm: Pair,
    up: Pair,
    down: Pair,
    output_norm: Pair,
}

/// A copy of a model whose upper layers change.
pub struct FineTuning {
    manifest: Manifest,
    words: Tensor,
    positions: Tensor,
    /// The first row of the token types.
    token_type: Tensor,
    embedding_norm: Pair,
    layers: Vec<Layer>,
    head: Option<(Pair, Pair)>,
    /// What is trained, by the names of the weights file.
    variables: Vec<(String, Var)>,
}

type Named = (String, Vec<usize>);

/// Reads tensors; those that are trained become variables.
struct Reading<'a> {
    weights: &'a Weights,
    variables: Vec<(String, Var)>,
}

impl Reading<'_> {
    fn tensor(&mut self, (name, shape): Named, trained: bool) -> Result<Tensor, ModelError> {
        let numbers = self.weights.read(&name, &shape)?;
        let tensor = Tensor::from_vec(numbers, shape, &Device::Cpu).map_err(failed)?;
        if !trained {
            return Ok(tensor);
        }
        let variable = Var::from_tensor(&tensor).map_err(failed)?;
        let tensor = variable.as_tensor().clone();
        self.variables.push((name, variable));
        Ok(tensor)
    }

    fn pair(&mut self, [weight, bias]: [Named; 2], trained: bool) -> Result<Pair, ModelError> {
        Ok(Pair {
            weight: self.tensor(weight, trained)?,
            bias: self.tensor(bias, trained)?,
        })
    }
}

impl Pair {
    fn linear(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        x.matmul(&self.weight.t()?)?.broadcast_add(&self.bias)
    }

    fn norm(&self, x: &Tensor, epsilon: f32) -> candle_core::Result<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let scaled = centred.broadcast_div(&(variance + f64::from(epsilon))?.sqrt()?)?;
        scaled.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)
    }
}

fn softmax(x: &Tensor) -> candle_core::Result<Tensor> {
    let powers = x.broadcast_sub(&x.detach().max_keepdim(D::Minus1)?)?.exp()?;
    powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)
}

impl FineTuning {
    /// Loads a model directory to train its upper `trained` layers, and the head behind them where it has one.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] for other models than BERT and RoBERTa, and for max pooling.
    pub fn open(dir: &Path, manifest: &Manifest, trained: usize) -> Result<FineTuning, ModelError> {
        if !matches!(manifest.family, Family::Bert | Family::XlmRoberta) || manifest.pooling == Pooling::Max {
            return Err(ModelError::Unsupported {
                what: "fine-tuning",
                found: format!("{:?} with {:?} pooling", manifest.family, manifest.pooling),
                supported: "BERT and RoBERTa with mean, first or last token",
            });
        }
        let weights = Weights::open(dir)?;
        let names = Names::new(manifest, &weights);
        let mut reading = Reading {
            weights: &weights,
            variables: Vec::new(),
        };
        let words = reading.tensor(names.words(), false)?;
        let positions = reading.tensor(names.positions(), false)?;
        let token_type = reading.tensor(names.token_types(), false)?;
        let token_type = token_type.get(0).map_err(failed)?;
        let embedding_norm = reading.pair(names.norm("embeddings"), false)?;
        let mut layers = Vec::new();
        for layer in 0..manifest.layers {
            let train = layer + trained >= manifest.layers;
            let [query, key, value] = names.qkv(layer);
            layers.push(Layer {
                query: reading.pair(query, train)?,
                key: reading.pair(key, train)?,
                value: reading.pair(value, train)?,
                output: reading.pair(names.attention_output(layer), train)?,
                attention_norm: reading.pair(names.attention_norm(layer), train)?,
                up: reading.pair(names.up(layer), train)?,
                down: reading.pair(names.down(layer), train)?,
                output_norm: reading.pair(names.output_norm(layer), train)?,
            });
        }
        let head = match embedding_head::found(&weights) {
            false => None,
            true => {
                let hidden = manifest.hidden;
                let of = |name: &str, shape: Vec<usize>| {
                    [
                        (format!("{name}.weight"), shape),
                        (format!("{name}.bias"), vec![hidden]),
                    ]
                };
                let dense = reading.pair(of(DENSE, vec![hidden, hidden]), true)?;
                Some((dense, reading.pair(of(NORM, vec![hidden]), true)?))
            }
        };
        Ok(FineTuning {
            manifest: manifest.clone(),
            words,
            positions,
            token_type,
            embedding_norm,
            layers,
            head,
            variables: reading.variables,
        })
    }

    /// What is trained: names of the weights file, and the variables.
    pub fn variables(&self) -> &[(String, Var)] {
        &self.variables
    }

    /// The one vector of a sequence as the model reads it out, `[dimensions]`; gradients lead to the variables.
    ///
    /// # Errors
    /// [`ModelError::Tensor`] where the sequence does not fit the model.
    pub fn vector(&self, sequence: &Sequence) -> Result<Tensor, ModelError> {
        self.forward(sequence).map_err(failed)
    }

    fn forward(&self, sequence: &Sequence) -> candle_core::Result<Tensor> {
        let count = sequence.ids.len();
        let ids = Tensor::new(sequence.ids.as_slice(), &Device::Cpu)?;
        let epsilon = self.manifest.layer_norm_epsilon;
        let mut x = self.words.index_select(&ids, 0)?;
        x = (x + self.positions.narrow(0, self.manifest.first_position, count)?)?;
        x = self.embedding_norm.norm(&x.broadcast_add(&self.token_type)?, epsilon)?;
        for layer in &self.layers {
            x = self.layer(layer, &x, epsilon)?;
        }
        let mean = |from: usize, to: usize| x.narrow(0, from, to - from)?.mean(0);
        let (mut vector, unit) = match &sequence.read {
            Read::Spans(spans) | Read::States(spans) => {
                let span = spans.first().cloned().unwrap_or(0..count as u32);
                let unit = matches!(sequence.read, Read::Spans(_));
                (mean(span.start as usize, span.end as usize)?, unit)
            }
            _ => {
                let vector = match self.manifest.pooling {
                    Pooling::Last => x.get(count.saturating_sub(1))?,
                    Pooling::Cls => x.get(0)?,
                    Pooling::Mean | Pooling::Max => mean(0, count)?,
                };
                (vector, self.manifest.normalize)
            }
        };
        if let (Some((dense, norm)), Read::Pooled) = (&self.head, &sequence.read) {
            let row = norm.norm(&dense.linear(&vector.unsqueeze(0)?)?, EPSILON)?;
            vector = row.squeeze(0)?;
        }
        if unit {
            vector = vector.broadcast_div(&vector.sqr()?.sum_all()?.sqrt()?)?;
        }
        Ok(vector)
    }

    fn layer(&self, layer: &Layer, x: &Tensor, epsilon: f32) -> candle_core::Result<Tensor> {
        let (count, hidden) = x.dims2()?;
        let (heads, width) = (self.manifest.heads, self.manifest.head_width);
        let split = |x: Tensor| x.reshape((count, heads, width))?.transpose(0, 1)?.contiguous();
        let query = (split(layer.query.linear(x)?)? * (1.0 / (width as f64).sqrt()))?;
        let key = split(layer.key.linear(x)?)?;
        let value = split(layer.value.linear(x)?)?;
        let seen = softmax(&query.matmul(&key.transpose(1, 2)?.contiguous()?)?)?;
        let mixed = seen
            .matmul(&value)?
            .transpose(0, 1)?
            .contiguous()?
            .reshape((count, hidden))?;
        let x = layer
            .attention_norm
            .norm(&(layer.output.linear(&mixed)? + x)?, epsilon)?;
        let inner = layer.up.linear(&x)?;
        let inner = match self.manifest.activation {
            Activation::Gelu => inner.gelu_erf()?,
            Activation::GeluTanh => inner.gelu()?,
            Activation::Relu => inner.relu()?,
            Activation::Silu => inner.silu()?,
        };
        layer.output_norm.norm(&(layer.down.linear(&inner)? + x)?, epsilon)
    }
}
