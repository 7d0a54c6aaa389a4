//! The template of a model that was trained to read a chunk together with its context: `situated.json` in the model
//! directory, and for the form of two encoders the second of them, a whole model in the folder `situated/`.
//!
//! SitEmb (arXiv 2508.01959): v1 is two encoders whose vectors are added, the second of which reads
//! `CHUNK separator CONTEXT`; v1.5 is one causal encoder that reads `CHUNK separator instruction CONTEXT end`, read out
//! at the separator (the chunk alone, since a token sees only what stands to its left) and at the end.

use super::ModelError;
use super::files::read_json;
use super::manifest::Manifest;
use super::sequence::{Read, Sequence};
use super::tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

pub(super) const FILE: &str = "situated.json";
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
pub(super) fn folder(dir: &Path) -> PathBuf {
    dir.join(FOLDER)
}

/// What an encoder with a template has besides its own weights.
pub(super) struct Situated {
    pub template: Template,
    separator: u32,
    instruction: Vec<u32>,
}

impl Situated {
    /// Of a directory without a template, none.
    pub fn load(dir: &Path, manifest: &Manifest, tokenizer: &Tokenizer) -> Result<Option<Situated>, ModelError> {
        let Some(template) = Template::read(dir)? else {
            return Ok(None);
        };
        let Some(separator) = tokenizer.special(&template.separator) else {
            let what = format!("its tokenizer has no special token \"{}\"", template.separator);
            return Err(unfit(dir, what));
        };
        if template.form == Form::Mix && !manifest.family.is_decoder() {
            let what = "two read-outs need an encoder whose tokens see only what is left of them";
            return Err(unfit(dir, what.to_string()));
        }
        let instruction = match template.instruction.is_empty() {
            true => Vec::new(),
            false => tokenizer.tokens(&template.instruction, usize::MAX)?.ids,
        };
        Ok(Some(Situated {
            template,
            separator,
            instruction,
        }))
    }

    /// The sequence of a chunk in its context, from their ids, of at most `most` tokens with those before and behind it.
    pub fn sequence(&self, around: (&[u32], &[u32]), most: usize, chunk: &[u32], context: &[u32]) -> Sequence {
        let (before, mut last) = around;
        let own_end = [self.separator];
        if self.template.form == Form::Mix && last.last() != Some(&self.separator) {
            last = &own_end;
        }
        let mut ids = before.to_vec();
        let room = most.saturating_sub(last.len());
        ids.extend(chunk);
        ids.truncate(room);
        let alone = ids.len() as u32;
        if ids.len() + 1 + self.instruction.len() < room {
            ids.push(self.separator);
            ids.extend(&self.instruction);
            ids.extend(context);
            ids.truncate(room);
        }
        ids.extend(last);
        let end = ids.len() as u32;
        let read = match self.template.form {
            // Where nothing follows the chunk, both are read at the end.
            Form::Mix => Read::Spans(vec![alone..alone + 1, end - 1..end]),
            Form::Sum => Read::Second,
        };
        Sequence { ids, read }
    }
}

/// An error of a directory whose model does not fit its template.
pub(super) fn unfit(dir: &Path, what: String) -> ModelError {
    ModelError::Invalid {
        path: dir.to_path_buf(),
        what,
    }
}
