//! The weights of a decoder, and how they are read. Passes over them are in `pass.rs`.

use super::config::LlmConfig;
use super::files::{LlmFiles, Tensor, TensorData};
use super::matrix::{Matrix, Packing};
use crate::compute::cpu::Level;
use crate::compute::{ComputeError, RmsNorm};
use crate::model::ModelError;

pub(super) struct Layer {
    pub(super) attention_norm: RmsNorm,
    pub(super) qkv: [Matrix; 3],
    /// Biases of the three, where the model has them.
    pub(super) bias: Option<Vec<f32>>,
    pub(super) query_norm: Option<RmsNorm>,
    pub(super) key_norm: Option<RmsNorm>,
    pub(super) output: Matrix,
    pub(super) feed_norm: RmsNorm,
    pub(super) gate_up: [Matrix; 2],
    pub(super) down: Matrix,
}

/// The weights of a language model.
pub struct Network {
    pub(super) config: LlmConfig,
    pub(super) level: Level,
    /// Token embeddings that are kept for themselves; none where the output's rows serve.
    embeddings: Option<Tensor>,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: RmsNorm,
    pub(super) output: Matrix,
    /// The frequency of each rotary pair.
    pub(super) frequencies: Vec<f32>,
}

/// Reads tensors by their names, as they are packed.
struct Loader<'a> {
    files: &'a LlmFiles,
    config: &'a LlmConfig,
    packing: Packing,
}

impl Loader<'_> {
    fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Matrix, ModelError> {
        Matrix::read(self.files, name, [rows, columns], self.packing)
    }

    fn norm(&self, name: &str, width: usize) -> Result<RmsNorm, ModelError> {
        Ok(RmsNorm::new(
            &vector(self.files, name, width)?,
            self.config.norm_epsilon,
        )?)
    }

    fn layer(&self, number: usize) -> Result<Layer, ModelError> {
        let config = self.config;
        let (hidden, width) = (config.hidden, config.head_width);
        let name = |part: &str| format!("model.layers.{number}.{part}");
        let outputs = [config.heads * width, config.key_heads * width, config.key_heads * width];
        let parts = ["q_proj", "k_proj", "v_proj"].map(|part| name(&format!("self_attn.{part}")));
        let part = |at: usize| self.matrix(&format!("{}.weight", parts[at]), outputs[at], hidden);
        let bias = || -> Result<Vec<f32>, ModelError> {
            let mut all = Vec::new();
            for (part, outputs) in parts.iter().zip(outputs) {
                all.extend(vector(self.files, &format!("{part}.bias"), outputs)?);
            }
            Ok(all)
        };
        let head_norm = |part: &str| {
            let name = name(&format!("self_attn.{part}.weight"));
            config.head_norms.then(|| self.norm(&name, width)).transpose()
        };
        Ok(Layer {
            attention_norm: self.norm(&name("input_layernorm.weight"), hidden)?,
            qkv: [part(0)?, part(1)?, part(2)?],
            bias: config.qkv_bias.then(bias).transpose()?,
            query_norm: head_norm("q_norm")?,
            key_norm: head_norm("k_norm")?,
            output: self.matrix(&name("self_attn.o_proj.weight"), hidden, outputs[0])?,
            feed_norm: self.norm(&name("post_attention_layernorm.weight"), hidden)?,
            gate_up: [
                self.matrix(&name("mlp.gate_proj.weight"), config.intermediate, hidden)?,
                self.matrix(&name("mlp.up_proj.weight"), config.intermediate, hidden)?,
            ],
            down: self.matrix(&name("mlp.down_proj.weight"), hidden, config.intermediate)?,
        })
    }

    fn embeddings(&self) -> Result<Tensor, ModelError> {
        let table = self.files.tensor("model.embed_tokens.weight")?;
        let expected = [self.config.vocabulary, self.config.hidden];
        match [table.rows, table.columns] == expected {
            true => Ok(table),
            false => Err(ModelError::TensorShape {
                name: "model.embed_tokens.weight".to_string(),
                expected: expected.to_vec(),
                found: vec![table.rows, table.columns],
            }),
        }
    }
}

/// The frequency of each rotary pair of a head.
fn frequencies(config: &LlmConfig) -> Vec<f32> {
    let frequency = |pair: usize| {
        let plain = 1.0 / f64::from(config.rope_base).powf(2.0 * pair as f64 / config.head_width as f64);
        let scaling = config.rope_scaling.as_ref();
        let divisor = scaling.and_then(|scaling| scaling.get(pair)).copied();
        (plain / f64::from(divisor.unwrap_or(1.0))) as f32
    };
    (0..config.head_width / 2).map(frequency).collect()
}

impl Network {
    /// Reads and packs all tensors.
    pub fn load(files: &LlmFiles, packing: Packing) -> Result<Network, ModelError> {
        let config = files.config().clone();
        let level = packing.level.or_detected();
        let loader = Loader {
            files,
            config: &config,
            packing: Packing { level, ..packing },
        };
        let mut layers = Vec::new();
        for number in 0..config.layers {
            layers.push(loader.layer(number)?);
        }
        let table = loader.embeddings()?;
        let output = match config.tied {
            true => Matrix::new(&table, loader.packing)?,
            false => loader.matrix("lm_head.weight", config.vocabulary, config.hidden)?,
        };
        let serves = config.tied && matches!(output, Matrix::Blocks(_));
        Ok(Network {
            level,
            embeddings: (!serves).then_some(table),
            layers,
            norm: loader.norm("model.norm.weight", config.hidden)?,
            output,
            frequencies: frequencies(&config),
            config,
        })
    }

    pub fn config(&self) -> &LlmConfig {
        &self.config
    }

    /// Bytes of the weights.
    pub fn memory(&self) -> usize {
        let layers = self.layers.iter().map(|layer| {
            let matrices = layer
                .qkv
                .iter()
                .chain(&layer.gate_up)
                .chain([&layer.output, &layer.down]);
            matrices.map(Matrix::memory).sum::<usize>()
        });
        let table = self.embeddings.as_ref().map_or(0, |table| match &table.data {
            TensorData::F32(elements) => elements.len() * 4,
            TensorData::Blocks { bytes, .. } => bytes.len(),
        });
        layers.sum::<usize>() + self.output.memory() + table
    }

    /// The input vector of a token.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] for an id outside the vocabulary or a slice of another length.
    pub fn embed(&self, id: u32, out: &mut [f32]) -> Result<(), ComputeError> {
        let (id, hidden) = (id as usize, self.config.hidden);
        let outside = || ComputeError::Shape(format!("token {id} of {}", self.config.vocabulary));
        match (&self.embeddings, &self.output) {
            (Some(table), _) => match &table.data {
                TensorData::F32(elements) => {
                    let row = elements.get(id * hidden..(id + 1) * hidden).ok_or_else(outside)?;
                    out.copy_from_slice(row);
                    Ok(())
                }
                TensorData::Blocks { kind, bytes } => {
                    let row = bytes.len() / table.rows.max(1);
                    kind.dequantise(bytes.get(id * row..(id + 1) * row).ok_or_else(outside)?, out);
                    Ok(())
                }
            },
            (None, Matrix::Blocks(output)) => output.row(id, out),
            (None, Matrix::Full(_)) => Err(outside()),
        }
    }
}

/// A vector of that many elements.
fn vector(files: &LlmFiles, name: &str, length: usize) -> Result<Vec<f32>, ModelError> {
    let tensor = files.tensor(name)?;
    if tensor.rows * tensor.columns != length {
        return Err(ModelError::TensorShape {
            name: name.to_string(),
            expected: vec![length],
            found: vec![tensor.rows, tensor.columns],
        });
    }
    tensor.to_f32()
}
