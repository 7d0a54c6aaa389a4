//! A registered model, as calls of the service name it.

use super::ServiceError;
use crate::model::{Precision, Similarity};
use crate::pg::settings;
use crate::serve::ipc::wire::ModelKey;

/// What a registered model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelKind {
    /// Texts to vectors.
    Encoder,
    /// Prompts to texts.
    Llm,
}

/// The texts that a model puts before queries and passages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forms {
    /// None: a text is encoded as it is.
    Plain,
    /// The same before both.
    Same,
    /// Not the same: what a text is has to be known.
    Different,
}

impl Forms {
    /// The forms of a model with these prefixes.
    pub fn of(query: &str, passage: &str) -> Forms {
        match (query == passage, query.is_empty()) {
            (false, _) => Forms::Different,
            (true, true) => Forms::Plain,
            (true, false) => Forms::Same,
        }
    }
}

/// A registered model, as the registry has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelRef {
    pub name: String,
    /// The directory that `path` is below, where it is not `situ.model_dir`.
    pub root: Option<String>,
    pub kind: ModelKind,
    /// Directory, or file of an LLM, relative to `situ.model_dir`.
    pub path: String,
    /// Content hash of the model's files; the worker serves nothing else under this name.
    pub fingerprint: String,
    /// Numbers in a vector; of an LLM in the vector that stands for a token.
    pub dimensions: usize,
    /// How an encoder's vectors are compared.
    pub similarity: Similarity,
    /// What it puts before texts.
    pub forms: Forms,
    /// The role that registered it, as its OID.
    pub owner: u32,
    /// What the calibration chose; `None` where there was none.
    pub calibrated: Option<Precision>,
}

impl ModelRef {
    /// What the model is computed with: what `situ.cpu_precision` says; with `auto` what the calibration chose, and f32
    /// where there was none, or where it was made by another processor that could do more.
    pub fn precision(&self) -> Precision {
        let calibrated = self.calibrated.filter(|precision| precision.check().is_ok());
        settings::cpu_precision().or(calibrated).unwrap_or(Precision::F32)
    }

    pub(super) fn key(&self) -> ModelKey {
        ModelKey {
            root: self.root.clone().unwrap_or_else(settings::model_dir),
            path: self.path.clone(),
            fingerprint: self.fingerprint.clone(),
            precision: self.precision(),
        }
    }

    pub(super) fn check(&self, vector: &[f32]) -> Result<(), ServiceError> {
        match vector.len() == self.dimensions {
            true => Ok(()),
            false => Err(ServiceError::Dimensions {
                model: self.name.clone(),
                expected: self.dimensions,
                found: vector.len(),
            }),
        }
    }
}
