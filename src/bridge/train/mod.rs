//! Training of bridges.
pub mod data;
