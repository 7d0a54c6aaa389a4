//! Pseudo-relevance feedback: the query moved by its nearest passages, and the gate that says where that helps.

pub mod gate;
mod vectors;

pub use vectors::*;
