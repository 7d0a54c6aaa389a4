//! A document as one token of a frozen LLM's input (xRAG, Cheng et al. 2024, arXiv 2405.13792): a small projector turns
//! a passage's vector into what stands in the place of a token's embedding.

mod answers;
mod fit;
mod options;
mod paraphrase;
mod pass;
pub mod projector;
mod prompts;
pub mod published;
mod steps;
mod train;

pub use options::XragOptions;
pub use projector::KIND;
pub use prompts::{PLAIN, WITH_DOCUMENTS};
pub use train::{train, training_precision};

#[cfg(test)]
mod tests;
