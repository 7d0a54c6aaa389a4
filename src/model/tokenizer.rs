//! Text to ids and back to bytes of the text; special tokens come from here alone, never from a text.

use super::ModelError;
use super::files::{io, read_bytes};
use crate::text::Span;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::path::Path;

/// Bytes of a text that are given to the tokenizer at once, at least: its memory is several hundred bytes a token.
const PIECE_BYTES: usize = 64 << 10;

/// The tokens of a text, without special tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    pub ids: Vec<u32>,
    /// Bytes of the text that each token came from, ascending.
    pub spans: Vec<Span>,
}

/// A model's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Ids that a text never yields, and the id for unknown words that takes their place.
    special: HashSet<u32>,
    unknown: Option<u32>,
    /// Special ids before and after a sequence.
    before: Vec<u32>,
    after: Vec<u32>,
}

impl Tokenizer {
    /// Reads tokenizer.json. Truncation and padding in it are switched off.
    pub fn open(dir: &Path, vocabulary: usize) -> Result<Tokenizer, ModelError> {
        let path = dir.join("tokenizer.json");
        if !path.is_file() {
            return Err(io(&path, std::io::ErrorKind::NotFound.into()));
        }
        let mut inner = tokenizers::Tokenizer::from_bytes(read_bytes(&path)?).map_err(failed)?;
        inner.with_truncation(None).map_err(failed)?;
        inner.with_padding(None);
        inner.set_encode_special_tokens(true);
        let added = inner.get_added_tokens_decoder();
        let special: HashSet<u32> = added
            .iter()
            .filter(|(_, token)| token.special)
            .map(|(id, _)| *id)
            .collect();
        let unknown = ["[UNK]", "<unk>"].iter().find_map(|name| inner.token_to_id(name));
        let largest = inner.get_vocab(true).into_values().max().unwrap_or(0);
        if largest as usize >= vocabulary {
            let what = format!("its largest id is {largest}, the model's vocabulary has {vocabulary} rows");
            return Err(ModelError::Tokenizer(what));
        }
        // Where the special tokens stand is learned from a sequence of one word.
        let with = inner.encode("a", true).map_err(failed)?.get_ids().to_vec();
        let without = inner.encode("a", false).map_err(failed)?.get_ids().to_vec();
        let place = with
            .windows(without.len().max(1))
            .position(|window| window == without.as_slice());
        let (Some(place), false) = (place, without.is_empty()) else {
            return Err(ModelError::Tokenizer(
                "its post-processor does not keep the text's tokens together".to_string(),
            ));
        };
        let before = with.get(..place).unwrap_or_default().to_vec();
        let after = with.get(place + without.len()..).unwrap_or_default().to_vec();
        Ok(Tokenizer {
            inner,
            special,
            unknown,
            before,
            after,
        })
    }

    /// Ids and spans of a text, without special tokens. Ends early once there are `enough` tokens (it may give more).
    pub fn tokens(&self, text: &str, enough: usize) -> Result<Tokens, ModelError> {
        let mut tokens = Tokens::default();
        let mut start = 0;
        while start < text.len() && tokens.ids.len() < enough {
            let end = piece_end(text, start);
            let piece = text.get(start..end).unwrap_or_default();
            let encoding = self.inner.encode(piece, false).map_err(failed)?;
            for (id, (from, to)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
                // A tokenizer that takes whole words as they are would find "[SEP]" in its vocabulary.
                let id = match self.special.contains(id) {
                    false => Some(*id),
                    true => self.unknown,
                };
                if let Some(id) = id {
                    tokens.ids.push(id);
                    tokens.spans.push(Span {
                        start: (start + from) as u32,
                        end: (start + to) as u32,
                    });
                }
            }
            start = end;
        }
        Ok(tokens)
    }

    /// Special ids before and after a sequence.
    pub fn around(&self) -> (&[u32], &[u32]) {
        (&self.before, &self.after)
    }
}

/// End of the piece of `text` that begins at `start`: after a white space where words cannot be cut.
fn piece_end(text: &str, start: usize) -> usize {
    let bytes = text.as_bytes();
    let wanted = start + PIECE_BYTES;
    let rest = bytes.get(wanted..).unwrap_or_default();
    match rest.iter().position(|byte| byte.is_ascii_whitespace()) {
        Some(place) => wanted + place + 1,
        None => text.len(),
    }
}

fn failed(error: tokenizers::Error) -> ModelError {
    ModelError::Tokenizer(error.to_string())
}
