//! Bridges in the database: their registry, and what each kind does to a question or to passages.

pub mod copies;
pub mod lexsem;
pub mod passages;
pub mod registry;
mod rows;
pub mod xrag;
