//! How a batch runs: thread pool, packing, CPU kernels.
