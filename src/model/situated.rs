//! The template of a model that was trained to read a chunk together with its context: `situated.json` in the model
//! directory, and for the form of two encoders the second of them, a whole model in the folder `situated/`.
//!
//! SitEmb (arXiv 2508.01959): v1 is two encoders whose vectors are added, the second of which reads
//! `CHUNK separator CONTEXT`; v1.5 is one causal encoder that reads `CHUNK separator instruction CONTEXT end`, read out
//! at the separator (the chunk alone, since a token sees only what stands to its left) and at the end.

use super::ModelError;
use super::files::{read_json, required};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const FILE: &str = "situated.json";
const FOLDER: &str = "situated";

/// How chunk and context become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// v1: the sum of two encoders' vectors, for queries as well.
    Sum,
    /// v1.5: one causal encoder, read out twice, mixed by a factor.
    Mix,
}

/// What `situated.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    pub form: Form,
    /// The special token between the chunk and what follows.
    pub separator: String,
    /// Text between the separator and the context.
    #[serde(default)]
    pub instruction: String,
    /// Chunks of a window: consecutive groups of so many are each other's context.
    #[serde(default = "sixteen")]
    pub window_chunks: u32,
    /// The share of the situated vector in a mix.
    #[serde(default = "half")]
    pub weight: f32,
}

fn sixteen() -> u32 {
    16
}

fn half() -> f32 {
    0.5
}

impl Template {
    /// The template of a directory, where it has one.
    pub fn read(dir: &Path) -> Result<Option<Template>, ModelError> {
        let path = dir.join(FILE);
        if !path.is_file() {
            return Ok(None);
        }
        let invalid = |what: String| ModelError::Invalid {
            path: path.clone(),
            what,
        };
        let template: Template =
            serde_json::from_value(read_json(&path)?).map_err(|error| invalid(error.to_string()))?;
        if template.window_chunks == 0 {
            return Err(invalid("window_chunks is 0".to_string()));
        }
        if !(0.0..=1.0).contains(&template.weight) {
            return Err(invalid(format!("weight {} is not in 0 to 1", template.weight)));
        }
        Ok(Some(template))
    }
}

/// The directory of the second encoder.
pub fn second(dir: &Path) -> PathBuf {
    dir.join(FOLDER)
}

/// The files that a template adds to the content of a directory.
pub fn files(dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let Some(template) = Template::read(dir)? else {
        return Ok(Vec::new());
    };
    let mut paths = vec![dir.join(FILE)];
    if template.form == Form::Sum {
        let inner = second(dir);
        required(inner.join("config.json"))?;
        paths.extend(super::manifest::content(&inner)?);
    }
    Ok(paths)
}
