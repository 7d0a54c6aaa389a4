//! How a batch runs: thread pool, packing, CPU kernels. Knows tensors, not texts.
//!
//! From the ground up: `cpu` (instruction sets, threads, buffers), `rowwise`, `quantised` and `vectors` (what works on one
//! row), `matmul`, `attention`, `gradient` (backward passes), `forward` (whole models on the processor), `cuda`.

pub mod attention;
pub mod cpu;
pub mod cuda;
mod error;
pub mod forward;
pub mod gradient;
pub mod matmul;
pub mod quantised;
pub mod rowwise;
pub mod vectors;

pub use attention::rope::{Rope, Rotate, RotateBackward, Rotations};
pub use cpu::buffer::Buffer;
pub(crate) use cpu::buffer::Shared;
#[cfg(test)]
pub use cpu::buffer::count;
pub use cpu::memory;
pub use cpu::pool::Pool;
pub use error::ComputeError;
pub use matmul::linear::{Linear, Precision};
pub use matmul::low_rank::add_low_rank;
pub use quantised::ggml_blocks::{BlockKind, scale_and_minimum};
pub use rowwise::activation::Activation;
pub use rowwise::glu::{glu, glu_backward};
pub use rowwise::layer_norm::LayerNorm;
pub use rowwise::norm::Norm;
pub use rowwise::rms_norm::RmsNorm;
