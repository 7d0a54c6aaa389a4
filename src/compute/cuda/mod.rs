//! The forward passes on a CUDA card. CUDA is looked for at run time: without it everything here answers with an error,
//! and nothing else of the crate notices.
//!
//! The kernels are compiled for the card at hand by NVRTC (`compile.rs`), the matrix products are cublasLt's
//! (`matmul.rs`). A batch is packed without padding and runs on one of two streams (`lane.rs`, `runner.rs`). A text's
//! vector has the same bits alone and in any batch of the same card: no kernel's sum depends on another row, and a product
//! has one algorithm, whatever the number of rows.
//!
//! Nothing here is called in a postmaster: a CUDA context does not survive a fork.

pub mod bert;
pub mod card;
pub mod coding;
mod compile;
pub mod decoder;
pub mod engine;
mod lane;
mod launch;
mod launch_coding;
mod library;
pub mod matmul;
pub mod runner;

#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;

pub use card::{CardInfo, cards};
pub use engine::Engine;
pub use runner::{Range, Request, Runner};
