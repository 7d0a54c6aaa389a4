//! How much dynamic shared memory kernels are launched with.

use half::bf16;

/// Most components of a vector that is rotated on a GPU.
pub const ROTATED: usize = 16_384;

/// Bytes of shared memory of an attention block: two stages of 64 keys and 64 values, rows padded by 8 elements.
pub fn attention_memory(head_size: usize) -> usize {
    4 * 64 * (head_size + 8) * size_of::<bf16>()
}

/// The most dynamic shared memory that a kernel is launched with, in bytes; 0 where it is what every block gets.
pub fn shared_memory(kernel: &str) -> usize {
    if kernel == "rotate" {
        return ROTATED * size_of::<f32>();
    }
    let size = kernel
        .strip_prefix("attention_")
        .map(|rest| rest.trim_start_matches("causal_"));
    let size = size
        .and_then(|rest| rest.split('_').next())
        .and_then(|size| size.parse().ok());
    size.map_or(0, attention_memory)
}
