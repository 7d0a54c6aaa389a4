//! ModernBERT: which tensors it has, and how they become layers.

use super::weights::Weights;
use super::{Manifest, ModelError, Precision};
use crate::compute::attention::shape::Shape;
use crate::compute::cpu::Level;
use crate::compute::forward::pre_norm::{Layer, PreNorm};
use crate::compute::{LayerNorm, Linear, Norm, Rope};

type Tensor = (String, Vec<usize>);

/// Names and shapes of the tensors, found in the weights with or without the prefix `model.`.
struct Names<'a> {
    manifest: &'a Manifest,
    prefix: &'static str,
}

impl<'a> Names<'a> {
    fn new(manifest: &'a Manifest, weights: &Weights) -> Names<'a> {
        let bare = "embeddings.tok_embeddings.weight";
        let prefixed = !weights.contains(bare) && weights.contains(&format!("model.{bare}"));
        let prefix = if prefixed { "model." } else { "" };
        Names { manifest, prefix }
    }

    fn tensor(&self, place: &str, shape: &[usize]) -> Tensor {
        (format!("{}{place}.weight", self.prefix), shape.to_vec())
    }

    fn words(&self) -> Tensor {
        let shape = [self.manifest.vocabulary, self.manifest.hidden];
        self.tensor("embeddings.tok_embeddings", &shape)
    }

    /// The norm of the words, and that behind the last layer.
    fn outer_norms(&self) -> [Tensor; 2] {
        ["embeddings.norm", "final_norm"].map(|place| self.tensor(place, &[self.manifest.hidden]))
    }

    /// The norm before an attention; the first layer's input is normalised already.
    fn attention_norm(&self, layer: usize) -> Option<Tensor> {
        let name = format!("layers.{layer}.attn_norm");
        (layer > 0).then(|| self.tensor(&name, &[self.manifest.hidden]))
    }

    fn feed_norm(&self, layer: usize) -> Tensor {
        self.tensor(&format!("layers.{layer}.mlp_norm"), &[self.manifest.hidden])
    }

    /// Queries, keys and values; the attention's output; gates and what they gate; the feed-forward's output.
    fn linear(&self, layer: usize) -> [Tensor; 4] {
        let Manifest {
            hidden, intermediate, ..
        } = *self.manifest;
        [
            self.tensor(&format!("layers.{layer}.attn.Wqkv"), &[3 * hidden, hidden]),
            self.tensor(&format!("layers.{layer}.attn.Wo"), &[hidden, hidden]),
            self.tensor(&format!("layers.{layer}.mlp.Wi"), &[2 * intermediate, hidden]),
            self.tensor(&format!("layers.{layer}.mlp.Wo"), &[hidden, intermediate]),
        ]
    }
}

/// Checks that all tensors are there in the shapes of the configuration.
pub fn check(manifest: &Manifest, weights: &Weights) -> Result<(), ModelError> {
    let names = Names::new(manifest, weights);
    let check = |tensor: Tensor| weights.check(&tensor.0, &tensor.1);
    check(names.words())?;
    names.outer_norms().into_iter().try_for_each(check)?;
    for layer in 0..manifest.layers {
        names.attention_norm(layer).into_iter().try_for_each(check)?;
        names.linear(layer).into_iter().try_for_each(check)?;
        check(names.feed_norm(layer))?;
    }
    Ok(())
}

/// Reads tensors as the kernels take them.
struct Reader<'a> {
    weights: &'a Weights,
    level: Level,
    precision: Precision,
    epsilon: f32,
}

impl Reader<'_> {
    fn read(&self, (name, shape): &Tensor) -> Result<Vec<f32>, ModelError> {
        self.weights.read(name, shape)
    }

    /// A layer without bias.
    fn linear(&self, tensor: &Tensor) -> Result<Linear, ModelError> {
        let (outputs, inputs) = (tensor.1[0], tensor.1[1]);
        let (weights, bias) = (self.read(tensor)?, vec![0.0; outputs]);
        Ok(Linear::new(self.level, self.precision, &weights, &bias, inputs)?)
    }

    /// A layer norm without shifts.
    fn norm(&self, tensor: &Tensor) -> Result<Norm, ModelError> {
        let scale = self.read(tensor)?;
        let shift = vec![0.0; scale.len()];
        Ok(Norm::Layer(LayerNorm::new(&scale, &shift, self.epsilon)?))
    }
}

/// Reads the weights and packs them for the kernels.
pub fn load(manifest: &Manifest, weights: &Weights, level: Level, precision: Precision) -> Result<PreNorm, ModelError> {
    let names = Names::new(manifest, weights);
    let level = level.or_detected();
    let reader = Reader {
        weights,
        level,
        precision,
        epsilon: manifest.layer_norm_epsilon,
    };
    let (linear, norm) = (
        |tensor: &Tensor| reader.linear(tensor),
        |tensor: &Tensor| reader.norm(tensor),
    );
    let mut layers = Vec::with_capacity(manifest.layers);
    for number in 0..manifest.layers {
        let [qkv, attention_output, gate_up, down] = names.linear(number);
        let full = number.is_multiple_of(manifest.full_attention_every.max(1));
        layers.push(Layer {
            window: if full { None } else { manifest.window },
            rope: if full { 0 } else { 1 },
            attention_norm: names.attention_norm(number).as_ref().map(norm).transpose()?,
            qkv: linear(&qkv)?,
            query_norm: None,
            key_norm: None,
            attention_output: linear(&attention_output)?,
            feed_norm: norm(&names.feed_norm(number))?,
            gate_up: linear(&gate_up)?,
            down: linear(&down)?,
        });
    }
    let [embedding_norm, last_norm] = names.outer_norms();
    let bases = [
        manifest.rope_base,
        manifest.window_rope_base.unwrap_or(manifest.rope_base),
    ];
    let ropes = bases.map(|base| Rope::new(manifest.head_width, base));
    Ok(PreNorm {
        level,
        shape: Shape {
            heads: manifest.heads,
            key_heads: manifest.heads,
            width: manifest.head_width,
            causal: false,
            window: None,
        },
        hidden: manifest.hidden,
        intermediate: manifest.intermediate,
        activation: manifest.activation,
        words: reader.read(&names.words())?,
        embedding_norm: Some(norm(&embedding_norm)?),
        ropes: ropes.into_iter().collect::<Result<_, _>>()?,
        layers,
        norm: norm(&last_norm)?,
    })
}
