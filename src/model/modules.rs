//! What sentence-transformers puts around a model: pooling, normalisation, options of the encoder and the prompts before
//! a text.

use super::ModelError;
use super::files::{read_json, read_optional_json, required};
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
    /// What modules.json lists; without that file the pooling of 1_Pooling, or the family's, not normalised.
    ///
    /// # Errors
    /// [`ModelError::Missing`] where the list names a pooling whose file is not there, [`ModelError::Invalid`] where it
    /// names none: nothing says then how states become a vector, and another pooling gives other vectors.
    pub fn read(dir: &Path, default: Pooling) -> Result<Modules, ModelError> {
        let list = dir.join("modules.json");
        let is_listed = list.is_file();
        let (config, normalize) = match is_listed {
            true => {
                let listed = Listed::read(&list)?;
                (
                    Some(required(dir.join(listed.pooling).join("config.json"))?),
                    listed.normalize,
                )
            }
            false => {
                let config = dir.join("1_Pooling").join("config.json");
                (config.is_file().then_some(config), false)
            }
        };
        let parsed = config.as_deref().map(read_json).transpose()?.unwrap_or_default();
        Ok(Modules {
            pooling: if config.is_some() { pooling(&parsed)? } else { default },
            normalize,
            pooling_config: config,
            include_prompt: parsed.get("include_prompt").and_then(Value::as_bool) != Some(false),
            listed: is_listed,
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

/// What modules.json names.
struct Listed {
    /// The folder of the pooling.
    pooling: String,
    normalize: bool,
}

impl Listed {
    fn read(path: &Path) -> Result<Listed, ModelError> {
        let invalid = |what: String| ModelError::Invalid {
            path: path.to_path_buf(),
            what,
        };
        let list = read_json(path)?;
        let list = list
            .as_array()
            .ok_or_else(|| invalid("it is not a list of modules".to_string()))?;
        let (mut pooling, mut normalize) = (None, false);
        for module in list {
            let kind = module.get("type").and_then(Value::as_str).unwrap_or_default();
            let folder = module.get("path").and_then(Value::as_str);
            match kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" => beside(folder.unwrap_or_default())?,
                "Normalize" => normalize = true,
                "Pooling" => {
                    let folder = folder.unwrap_or("1_Pooling").to_string();
                    if folder.contains("..") || folder.starts_with('/') {
                        return Err(invalid(format!("module path \"{folder}\" leads outside the directory")));
                    }
                    if pooling.replace(folder).is_some() {
                        return Err(invalid("it names two modules Pooling".to_string()));
                    }
                }
                _ => {
                    let supported = "Transformer, Pooling, Normalize";
                    return Err(ModelError::unsupported("module", kind, supported));
                }
            }
        }
        let pooling = pooling.ok_or_else(|| invalid("it names no module Pooling".to_string()))?;
        Ok(Listed { pooling, normalize })
    }
}

/// Fails where the encoder's own files lie in a folder: those beside modules.json would be another model's.
fn beside(folder: &str) -> Result<(), ModelError> {
    match folder {
        "" | "." | "./" => Ok(()),
        other => Err(ModelError::unsupported(
            "path of the module Transformer",
            other,
            "files beside modules.json",
        )),
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
        // The mean is the default of a field that is left out, not of one that says no.
        [] if config.get("pooling_mode_mean_tokens").and_then(Value::as_bool) == Some(false) => {
            Err(unsupported("none".to_string()))
        }
        [] | ["pooling_mode_mean_tokens"] => Ok(Pooling::Mean),
        ["pooling_mode_cls_token"] => Ok(Pooling::Cls),
        ["pooling_mode_max_tokens"] => Ok(Pooling::Max),
        ["pooling_mode_lasttoken"] => Ok(Pooling::Last),
        others => Err(unsupported(others.join(" + "))),
    }
}

/// Names of the file with the encoder's options; the first that is there counts, as in sentence-transformers.
const OPTIONS: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];

/// What sentence-transformers says of the encoder itself.
pub struct Options {
    /// Most tokens of a sequence.
    pub max_tokens: Option<usize>,
    /// Whether texts are read in lower case, whatever the tokenizer does.
    pub lower_case: bool,
}

impl Options {
    /// The file of the options, if there is one.
    pub fn file(dir: &Path) -> Option<PathBuf> {
        OPTIONS.iter().map(|name| dir.join(name)).find(|path| path.is_file())
    }

    /// What the file says; nothing without one.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] for options that change vectors and are not known here, [`ModelError::Invalid`] for
    /// values of the wrong kind.
    pub fn read(dir: &Path) -> Result<Options, ModelError> {
        let path = Options::file(dir);
        let config = path.as_deref().map(read_json).transpose()?.unwrap_or_default();
        let invalid = |field: &str, wanted: &str| ModelError::Invalid {
            path: path.clone().unwrap_or_default(),
            what: format!("field \"{field}\" is not {wanted}"),
        };
        for (field, only) in [
            ("transformer_task", "feature-extraction"),
            ("module_output_name", "token_embeddings"),
        ] {
            if let Some(found) = config.get(field).and_then(Value::as_str).filter(|found| *found != only) {
                return Err(ModelError::unsupported(
                    "option of the encoder",
                    format!("{field} {found}"),
                    only,
                ));
            }
        }
        for field in ["config_args", "config_kwargs", "tokenizer_args", "processor_kwargs"] {
            let mut given = config.get(field).and_then(Value::as_object).into_iter().flatten();
            if let Some((name, _)) = given.find(|(name, _)| !HARMLESS.contains(&name.as_str())) {
                let found = format!("{field} {name}");
                return Err(ModelError::unsupported(
                    "option of the encoder",
                    found,
                    "max_seq_length, do_lower_case",
                ));
            }
        }
        let max_tokens = match config.get("max_seq_length") {
            None | Some(Value::Null) => None,
            Some(limit) => {
                let limit = limit
                    .as_u64()
                    .ok_or_else(|| invalid("max_seq_length", "a number of tokens"))?;
                Some(usize::try_from(limit).unwrap_or(usize::MAX))
            }
        };
        let lower_case = match config.get("do_lower_case") {
            None | Some(Value::Null) => false,
            Some(flag) => flag
                .as_bool()
                .ok_or_else(|| invalid("do_lower_case", "true or false"))?,
        };
        Ok(Options { max_tokens, lower_case })
    }
}

/// Arguments of the library's loaders that leave vectors as they are.
const HARMLESS: [&str; 6] = [
    "trust_remote_code",
    "revision",
    "local_files_only",
    "use_fast",
    "attn_implementation",
    "use_cache",
];

/// What is read before a text, from the prompts of config_sentence_transformers.json.
pub struct Prompts {
    pub query: String,
    pub passage: String,
}

impl Prompts {
    /// The prompt of the first name that is there; then the default prompt, if one is named; then none.
    pub fn read(dir: &Path) -> Result<Prompts, ModelError> {
        let config = read_optional_json(&dir.join("config_sentence_transformers.json"))?;
        // Beside single vectors the library makes others, from the same files.
        if let Some(kind) = config.get("model_type").and_then(Value::as_str)
            && kind != "SentenceTransformer"
        {
            return Err(ModelError::unsupported("model type", kind, "SentenceTransformer"));
        }
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
