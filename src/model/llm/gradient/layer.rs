//! One layer of a decoder, forward and backward.

use super::sized::sized;
use super::{Both, vector};
use crate::compute::attention::shape::Shape;
use crate::compute::cpu::Level;
use crate::compute::glu;
use crate::compute::gradient::attention::{Attention, Memory, Span};
use crate::compute::gradient::each_block;
use crate::compute::matmul::parallel::Matmul;
use crate::compute::{
    Activation, ComputeError, Pool, Precision, RmsNorm, Rotate, RotateBackward, Rotations, glu_backward,
};
use crate::model::ModelError;
use crate::model::llm::files::LlmFiles;
use parking_lot::Mutex;

/// Weights of a layer.
pub(super) struct Layer {
    attention_norm: RmsNorm,
    qkv: Both,
    /// Norms of the heads of queries and keys.
    head_norms: Option<[RmsNorm; 2]>,
    output: Both,
    feed_norm: RmsNorm,
    gate_up: Both,
    down: Both,
}

/// What a layer keeps of a pass. Vectors may be longer than the pass.
#[derive(Default)]
pub(super) struct Kept {
    before: Vec<f32>,
    /// Queries, keys and values before norms of heads and rotation, where there are such norms.
    plain: Vec<f32>,
    pub qkv: Vec<f32>,
    between: Vec<f32>,
    gate_up: Vec<f32>,
}

/// What layers share.
#[derive(Default)]
pub(super) struct Work {
    pub matmul: Option<Matmul>,
    normed: Vec<f32>,
    context: Vec<f32>,
    gated: Vec<f32>,
    dqkv: Vec<f32>,
}

/// What a pass tells its layers.
pub(super) struct Pass<'a> {
    pub pool: &'a Pool,
    pub level: Level,
    pub shape: Shape,
    pub spans: &'a [Span<'a>],
    /// Position of each row.
    pub places: &'a [u32],
    pub rotations: &'a Rotations,
    pub attention: &'a [Mutex<Memory>],
}

impl Layer {
    /// Reads and packs a layer's tensors.
    pub fn read(files: &LlmFiles, number: usize, precision: Precision) -> Result<Layer, ModelError> {
        let config = files.config();
        let (hidden, wide) = (config.hidden, config.intermediate);
        let (queries, keys) = (config.heads * config.head_width, config.key_heads * config.head_width);
        let read = |part: &str, count: usize| vector(files, &format!("model.layers.{number}.{part}"), count);
        let norm = |part: &str, count: usize| -> Result<RmsNorm, ModelError> {
            Ok(RmsNorm::new(&read(part, count)?, config.norm_epsilon)?)
        };
        let (mut stacked, mut bias) = (Vec::new(), Vec::new());
        for (part, outputs) in [("q", queries), ("k", keys), ("v", keys)] {
            stacked.extend(read(&format!("self_attn.{part}_proj.weight"), outputs * hidden)?);
            if config.qkv_bias {
                bias.extend(read(&format!("self_attn.{part}_proj.bias"), outputs)?);
            }
        }
        let bias = config.qkv_bias.then_some(bias.as_slice());
        let mut gate_up = read("mlp.gate_proj.weight", wide * hidden)?;
        gate_up.extend(read("mlp.up_proj.weight", wide * hidden)?);
        let head_norms = match config.head_norms {
            true => Some([
                norm("self_attn.q_norm.weight", config.head_width)?,
                norm("self_attn.k_norm.weight", config.head_width)?,
            ]),
            false => None,
        };
        let output = read("self_attn.o_proj.weight", hidden * queries)?;
        let down = read("mlp.down_proj.weight", hidden * wide)?;
        Ok(Layer {
            attention_norm: norm("input_layernorm.weight", hidden)?,
            qkv: Both::new(&stacked, bias, hidden, precision)?,
            head_norms,
            output: Both::new(&output, None, queries, precision)?,
            feed_norm: norm("post_attention_layernorm.weight", hidden)?,
            gate_up: Both::new(&gate_up, None, hidden, precision)?,
            down: Both::new(&down, None, wide, precision)?,
        })
    }
}

impl Pass<'_> {
    fn attention<'b>(&'b self, qkv: &'b [f32]) -> Attention<'b> {
        Attention {
            level: self.level,
            shape: self.shape,
            qkv,
            spans: self.spans,
            memories: self.attention,
        }
    }

    fn normalise(&self, norm: &RmsNorm, x: &[f32], out: &mut [f32]) -> Result<(), ComputeError> {
        let width = norm.width();
        each_block(self.pool, out, width, |first, out| {
            norm.apply(self.level, &x[first * width..], out);
        })
    }

    fn normalise_backward(&self, norm: &RmsNorm, x: &[f32], dy: &[f32], dx: &mut [f32]) -> Result<(), ComputeError> {
        let width = norm.width();
        each_block(self.pool, dx, width, |first, dx| {
            norm.add_backward(self.level, &x[first * width..], &dy[first * width..], dx);
        })
    }

    /// Runs the layer on the residual stream `x`.
    pub fn forward(&self, layer: &Layer, kept: &mut Kept, x: &mut [f32], work: &mut Work) -> Result<(), ComputeError> {
        let (pool, level, rows) = (self.pool, self.level, self.places.len());
        let (row, wide) = (self.shape.row(), layer.down.forward.inputs());
        let Work {
            matmul: Some(matmul),
            normed,
            context,
            gated,
            ..
        } = work
        else {
            return Err(ComputeError::Shape("a layer runs without memory".to_owned()));
        };
        let before = sized(&mut kept.before, x.len());
        before.copy_from_slice(x);
        let normed = sized(normed, x.len());
        self.normalise(&layer.attention_norm, before, normed)?;
        let qkv = sized(&mut kept.qkv, rows * row);
        matmul.run(pool, &layer.qkv.forward, normed, qkv)?;
        if layer.head_norms.is_some() {
            sized(&mut kept.plain, qkv.len()).copy_from_slice(qkv);
        }
        let [query_norm, key_norm] = [0, 1].map(|at| layer.head_norms.as_ref().map(|norms| &norms[at]));
        each_block(pool, qkv, row, |first, rows| {
            Rotate {
                shape: self.shape,
                positions: &self.places[first..],
                rotations: self.rotations,
                query_norm,
                key_norm,
                rows,
            }
            .run_on(level);
        })?;
        let context = sized(context, rows * self.shape.out_row());
        self.attention(qkv).forward(pool, context)?;
        matmul.add(pool, &layer.output.forward, context, x)?;
        let between = sized(&mut kept.between, x.len());
        between.copy_from_slice(x);
        self.normalise(&layer.feed_norm, between, normed)?;
        let gate_up = sized(&mut kept.gate_up, rows * 2 * wide);
        matmul.run(pool, &layer.gate_up.forward, normed, gate_up)?;
        let gated = sized(gated, rows * wide);
        each_block(pool, gated, wide, |first, out| {
            glu(level, Activation::Silu, &gate_up[first * 2 * wide..], wide, out);
        })?;
        matmul.add(pool, &layer.down.forward, gated, x)
    }

    /// Rotations the gradient by what the layer gave into that by what it was given. What was kept is used up.
    pub fn backward(
        &self,
        layer: &Layer,
        kept: &mut Kept,
        dx: &mut [f32],
        work: &mut Work,
    ) -> Result<(), ComputeError> {
        let (pool, level, rows) = (self.pool, self.level, self.places.len());
        let (row, wide) = (self.shape.row(), layer.down.forward.inputs());
        let Work {
            matmul: Some(matmul),
            normed,
            context,
            gated,
            dqkv,
        } = work
        else {
            return Err(ComputeError::Shape("a layer runs without memory".to_owned()));
        };
        let gated = sized(gated, rows * wide);
        matmul.run(pool, &layer.down.backward, dx, gated)?;
        let gate_up = sized(&mut kept.gate_up, rows * 2 * wide);
        each_block(pool, gate_up, 2 * wide, |first, rows| {
            glu_backward(level, rows, wide, &gated[first * wide..]);
        })?;
        let dnormed = sized(normed, dx.len());
        matmul.run(pool, &layer.gate_up.backward, gate_up, dnormed)?;
        self.normalise_backward(&layer.feed_norm, &kept.between, dnormed, dx)?;
        let dcontext = sized(context, rows * self.shape.out_row());
        matmul.run(pool, &layer.output.backward, dx, dcontext)?;
        let dqkv = sized(dqkv, rows * row);
        self.attention(&kept.qkv[..rows * row]).backward(pool, dcontext, dqkv)?;
        each_block(pool, dqkv, row, |first, rows| {
            let plain = layer.head_norms.as_ref();
            RotateBackward {
                shape: self.shape,
                positions: &self.places[first..],
                rotations: self.rotations,
                norms: plain.map(|[query, key]| (&kept.plain[first * row..], query, key)),
                rows,
            }
            .run_on(level);
        })?;
        matmul.run(pool, &layer.qkv.backward, dqkv, dnormed)?;
        self.normalise_backward(&layer.attention_norm, &kept.before, dnormed, dx)
    }
}
