//! Text to token ids and back.

use super::super::ModelError;
use super::files::LlmFiles;

/// A language model's tokenizer.
pub struct LlmTokenizer {}

impl LlmTokenizer {
    /// Reads tokenizer.json of a directory, or the vocabulary of a GGUF file.
    pub fn open(_files: &LlmFiles) -> Result<LlmTokenizer, ModelError> {
        Err(ModelError::Tokenizer("not yet".to_string()))
    }

    /// Ids of a text. A text never yields a special token.
    pub fn encode(&self, _text: &str) -> Result<Vec<u32>, ModelError> {
        Ok(Vec::new())
    }

    /// The id of a special token, by its literal.
    pub fn special(&self, _literal: &str) -> Option<u32> {
        None
    }

    /// The text of ids, without special tokens. Bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, _ids: &[u32]) -> String {
        String::new()
    }

    /// Decodes id after id.
    pub fn stream(&self) -> DecodeStream<'_> {
        DecodeStream { _tokenizer: self }
    }
}

/// Text of ids that come one after another; holds back characters that are not whole yet.
pub struct DecodeStream<'a> {
    _tokenizer: &'a LlmTokenizer,
}

impl DecodeStream<'_> {
    /// The text that an id completes.
    pub fn push(&mut self, _id: u32) -> Option<String> {
        None
    }

    /// What was held back, at the end.
    pub fn finish(&mut self) -> Option<String> {
        None
    }
}
