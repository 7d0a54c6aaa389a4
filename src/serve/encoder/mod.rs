//! The encoder's side of a worker: what is asked, by whose turn, on which device.

pub mod device;
pub mod engine;
pub mod jobs;
pub mod loader;
pub mod models;
pub mod plan;
pub mod scheduler;

#[cfg(test)]
mod tests;
