//! Products with weights in GGML's blocks, never unpacked.

pub mod activations;
pub(super) mod ggml_blocks;
mod panels;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use panels::{PANEL, Quantised, Target, products};
