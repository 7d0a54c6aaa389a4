//! The decoders Qwen3 and Mistral: which tensors they have, and how they become layers.

use super::weights::Weights;
use super::{Family, Manifest, ModelError, Precision};
use crate::compute::attention::shape::Shape;
use crate::compute::cpu::Level;
use crate::compute::cuda::{bert::LinearWeights, decoder as cuda};
use crate::compute::forward::pre_norm::{Layer, PreNorm};
use crate::compute::memory::append;
use crate::compute::{Linear, Norm, RmsNorm, Rope};

type Tensor = (String, Vec<usize>);

/// Names and shapes of the tensors, found in the weights with or without the prefix `model.`.
struct Names<'a> {
    manifest: &'a Manifest,
    prefix: &'static str,
}

impl<'a> Names<'a> {
    fn new(manifest: &'a Manifest, weights: &Weights) -> Names<'a> {
        let prefixed = weights.contains("model.embed_tokens.weight") && !weights.contains("embed_tokens.weight");
        let prefix = if prefixed { "model." } else { "" };
        Names { manifest, prefix }
    }

    fn words(&self) -> Tensor {
        let shape = vec![self.manifest.vocabulary, self.manifest.hidden];
        (format!("{}embed_tokens.weight", self.prefix), shape)
    }

    fn last_norm(&self) -> Tensor {
        (format!("{}norm.weight", self.prefix), vec![self.manifest.hidden])
    }

    fn norm(&self, layer: usize, place: &str, width: usize) -> Tensor {
        (format!("{}layers.{layer}.{place}.weight", self.prefix), vec![width])
    }

    fn linear(&self, layer: usize, place: &str, outputs: usize, inputs: usize, bias: bool) -> Projection {
        let name = format!("{}layers.{layer}.{place}", self.prefix);
        Projection {
            weight: (format!("{name}.weight"), vec![outputs, inputs]),
            bias: bias.then(|| (format!("{name}.bias"), vec![outputs])),
        }
    }

    fn layer(&self, layer: usize) -> LayerTensors {
        let Manifest {
            hidden, intermediate, ..
        } = *self.manifest;
        let width = self.manifest.head_width;
        let (queries, keys) = (self.manifest.heads * width, self.manifest.key_heads * width);
        let bias = self.manifest.attention_bias;
        let project = |name: &str, outputs| self.linear(layer, &format!("self_attn.{name}"), outputs, hidden, bias);
        let norms = self.manifest.family == Family::Qwen3;
        let head_norm = |name: &str| norms.then(|| self.norm(layer, &format!("self_attn.{name}"), width));
        LayerTensors {
            attention_norm: self.norm(layer, "input_layernorm", hidden),
            qkv: [
                project("q_proj", queries),
                project("k_proj", keys),
                project("v_proj", keys),
            ],
            head_norms: [head_norm("q_norm"), head_norm("k_norm")],
            attention_output: self.linear(layer, "self_attn.o_proj", hidden, queries, bias),
            feed_norm: self.norm(layer, "post_attention_layernorm", hidden),
            gate_up: ["gate_proj", "up_proj"]
                .map(|name| self.linear(layer, &format!("mlp.{name}"), intermediate, hidden, false)),
            down: self.linear(layer, "mlp.down_proj", hidden, intermediate, false),
        }
    }
}

/// Weight and bias of a linear layer.
struct Projection {
    weight: Tensor,
    bias: Option<Tensor>,
}

/// The tensors of one layer.
struct LayerTensors {
    attention_norm: Tensor,
    qkv: [Projection; 3],
    head_norms: [Option<Tensor>; 2],
    attention_output: Projection,
    feed_norm: Tensor,
    gate_up: [Projection; 2],
    down: Projection,
}

/// Checks that all tensors are there in the shapes of the configuration. Further ones, as that of a language model's
/// head, are left alone.
pub fn check(manifest: &Manifest, weights: &Weights) -> Result<(), ModelError> {
    let names = Names::new(manifest, weights);
    let check = |tensor: &Tensor| weights.check(&tensor.0, &tensor.1);
    check(&names.words())?;
    for number in 0..manifest.layers {
        let layer = names.layer(number);
        check(&layer.attention_norm)?;
        let linear = layer
            .qkv
            .iter()
            .chain([&layer.attention_output])
            .chain(&layer.gate_up)
            .chain([&layer.down]);
        for linear in linear {
            check(&linear.weight)?;
            linear.bias.iter().try_for_each(check)?;
        }
        layer.head_norms.iter().flatten().try_for_each(check)?;
        check(&layer.feed_norm)?;
    }
    check(&names.last_norm())
}

/// Reads the weights and packs them for the kernels.
pub fn load(manifest: &Manifest, weights: &Weights, level: Level, precision: Precision) -> Result<PreNorm, ModelError> {
    let names = Names::new(manifest, weights);
    let level = level.or_detected();
    let read = |tensor: &Tensor| weights.read(&tensor.0, &tensor.1);
    let linear = |parts: &[Projection], inputs: usize| -> Result<Linear, ModelError> {
        let (mut all, mut bias) = (Vec::new(), Vec::new());
        for part in parts {
            append(&mut all, read(&part.weight)?)?;
            match &part.bias {
                Some(shift) => append(&mut bias, read(shift)?)?,
                None => bias.resize(all.len() / inputs.max(1), 0.0),
            }
        }
        Ok(Linear::new(level, precision, &all, &bias, inputs)?)
    };
    let norm = |tensor: &Tensor| -> Result<RmsNorm, ModelError> {
        Ok(RmsNorm::new(&read(tensor)?, manifest.layer_norm_epsilon)?)
    };
    let shape = Shape {
        heads: manifest.heads,
        key_heads: manifest.key_heads,
        width: manifest.head_width,
        causal: true,
        window: manifest.window,
    };
    let mut layers = Vec::with_capacity(manifest.layers);
    for number in 0..manifest.layers {
        let layer = names.layer(number);
        let [query_norm, key_norm] = &layer.head_norms;
        layers.push(Layer {
            window: manifest.window,
            rope: 0,
            attention_norm: Some(Norm::Rms(norm(&layer.attention_norm)?)),
            qkv: linear(&layer.qkv, manifest.hidden)?,
            query_norm: query_norm.as_ref().map(norm).transpose()?,
            key_norm: key_norm.as_ref().map(norm).transpose()?,
            attention_output: linear(&[layer.attention_output], shape.out_row())?,
            feed_norm: Norm::Rms(norm(&layer.feed_norm)?),
            gate_up: linear(&layer.gate_up, manifest.hidden)?,
            down: linear(&[layer.down], manifest.intermediate)?,
        });
    }
    Ok(PreNorm {
        level,
        shape,
        hidden: manifest.hidden,
        intermediate: manifest.intermediate,
        activation: manifest.activation,
        words: read(&names.words())?,
        embedding_norm: None,
        ropes: vec![Rope::new(manifest.head_width, manifest.rope_base)?],
        layers,
        norm: Norm::Rms(norm(&names.last_norm())?),
    })
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

    fn read(&self, tensor: &Tensor) -> Result<Vec<f32>, ModelError> {
        self.weights.read(&tensor.0, &tensor.1)
    }

    fn linear(&self, parts: &[Projection]) -> Result<LinearWeights, ModelError> {
        let (mut all, mut bias) = (Vec::new(), Vec::new());
        for part in parts {
            append(&mut all, self.read(&part.weight)?)?;
            if let Some(shift) = &part.bias {
                append(&mut bias, self.read(shift)?)?;
            }
        }
        Ok(LinearWeights {
            weight: all,
            bias: (!bias.is_empty()).then_some(bias),
        })
    }

    /// What is not of a layer, with rotations for all positions that the model has.
    pub fn tables(&self) -> Result<cuda::DecoderWeights, ModelError> {
        let manifest = self.names.manifest;
        Ok(cuda::DecoderWeights {
            words: self.read(&self.names.words())?,
            norm: self.read(&self.names.last_norm())?,
            rotations: cuda::rotations(manifest.rope_base, manifest.head_width, manifest.positions)?,
        })
    }

    /// One layer.
    pub fn layer(&self, number: usize) -> Result<cuda::DecoderLayerWeights, ModelError> {
        let layer = self.names.layer(number);
        let head_norms = match &layer.head_norms {
            [Some(query), Some(key)] => Some((self.read(query)?, self.read(key)?)),
            _ => None,
        };
        Ok(cuda::DecoderLayerWeights {
            attention_norm: self.read(&layer.attention_norm)?,
            qkv: self.linear(&layer.qkv)?,
            head_norms,
            attention_output: self.linear(&[layer.attention_output])?,
            feed_forward_norm: self.read(&layer.feed_norm)?,
            gate_up: self.linear(&layer.gate_up)?,
            down: self.linear(&[layer.down])?,
        })
    }
}
