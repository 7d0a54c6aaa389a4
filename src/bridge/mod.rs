//! The trained and untrained parts beside the frozen encoder.
pub mod feedback;
pub mod gate;
pub mod situate;

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
    /// The encoder failed.
    #[error(transparent)]
    Model(#[from] crate::model::ModelError),
}

#[cfg(test)]
mod tests;
