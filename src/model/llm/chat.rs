//! Chat templates of models, so that messages never become special tokens.

use super::super::ModelError;
use super::files::LlmFiles;
use super::piece::Piece;
use super::tokenizer::LlmTokenizer;
use std::sync::Arc;

/// A message of a conversation.
#[derive(Clone, Debug)]
pub struct Message {
    /// "system", "user", "assistant", or what else the template knows.
    pub role: String,
    pub pieces: Vec<Piece>,
}

/// A model's chat template.
pub struct Chat {}

impl Chat {
    /// The template of a model's files; `None` where they have none.
    pub fn open(_files: &LlmFiles, _tokenizer: Arc<LlmTokenizer>) -> Result<Option<Chat>, ModelError> {
        Ok(None)
    }

    /// The pieces of a prompt: all text as `Piece::Tokens`, vectors as they came.
    pub fn render(&self, _messages: &[Message], _add_generation_prompt: bool) -> Result<Vec<Piece>, ModelError> {
        Ok(Vec::new())
    }
}
