//! Between processes and threads: rings in shared memory, messages, failures, statistics.

pub mod exchange;
pub mod failure;
pub mod frame;
pub mod memory;
pub mod ring;
pub mod statistics;
pub mod threads;
pub mod wire;
