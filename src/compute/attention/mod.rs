//! Attention over packed sequences and over a cache of keys and values, rotary positions.

pub mod cached;
mod job;
pub(super) mod kv_pack;
mod packed;
#[cfg(target_arch = "x86_64")]
mod packed_bf16;
pub(super) mod rope;
pub mod shape;

pub use job::{Elements, Scratch};
pub use packed::Attention;
