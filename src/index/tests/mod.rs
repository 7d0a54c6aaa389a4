//! Tests of the whole index against brute force and models, over pages in memory.

mod change;
mod concurrent;
mod corrupt;
mod glove;
mod search;
pub mod support;
