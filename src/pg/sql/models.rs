//! The registry of models.
use crate::pg::service::ModelRef;

/// Why a name did not lead to a model.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("model \"{0}\" is not registered")]
    Unknown(String),
    #[error("no model is registered")]
    Empty,
    #[error("several models are registered and situ.default_model is not set")]
    Ambiguous,
}

/// The model of that name; without a name `situ.default_model`, or the only registered model. Cached per backend.
pub fn model_by_name(_name: Option<&str>) -> Result<ModelRef, RegistryError> {
    todo!()
}
