//! The BERT family, RoBERTa and XLM-RoBERTa included: which tensors it has, and how they become layers.

use super::weights::Weights;
use super::{Manifest, ModelError, Precision};
use crate::compute::cpu::Level;
use crate::compute::cuda::bert as cuda;
use crate::compute::forward::bert::{Bert, Layer, Spare};
use crate::compute::forward::calibrate::{Peaks, peaks};
use crate::compute::memory::append;
use crate::compute::{LayerNorm, Linear};

/// Names and shapes of the tensors, found in the weights with or without the prefix `bert.` or `roberta.`.
pub(super) struct Names<'a> {
    manifest: &'a Manifest,
    prefix: &'static str,
    /// Names of a layer norm's tensors: `weight` and `bias`, or `gamma` and `beta` in old files.
    norm: [&'static str; 2],
}

pub(super) type Tensor = (String, Vec<usize>);

impl<'a> Names<'a> {
    pub(super) fn new(manifest: &'a Manifest, weights: &Weights) -> Names<'a> {
        let bare = "embeddings.word_embeddings.weight";
        let prefixes = ["", "bert.", "roberta."];
        let has = |prefix: &&str| weights.contains(&format!("{prefix}{bare}"));
        let prefix = prefixes.into_iter().find(has).unwrap_or_default();
        let old = weights.contains(&format!("{prefix}embeddings.LayerNorm.gamma"));
        Names {
            manifest,
            prefix,
            norm: if old { ["gamma", "beta"] } else { ["weight", "bias"] },
        }
    }

    fn table(&self, name: &str, rows: usize) -> Tensor {
        (
            format!("{}embeddings.{name}.weight", self.prefix),
            vec![rows, self.manifest.hidden],
        )
    }

    pub(super) fn norm(&self, place: &str) -> [Tensor; 2] {
        self.norm.map(|part| {
            (
                format!("{}{place}.LayerNorm.{part}", self.prefix),
                vec![self.manifest.hidden],
            )
        })
    }

    /// Weight and bias of a linear layer.
    fn linear(&self, layer: usize, place: &str, outputs: usize, inputs: usize) -> [Tensor; 2] {
        let name = format!("{}encoder.layer.{layer}.{place}", self.prefix);
        [
            (format!("{name}.weight"), vec![outputs, inputs]),
            (format!("{name}.bias"), vec![outputs]),
        ]
    }

    pub(super) fn words(&self) -> Tensor {
        self.table("word_embeddings", self.manifest.vocabulary)
    }

    pub(super) fn positions(&self) -> Tensor {
        let rows = self.manifest.first_position + self.manifest.positions;
        self.table("position_embeddings", rows)
    }

    pub(super) fn token_types(&self) -> Tensor {
        self.table("token_type_embeddings", self.manifest.token_types)
    }

    pub(super) fn qkv(&self, layer: usize) -> [[Tensor; 2]; 3] {
        let hidden = self.manifest.hidden;
        ["query", "key", "value"].map(|part| self.linear(layer, &format!("attention.self.{part}"), hidden, hidden))
    }

    pub(super) fn attention_output(&self, layer: usize) -> [Tensor; 2] {
        self.linear(
            layer,
            "attention.output.dense",
            self.manifest.hidden,
            self.manifest.hidden,
        )
    }

    pub(super) fn attention_norm(&self, layer: usize) -> [Tensor; 2] {
        self.norm(&format!("encoder.layer.{layer}.attention.output"))
    }

    pub(super) fn up(&self, layer: usize) -> [Tensor; 2] {
        self.linear(
            layer,
            "intermediate.dense",
            self.manifest.intermediate,
            self.manifest.hidden,
        )
    }

    pub(super) fn down(&self, layer: usize) -> [Tensor; 2] {
        self.linear(layer, "output.dense", self.manifest.hidden, self.manifest.intermediate)
    }

    pub(super) fn output_norm(&self, layer: usize) -> [Tensor; 2] {
        self.norm(&format!("encoder.layer.{layer}.output"))
    }
}

/// Checks that all tensors are there in the shapes of the configuration.
pub fn check(manifest: &Manifest, weights: &Weights) -> Result<(), ModelError> {
    let names = Names::new(manifest, weights);
    let check = |tensor: Tensor| weights.check(&tensor.0, &tensor.1);
    check(names.words())?;
    check(names.positions())?;
    check(names.token_types())?;
    names.norm("embeddings").into_iter().try_for_each(check)?;
    for layer in 0..manifest.layers {
        names.qkv(layer).into_iter().flatten().try_for_each(check)?;
        names.attention_output(layer).into_iter().try_for_each(check)?;
        names.attention_norm(layer).into_iter().try_for_each(check)?;
        names.up(layer).into_iter().try_for_each(check)?;
        names.down(layer).into_iter().try_for_each(check)?;
        names.output_norm(layer).into_iter().try_for_each(check)?;
    }
    Ok(())
}

/// Reads the weights and packs them for the kernels. 8-bit layers are packed twice: the first time to see which of
/// their inputs are large, the second time with these kept exact.
pub fn load(manifest: &Manifest, weights: &Weights, level: Level, precision: Precision) -> Result<Bert, ModelError> {
    let mut model = pack(manifest, weights, level, precision, &[])?;
    if precision != Precision::Int8 {
        return Ok(model);
    }
    let found = peaks(&mut model)?;
    drop(model);
    pack(manifest, weights, level, precision, &found)
}

fn pack(
    manifest: &Manifest,
    weights: &Weights,
    level: Level,
    precision: Precision,
    peaks: &[Peaks],
) -> Result<Bert, ModelError> {
    let names = Names::new(manifest, weights);
    let level = level.or_detected();
    let read = |tensor: Tensor| weights.read(&tensor.0, &tensor.1);
    let linear = |parts: Vec<[Tensor; 2]>, inputs: usize, peaks: Option<&Vec<f32>>| -> Result<Linear, ModelError> {
        let (mut all, mut bias) = (Vec::new(), Vec::new());
        for [weight, shift] in parts {
            append(&mut all, read(weight)?)?;
            append(&mut bias, read(shift)?)?;
        }
        let peaks = peaks.map(Vec::as_slice);
        Ok(Linear::calibrated(level, precision, &all, &bias, inputs, peaks)?)
    };
    let norm = |[scale, shift]: [Tensor; 2]| -> Result<LayerNorm, ModelError> {
        Ok(LayerNorm::new(
            &read(scale)?,
            &read(shift)?,
            manifest.layer_norm_epsilon,
        )?)
    };
    let mut layers = Vec::with_capacity(manifest.layers);
    for layer in 0..manifest.layers {
        let (hidden, inner) = (manifest.hidden, manifest.intermediate);
        let peaks = peaks.get(layer);
        let output = vec![names.attention_output(layer)];
        layers.push(Layer {
            qkv: linear(names.qkv(layer).into(), hidden, peaks.map(|peaks| &peaks.qkv))?,
            attention_output: linear(output, hidden, peaks.map(|peaks| &peaks.attention_output))?,
            attention_norm: norm(names.attention_norm(layer))?,
            up: linear(vec![names.up(layer)], hidden, peaks.map(|peaks| &peaks.up))?,
            down: linear(vec![names.down(layer)], inner, peaks.map(|peaks| &peaks.down))?,
            output_norm: norm(names.output_norm(layer))?,
        });
    }
    Ok(Bert {
        level,
        precision,
        hidden: manifest.hidden,
        heads: manifest.heads,
        intermediate: manifest.intermediate,
        activation: manifest.activation,
        words: read(names.words())?,
        positions: positions(manifest, read(names.positions())?, &read(names.token_types())?),
        embedding_norm: norm(names.norm("embeddings"))?,
        layers,
        spare: Spare::default(),
    })
}

/// The position table that sequences use, with the first token type added.
fn positions(manifest: &Manifest, mut table: Vec<f32>, token_types: &[f32]) -> Vec<f32> {
    // No token has the positions before the first.
    table.drain(..manifest.first_position * manifest.hidden);
    for row in table.chunks_exact_mut(manifest.hidden) {
        row.iter_mut()
            .zip(token_types)
            .for_each(|(element, first_type)| *element += first_type);
    }
    table
}

/// The tensors by their roles, as a GPU takes them.
pub struct Tensors<'a> {
    names: Names<'a>,
    weights: &'a Weights,
}

impl<'a> Tensors<'a> {
    pub fn new(manifest: &'a Manifest, weights: &'a Weights) -> Tensors<'a> {
        let names = Names::new(manifest, weights);
        Tensors { names, weights }
    }

    fn read(&self, tensor: Tensor) -> Result<Vec<f32>, ModelError> {
        self.weights.read(&tensor.0, &tensor.1)
    }

    fn norm(&self, [scale, shift]: [Tensor; 2]) -> Result<cuda::NormWeights, ModelError> {
        Ok(cuda::NormWeights {
            scale: self.read(scale)?,
            shift: self.read(shift)?,
        })
    }

    fn linear(&self, parts: impl IntoIterator<Item = [Tensor; 2]>) -> Result<cuda::LinearWeights, ModelError> {
        let (mut all, mut bias) = (Vec::new(), Vec::new());
        for [weight, shift] in parts {
            append(&mut all, self.read(weight)?)?;
            append(&mut bias, self.read(shift)?)?;
        }
        Ok(cuda::LinearWeights {
            weight: all,
            bias: Some(bias),
        })
    }

    /// The tables and the norm before the first layer; the positions begin with that of a sequence's first token.
    pub fn embedding(&self) -> Result<cuda::EmbeddingWeights, ModelError> {
        let Manifest {
            hidden,
            positions: usable,
            ..
        } = *self.names.manifest;
        let mut positions = self.read(self.names.positions())?;
        let before = positions.len().saturating_sub(usable * hidden);
        positions.drain(..before);
        let token_types = self.read(self.names.token_types())?;
        for row in positions.chunks_exact_mut(hidden) {
            row.iter_mut()
                .zip(&token_types)
                .for_each(|(number, first_type)| *number += first_type);
        }
        Ok(cuda::EmbeddingWeights {
            words: self.read(self.names.words())?,
            positions,
            norm: self.norm(self.names.norm("embeddings"))?,
        })
    }

    /// One layer.
    pub fn layer(&self, layer: usize) -> Result<cuda::LayerWeights, ModelError> {
        let names = &self.names;
        Ok(cuda::LayerWeights {
            qkv: self.linear(names.qkv(layer))?,
            attention_output: self.linear([names.attention_output(layer)])?,
            attention_norm: self.norm(names.attention_norm(layer))?,
            up: self.linear([names.up(layer)])?,
            down: self.linear([names.down(layer)])?,
            output_norm: self.norm(names.output_norm(layer))?,
        })
    }
}
