//! Matrix products: tiles, packed weights in f32, bf16 and int8, low-rank updates.

pub(super) mod gemm;
#[cfg(target_arch = "x86_64")]
pub(super) mod gemm_bf16;
#[cfg(target_arch = "x86_64")]
mod gemm_int8;
#[cfg(target_arch = "x86_64")]
mod int8;
pub mod linear;
pub(super) mod low_rank;
pub mod parallel;
pub(super) mod tile;
