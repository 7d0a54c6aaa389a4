//! The LLM's side of a worker: answers in progress, batched step by step.

pub mod engine;
pub mod inbox;
pub mod loaded;
pub mod pending;
pub mod planner;
pub mod runtime;
pub mod wire;
