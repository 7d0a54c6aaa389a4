//! Pseudo-relevance feedback: the query moved by its nearest passages, and the gate that says where that helps; and the
//! rounds of a scan that is moved so.

pub mod gate;
pub mod rounds;
mod vectors;

pub use vectors::*;
