//! Text to ids and back to bytes of the text; special tokens come from here alone, never from a text.

use super::cut::piece_end;
use super::files::{io, read_bytes, read_optional_json};
use super::modules::Options;
use super::{Manifest, ModelError, stop};
use crate::compute::memory::room_for;
use crate::text::Span;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use tokenizers::normalizers::{Lowercase, NormalizerWrapper, Sequence};
use tokenizers::{Model, ModelWrapper, PreTokenizerWrapper};

/// Bytes of a text that are given to the tokenizer at once, at least, and at most twice as many ([`cut`](super::cut)): some
/// ten milliseconds of work.
pub const PIECE_BYTES: usize = 16 << 10;

/// Bytes of memory that a byte of tokenizer.json takes while it is read. The library allocates them in pieces of its own.
pub(super) const PARSED: usize = 24;

/// The tokens of a text, without special tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    pub ids: Vec<u32>,
    /// Bytes of the text that each token came from, ascending; without white space before a word.
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
    /// Whether a piece of a long text begins with the space that it was cut at.
    keep_space: bool,
}

impl Tokenizer {
    /// Reads tokenizer.json. Truncation and padding in it are switched off. For a decoder whose tokenizer.json puts
    /// nothing behind a text, the end token follows where tokenizer_config.json says `add_eos_token`. Texts are read in
    /// lower case where sentence_bert_config.json says so; spans stay those of the text as it came.
    pub fn open(dir: &Path, manifest: &Manifest) -> Result<Tokenizer, ModelError> {
        let vocabulary = manifest.vocabulary;
        let path = dir.join("tokenizer.json");
        if !path.is_file() {
            return Err(io(&path, std::io::ErrorKind::NotFound.into()));
        }
        let bytes = read_bytes(&path)?;
        room_for(bytes.len().saturating_mul(PARSED))?;
        let mut inner = caught(|| tokenizers::Tokenizer::from_bytes(&bytes))?;
        inner.with_truncation(None).map_err(failed)?;
        inner.with_padding(None);
        inner.set_encode_special_tokens(true);
        agrees(&dir.join("tokenizer_config.json"), &inner)?;
        if Options::read(dir)?.lower_case {
            lower_case(&mut inner)?;
        }
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
        let ids = |text: &str| -> Result<Vec<u32>, ModelError> {
            Ok(caught(|| inner.encode(text, false))?.get_ids().to_vec())
        };
        // Where the special tokens stand is learned from a sequence of one word.
        let with = caught(|| inner.encode("a", true))?.get_ids().to_vec();
        let without = ids("a")?;
        let place = with
            .windows(without.len().max(1))
            .position(|window| window == without.as_slice());
        let (Some(place), false) = (place, without.is_empty()) else {
            return Err(ModelError::Tokenizer(
                "its post-processor does not keep the text's tokens together".to_string(),
            ));
        };
        let before = with.get(..place).unwrap_or_default().to_vec();
        let mut after = with.get(place + without.len()..).unwrap_or_default().to_vec();
        if manifest.family.is_decoder() && after.is_empty() {
            after.extend(end_token(dir, &inner)?);
        }
        // A long text is cut before a space. Either the space begins the next word, or words get one anyway.
        let (both, spaced) = (ids("a a")?, ids(" a")?);
        let keep_space = both == [without.as_slice(), &spaced].concat() || both != without.repeat(2);
        Ok(Tokenizer {
            inner,
            special,
            unknown,
            before,
            after,
            keep_space,
        })
    }

    /// Ids of what is read before a text: those that it has with a text behind it.
    pub fn prefix(&self, prefix: &str) -> Result<Vec<u32>, ModelError> {
        if prefix.is_empty() {
            return Ok(Vec::new());
        }
        let whole = self.tokens(&format!("{prefix}a"), usize::MAX)?.ids;
        let text = self.tokens("a", usize::MAX)?.ids;
        match whole.strip_suffix(text.as_slice()) {
            Some(before) => Ok(before.to_vec()),
            None => Ok(self.tokens(prefix, usize::MAX)?.ids),
        }
    }

    /// Ids and spans of a text, without special tokens. Ends early once there are `enough` tokens (it may give more).
    ///
    /// # Errors
    /// [`ModelError::Stopped`] between two pieces of the text, where [`stop`] says so.
    pub fn tokens(&self, text: &str, enough: usize) -> Result<Tokens, ModelError> {
        self.tokens_behind(text, false, enough)
    }

    /// [`Tokenizer::tokens`] of a text or, with `continues`, of a part of one that [`piece_end`] has cut from what is before.
    pub fn tokens_behind(&self, text: &str, continues: bool, enough: usize) -> Result<Tokens, ModelError> {
        let mut tokens = Tokens::default();
        let mut start = 0;
        while start < text.len() && tokens.ids.len() < enough {
            stop::check()?;
            let end = piece_end(text, start, PIECE_BYTES);
            let skip = usize::from(
                (start > 0 || continues)
                    && !self.keep_space
                    && text.get(start..).is_some_and(|rest| rest.starts_with(" ")),
            );
            let piece = text.get(start + skip..end).unwrap_or_default();
            let encoding = caught(|| self.inner.encode(piece, false))?;
            for (id, (from, to)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
                let mut add = |id: u32, from: usize, to: usize| {
                    // Some vocabularies join a word with the space before it, which is no part of the word.
                    let word = piece.get(from..to).unwrap_or_default().trim_start();
                    let from = if word.is_empty() { from } else { to - word.len() };
                    tokens.ids.push(id);
                    tokens.spans.push(Span {
                        start: (start + skip + from) as u32,
                        end: (start + skip + to) as u32,
                    });
                };
                if self.special.contains(id) && Some(*id) != self.unknown {
                    self.plain(piece, *from, *to, &mut add)?;
                } else {
                    add(*id, *from, *to);
                }
            }
            start = end;
        }
        Ok(tokens)
    }

    /// Tokens of a part of a text that the vocabulary holds as a special token. A vocabulary of pieces of words spells
    /// it; one of whole words does not know it.
    fn plain(
        &self,
        piece: &str,
        from: usize,
        to: usize,
        add: &mut impl FnMut(u32, usize, usize),
    ) -> Result<(), ModelError> {
        let part = piece.get(from..to).unwrap_or_default();
        let first = part.chars().next().map_or(0, char::len_utf8);
        let pieces = matches!(self.inner.get_model(), ModelWrapper::Unigram(_) | ModelWrapper::BPE(_));
        if !pieces || first == 0 || first == part.len() {
            if let Some(unknown) = self.unknown {
                add(unknown, from, to);
            }
            return Ok(());
        }
        for (start, end) in [(from, from + first), (from + first, to)] {
            let text = piece.get(start..end).unwrap_or_default();
            for token in self.inner.get_model().tokenize(text).map_err(failed)? {
                let special = self.special.contains(&token.id);
                if let Some(id) = if special { self.unknown } else { Some(token.id) } {
                    add(id, start + token.offsets.0, start + token.offsets.1);
                }
            }
        }
        Ok(())
    }

    /// The id of a special token, by its name.
    pub fn special(&self, name: &str) -> Option<u32> {
        self.inner.token_to_id(name).filter(|id| self.special.contains(id))
    }

    /// Special ids before and after a sequence.
    pub fn around(&self) -> (&[u32], &[u32]) {
        (&self.before, &self.after)
    }
}

/// Puts lower case before all else that the tokenizer does with a text, as sentence-transformers does. The tokenizer
/// keeps account itself of the bytes that each of its characters came from.
fn lower_case(inner: &mut tokenizers::Tokenizer) -> Result<(), ModelError> {
    let before = match inner.get_normalizer().cloned() {
        None => Vec::new(),
        Some(NormalizerWrapper::Sequence(steps)) => steps.into_iter().collect(),
        Some(one) => vec![one],
    };
    if before
        .iter()
        .any(|step| matches!(step, NormalizerWrapper::Lowercase(_)))
    {
        return Ok(());
    }
    let steps = std::iter::once(Lowercase.into()).chain(before).collect();
    inner.with_normalizer(Some(Sequence::new(steps))).map_err(failed)?;
    Ok(())
}

/// Fails where tokenizer_config.json says otherwise than tokenizer.json: the published class then changes the tokenizer,
/// which is not done here.
fn agrees(path: &Path, inner: &tokenizers::Tokenizer) -> Result<(), ModelError> {
    let config = read_optional_json(path)?;
    let class = config.get("tokenizer_class").and_then(|class| class.as_str());
    let class = class.unwrap_or_default();
    let of_tokenizer = match (inner.get_normalizer(), inner.get_pre_tokenizer()) {
        (Some(NormalizerWrapper::BertNormalizer(normalizer)), _) if class.starts_with("BertTokenizer") => vec![
            ("do_lower_case", Some(normalizer.lowercase)),
            ("tokenize_chinese_chars", Some(normalizer.handle_chinese_chars)),
            ("strip_accents", normalizer.strip_accents),
        ],
        (_, Some(PreTokenizerWrapper::ByteLevel(level))) if class.starts_with("RobertaTokenizer") => {
            vec![("add_prefix_space", Some(level.add_prefix_space))]
        }
        _ => Vec::new(),
    };
    for (field, found) in of_tokenizer {
        let Some(said) = config.get(field).filter(|said| said.is_boolean() || said.is_null()) else {
            continue;
        };
        if said.as_bool() != found {
            let found = found.map_or("null".to_string(), |found| found.to_string());
            return Err(ModelError::Unsupported {
                what: "tokenizer_config.json",
                found: format!("{field} {said}, where tokenizer.json has {found}"),
                supported: "files that agree",
            });
        }
    }
    Ok(())
}

/// The end token that tokenizer_config.json wants behind a text.
fn end_token(dir: &Path, inner: &tokenizers::Tokenizer) -> Result<Option<u32>, ModelError> {
    let config = read_optional_json(&dir.join("tokenizer_config.json"))?;
    if config.get("add_eos_token").and_then(|value| value.as_bool()) != Some(true) {
        return Ok(None);
    }
    let token = config.get("eos_token");
    let name = token.and_then(|token| token.as_str().or_else(|| token.get("content")?.as_str()));
    match name.and_then(|name| inner.token_to_id(name)) {
        Some(id) => Ok(Some(id)),
        None => Err(ModelError::Tokenizer(format!(
            "tokenizer_config.json asks for the end token \"{}\", which the vocabulary lacks",
            name.unwrap_or_default()
        ))),
    }
}

/// Runs the tokenizer; where a damaged table of characters (`Precompiled`) makes it panic, that is an error as others are.
fn caught<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, ModelError> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(failed),
        Err(_) => Err(ModelError::Tokenizer(
            "tokenizer.json is damaged: the tokenizer panicked over its tables".to_string(),
        )),
    }
}

fn failed(error: tokenizers::Error) -> ModelError {
    ModelError::Tokenizer(error.to_string())
}
