//! Tests of the whole index against brute force and models, over pages in memory.

mod card;
mod change;
mod concurrent;
mod corrupt;
mod glove;
mod memory;
mod recall;
mod search;
mod second;
pub mod support;
