//! Text to token ids and back.
//!
//! Both kinds of files end as a tokenizer.json: a directory has one, of a GGUF file's vocabulary one is made. Special
//! tokens come from [`LlmTokenizer::special`] alone, never from a text.

use super::super::cut::piece_end;
use super::super::gguf::{Gguf, Value};
use super::super::tokenizer::PARSED;
use super::super::{ModelError, stop};
use super::files::{Container, LlmFiles};
use crate::compute::memory::room_for;
use serde_json::json;
use std::collections::{HashMap, HashSet};

/// Bytes of a text that are given to the tokenizer at once, at least, and at most twice as many.
const PIECE_BYTES: usize = 64 << 10;
/// Types of tokens in a GGUF file: control tokens, and those that the model's makers added.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
/// Literals of tokens that end an answer, where a vocabulary has them as special tokens.
const ENDS: [&str; 8] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end|>",
    "</s>",
    "<end_of_turn>",
];

/// A language model's tokenizer.
pub struct LlmTokenizer {
    inner: tokenizers::Tokenizer,
    special: HashMap<String, u32>,
    /// Ids that a text never yields.
    ids: HashSet<u32>,
    end: Vec<u32>,
}

fn failed(error: impl std::fmt::Display) -> ModelError {
    ModelError::Tokenizer(error.to_string())
}

impl LlmTokenizer {
    /// Reads tokenizer.json of a directory, or the vocabulary of a GGUF file.
    pub fn open(files: &LlmFiles) -> Result<LlmTokenizer, ModelError> {
        let bytes = match files.container() {
            Container::Directory { dir, .. } => super::super::files::read_bytes(&dir.join("tokenizer.json"))?,
            Container::Gguf(file) => of_gguf(file)?.to_string().into_bytes(),
        };
        room_for(bytes.len().saturating_mul(PARSED))?;
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(failed)?;
        inner.with_truncation(None).map_err(failed)?;
        inner.with_padding(None);
        inner.set_encode_special_tokens(true);
        let added = inner.get_added_tokens_decoder();
        let special: HashMap<String, u32> = added
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, token)| (token.content, id))
            .collect();
        let vocabulary = files.config().vocabulary;
        let largest = inner.get_vocab(true).into_values().max().unwrap_or(0);
        if largest as usize >= vocabulary {
            return Err(failed(format!(
                "its largest id is {largest}, the model's vocabulary has {vocabulary} rows"
            )));
        }
        let mut end: Vec<u32> = ENDS.iter().filter_map(|name| special.get(*name).copied()).collect();
        end.extend(&files.config().end);
        end.sort_unstable();
        end.dedup();
        let ids = special.values().copied().collect();
        Ok(LlmTokenizer {
            inner,
            special,
            ids,
            end,
        })
    }

    /// Ids of a text. A text never yields a special token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        self.encode_up_to(text, usize::MAX)
    }

    /// [`LlmTokenizer::encode`] as far as there are `enough` ids; it may give more.
    ///
    /// # Errors
    /// [`ModelError::Stopped`] between two pieces of the text, where [`stop`] says so.
    pub fn encode_up_to(&self, text: &str, enough: usize) -> Result<Vec<u32>, ModelError> {
        let mut ids: Vec<u32> = Vec::new();
        let mut start = 0;
        while start < text.len() && ids.len() < enough {
            stop::check()?;
            let end = piece_end(text, start, PIECE_BYTES);
            let piece = text.get(start..end).unwrap_or_default();
            ids.extend(self.inner.encode_fast(piece, false).map_err(failed)?.get_ids());
            start = end;
        }
        match ids.iter().find(|id| self.ids.contains(id)) {
            Some(id) => Err(failed(format!("a text gave the special token {id}"))),
            None => Ok(ids),
        }
    }

    /// The id of a special token, by its literal.
    pub fn special(&self, literal: &str) -> Option<u32> {
        self.special.get(literal).copied()
    }

    /// Literals of all special tokens.
    pub fn specials(&self) -> impl Iterator<Item = (&str, u32)> {
        self.special.iter().map(|(literal, id)| (literal.as_str(), *id))
    }

    /// Every id that ends an answer, ascending.
    pub fn end(&self) -> &[u32] {
        &self.end
    }

    /// The text of ids, without special tokens. Bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.inner.decode(ids, true).unwrap_or_default()
    }

    /// Decodes id after id.
    pub fn stream(&self) -> DecodeStream {
        DecodeStream::default()
    }
}

/// Text of ids that come one after another; holds back characters that are not whole yet.
#[derive(Default)]
pub struct DecodeStream {
    /// The ids whose text may still change, the first of them for context alone.
    ids: Vec<u32>,
    /// Text of the context.
    before: String,
    context: usize,
}

/// Ids after which held-back bytes are given out as they are: no character has more.
const MOST_HELD: usize = 8;

impl DecodeStream {
    /// The text that an id completes.
    pub fn push(&mut self, tokenizer: &LlmTokenizer, id: u32) -> Option<String> {
        self.ids.push(id);
        let whole = tokenizer.decode(&self.ids);
        if whole.ends_with('\u{fffd}') && self.ids.len() - self.context < MOST_HELD {
            return None;
        }
        self.take(tokenizer, whole)
    }

    /// What was held back, at the end.
    pub fn finish(&mut self, tokenizer: &LlmTokenizer) -> Option<String> {
        let whole = tokenizer.decode(&self.ids);
        self.take(tokenizer, whole)
    }

    fn take(&mut self, tokenizer: &LlmTokenizer, whole: String) -> Option<String> {
        let new = whole.get(self.before.len()..).unwrap_or_default().to_owned();
        // What has been given out stays as context: some decoders drop the space of a first word.
        self.ids.drain(..self.context);
        self.context = self.ids.len();
        self.before = tokenizer.decode(&self.ids);
        (!new.is_empty()).then_some(new)
    }
}

/// What a GGUF file's pre-tokenizer is in tokenizer.json.
fn pre_tokenizer(name: &str) -> Result<serde_json::Value, ModelError> {
    let words = |digits: &str| {
        format!(
            "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{{L}}\\p{{N}}]?\\p{{L}}+|{digits}| ?[^\\s\\p{{L}}\\p{{N}}]+[\\r\\n]*\
             |\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
        )
    };
    let bytes =
        |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let split = |pattern: String| {
        let isolated = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        json!({"type": "Sequence", "pretokenizers": [isolated, bytes(false)]})
    };
    Ok(match name {
        "smollm" => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            json!({"type": "Sequence", "pretokenizers": [digits, bytes(true)]})
        }
        "llama-bpe" | "llama3" | "llama-v3" => split(words("\\p{N}{1,3}")),
        "qwen2" | "deepseek-r1-qwen" => split(words("\\p{N}")),
        "gpt-2" | "default" => bytes(true),
        other => {
            return Err(ModelError::unsupported(
                "pre-tokenizer",
                other,
                "smollm, llama-bpe, qwen2, gpt-2, default",
            ));
        }
    })
}

/// Fails where there is no memory for the JSON of a vocabulary, as values and as text.
fn room_for_json(file: &Gguf) -> Result<(), ModelError> {
    /// Of a token or a merge, beside twice its text.
    const ENTRY: usize = 256;
    let lists = ["tokenizer.ggml.tokens", "tokenizer.ggml.merges"];
    let bytes = lists.iter().map(|key| match file.value(key) {
        Some(Value::Texts(texts)) => texts.iter().map(|text| 2 * text.len() + ENTRY).sum(),
        _ => 0,
    });
    Ok(room_for(bytes.sum())?)
}

/// The tokenizer.json of a GGUF file's vocabulary.
fn of_gguf(file: &Gguf) -> Result<serde_json::Value, ModelError> {
    let source = GgufVocabulary {
        file,
        tokens: texts(file, "tokenizer.ggml.tokens")?,
        types: match file.value("tokenizer.ggml.token_type") {
            Some(Value::Integers(types)) => types.as_slice(),
            _ => &[],
        },
    };
    room_for_json(file)?;
    match text(file, "tokenizer.ggml.model").ok_or_else(|| missing(file, "tokenizer.ggml.model"))? {
        "gpt2" => source.byte_level(),
        "llama" => source.sentence_piece(),
        other => Err(ModelError::unsupported("tokenizer", other, "gpt2, llama")),
    }
}

fn missing(file: &Gguf, key: &str) -> ModelError {
    ModelError::Invalid {
        path: file.path().to_path_buf(),
        what: format!("key \"{key}\" is missing, or of another type"),
    }
}

fn texts<'a>(file: &'a Gguf, key: &str) -> Result<&'a [String], ModelError> {
    match file.value(key) {
        Some(Value::Texts(texts)) => Ok(texts),
        _ => Err(missing(file, key)),
    }
}

fn text<'a>(file: &'a Gguf, key: &str) -> Option<&'a str> {
    match file.value(key) {
        Some(Value::Text(text)) => Some(text.as_str()),
        _ => None,
    }
}

/// The vocabulary of a GGUF file.
struct GgufVocabulary<'a> {
    file: &'a Gguf,
    tokens: &'a [String],
    /// What each token is; shorter where the file does not say.
    types: &'a [i64],
}

impl GgufVocabulary<'_> {
    /// Ids by token, the first of those that are equal.
    fn vocabulary(&self) -> serde_json::Map<String, serde_json::Value> {
        let mut vocabulary = serde_json::Map::new();
        for (id, token) in self.tokens.iter().enumerate() {
            vocabulary.entry(token.clone()).or_insert(json!(id));
        }
        vocabulary
    }

    /// The tokens that are found in a text before it is split.
    fn added(&self) -> Vec<serde_json::Value> {
        let tokens = self.tokens.iter().zip(self.types).enumerate();
        let added = tokens.filter(|(_, (token, kind))| [CONTROL, USER_DEFINED].contains(kind) && !token.is_empty());
        let entry = |(id, (token, kind)): (usize, (&String, &i64))| {
            json!({"id": id, "content": token, "special": *kind == CONTROL, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false})
        };
        added.map(entry).collect()
    }

    /// A byte-level BPE.
    fn byte_level(&self) -> Result<serde_json::Value, ModelError> {
        const MERGES: &str = "tokenizer.ggml.merges";
        let pre = text(self.file, "tokenizer.ggml.pre").unwrap_or("default");
        let mut merges = Vec::new();
        for merge in texts(self.file, MERGES)? {
            let (left, right) = merge.split_once(' ').ok_or_else(|| missing(self.file, MERGES))?;
            merges.push(json!([left, right]));
        }
        let whole_words = pre.starts_with("llama");
        Ok(json!({
            "version": "1.0", "added_tokens": self.added(), "normalizer": null, "pre_tokenizer": pre_tokenizer(pre)?,
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": whole_words,
                "vocab": self.vocabulary(), "merges": merges}}))
    }

    /// SentencePiece's BPE.
    fn sentence_piece(&self) -> Result<serde_json::Value, ModelError> {
        let scores = match self.file.value("tokenizer.ggml.scores") {
            Some(Value::Floats(scores)) if scores.len() == self.tokens.len() => scores,
            _ => return Err(missing(self.file, "tokenizer.ggml.scores")),
        };
        let prefix = match self.file.value("tokenizer.ggml.add_space_prefix") {
            Some(Value::Bool(flag)) => *flag,
            _ => true,
        };
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
        let normalizer = match prefix {
            true => {
                json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"}, replace]})
            }
            false => replace,
        };
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if prefix {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let unknown = self.tokens.first().map_or("<unk>", String::as_str);
        Ok(json!({
            "version": "1.0", "added_tokens": self.added(), "normalizer": normalizer, "pre_tokenizer": null,
            "post_processor": null, "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {"type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                "vocab": self.vocabulary(), "merges": merges_by_score(self.tokens, scores, self.types)}}))
    }
}

/// The merges of a vocabulary of pieces with scores: each piece that two others make, the best score first. None
/// makes a special token.
fn merges_by_score(tokens: &[String], scores: &[f32], types: &[i64]) -> Vec<serde_json::Value> {
    let plain = |id: usize| types.get(id) != Some(&CONTROL);
    let ids: HashMap<&str, usize> = tokens
        .iter()
        .enumerate()
        .map(|(id, token)| (token.as_str(), id))
        .collect();
    let mut merges = Vec::new();
    for (_, (token, score)) in tokens.iter().zip(scores).enumerate().filter(|(id, _)| plain(*id)) {
        let mut own: Vec<(usize, usize)> = token
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| {
                let (left, right) = token.split_at(at);
                Some((*ids.get(left)?, *ids.get(right)?))
            })
            .collect();
        own.sort_unstable();
        merges.extend(own.into_iter().map(|pair| (*score, pair)));
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0));
    let name = |id: usize| tokens.get(id).cloned().unwrap_or_default();
    merges
        .into_iter()
        .map(|(_, (left, right))| json!([name(left), name(right)]))
        .collect()
}
