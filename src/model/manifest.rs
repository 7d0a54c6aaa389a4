//! What a model directory says about itself: configuration, pooling, limits, prefixes and fingerprint.
//!
//! The layout is Hugging Face's (config.json, tokenizer.json, safetensors) with the files that sentence-transformers
//! adds (modules.json, 1_Pooling/config.json, sentence_bert_config.json, config_sentence_transformers.json).

use super::files::{fingerprint, read_json, read_optional_json, required};
use super::weights::{self, Weights};
use super::{ModelError, bert};
use crate::compute::Activation;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The forward pass that the weights belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    Bert,
}

/// How token vectors become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The mean over all tokens, special tokens included.
    Mean,
    /// The first token.
    Cls,
    /// The largest number of each dimension over all tokens.
    Max,
}

/// What a model directory says about itself: shapes, pooling, limits, prefixes and content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub family: Family,
    /// Numbers in a vector that comes out.
    pub dimensions: usize,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub intermediate: usize,
    /// Rows of the word table.
    pub vocabulary: usize,
    /// Rows of the position table.
    pub positions: usize,
    /// Rows of the token type table.
    pub token_types: usize,
    /// Tokens in a sequence, special tokens included.
    pub max_tokens: usize,
    pub activation: Activation,
    pub layer_norm_epsilon: f32,
    pub pooling: Pooling,
    /// Whether vectors come out with unit length.
    pub normalize: bool,
    /// Read before a query.
    pub query_prefix: String,
    /// Read before a passage.
    pub passage_prefix: String,
    /// Hex SHA-256 over the content of configuration, tokenizer, pooling configuration and weights.
    pub fingerprint: String,
}

/// Largest number that is accepted for a shape, so that products of shapes cannot overflow.
const MAX_SHAPE: u64 = 1 << 24;

impl Manifest {
    /// Reads and checks a model directory without loading its weights: the configuration is parsed, the weights' headers
    /// are checked against it, and the content is hashed.
    pub fn read(dir: &Path) -> Result<Manifest, ModelError> {
        if !dir.is_dir() {
            return Err(ModelError::NotADirectory(dir.to_path_buf()));
        }
        let path = required(dir.join("config.json"))?;
        required(dir.join("tokenizer.json"))?;
        let config = Config {
            value: read_json(&path)?,
            path,
        };
        let model_type = config.text("model_type")?;
        if model_type != "bert" {
            return Err(ModelError::Unsupported {
                what: "model type",
                found: model_type,
                supported: "bert",
            });
        }
        let positions = config
            .value
            .get("position_embedding_type")
            .and_then(Value::as_str)
            .unwrap_or("absolute");
        if positions != "absolute" {
            let found = positions.to_string();
            return Err(ModelError::Unsupported {
                what: "position embedding",
                found,
                supported: "absolute",
            });
        }
        let hidden = config.shape("hidden_size")?;
        let heads = config.shape("num_attention_heads")?;
        if hidden % heads != 0 {
            return Err(config.invalid(format!("hidden_size {hidden} is not divisible by {heads} heads")));
        }
        let positions = config.shape("max_position_embeddings")?;
        let modules = Modules::read(dir)?;
        let limits = read_optional_json(&dir.join("sentence_bert_config.json"))?;
        let limit = limits
            .get("max_seq_length")
            .and_then(Value::as_u64)
            .unwrap_or(positions as u64);
        let (query_prefix, passage_prefix) = prefixes(dir)?;
        let mut manifest = Manifest {
            family: Family::Bert,
            dimensions: hidden,
            hidden,
            layers: config.shape("num_hidden_layers")?,
            heads,
            intermediate: config.shape("intermediate_size")?,
            vocabulary: config.shape("vocab_size")?,
            positions,
            token_types: config.shape("type_vocab_size")?,
            max_tokens: (limit as usize).clamp(1, positions),
            activation: config.activation()?,
            layer_norm_epsilon: config
                .value
                .get("layer_norm_eps")
                .and_then(Value::as_f64)
                .unwrap_or(1e-12) as f32,
            pooling: modules.pooling,
            normalize: modules.normalize,
            query_prefix,
            passage_prefix,
            fingerprint: String::new(),
        };
        bert::check(&manifest, &Weights::open(dir)?)?;
        manifest.fingerprint = fingerprint(dir, &content(dir)?)?;
        Ok(manifest)
    }
}

/// The files whose content makes the vectors, in a fixed order.
pub fn content(dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let mut paths = vec![dir.join("config.json"), dir.join("tokenizer.json")];
    let optional = [
        "modules.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
    ];
    paths.extend(optional.iter().map(|name| dir.join(name)).filter(|path| path.is_file()));
    paths.extend(Modules::read(dir)?.pooling_config);
    paths.extend(weights::files(dir)?);
    Ok(paths)
}

/// config.json with errors that name the field.
struct Config {
    value: Value,
    path: PathBuf,
}

impl Config {
    fn invalid(&self, what: String) -> ModelError {
        ModelError::Invalid {
            path: self.path.clone(),
            what,
        }
    }

    fn text(&self, field: &str) -> Result<String, ModelError> {
        let value = self.value.get(field).and_then(Value::as_str).map(str::to_string);
        value.ok_or_else(|| self.invalid(format!("field \"{field}\" is missing or not a string")))
    }

    fn shape(&self, field: &str) -> Result<usize, ModelError> {
        match self.value.get(field).and_then(Value::as_u64) {
            Some(value) if (1..=MAX_SHAPE).contains(&value) => Ok(value as usize),
            _ => Err(self.invalid(format!(
                "field \"{field}\" is missing or not a number from 1 to {MAX_SHAPE}"
            ))),
        }
    }

    fn activation(&self) -> Result<Activation, ModelError> {
        match self.text("hidden_act")?.as_str() {
            "gelu" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
            "relu" => Ok(Activation::Relu),
            other => Err(ModelError::Unsupported {
                what: "activation",
                found: other.to_string(),
                supported: "gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, relu",
            }),
        }
    }
}

/// What sentence-transformers puts behind the encoder.
struct Modules {
    pooling: Pooling,
    normalize: bool,
    pooling_config: Option<PathBuf>,
}

impl Modules {
    /// Without any of the files: mean pooling, not normalised, as sentence-transformers does.
    fn read(dir: &Path) -> Result<Modules, ModelError> {
        let path = dir.join("modules.json");
        let mut folder = "1_Pooling".to_string();
        let mut normalize = false;
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
        let pooling = if present {
            pooling(&read_json(&config)?)?
        } else {
            Pooling::Mean
        };
        Ok(Modules {
            pooling,
            normalize,
            pooling_config: present.then_some(config),
        })
    }
}

/// The pooling that 1_Pooling/config.json asks for.
fn pooling(config: &Value) -> Result<Pooling, ModelError> {
    let unsupported = |found: String| ModelError::Unsupported {
        what: "pooling",
        found,
        supported: "mean, cls, max",
    };
    if let Some(mode) = config.get("pooling_mode").and_then(Value::as_str) {
        return match mode {
            "mean" => Ok(Pooling::Mean),
            "cls" => Ok(Pooling::Cls),
            "max" => Ok(Pooling::Max),
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
        others => Err(unsupported(others.join(" + "))),
    }
}

/// Query and passage prefix from the prompts of config_sentence_transformers.json.
fn prefixes(dir: &Path) -> Result<(String, String), ModelError> {
    let config = read_optional_json(&dir.join("config_sentence_transformers.json"))?;
    let prompt = |names: &[&str]| {
        let prompts = config.get("prompts");
        let mut found = names.iter().filter_map(|name| prompts?.get(name)?.as_str());
        found.next().unwrap_or_default().to_string()
    };
    Ok((prompt(&["query"]), prompt(&["passage", "document", "corpus"])))
}
