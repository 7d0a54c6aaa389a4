//! Which passages a model that reads queries with passages reads, and whose vectors it moves queries among: the file
//! `feedback.json` of its directory. How both become one sequence is in `feedback_sequence.rs`.

use super::ModelError;
use super::files::read_json;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Most tokens of a sequence with feedback, of a model that reads as far.
pub(super) const MOST_TOKENS: usize = 512;

/// In the directory of a model that was made to read passages.
const FILE: &str = "feedback.json";
/// Most passages that are read with a query.
const MOST_PASSAGES: usize = 20;

/// What `feedback.json` says: whose vectors the reader's are compared with, and what it reads. A reader moves queries among
/// the vectors of the one encoder that it was trained over, and was trained to read so many passages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reads {
    /// Fingerprint of the encoder of the passages.
    pub encoder: String,
    /// k: passages that are read with a query.
    pub passages: usize,
    /// Tokens that are read of each passage, 0 for all.
    #[serde(default)]
    pub passage_tokens: usize,
}

impl Reads {
    /// What the file of a directory says, where it has one.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] for other content, and what reading it fails with.
    pub fn read(dir: &Path) -> Result<Option<Reads>, ModelError> {
        let path = dir.join(FILE);
        if !path.is_file() {
            return Ok(None);
        }
        let invalid = |what: String| ModelError::Invalid {
            path: path.clone(),
            what,
        };
        let reads: Reads = serde_json::from_value(read_json(&path)?).map_err(|error| invalid(error.to_string()))?;
        if !(1..=MOST_PASSAGES).contains(&reads.passages) {
            return Err(invalid(format!(
                "passages {} is not in 1 to {MOST_PASSAGES}",
                reads.passages
            )));
        }
        if reads.passage_tokens > MOST_TOKENS {
            return Err(invalid(format!(
                "passage_tokens {} is above {MOST_TOKENS}",
                reads.passage_tokens
            )));
        }
        Ok(Some(reads))
    }
}

/// The file that says what a reader reads, where a directory has one; checked.
pub(super) fn file(dir: &Path) -> Result<Option<PathBuf>, ModelError> {
    Ok(Reads::read(dir)?.map(|_| dir.join(FILE)))
}
