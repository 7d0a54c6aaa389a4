//! Between processes and threads: rings in shared memory, messages, failures, statistics.

pub mod failure;
pub mod frame;
pub mod intake;
pub mod memory;
pub mod queues;
pub mod ring;
pub mod statistics;
pub mod threads;
pub mod wire;
