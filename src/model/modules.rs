//! What sentence-transformers puts around a model: pooling, normalisation and the prompts before a text.

use super::ModelError;
use super::files::{read_json, read_optional_json};
use super::manifest::{Pooling, Similarity};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What sentence-transformers puts behind the encoder.
pub struct Modules {
    pub pooling: Pooling,
    pub normalize: bool,
    /// The pooling's own file, where there is one.
    pub pooling_config: Option<PathBuf>,
    /// Whether the prompt's tokens count in the pooling.
    include_prompt: bool,
    /// Whether the directory has the file that lists modules: sentence-transformers made it.
    listed: bool,
}

impl Modules {
    /// Without any of the files: the family's pooling, not normalised.
    pub fn read(dir: &Path, default: Pooling) -> Result<Modules, ModelError> {
        let path = dir.join("modules.json");
        let mut folder = "1_Pooling".to_string();
        let mut normalize = false;
        let listed = path.is_file();
        if let Some(list) = read_optional_json(&path)?.as_array() {
            for module in list {
                let kind = module.get("type").and_then(Value::as_str).unwrap_or_default();
                match kind.rsplit('.').next().unwrap_or_default() {
                    "Transformer" => {}
                    "Normalize" => normalize = true,
                    "Pooling" => {
                        folder = module
                            .get("path")
                            .and_then(Value::as_str)
                            .unwrap_or("1_Pooling")
                            .to_string();
                    }
                    _ => {
                        let (what, found) = ("module", kind.to_string());
                        let supported = "Transformer, Pooling, Normalize";
                        return Err(ModelError::Unsupported { what, found, supported });
                    }
                }
            }
        }
        if folder.contains("..") || folder.starts_with('/') {
            let what = format!("module path \"{folder}\" leads outside the directory");
            return Err(ModelError::Invalid { path, what });
        }
        let config = dir.join(folder).join("config.json");
        let present = config.is_file();
        let parsed = if present { read_json(&config)? } else { Value::Null };
        Ok(Modules {
            pooling: if present { pooling(&parsed)? } else { default },
            normalize,
            pooling_config: present.then_some(config),
            include_prompt: parsed.get("include_prompt").and_then(Value::as_bool) != Some(false),
            listed,
        })
    }

    /// How vectors are compared: what `similarity_fn_name` of config_sentence_transformers.json says. Where it says nothing,
    /// by cosine if vectors have length 1 or sentence-transformers made the directory, whose default that is; by inner
    /// product otherwise, and with ANCE's `head`, which was trained for it.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] for another function, unless length 1 makes its order that of the cosine.
    pub fn similarity(&self, dir: &Path, head: bool) -> Result<Similarity, ModelError> {
        let config = read_optional_json(&dir.join("config_sentence_transformers.json"))?;
        let said = config.get("similarity_fn_name").filter(|said| !said.is_null());
        match said.map(|said| said.as_str().unwrap_or_default()) {
            Some("cosine") => Ok(Similarity::Cosine),
            Some("dot" | "dot_product") if self.normalize => Ok(Similarity::Cosine),
            Some("dot" | "dot_product") => Ok(Similarity::Dot),
            Some("euclidean") if self.normalize => Ok(Similarity::Cosine),
            Some(other) => Err(ModelError::Unsupported {
                what: "similarity_fn_name",
                found: other.to_string(),
                supported: "cosine, dot; euclidean of vectors with length 1",
            }),
            None if self.normalize || (self.listed && !head) => Ok(Similarity::Cosine),
            None => Ok(Similarity::Dot),
        }
    }

    /// Fails where prompts would have to be left out of the pooling.
    pub fn check(&self, prompts: &Prompts) -> Result<(), ModelError> {
        let many = matches!(self.pooling, Pooling::Mean | Pooling::Max);
        let some = !prompts.query.is_empty() || !prompts.passage.is_empty();
        if many && some && !self.include_prompt {
            return Err(ModelError::Unsupported {
                what: "pooling option",
                found: "include_prompt false".to_string(),
                supported: "prompts that count as text",
            });
        }
        Ok(())
    }
}

/// The pooling that 1_Pooling/config.json asks for.
fn pooling(config: &Value) -> Result<Pooling, ModelError> {
    let unsupported = |found: String| ModelError::Unsupported {
        what: "pooling",
        found,
        supported: "mean, cls, max, lasttoken",
    };
    if let Some(mode) = config.get("pooling_mode").and_then(Value::as_str) {
        return match mode {
            "mean" => Ok(Pooling::Mean),
            "cls" => Ok(Pooling::Cls),
            "max" => Ok(Pooling::Max),
            "lasttoken" => Ok(Pooling::Last),
            other => Err(unsupported(other.to_string())),
        };
    }
    let fields = config.as_object().into_iter().flatten();
    let modes = fields.filter(|(name, on)| name.starts_with("pooling_mode_") && on.as_bool() == Some(true));
    let modes: Vec<&str> = modes.map(|(name, _)| name.as_str()).collect();
    match modes.as_slice() {
        [] | ["pooling_mode_mean_tokens"] => Ok(Pooling::Mean),
        ["pooling_mode_cls_token"] => Ok(Pooling::Cls),
        ["pooling_mode_max_tokens"] => Ok(Pooling::Max),
        ["pooling_mode_lasttoken"] => Ok(Pooling::Last),
        others => Err(unsupported(others.join(" + "))),
    }
}

/// What is read before a text, from the prompts of config_sentence_transformers.json.
pub struct Prompts {
    pub query: String,
    pub passage: String,
}

impl Prompts {
    /// The prompt of the first name that is there; then the default prompt, if one is named; then none.
    pub fn read(dir: &Path) -> Result<Prompts, ModelError> {
        let config = read_optional_json(&dir.join("config_sentence_transformers.json"))?;
        let default = config.get("default_prompt_name").and_then(Value::as_str);
        let prompt = |names: &[&str]| {
            let prompts = config.get("prompts");
            let names = names.iter().copied().chain(default);
            let mut found = names.filter_map(|name| prompts?.get(name)?.as_str());
            found.next().unwrap_or_default().to_string()
        };
        Ok(Prompts {
            query: prompt(&["query", "web_search_query"]),
            passage: prompt(&["passage", "document", "corpus"]),
        })
    }
}
