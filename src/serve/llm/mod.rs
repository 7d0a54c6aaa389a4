//! The LLM's side of a worker: answers in progress, batched step by step.

pub mod engine;
pub mod inbox;
pub mod pending;
pub mod planner;
pub mod prompt;
pub mod runtime;
pub mod session;
pub mod wire;
