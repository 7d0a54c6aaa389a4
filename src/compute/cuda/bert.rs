//! The forward pass of the BERT family on a GPU. CPU twin: `compute/forward/bert.rs`.
//!
//! Activations are bf16, sums, normalisations and softmax f32. The residual is bf16 as well: it is normalised after each
//! sum, so its error does not grow from layer to layer.

use super::super::{Activation, ComputeError};
use super::batch_stream::{Buffers, Network, Shape};
use super::engine::Engine;
use super::gpu::{Memory, Stream};
use super::launch::{Embedding, HEAD_SIZES, Heads, Norm, WIDEST_ROW};
use super::matmul::{Epilogue, Product};
use super::rounded::rounded;
use half::bf16;

/// Shapes of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BertShape {
    pub hidden: usize,
    pub heads: usize,
    pub intermediate: usize,
    pub activation: Activation,
    pub epsilon: f32,
    /// Rows of the position table that come before a sequence's first token (XLM-RoBERTa: 2).
    pub first_place: usize,
    /// Whether exact GELU is taken exactly, by a kernel behind the product, instead of by its tanh form within it.
    pub exact_gelu: bool,
}

impl BertShape {
    /// Whether the activation is not the product's.
    fn unfused(&self) -> bool {
        self.exact_gelu && self.activation == Activation::Gelu
    }
}

/// Weight `[outputs][inputs]` and bias of a linear layer.
pub struct LinearWeights {
    pub weight: Vec<f32>,
    pub bias: Option<Vec<f32>>,
}

/// Scale and shift of a layer norm.
pub struct NormWeights {
    pub scale: Vec<f32>,
    pub shift: Vec<f32>,
}

/// What comes before the first layer.
pub struct EmbeddingWeights {
    /// `[vocabulary][hidden]`
    pub words: Vec<f32>,
    /// `[positions][hidden]`; the embedding of token type 0 is already added.
    pub positions: Vec<f32>,
    pub norm: NormWeights,
}

/// One layer. Queries, keys and values are one linear layer of 3 x hidden outputs.
pub struct LayerWeights {
    pub qkv: LinearWeights,
    pub attention_output: LinearWeights,
    pub attention_norm: NormWeights,
    pub up: LinearWeights,
    pub down: LinearWeights,
    pub output_norm: NormWeights,
}

struct Layer {
    qkv: Product,
    attention_output: Product,
    attention_norm: Norm,
    up: Product,
    down: Product,
    output_norm: Norm,
}

/// A model of the BERT family on a GPU.
pub struct Bert {
    shape: BertShape,
    widths: [usize; 5],
    words: Memory<bf16>,
    positions: Memory<bf16>,
    norm: Norm,
    layers: Vec<Layer>,
}

/// Places of the buffers in [`Bert::widths`].
const X: usize = 0;
const QKV: usize = 1;
const CONTEXT: usize = 2;
const UP: usize = 3;
const Y: usize = 4;

fn norm(stream: &Stream, weights: &NormWeights, shape: &BertShape) -> Result<Norm, ComputeError> {
    if weights.scale.len() != shape.hidden || weights.shift.len() != shape.hidden {
        let (a, b) = (weights.scale.len(), weights.shift.len());
        return Err(ComputeError::Shape(format!(
            "a layer norm with {a} scales and {b} shifts"
        )));
    }
    Ok(Norm {
        scale: Memory::from_slice(stream, &weights.scale)?,
        shift: Memory::from_slice(stream, &weights.shift)?,
        epsilon: shape.epsilon,
    })
}

impl Bert {
    /// Copies a model to the GPU. Layers are taken one by one, so that the host never needs to hold all of them; `E` is
    /// the error of whoever reads them.
    pub fn new<E: From<ComputeError>>(
        engine: &Engine,
        shape: BertShape,
        embedding: EmbeddingWeights,
        layers: impl Iterator<Item = Result<LayerWeights, E>>,
    ) -> Result<Bert, E> {
        check_shape(&shape)?;
        check_tables(&shape, &embedding)?;
        let (hidden, intermediate) = (shape.hidden, shape.intermediate);
        let stream = &Stream::new(&engine.gpu)?;
        let up = if shape.unfused() {
            Epilogue::Bias
        } else {
            Epilogue::Activate(shape.activation)
        };
        let product = |weights: LinearWeights, inputs: usize, outputs: usize, epilogue: Epilogue| {
            linear(engine, stream, &weights, inputs, outputs, epilogue)
        };
        let mut bert = Bert {
            shape,
            widths: [hidden, 3 * hidden, hidden, intermediate, hidden],
            words: Memory::from_slice(stream, &rounded(&embedding.words)?)?,
            positions: Memory::from_slice(stream, &rounded(&embedding.positions)?)?,
            norm: norm(stream, &embedding.norm, &shape)?,
            layers: Vec::new(),
        };
        drop(embedding);
        for layer in layers {
            let layer = layer?;
            bert.layers.push(Layer {
                qkv: product(layer.qkv, hidden, 3 * hidden, Epilogue::Bias)?,
                attention_output: product(layer.attention_output, hidden, hidden, Epilogue::Bias)?,
                attention_norm: norm(stream, &layer.attention_norm, &shape)?,
                up: product(layer.up, hidden, intermediate, up)?,
                down: product(layer.down, intermediate, hidden, Epilogue::Bias)?,
                output_norm: norm(stream, &layer.output_norm, &shape)?,
            });
        }
        Ok(bert)
    }
}

/// A linear layer on the GPU.
pub(super) fn linear(
    engine: &Engine,
    stream: &Stream,
    weights: &LinearWeights,
    inputs: usize,
    outputs: usize,
    epilogue: Epilogue,
) -> Result<Product, ComputeError> {
    let LinearWeights { weight, bias } = weights;
    if weight.len() != inputs * outputs {
        let what = format!("{} weights for {inputs} x {outputs}", weight.len());
        return Err(ComputeError::Shape(what));
    }
    Product::new(&engine.matmul, stream, weight, bias.as_deref(), inputs, epilogue)
}

/// Fails for heads and widths that the kernels do not have.
fn check_shape(shape: &BertShape) -> Result<(), ComputeError> {
    let BertShape { hidden, heads, .. } = *shape;
    let divides = hidden > 0 && heads > 0 && hidden.is_multiple_of(heads);
    if divides && HEAD_SIZES.contains(&(hidden / heads)) && hidden <= WIDEST_ROW {
        return Ok(());
    }
    Err(ComputeError::Shape(format!(
        "{heads} heads in {hidden} numbers: heads of 32, 64, 96 or 128 and at most {WIDEST_ROW} numbers are supported on a \
         card"
    )))
}

/// Fails for tables that are not of whole rows.
fn check_tables(shape: &BertShape, embedding: &EmbeddingWeights) -> Result<(), ComputeError> {
    let hidden = shape.hidden;
    let tables = [embedding.words.len(), embedding.positions.len()];
    let first_row = (shape.first_place + 1) * hidden;
    let whole = tables.iter().all(|length| length.is_multiple_of(hidden));
    if whole && tables[0] > 0 && tables[1] >= first_row {
        return Ok(());
    }
    Err(ComputeError::Shape(format!(
        "tables of {tables:?} numbers in rows of {hidden}"
    )))
}

impl Network for Bert {
    fn widths(&self) -> &[usize] {
        &self.widths
    }

    fn residual_width(&self) -> usize {
        0
    }

    fn hidden(&self) -> usize {
        self.shape.hidden
    }

    fn limits(&self) -> (usize, usize) {
        let hidden = self.shape.hidden;
        (
            self.words.len() / hidden,
            (self.positions.len() / hidden).saturating_sub(self.shape.first_place),
        )
    }

    fn first_place(&self) -> u32 {
        self.shape.first_place as u32
    }

    fn memory(&self) -> usize {
        let norm = |norm: &Norm| norm.scale.bytes() + norm.shift.bytes();
        let layer = |layer: &Layer| {
            let products = [&layer.qkv, &layer.attention_output, &layer.up, &layer.down];
            products.iter().map(|product| product.bytes()).sum::<usize>()
                + norm(&layer.attention_norm)
                + norm(&layer.output_norm)
        };
        self.words.bytes() + self.positions.bytes() + norm(&self.norm) + self.layers.iter().map(layer).sum::<usize>()
    }

    fn start(&self, engine: &Engine, stream: &Stream, buffers: &Buffers, shape: Shape) -> Result<(), ComputeError> {
        let [x, qkv, context, up, y] = [X, QKV, CONTEXT, UP, Y].map(|place| &buffers.states[place]);
        let (rows, hidden, scratch) = (shape.tokens, self.shape.hidden, &buffers.scratch);
        let launch = engine.on(stream);
        let embedding = Embedding {
            ids: &buffers.ids,
            places: &buffers.places,
            words: &self.words,
            positions: &self.positions,
        };
        let heads = Heads {
            tiles: &buffers.tiles,
            tile_count: shape.tiles,
            warps: shape.warps,
            heads: self.shape.heads,
            key_heads: self.shape.heads,
            size: hidden / self.shape.heads,
            causal: false,
            window: None,
        };
        launch.embed_layer_norm(&embedding, &self.norm, x, rows, hidden)?;
        for layer in &self.layers {
            layer.qkv.run(stream, x, qkv, rows, scratch)?;
            launch.attention(qkv, context, &heads, rows)?;
            layer.attention_output.run(stream, context, y, rows, scratch)?;
            launch.residual_layer_norm(x, y, &layer.attention_norm, rows, hidden)?;
            layer.up.run(stream, x, up, rows, scratch)?;
            if self.shape.unfused() {
                launch.bias_activation(up, None, self.shape.activation, rows, self.shape.intermediate)?;
            }
            layer.down.run(stream, up, y, rows, scratch)?;
            launch.residual_layer_norm(x, y, &layer.output_norm, rows, hidden)?;
        }
        Ok(())
    }
}
