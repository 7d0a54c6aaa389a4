//! How a batch runs: thread pool, packing, CPU kernels.

pub mod distance;
pub mod fastscan;
pub mod nearest;
pub mod parallel;
pub mod rotation;
pub mod simd;
