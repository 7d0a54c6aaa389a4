//! A document as one token of a frozen LLM's input (xRAG, Cheng et al. 2024, arXiv 2405.13792): a small projector turns a
//! passage's vector into what stands in the place of a token's embedding.

mod fit;
pub mod projector;
mod prompts;
pub mod published;
mod train;

pub use projector::KIND;
pub use train::{XragOptions, train};

#[cfg(test)]
mod tests;
