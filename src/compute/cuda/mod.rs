//! The forward passes on a CUDA GPU. CUDA is looked for at run time: without it everything here answers with an error,
//! and nothing else of the crate notices.
//!
//! The kernels are compiled for the GPU at hand by NVRTC (`compile.rs`), the matrix products are cublasLt's
//! (`matmul.rs`). A batch is packed without padding and runs on one of two streams (`batch_stream.rs`, `runner.rs`). A text's
//! vector has the same bits alone and in any batch of the same gpu: no kernel's sum depends on another row, and a product
//! has one algorithm, whatever the number of rows.
//!
//! Nothing here is called in a postmaster: a CUDA context does not survive a fork.

mod batch_stream;
pub mod bert;
mod compile;
pub mod decoder;
pub mod engine;
pub mod gpu;
mod launch;
mod launch_rabitq;
mod library;
pub mod matmul;
pub mod rabitq;
pub mod request;
mod rounded;
pub mod runner;
mod shared_memory;

#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;

pub use engine::Engine;
pub use gpu::{GpuInfo, gpus};
pub use request::{Range, Request};
pub use runner::Runner;
