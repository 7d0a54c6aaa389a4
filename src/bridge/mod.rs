//! The trained and untrained parts beside the frozen encoder.
#![forbid(unsafe_code)]

pub mod adapter;
pub mod feedback;
pub mod file;
pub mod kind;
pub mod lexsem;
pub mod prior;
pub mod situate;
pub mod text_feedback;
pub mod train;
pub mod xrag;

pub use kind::{Bridge, BridgeKind};

/// What can go wrong in a bridge.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// An option outside its range.
    #[error("{name} = {value} is out of range: {range}")]
    Option {
        name: &'static str,
        value: String,
        range: &'static str,
    },
    /// The number of vectors does not fit the plan.
    #[error("expected {expected} vectors, not {found}")]
    Vectors { expected: usize, found: usize },
    /// Numbers that overflowed.
    #[error("the {what} holds NaN or infinity")]
    NotFinite { what: &'static str },
    /// Bytes that are no bridge.
    #[error("the bridge's file is not valid: {0}")]
    File(String),
    /// Too little to train with.
    #[error("there is too little to train with: {0}")]
    TooLittle(String),
    /// The encoder cannot read out what a bridge needs.
    #[error("the encoder gives no {0}")]
    NoReading(&'static str),
    /// The monitor of a training has ended it.
    #[error("the training was stopped")]
    Stopped,
    /// What the training asked of its surroundings failed.
    #[error("{0}")]
    Outside(String),
    /// A kernel failed.
    #[error(transparent)]
    Compute(#[from] crate::compute::ComputeError),
    /// The encoder failed.
    #[error(transparent)]
    Model(#[from] crate::model::ModelError),
}

#[cfg(test)]
mod tests;
