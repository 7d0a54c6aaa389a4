//! What the worker and the registry need of an LLM runtime: the only file of this room that knows which one there is.
//!
//! This build has none: every way to an LLM ends with an error that says so.

use crate::model::ModelError;
use serde::Serialize;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

fn none() -> ModelError {
    ModelError::Unsupported {
        what: "model format",
        found: "LLM".to_owned(),
        supported: "encoders",
    }
}

/// Which network an LLM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LlmFamily {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

/// Sizes of an LLM.
#[derive(Clone, Debug, PartialEq)]
pub struct LlmConfig {
    pub family: LlmFamily,
    /// Numbers in the vector that stands for a token.
    pub hidden: usize,
    /// Most tokens of prompt and answer.
    pub positions: usize,
}

/// What the files of an LLM say.
pub struct Description {
    pub config: LlmConfig,
    pub fingerprint: String,
}

/// A piece of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    Text(String),
    Tokens(Vec<u32>),
    Vectors(Vec<Vec<f32>>),
}

/// What one side of a conversation says.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    pub role: String,
    pub pieces: Vec<Piece>,
}

/// A prompt as tokens and vectors.
pub struct Prompt;

/// An LLM in memory.
pub struct Llm {
    config: LlmConfig,
    fingerprint: String,
}

impl Llm {
    /// Loads a file or directory.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] always.
    pub fn open(_path: &Path) -> Result<Llm, ModelError> {
        Err(none())
    }

    pub fn config(&self) -> &LlmConfig {
        &self.config
    }

    /// Content hash of the files.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Bytes of the weights.
    pub fn memory(&self) -> usize {
        0
    }

    /// The turns in the model's chat template.
    pub fn render(&self, _turns: &[Message]) -> Result<Vec<Piece>, ModelError> {
        Err(none())
    }

    pub fn prompt(&self, _pieces: &[Piece]) -> Result<Prompt, ModelError> {
        Err(none())
    }

    /// The input vectors of a prompt, row by row.
    pub fn embeds(&self, _prompt: &Prompt) -> Result<Vec<f32>, ModelError> {
        Err(none())
    }
}

/// A prompt, and how its answer is made.
pub struct Request {
    pub prompt: Prompt,
    pub max_tokens: usize,
    pub temperature: f32,
    pub top_k: usize,
    pub top_p: f32,
    pub seed: u64,
    pub stop: Vec<String>,
}

/// What happens to a request in a step.
pub enum Event {
    Token {
        id: u32,
        text: String,
    },
    Done {
        prompt_tokens: usize,
        tokens: usize,
        prefill_ms: f64,
        decode_ms: f64,
    },
    Failed(ModelError),
}

/// Requests that are decoded together.
pub struct Batcher;

impl Batcher {
    pub fn new(_llm: Arc<Llm>, _threads: usize, _cache_bytes: usize) -> Result<Batcher, ModelError> {
        Err(none())
    }

    pub fn add(&mut self, _key: u64, _request: Request) -> Result<(), ModelError> {
        Err(none())
    }

    pub fn remove(&mut self, _key: u64) {}

    /// One step of all requests; asks `stop` between layers.
    pub fn step(&mut self, _stop: &dyn Fn() -> bool, _sink: &mut dyn FnMut(u64, Event)) -> Result<(), ModelError> {
        Err(none())
    }
}

/// What the files at `path` say. An error where they are no LLM's that can be run.
///
/// # Errors
/// [`ModelError::Unsupported`] always.
pub fn describe(_path: &Path) -> Result<Description, ModelError> {
    Err(none())
}

/// Whether `path` holds an LLM: a GGUF file, a directory with one, or a directory with a causal language model that is not
/// published as an encoder.
pub fn is_llm(path: &Path) -> bool {
    if path.is_file() {
        return begins_as_gguf(path);
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    if names.any(|name| name.ends_with(".gguf")) {
        return true;
    }
    let encoder = ["modules.json", "config_sentence_transformers.json", "1_Pooling"];
    if encoder.iter().any(|name| path.join(name).exists()) {
        return false;
    }
    let config = std::fs::read(path.join("config.json")).unwrap_or_default();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap_or_default();
    let classes = config.get("architectures").and_then(serde_json::Value::as_array);
    classes.is_some_and(|classes| {
        let mut names = classes.iter().filter_map(serde_json::Value::as_str);
        names.any(|name| name.ends_with("ForCausalLM"))
    })
}

/// Whether a file has the first bytes of a GGUF file.
fn begins_as_gguf(path: &Path) -> bool {
    let mut first = [0; 4];
    let file = std::fs::File::open(path);
    file.and_then(|mut file| file.read_exact(&mut first)).is_ok() && first == *b"GGUF"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llms_are_told_from_encoders_by_their_files() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path();
        assert!(!is_llm(path));
        let write = |name: &str, text: &str| std::fs::write(path.join(name), text).expect("written");
        write("config.json", r#"{"architectures": ["BertModel"]}"#);
        assert!(!is_llm(path));
        write("config.json", r#"{"architectures": ["Qwen3ForCausalLM"]}"#);
        assert!(is_llm(path));
        // Qwen3-Embedding has the class of an LLM and the modules of an encoder.
        write("modules.json", "[]");
        assert!(!is_llm(path));
        write("model.gguf", "GGUF");
        assert!(is_llm(path));
        assert!(is_llm(&path.join("model.gguf")));
        assert!(!is_llm(&path.join("config.json")));
        assert!(!is_llm(&path.join("nothing")));
    }
}
