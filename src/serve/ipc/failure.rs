//! Errors that cross a process border: the worker writes them into a reply, the backend raises them.

use crate::bridge::BridgeError;
use crate::compute::ComputeError;
use crate::model::ModelError;
use crate::model::line::one_line;
use serde::{Deserialize, Serialize};

/// What sort of error it is; the wall maps each to a SQLSTATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A file or directory is not there.
    MissingFile,
    /// The operating system refused.
    Io,
    /// A model file does not hold what it should.
    BadModel,
    /// Something this version does not support.
    Unsupported,
    /// The files are not the ones that were registered.
    Changed,
    /// An argument is out of range.
    Argument,
    /// Not enough memory, or more than a limit allows.
    Memory,
    /// The device does not work any more; another worker may.
    DeviceLost,
    /// A fault of ours.
    Internal,
}

/// An error as text, ready to be raised in another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub kind: Kind,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl Failure {
    pub fn new(kind: Kind, message: impl Into<String>) -> Failure {
        Failure {
            kind,
            message: message.into(),
            detail: None,
            hint: None,
        }
    }

    pub fn detail(mut self, detail: impl Into<String>) -> Failure {
        self.detail = Some(detail.into());
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }
}

const MODEL_HINT: &str = "A model directory holds config.json, tokenizer.json and *.safetensors, as published on \
                          Hugging Face. Copy it again, complete.";

const TEMPLATE_HINT: &str = "The template comes with the model, in chat_template.jinja, tokenizer_config.json or the GGUF \
                             file: take one without what the message names.";

/// Characters of a message about a model: a path of 4096 bytes has room in it.
const MOST: usize = 5000;
const MEMORY_HINT: &str = "Leave the server more memory, or lower situ.model_memory and situ.batch_tokens.";

impl From<&ModelError> for Failure {
    fn from(error: &ModelError) -> Failure {
        use ModelError as E;
        let (kind, hint) = match error {
            E::NotADirectory(_) | E::Missing(_) => (Kind::MissingFile, Some(MODEL_HINT)),
            E::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                (Kind::MissingFile, Some(MODEL_HINT))
            }
            E::Io { .. } => (
                Kind::Io,
                Some("The files must be readable by the operating-system user that runs the server."),
            ),
            E::Invalid { .. } | E::Corrupt { .. } | E::MissingTensor(_) | E::TensorShape { .. } | E::NotFinite(_) => {
                (Kind::BadModel, Some(MODEL_HINT))
            }
            E::TensorType { .. } | E::Unsupported { .. } => (
                Kind::Unsupported,
                Some("Take a model of a supported family, in safetensors of F32, F16 or BF16."),
            ),
            E::Tokenizer(_) => (Kind::BadModel, Some(MODEL_HINT)),
            E::Template(_) => (Kind::Unsupported, Some(TEMPLATE_HINT)),
            E::Turns(_) => (
                Kind::Argument,
                Some("Leave system out; chat => false sends the prompt as it is, without the template."),
            ),
            E::Part { .. } => (
                Kind::Argument,
                Some("Name the first part, or a directory that holds all of them and nothing else."),
            ),
            E::Changed(_) => (Kind::Changed, Some("Try again when the directory is complete.")),
            E::Compute(ComputeError::DeviceLost(_)) => (Kind::DeviceLost, None),
            E::Compute(ComputeError::DeviceMemory { .. }) => (
                Kind::Memory,
                Some("Lower situ.model_memory or situ.batch_tokens, or give the GPU to this server alone."),
            ),
            E::Compute(ComputeError::Memory { .. }) => (Kind::Memory, Some(MEMORY_HINT)),
            E::Sequence { .. } | E::Tensor(_) | E::Stopped | E::Compute(_) | E::Output { .. } => (Kind::Internal, None),
        };
        Failure {
            kind,
            // Files and libraries have a say in it, and may say much.
            message: one_line(&error.to_string(), MOST),
            detail: None,
            hint: hint.map(str::to_owned),
        }
    }
}

impl From<&BridgeError> for Failure {
    fn from(error: &BridgeError) -> Failure {
        match error {
            BridgeError::Model(inner) => Failure::from(inner),
            BridgeError::Compute(ComputeError::Memory { .. } | ComputeError::DeviceMemory { .. }) => {
                Failure::new(Kind::Memory, error.to_string())
            }
            BridgeError::Option { .. } | BridgeError::TooLittle(_) => Failure::new(Kind::Argument, error.to_string()),
            BridgeError::File(_) => Failure::new(Kind::BadModel, error.to_string())
                .hint("Give the file as situ.export_bridge, or whoever published it, has written it."),
            _ => Failure::new(Kind::Internal, error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_gpu_says_is_told_apart() {
        let kind = |error: ComputeError| Failure::from(&ModelError::Compute(error)).kind;
        assert_eq!(kind(ComputeError::DeviceLost("gone".to_owned())), Kind::DeviceLost);
        assert_eq!(kind(ComputeError::DeviceMemory { bytes: 1 }), Kind::Memory);
        assert_eq!(kind(ComputeError::Memory { bytes: 1 }), Kind::Memory);
        // A call that was refused says nothing about the GPU.
        assert_eq!(kind(ComputeError::Device("refused".to_owned())), Kind::Internal);
    }

    #[test]
    fn what_files_say_is_told_in_one_line_with_whose_fault_it_is() {
        let template = Failure::from(&ModelError::Template("unknown\nfunction".to_owned()));
        assert_eq!(template.kind, Kind::Unsupported);
        assert_eq!(template.message, "chat template: unknown function");
        assert_eq!(
            Failure::from(&ModelError::Turns("no system".to_owned())).kind,
            Kind::Argument
        );
        let part = ModelError::Part {
            path: "b".into(),
            part: 2,
            count: 2,
            first: "a".into(),
        };
        assert_eq!(Failure::from(&part).kind, Kind::Argument);
        let long = ModelError::Unsupported {
            what: "model type",
            found: "x\n".repeat(100_000),
            supported: "bert",
        };
        let said = Failure::from(&long).message;
        assert!(!said.contains('\n') && said.len() <= MOST);
    }
}
