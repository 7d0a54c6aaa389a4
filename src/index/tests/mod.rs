//! Tests of the whole index against brute force and models, over pages in memory.

mod change;
mod concurrent;
mod corrupt;
mod feedback_round;
mod glove;
mod gpu;
mod memory;
mod recall;
mod search;
pub mod support;
