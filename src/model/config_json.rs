//! config.json: its fields by kind, with errors that name the file and the field.
//!
//! Encoders (`config.rs`) and language models (`llm/directory.rs`) take their fields from here; what the file says of
//! rotary embeddings and of kinds of layers is read in `rotary.rs`.

use super::ModelError;
use super::files::{read_json, required};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Largest number that is accepted for a shape, so that products of shapes cannot overflow.
pub const MAX_SHAPE: u64 = 1 << 24;
/// Tokens that a token of Mistral sees where the file leaves the field out.
const MISTRAL_WINDOW: usize = 4096;

/// The parsed file.
pub struct ConfigJson {
    pub(super) value: Value,
    path: PathBuf,
}

impl ConfigJson {
    /// Reads the file of a model directory.
    ///
    /// # Errors
    /// [`ModelError::Missing`] where there is none, [`ModelError::Invalid`] where it is no JSON.
    pub fn read(dir: &Path) -> Result<ConfigJson, ModelError> {
        let path = required(dir.join("config.json"))?;
        Ok(ConfigJson {
            value: read_json(&path)?,
            path,
        })
    }

    /// An error of this file.
    pub fn invalid(&self, what: impl Into<String>) -> ModelError {
        ModelError::Invalid {
            path: self.path.clone(),
            what: what.into(),
        }
    }

    /// Whether the file has the field at all, be it null.
    pub fn has(&self, field: &str) -> bool {
        self.value.get(field).is_some()
    }

    /// A field, null where there is none.
    pub fn field(&self, field: &str) -> &Value {
        self.value.get(field).unwrap_or(&Value::Null)
    }

    /// A field that is true or false; none where it is something else.
    pub fn flag(&self, field: &str) -> Option<bool> {
        self.field(field).as_bool()
    }

    /// A number, or the default where the field is left out.
    pub fn number(&self, field: &str, default: f64) -> Result<f64, ModelError> {
        let number = match self.field(field) {
            Value::Null => Some(default),
            value => value.as_f64(),
        };
        number.ok_or_else(|| self.invalid(format!("field \"{field}\" is not a number")))
    }

    /// A string, which has to be there.
    pub fn text(&self, field: &str) -> Result<&str, ModelError> {
        let text = self.field(field).as_str();
        text.ok_or_else(|| self.invalid(format!("field \"{field}\" is missing or not a string")))
    }

    /// A number that a shape may have, from 1; it has to be there.
    pub fn shape(&self, field: &str) -> Result<usize, ModelError> {
        match self.field(field).as_u64() {
            Some(value) if (1..=MAX_SHAPE).contains(&value) => Ok(value as usize),
            _ => Err(self.invalid(format!(
                "field \"{field}\" is missing or not a number from 1 to {MAX_SHAPE}"
            ))),
        }
    }

    /// [`ConfigJson::shape`], or the default where the field is left out.
    pub fn shape_or(&self, field: &str, default: usize) -> Result<usize, ModelError> {
        match self.field(field) {
            Value::Null => Ok(default),
            _ => self.shape(field),
        }
    }

    /// The width of a decoder's heads: `head_dim`, or the default of the family's published class, or all heads' share of
    /// the width.
    pub fn head_width(&self, hidden: usize, heads: usize, default: Option<usize>) -> Result<usize, ModelError> {
        match (self.field("head_dim"), default) {
            (Value::Null, Some(width)) => Ok(width),
            (Value::Null, None) if hidden.is_multiple_of(heads) => Ok(hidden / heads),
            (Value::Null, None) => Err(self.invalid(format!("hidden_size {hidden} is not divisible by {heads} heads"))),
            _ => self.shape("head_dim"),
        }
    }

    /// The window of Mistral, whose class has one unless the file says null.
    pub fn mistral_window(&self) -> Result<Option<usize>, ModelError> {
        match self.field("sliding_window") {
            Value::Null if self.has("sliding_window") => Ok(None),
            Value::Null => Ok(Some(MISTRAL_WINDOW)),
            _ => Ok(Some(self.shape("sliding_window")?)),
        }
    }

    /// Fails where Qwen's classes are asked for a window on some layers.
    pub fn without_qwen_window(&self) -> Result<(), ModelError> {
        match self.flag("use_sliding_window") {
            Some(true) => Err(ModelError::unsupported(
                "attention",
                "use_sliding_window",
                "all layers over the whole text",
            )),
            _ => Ok(()),
        }
    }
}
