//! The catalogs: the extension's own tables and who may write them, names of relations, statements that only read, what a
//! backend keeps of what it read.

pub mod cache;
pub mod columns;
pub mod model_registry;
pub mod names;
pub mod owner;
pub mod read;
