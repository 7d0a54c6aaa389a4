//! One function a kernel: checks that the memory is as large as the kernel reads and writes, and launches it.
//!
//! What the elements mean stands at the head of each file of kernels/. Widths are multiples of 8.

use super::super::{Activation, ComputeError};
use super::compile::{Kernel, Kernels};
use super::gpu::{Memory, Plain, Stream, sorted};
use super::shared_memory::attention_memory;
use cudarc::driver::result;
use half::bf16;
use std::ffi::c_void;

/// Head sizes that the attention kernels are built for.
pub const HEAD_SIZES: [usize; 4] = [32, 64, 96, 128];

/// Widest row that the normalisations keep in registers.
pub const WIDEST_ROW: usize = 4096;

/// The kernels and the stream that they are put on.
#[derive(Clone, Copy)]
pub struct Launch<'a> {
    pub kernels: &'a Kernels,
    pub stream: &'a Stream,
}

/// Parameters by their addresses; the driver copies them during the launch. Only for use inside the launching call: the
/// values live as long as that expression.
macro_rules! parameters {
    ($($value:expr),* $(,)?) => {
        &mut [$((&raw const *&$value).cast_mut().cast::<std::ffi::c_void>()),*]
    };
}
pub(super) use parameters;

/// Fails where memory is shorter than a kernel will touch.
pub(super) fn fits(kernel: &str, pairs: &[(usize, usize)]) -> Result<(), ComputeError> {
    match pairs.iter().position(|(length, needed)| length < needed) {
        None => Ok(()),
        Some(at) => Err(ComputeError::Shape(format!(
            "{kernel}: argument {at} is too short: {pairs:?}"
        ))),
    }
}

pub(super) fn count<T: Plain>(memory: &Memory<T>, needed: usize) -> (usize, usize) {
    (memory.len(), needed)
}

pub(super) fn number(value: usize) -> Result<u32, ComputeError> {
    u32::try_from(value).map_err(|_| ComputeError::Shape(format!("{value} is too large for a kernel")))
}

/// The variant of a normalisation for a row of that width.
fn chunks(width: usize) -> Result<usize, ComputeError> {
    if width == 0 || !width.is_multiple_of(8) || width > WIDEST_ROW {
        let what = format!("rows of {width} numbers; multiples of 8 up to {WIDEST_ROW} are supported on a GPU");
        return Err(ComputeError::Shape(what));
    }
    Ok(width.div_ceil(256).next_power_of_two().max(2))
}

/// Work on rows before the first layer.
pub struct Embedding<'a> {
    pub ids: &'a Memory<u32>,
    pub places: &'a Memory<u32>,
    pub words: &'a Memory<bf16>,
    pub positions: &'a Memory<bf16>,
}

/// Scale, shift and epsilon on the GPU.
pub struct Norm {
    pub scale: Memory<f32>,
    pub shift: Memory<f32>,
    pub epsilon: f32,
}

/// Which heads attend to which, over which tiles.
pub struct Heads<'a> {
    pub tiles: &'a Memory<[u32; 4]>,
    pub tile_count: usize,
    /// Warps of a block, 4 or 8: a tile is 16 query rows for each.
    pub warps: usize,
    pub heads: usize,
    pub key_heads: usize,
    pub size: usize,
    pub causal: bool,
    /// Tokens that a token sees to its left, itself included, where they are limited; only where `causal`.
    pub window: Option<usize>,
}

impl Launch<'_> {
    pub(super) fn run(
        &self,
        kernel: Kernel,
        grid: (usize, usize),
        threads: u32,
        shared: usize,
        parameters: &mut [*mut c_void],
    ) -> Result<(), ComputeError> {
        let grid = (number(grid.0)?, number(grid.1)?, 1);
        self.stream.gpu.enter()?;
        // SAFETY: the parameters are those of the kernel, in order and type (each function below, beside its kernel's
        // signature); they are copied before the call returns. The memory outlives the work: its owner waits for the
        // stream before it lets go of it.
        unsafe {
            result::launch_kernel(
                kernel.0,
                grid,
                (threads, 1, 1),
                shared as u32,
                self.stream.handle,
                parameters,
            )
        }
        .map_err(|error| sorted("cuLaunchKernel", error, 0))
    }

    /// `out = norm(words[ids] + positions[places])`.
    pub fn embed_layer_norm(
        &self,
        embedding: &Embedding,
        norm: &Norm,
        out: &Memory<bf16>,
        rows: usize,
        width: usize,
    ) -> Result<(), ComputeError> {
        let Embedding {
            ids,
            places,
            words,
            positions,
        } = embedding;
        let kernel = self.kernels.get(&format!("embed_layer_norm_{}", chunks(width)?))?;
        fits(
            "embed_layer_norm",
            &[
                count(ids, rows),
                count(places, rows),
                count(&norm.scale, width),
                count(&norm.shift, width),
                count(out, rows * width),
            ],
        )?;
        let (rows32, width32) = (number(rows)?, number(width)?);
        self.run(
            kernel,
            (rows.div_ceil(4), 1),
            128,
            0,
            parameters![
                ids.address(),
                places.address(),
                words.address(),
                positions.address(),
                norm.scale.address(),
                norm.shift.address(),
                out.address(),
                rows32,
                width32,
                norm.epsilon,
            ],
        )
    }

    /// `x = norm(x + y)`.
    pub fn residual_layer_norm(
        &self,
        x: &Memory<bf16>,
        y: &Memory<bf16>,
        norm: &Norm,
        rows: usize,
        width: usize,
    ) -> Result<(), ComputeError> {
        let kernel = self.kernels.get(&format!("residual_layer_norm_{}", chunks(width)?))?;
        let all = rows * width;
        fits(
            "residual_layer_norm",
            &[
                count(x, all),
                count(y, all),
                count(&norm.scale, width),
                count(&norm.shift, width),
            ],
        )?;
        let (rows32, width32) = (number(rows)?, number(width)?);
        self.run(
            kernel,
            (rows.div_ceil(4), 1),
            128,
            0,
            parameters![
                x.address(),
                y.address(),
                norm.scale.address(),
                norm.shift.address(),
                rows32,
                width32,
                norm.epsilon,
            ],
        )
    }

    /// `x += y` where there is one; `out = x / sqrt(mean(x^2) + epsilon) * scale`.
    #[allow(clippy::too_many_arguments)]
    pub fn residual_rms_norm(
        &self,
        x: &Memory<f32>,
        y: Option<&Memory<bf16>>,
        scale: &Memory<f32>,
        epsilon: f32,
        out: &Memory<bf16>,
        rows: usize,
        width: usize,
    ) -> Result<(), ComputeError> {
        let kernel = self.kernels.get(&format!("residual_rms_norm_{}", chunks(width)?))?;
        let all = rows * width;
        let summand = y.map_or(all, Memory::len);
        fits(
            "residual_rms_norm",
            &[count(x, all), (summand, all), count(scale, width), count(out, all)],
        )?;
        let (rows32, width32) = (number(rows)?, number(width)?);
        let y = y.map_or(0, Memory::address);
        self.run(
            kernel,
            (rows.div_ceil(4), 1),
            128,
            0,
            parameters![x.address(), y, scale.address(), out.address(), rows32, width32, epsilon],
        )
    }

    /// `out = words[ids]` in f32.
    pub fn embed_tokens(
        &self,
        ids: &Memory<u32>,
        words: &Memory<bf16>,
        out: &Memory<f32>,
        rows: usize,
        width: usize,
    ) -> Result<(), ComputeError> {
        chunks(width)?;
        let kernel = self.kernels.get("embed_tokens")?;
        fits("embed_tokens", &[count(ids, rows), count(out, rows * width)])?;
        let (rows32, width32) = (number(rows)?, number(width)?);
        self.run(
            kernel,
            ((rows * width / 8).div_ceil(256), 1),
            256,
            0,
            parameters![ids.address(), words.address(), out.address(), rows32, width32],
        )
    }

    /// `out = softmax(Q K^T / sqrt size) V` for every head of every tile. `qkv` has `rows` rows.
    pub fn attention(
        &self,
        qkv: &Memory<bf16>,
        out: &Memory<bf16>,
        heads: &Heads,
        rows: usize,
    ) -> Result<(), ComputeError> {
        let Heads {
            tiles,
            tile_count,
            warps,
            size,
            key_heads,
            ..
        } = *heads;
        if !HEAD_SIZES.contains(&size) || key_heads == 0 || !heads.heads.is_multiple_of(key_heads) {
            return Err(ComputeError::Shape(format!(
                "attention of {} heads of {size} over {key_heads}; sizes 32, 64, 96 and 128 are supported on a GPU",
                heads.heads
            )));
        }
        let causal = if heads.causal { "causal_" } else { "" };
        let kernel = self.kernels.get(&format!("attention_{causal}{size}_{warps}"))?;
        let stride = (heads.heads + 2 * key_heads) * size;
        fits(
            "attention",
            &[
                count(qkv, rows * stride),
                count(out, rows * heads.heads * size),
                count(tiles, tile_count),
            ],
        )?;
        let (heads32, key_heads32) = (number(heads.heads)?, number(key_heads)?);
        let scale = 1.0 / (size as f32).sqrt();
        let window = heads
            .window
            .filter(|_| heads.causal)
            .map_or(Ok(u32::MAX), number)?
            .max(1);
        self.run(
            kernel,
            (tile_count, heads.heads),
            warps as u32 * 32,
            attention_memory(size),
            parameters![
                qkv.address(),
                out.address(),
                tiles.address(),
                heads32,
                key_heads32,
                scale,
                window
            ],
        )
    }

    /// `x = f(x + bias)`.
    pub fn bias_activation(
        &self,
        x: &Memory<bf16>,
        bias: Option<&Memory<bf16>>,
        activation: Activation,
        rows: usize,
        width: usize,
    ) -> Result<(), ComputeError> {
        if !width.is_multiple_of(8) {
            return Err(ComputeError::Shape(format!("an activation of rows of {width} numbers")));
        }
        let kernel = self.kernels.get("bias_activation")?;
        fits(
            "bias_activation",
            &[count(x, rows * width), (bias.map_or(width, Memory::len), width)],
        )?;
        let (rows32, width32) = (number(rows)?, number(width)?);
        let bias = bias.map_or(0, Memory::address);
        let which: u32 = match activation {
            Activation::Gelu => 0,
            Activation::GeluTanh => 1,
            Activation::Relu => 2,
            Activation::Silu => return Err(ComputeError::Shape("SiLU runs gated on a GPU".to_string())),
        };
        self.run(
            kernel,
            ((rows * width / 8).div_ceil(256), 1),
            256,
            0,
            parameters![x.address(), bias, rows32, width32, which],
        )
    }

    /// `out = silu(gate) * up`, rows of gate and up to rows of `width`.
    pub fn swiglu(
        &self,
        gate_up: &Memory<bf16>,
        out: &Memory<bf16>,
        rows: usize,
        width: usize,
    ) -> Result<(), ComputeError> {
        if !width.is_multiple_of(8) {
            return Err(ComputeError::Shape(format!("SwiGLU of rows of {width} numbers")));
        }
        let kernel = self.kernels.get("swiglu")?;
        fits("swiglu", &[count(gate_up, 2 * rows * width), count(out, rows * width)])?;
        let (rows32, width32) = (number(rows)?, number(width)?);
        self.run(
            kernel,
            ((rows * width / 8).div_ceil(256), 1),
            256,
            0,
            parameters![gate_up.address(), out.address(), rows32, width32],
        )
    }

    /// Rotates queries and keys in place, after their normalisation where `scales` (query, key) are given.
    #[allow(clippy::too_many_arguments)]
    pub fn rope(
        &self,
        qkv: &Memory<bf16>,
        places: &Memory<u32>,
        table: &Memory<f32>,
        scales: Option<(&Memory<f32>, &Memory<f32>)>,
        epsilon: f32,
        rows: usize,
        heads: (usize, usize),
        size: usize,
    ) -> Result<(), ComputeError> {
        if !size.is_multiple_of(2) || size > 128 {
            return Err(ComputeError::Shape(format!("rotary embedding of heads of {size}")));
        }
        let kernel = self.kernels.get("rope")?;
        let (heads, key_heads) = heads;
        let (query, key) = scales.map_or((size, size), |(query, key)| (query.len(), key.len()));
        fits(
            "rope",
            &[
                count(qkv, rows * (heads + 2 * key_heads) * size),
                count(places, rows),
                (query, size),
                (key, size),
            ],
        )?;
        let (rows32, heads32, key_heads32, size32) = (number(rows)?, number(heads)?, number(key_heads)?, number(size)?);
        let (query, key) = scales.map_or((0, 0), |(query, key)| (query.address(), key.address()));
        self.run(
            kernel,
            ((rows * (heads + key_heads)).div_ceil(4), 1),
            128,
            0,
            parameters![
                qkv.address(),
                places.address(),
                table.address(),
                query,
                key,
                rows32,
                heads32,
                key_heads32,
                size32,
                epsilon,
            ],
        )
    }

    /// A row of `out` for each of the first `spans` spans over rows of `x`.
    pub fn pool_spans(
        &self,
        x: &Memory<bf16>,
        span_list: &Memory<[u32; 4]>,
        spans: usize,
        out: &Memory<f32>,
        width: usize,
    ) -> Result<(), ComputeError> {
        chunks(width)?;
        let kernel = self.kernels.get("pool_spans")?;
        fits("pool_spans", &[count(span_list, spans), count(out, spans * width)])?;
        let width32 = number(width)?;
        self.run(
            kernel,
            (spans, 1),
            256,
            64,
            parameters![x.address(), span_list.address(), out.address(), width32],
        )
    }
}
