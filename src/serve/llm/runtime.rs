//! What the worker and the registry take of the LLM runtime: the only file of this module that knows which one there is.

use crate::bridge::xrag::training_precision;
use crate::model::llm::gradient::Differentiable;
pub use crate::model::llm::{Batcher, Event, Llm, LlmConfig, LlmFamily, Message, Piece, Prompt, Request, describe};
use std::io::Read;
use std::path::Path;

/// Bytes of an LLM's weights where a projector is trained: as they are and transposed, unpacked, and the embeddings.
pub fn training_bytes(config: &LlmConfig) -> u64 {
    Differentiable::weight_bytes(config, training_precision())
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
