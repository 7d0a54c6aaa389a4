//! How a batch runs: thread pool, packing, CPU kernels. Knows tensors, not texts.
mod activation;
pub mod apply;
mod attention;
#[cfg(target_arch = "x86_64")]
mod attention_bf16;
pub mod bert;
mod blocks;
mod buffer;
pub mod cached_attention;
#[cfg(test)]
pub use buffer::count;
pub mod calibrate;
pub mod codes;
pub mod cpu;
pub mod cuda;
pub mod distance;
pub mod fastscan;
mod gate;
mod gemm;
#[cfg(target_arch = "x86_64")]
mod gemm_int8;
#[cfg(target_arch = "x86_64")]
mod gemm_x86;
pub mod gradient;
pub mod heads;
#[cfg(target_arch = "x86_64")]
mod int8;
mod layer_norm;
mod linear;
mod low_rank;
pub mod nearest;
mod norm;
mod panels;
pub mod parallel;
pub mod pool;
pub mod pooling;
pub mod pre_norm;
pub mod quantised;
#[cfg(target_arch = "x86_64")]
mod quantised_x86;
mod rms_norm;
mod rope;
pub mod rotation;
mod simd;
#[cfg(target_arch = "x86_64")]
mod simd_x86;

pub use activation::Activation;
pub use blocks::{BlockKind, scale_and_minimum};
pub use buffer::Buffer;
pub(crate) use buffer::Shared;
pub use gate::{gate, gate_back};
pub use layer_norm::LayerNorm;
pub use linear::{Linear, Precision};
pub use low_rank::add_low_rank;
pub use norm::Norm;
pub use pool::Pool;
pub use rms_norm::RmsNorm;
pub use rope::{Rope, Turn, TurnBack, Turns};

/// What can go wrong while a batch runs.
#[derive(Debug, thiserror::Error)]
pub enum ComputeError {
    /// A thread could not be started.
    #[error("cannot start thread {index} of {threads}: {source}")]
    Spawn {
        index: usize,
        threads: usize,
        source: std::io::Error,
    },
    /// A task panicked; the others of its loop were not started any more.
    #[error("a compute task panicked: {0}")]
    Panicked(String),
    /// The caller's stop hook answered true.
    #[error("the batch was stopped")]
    Stopped,
    /// Tensors whose shapes do not fit each other, or an id outside its table.
    #[error("{0}")]
    Shape(String),
    /// The system refused memory.
    #[error("cannot allocate {bytes} bytes")]
    Memory { bytes: usize },
    /// The processor lacks the instructions that the precision needs.
    #[error("precision {precision} needs {needs}, which this processor lacks")]
    Unsupported {
        precision: &'static str,
        needs: &'static str,
    },
    /// A library of CUDA is not on this machine.
    #[error("{library} cannot be loaded")]
    Library { library: &'static str },
    /// The card or one of CUDA's libraries refused a call.
    #[error("CUDA: {0}")]
    Device(String),
    /// The card has not that much memory left (0 bytes: the library did not say).
    #[error("the card has no memory for another {bytes} bytes")]
    DeviceMemory { bytes: usize },
    /// The card does not answer any more, or a kernel ended in an error that takes the card from this process.
    #[error("the card is lost: {0}")]
    DeviceLost(String),
    /// A kernel's source does not compile for this card.
    #[error("kernel {file} does not compile: {log}")]
    Kernel { file: &'static str, log: String },
}
