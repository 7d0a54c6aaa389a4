//! The template of a model that was trained to read a chunk together with its context: `situated.json` in the model
//! directory, and for the form of two encoders the second of them, a whole model in the folder `situated/`.
//!
//! SitEmb (arXiv 2508.01959): v1 is two encoders whose vectors are added, the second of which reads
//! `CHUNK separator CONTEXT`; v1.5 is one causal encoder that reads `CHUNK separator instruction CONTEXT end`, read out
//! at the separator (the chunk alone, since a token sees only what stands to its left) and at the end.

use super::encoder::Placing;
use super::files::{read_bytes, read_json, required};
use super::tokenizer::Tokenizer;
use super::{Encoder, Manifest, ModelError, Precision, Read, Sequence};
use crate::compute::Pool;
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
fn folder(dir: &Path) -> PathBuf {
    dir.join(FOLDER)
}

/// The files that a template adds to the content of a directory.
pub fn files(dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let Some(template) = Template::read(dir)? else {
        return Ok(Vec::new());
    };
    let mut paths = vec![dir.join(FILE)];
    if template.form == Form::Sum {
        let inner = folder(dir);
        required(inner.join("config.json"))?;
        paths.extend(super::manifest::content(&inner)?);
    }
    Ok(paths)
}

/// What an encoder with a template has besides its own weights.
pub struct Situated {
    template: Template,
    separator: u32,
    instruction: Vec<u32>,
    second: Option<Box<Encoder>>,
}

impl Situated {
    /// Of a directory without a template, none.
    pub(super) fn load(
        dir: &Path,
        precision: Precision,
        manifest: &Manifest,
        tokenizer: &Tokenizer,
        place: Placing,
    ) -> Result<Option<Situated>, ModelError> {
        let Some(template) = Template::read(dir)? else {
            return Ok(None);
        };
        let unfit = |what: String| {
            Err(ModelError::Invalid {
                path: dir.to_path_buf(),
                what,
            })
        };
        let Some(separator) = tokenizer.special(&template.separator) else {
            return unfit(format!("its tokenizer has no special token \"{}\"", template.separator));
        };
        let second = match template.form {
            Form::Mix if !manifest.family.is_decoder() => {
                return unfit("two read-outs need an encoder whose tokens see only what is left of them".to_string());
            }
            Form::Mix => None,
            Form::Sum => {
                let inner = folder(dir);
                let second = Encoder::load(&inner, precision, place)?;
                let (own, other) = (
                    read_bytes(&dir.join("tokenizer.json"))?,
                    read_bytes(&inner.join("tokenizer.json"))?,
                );
                if second.situated.is_some() || second.manifest.hidden != manifest.hidden || own != other {
                    return unfit(
                        "its two encoders differ in their tokenizers or the length of their vectors".to_string(),
                    );
                }
                Some(Box::new(second))
            }
        };
        let instruction = match template.instruction.is_empty() {
            true => Vec::new(),
            false => tokenizer.tokens(&template.instruction, usize::MAX)?.ids,
        };
        Ok(Some(Situated {
            template,
            separator,
            instruction,
            second,
        }))
    }
}

impl Encoder {
    /// How the model reads a chunk together with its context, where it was trained to.
    pub fn situated(&self) -> Option<&Template> {
        self.situated.as_ref().map(|situated| &situated.template)
    }

    /// The sequence of a chunk in its context, from their ids: `CHUNK separator instruction CONTEXT end`, the context cut
    /// at its tail where the model's limit is reached, never the chunk; without a context where not even the
    /// separator and the instruction fit. Of [`Form::Mix`] it gives two vectors, the chunk alone and the chunk in its
    /// context; of [`Form::Sum`] the second encoder's. None where the model has no template.
    pub fn in_context(&self, chunk: &[u32], context: &[u32]) -> Option<Sequence> {
        let situated = self.situated.as_ref()?;
        let (first, mut last) = self.tokenizer.around();
        let own_end = [situated.separator];
        if situated.template.form == Form::Mix && last.last() != Some(&situated.separator) {
            last = &own_end;
        }
        let mut ids = [first, &self.passage_prefix].concat();
        let room = self.manifest.max_tokens.saturating_sub(last.len());
        ids.extend(chunk);
        ids.truncate(room);
        let alone = ids.len() as u32;
        if ids.len() + 1 + situated.instruction.len() < room {
            ids.push(situated.separator);
            ids.extend(&situated.instruction);
            ids.extend(context);
            ids.truncate(room);
        }
        ids.extend(last);
        let end = ids.len() as u32;
        let read = match situated.template.form {
            // Where nothing follows the chunk, both are read at the end.
            Form::Mix => Read::Spans(vec![alone..alone + 1, end - 1..end]),
            Form::Sum => Read::Second,
        };
        Some(Sequence { ids, read })
    }

    /// The second encoder of a model of two.
    pub(super) fn second(&self) -> Option<&Encoder> {
        self.situated.as_ref()?.second.as_deref()
    }

    /// Every sequence through the encoders that it is for.
    pub(super) fn encode_both(
        &self,
        second: &Encoder,
        pool: &Pool,
        batch: &[Sequence],
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        let own: Vec<Sequence> = batch
            .iter()
            .filter(|s| s.read != Read::Second)
            .map(pooled_or_spans)
            .collect();
        let others = batch.iter().filter(|s| matches!(s.read, Read::Second | Read::Sum));
        let others: Vec<Sequence> = others.map(pooled_or_spans).collect();
        let mut first = self.encode_own(pool, &own, stop)?.into_iter();
        let mut then = second.encode_own(pool, &others, stop)?.into_iter();
        let mut vectors = Vec::with_capacity(batch.iter().map(Sequence::vectors).sum());
        for sequence in batch {
            match &sequence.read {
                Read::Pooled => vectors.extend(first.next()),
                Read::Spans(spans) | Read::States(spans) => vectors.extend(first.by_ref().take(spans.len())),
                Read::Second => vectors.extend(then.next()),
                Read::Sum => {
                    let both = first.next().zip(then.next());
                    vectors.extend(both.map(|(a, b)| a.iter().zip(&b).map(|(a, b)| a + b).collect()));
                }
            }
        }
        Ok(vectors)
    }
}

/// The sequence as one of two encoders sees it.
fn pooled_or_spans(sequence: &Sequence) -> Sequence {
    Sequence {
        ids: sequence.ids.clone(),
        read: match &sequence.read {
            Read::Spans(_) | Read::States(_) => sequence.read.clone(),
            _ => Read::Pooled,
        },
    }
}
