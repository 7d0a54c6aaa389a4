//! The forward pass of decoders (Qwen3, Mistral, Llama) on a gpu: root-mean-square norms before each part, rotary
//! positions, grouped-query attention to the left, SwiGLU.
//!
//! The residual stream is f32, because it grows from layer to layer; everything else is bf16 with f32 sums.

use super::super::ComputeError;
use super::batch_stream::{Buffers, Network, Shape};
use super::bert::{LinearWeights, linear};
use super::engine::Engine;
use super::gpu::{Memory, Stream};
use super::launch::{HEAD_SIZES, Heads, WIDEST_ROW};
use super::matmul::{Epilogue, Product};
use super::rounded::rounded;
use crate::compute::cpu::memory::with_room;
use half::bf16;

/// Shapes of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecoderShape {
    pub hidden: usize,
    pub heads: usize,
    /// Heads of keys and values; `heads` is a multiple.
    pub key_heads: usize,
    pub head_size: usize,
    pub intermediate: usize,
    /// Of the root-mean-square norms.
    pub epsilon: f32,
    /// Tokens that a token sees to its left, itself included, where they are limited.
    pub window: Option<usize>,
}

/// What is not of a layer.
pub struct DecoderWeights {
    /// `[vocabulary][hidden]`
    pub words: Vec<f32>,
    /// Scale of the norm after the last layer.
    pub norm: Vec<f32>,
    /// A row of `head_size / 2` cosines and as many sines a position, see [`rotations`].
    pub rotations: Vec<f32>,
}

/// One layer.
pub struct DecoderLayerWeights {
    /// Scale of the norm before attention.
    pub attention_norm: Vec<f32>,
    /// Rows of the queries, then of the keys, then of the values.
    pub qkv: LinearWeights,
    /// Scales of the norms of each query's and key's head (Qwen3), `head_size` elements each.
    pub head_norms: Option<(Vec<f32>, Vec<f32>)>,
    pub attention_output: LinearWeights,
    /// Scale of the norm before the feed-forward block.
    pub feed_forward_norm: Vec<f32>,
    /// Rows of the gate, then of the up projection.
    pub gate_up: LinearWeights,
    pub down: LinearWeights,
}

/// Cosines and sines of `position / base^(2 i / size)`: a row a position, `size / 2` cosines, then as many sines. Angles are
/// products in f32, as the models were trained with and as the CPU twin has them.
pub fn rotations(base: f64, size: usize, positions: usize) -> Result<Vec<f32>, ComputeError> {
    let frequency = |i: usize| 1.0 / base.powf(2.0 * i as f64 / size as f64) as f32;
    let frequencies: Vec<f32> = (0..size / 2).map(frequency).collect();
    let mut table = with_room(positions.saturating_mul(size))?;
    for position in 0..positions {
        let angles = || frequencies.iter().map(|frequency| position as f32 * frequency);
        table.extend(angles().map(f32::cos));
        table.extend(angles().map(f32::sin));
    }
    Ok(table)
}

struct Layer {
    attention_norm: Memory<f32>,
    qkv: Product,
    head_norms: Option<(Memory<f32>, Memory<f32>)>,
    attention_output: Product,
    feed_forward_norm: Memory<f32>,
    gate_up: Product,
    down: Product,
}

/// A decoder on a GPU. Its token vectors are those after the last norm.
pub struct Decoder {
    shape: DecoderShape,
    widths: [usize; 5],
    words: Memory<bf16>,
    norm: Memory<f32>,
    rotations: Memory<f32>,
    layers: Vec<Layer>,
}

/// Places of the buffers in [`Decoder::widths`].
const NORMED: usize = 0;
const QKV: usize = 1;
/// Attention's result, and the feed-forward block's between its two products.
const INNER: usize = 2;
const GATE_UP: usize = 3;
const Y: usize = 4;

impl Decoder {
    /// Copies a model to the GPU, layer by layer, as [`super::bert::Bert::new`] does.
    pub fn new<E: From<ComputeError>>(
        engine: &Engine,
        shape: DecoderShape,
        weights: DecoderWeights,
        layers: impl Iterator<Item = Result<DecoderLayerWeights, E>>,
    ) -> Result<Decoder, E> {
        check_shape(&shape)?;
        check_tables(&shape, &weights)?;
        let DecoderShape {
            hidden,
            heads,
            key_heads,
            head_size,
            intermediate,
            ..
        } = shape;
        let stream = &Stream::new(&engine.gpu)?;
        let product = |weights: LinearWeights, inputs: usize, outputs: usize| {
            linear(engine, stream, &weights, inputs, outputs, Epilogue::Bias)
        };
        let scale = |elements: Vec<f32>, length: usize| scale(stream, &elements, length);
        let (inner, qkv) = (heads * head_size, (heads + 2 * key_heads) * head_size);
        let mut decoder = Decoder {
            shape,
            widths: [hidden, qkv, inner.max(intermediate), 2 * intermediate, hidden],
            words: Memory::from_slice(stream, &rounded(&weights.words)?)?,
            norm: scale(weights.norm, hidden)?,
            rotations: Memory::from_slice(stream, &weights.rotations)?,
            layers: Vec::new(),
        };
        drop(weights.words);
        for layer in layers {
            let layer = layer?;
            let head_norms = match layer.head_norms {
                Some((query, key)) => Some((scale(query, head_size)?, scale(key, head_size)?)),
                None => None,
            };
            decoder.layers.push(Layer {
                attention_norm: scale(layer.attention_norm, hidden)?,
                qkv: product(layer.qkv, hidden, qkv)?,
                head_norms,
                attention_output: product(layer.attention_output, inner, hidden)?,
                feed_forward_norm: scale(layer.feed_forward_norm, hidden)?,
                gate_up: product(layer.gate_up, hidden, 2 * intermediate)?,
                down: product(layer.down, intermediate, hidden)?,
            });
        }
        Ok(decoder)
    }
}

/// Fails for heads and widths that the kernels do not have.
fn check_shape(shape: &DecoderShape) -> Result<(), ComputeError> {
    let DecoderShape {
        hidden,
        heads,
        key_heads,
        head_size,
        ..
    } = *shape;
    let divides = key_heads > 0 && heads > 0 && heads.is_multiple_of(key_heads);
    if divides && HEAD_SIZES.contains(&head_size) && hidden <= WIDEST_ROW {
        return Ok(());
    }
    Err(ComputeError::Shape(format!(
        "{heads} heads of {head_size} over {key_heads} in {hidden} numbers: heads of 32, 64, 96 or 128 and at most \
         {WIDEST_ROW} numbers are supported on a card"
    )))
}

/// Fails for tables that are not of whole rows.
fn check_tables(shape: &DecoderShape, weights: &DecoderWeights) -> Result<(), ComputeError> {
    let hidden = shape.hidden;
    let lengths = [weights.words.len(), weights.norm.len(), weights.rotations.len()];
    let words = hidden > 0 && lengths[0] > 0 && lengths[0].is_multiple_of(hidden);
    if words && lengths[1] == hidden && lengths[2].is_multiple_of(shape.head_size) {
        return Ok(());
    }
    Err(ComputeError::Shape(format!(
        "a decoder's tables of {lengths:?} numbers in rows of {hidden}"
    )))
}

/// The scales of a norm.
fn scale(stream: &Stream, elements: &[f32], length: usize) -> Result<Memory<f32>, ComputeError> {
    if elements.len() != length {
        return Err(ComputeError::Shape(format!(
            "{} scales for {length} numbers",
            elements.len()
        )));
    }
    Memory::from_slice(stream, elements)
}

impl Network for Decoder {
    fn widths(&self) -> &[usize] {
        &self.widths
    }

    fn residual_width(&self) -> usize {
        self.shape.hidden
    }

    fn hidden(&self) -> usize {
        self.shape.hidden
    }

    fn limits(&self) -> (usize, usize) {
        (
            self.words.len() / self.shape.hidden,
            self.rotations.len() / self.shape.head_size,
        )
    }

    fn first_place(&self) -> u32 {
        0
    }

    fn memory(&self) -> usize {
        let layer = |layer: &Layer| {
            let products = [&layer.qkv, &layer.attention_output, &layer.gate_up, &layer.down];
            let heads = layer
                .head_norms
                .as_ref()
                .map_or(0, |(query, key)| query.bytes() + key.bytes());
            let norms = layer.attention_norm.bytes() + layer.feed_forward_norm.bytes();
            products.iter().map(|product| product.bytes()).sum::<usize>() + norms + heads
        };
        self.words.bytes() + self.norm.bytes() + self.rotations.bytes() + self.layers.iter().map(layer).sum::<usize>()
    }

    fn start(&self, engine: &Engine, stream: &Stream, buffers: &Buffers, shape: Shape) -> Result<(), ComputeError> {
        let [normed, qkv, inner, gate_up, y] = [NORMED, QKV, INNER, GATE_UP, Y].map(|place| &buffers.states[place]);
        let (x, scratch) = (&buffers.residual, &buffers.scratch);
        let DecoderShape {
            hidden,
            heads,
            key_heads,
            head_size,
            intermediate,
            epsilon,
            ..
        } = self.shape;
        let rows = shape.tokens;
        let launch = engine.on(stream);
        let attended = Heads {
            tiles: &buffers.tiles,
            tile_count: shape.tiles,
            warps: shape.warps,
            heads,
            key_heads,
            size: head_size,
            causal: true,
            window: self.shape.window,
        };
        launch.embed_tokens(&buffers.ids, &self.words, x, rows, hidden)?;
        let mut sum = None;
        for layer in &self.layers {
            launch.residual_rms_norm(x, sum, &layer.attention_norm, epsilon, normed, rows, hidden)?;
            layer.qkv.run(stream, normed, qkv, rows, scratch)?;
            let scales = layer.head_norms.as_ref().map(|(query, key)| (query, key));
            let rotated = (heads, key_heads);
            launch.rope(
                qkv,
                &buffers.places,
                &self.rotations,
                scales,
                epsilon,
                rows,
                rotated,
                head_size,
            )?;
            launch.attention(qkv, inner, &attended, rows)?;
            layer.attention_output.run(stream, inner, y, rows, scratch)?;
            launch.residual_rms_norm(x, Some(y), &layer.feed_forward_norm, epsilon, normed, rows, hidden)?;
            layer.gate_up.run(stream, normed, gate_up, rows, scratch)?;
            launch.swiglu(gate_up, inner, rows, intermediate)?;
            layer.down.run(stream, inner, y, rows, scratch)?;
            sum = Some(y);
        }
        launch.residual_rms_norm(x, sum, &self.norm, epsilon, normed, rows, hidden)
    }
}
