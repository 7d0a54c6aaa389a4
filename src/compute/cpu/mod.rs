//! The ground: instruction sets and their dispatch, threads, aligned buffers.

pub mod buffer;
pub(super) mod level;
pub mod memory;
pub mod parallel;
pub mod pool;
pub(super) mod simd;
#[cfg(target_arch = "x86_64")]
pub(super) mod simd_x86;

pub use level::{Kernel, Level, dispatch, has_avx_vnni, has_bf16, has_vnni, level};
