//! config.json and generation_config.json of a directory of safetensors, as a language model's configuration.

use super::super::ModelError;
use super::super::files::{read_json, read_optional_json, required};
use super::super::rotary::{FULL, Fields, Rotary, SLIDING};
use super::super::weights::Weights;
use super::config::{LlmConfig, LlmFamily, MAX_SHAPE};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What `layer_types` may say.
const ALIKE: &str = "layers that are alike";

/// Reads the configuration of a directory. Fields that a file lacks have the defaults of the published classes.
pub(super) fn config(dir: &Path, weights: &Weights) -> Result<LlmConfig, ModelError> {
    let path = required(dir.join("config.json"))?;
    let json = Json {
        value: read_json(&path)?,
        path,
    };
    let family = match json.field("model_type").as_str().unwrap_or_default() {
        "llama" => LlmFamily::Llama,
        "mistral" => LlmFamily::Mistral,
        "qwen2" => LlmFamily::Qwen2,
        "qwen3" => LlmFamily::Qwen3,
        other => return Err(super::unsupported("model type", other, "llama, mistral, qwen2, qwen3")),
    };
    if !json.field("quantization_config").is_null() {
        let supported = "weights in F32, F16 and BF16, or a GGUF file";
        return Err(super::unsupported("quantisation", "quantization_config", supported));
    }
    let activation = json.field("hidden_act").as_str().unwrap_or("silu");
    if activation != "silu" {
        return Err(super::unsupported("activation", activation, "silu"));
    }
    if json.flag("mlp_bias") == Some(true) {
        return Err(super::unsupported("configuration", "mlp_bias", "layers without it"));
    }
    // A bias on the output product goes with it in the one family that has the option.
    if family != LlmFamily::Qwen2 && json.flag("attention_bias") == Some(true) {
        return Err(super::unsupported(
            "configuration",
            "attention_bias",
            "layers without it",
        ));
    }
    let hidden = json.shape("hidden_size")?;
    let heads = json.shape("num_attention_heads")?;
    let key_heads = json.shape_or("num_key_value_heads", heads)?;
    let head_width = match (json.field("head_dim"), family) {
        (Value::Null, LlmFamily::Qwen3) => 128,
        (Value::Null, _) if hidden.is_multiple_of(heads) => hidden / heads,
        (Value::Null, _) => {
            return Err(json.invalid(format!("hidden_size {hidden} is not divisible by {heads} heads")));
        }
        _ => json.shape("head_dim")?,
    };
    let positions = json.shape("max_position_embeddings")?;
    let fields = Fields {
        value: &json.value,
        path: &json.path,
    };
    let rotary = fields.of_all_layers()?;
    match (family, json.field("sliding_window")) {
        (LlmFamily::Mistral, window) if !window.is_null() => fields.layers_are(SLIDING, ALIKE)?,
        _ => fields.layers_are(FULL, ALIKE)?,
    }
    let generation = read_optional_json(&dir.join("generation_config.json"))?;
    let mut end = Vec::new();
    for value in [
        json.field("eos_token_id"),
        generation.get("eos_token_id").unwrap_or(&Value::Null),
    ] {
        match value {
            Value::Array(ids) => end.extend(ids.iter().filter_map(id)),
            other => end.extend(id(other)),
        }
    }
    let tokenizer = read_optional_json(&dir.join("tokenizer_config.json"))?;
    let bos = id(json.field("bos_token_id"));
    // SentencePiece's class begins a text with its token by default; the byte-level ones say so in tokenizer.json.
    let class = tokenizer
        .get("tokenizer_class")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let default = class.starts_with("LlamaTokenizer");
    let add_bos = tokenizer
        .get("add_bos_token")
        .and_then(Value::as_bool)
        .unwrap_or(default);
    let untied = weights.contains("lm_head.weight");
    if !untied && json.flag("tie_word_embeddings") == Some(false) {
        return Err(ModelError::MissingTensor("lm_head.weight".to_string()));
    }
    let config = LlmConfig {
        family,
        vocabulary: json.shape("vocab_size")?,
        hidden,
        layers: json.shape("num_hidden_layers")?,
        heads,
        key_heads,
        head_width,
        intermediate: json.shape("intermediate_size")?,
        rope_base: rotary.base as f32,
        rope_scaling: json.rope_scaling(head_width, &rotary)?,
        norm_epsilon: json.number("rms_norm_eps", 1e-6)? as f32,
        tied: !untied || json.flag("tie_word_embeddings") == Some(true),
        qkv_bias: weights.contains("model.layers.0.self_attn.q_proj.bias"),
        head_norms: weights.contains("model.layers.0.self_attn.q_norm.weight"),
        window: json.window(family)?.filter(|window| *window < positions),
        positions,
        bos,
        end,
        add_bos: add_bos && bos.is_some(),
    };
    config.checked(|what| json.invalid(what))
}

/// A token id in a configuration.
fn id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

struct Json {
    value: Value,
    path: PathBuf,
}

impl Json {
    fn invalid(&self, what: String) -> ModelError {
        ModelError::Invalid {
            path: self.path.clone(),
            what,
        }
    }

    /// A field, null where there is none.
    fn field(&self, name: &str) -> &Value {
        self.value.get(name).unwrap_or(&Value::Null)
    }

    fn flag(&self, name: &str) -> Option<bool> {
        self.field(name).as_bool()
    }

    fn number(&self, name: &str, default: f64) -> Result<f64, ModelError> {
        let number = match self.field(name) {
            Value::Null => Some(default),
            value => value.as_f64(),
        };
        number.ok_or_else(|| self.invalid(format!("field \"{name}\" is not a number")))
    }

    fn shape(&self, name: &str) -> Result<usize, ModelError> {
        match self.field(name).as_u64() {
            Some(value) if (1..=MAX_SHAPE).contains(&value) => Ok(value as usize),
            _ => Err(self.invalid(format!(
                "field \"{name}\" is missing or not a number from 1 to {MAX_SHAPE}"
            ))),
        }
    }

    fn shape_or(&self, name: &str, default: usize) -> Result<usize, ModelError> {
        if self.field(name).is_null() {
            Ok(default)
        } else {
            self.shape(name)
        }
    }

    /// Tokens that a token sees to its left. Layers that differ in it are refused.
    fn window(&self, family: LlmFamily) -> Result<Option<usize>, ModelError> {
        match family {
            LlmFamily::Llama => Ok(None),
            LlmFamily::Mistral => match self.value.get("sliding_window") {
                None => Ok(Some(4096)),
                Some(Value::Null) => Ok(None),
                Some(_) => Ok(Some(self.shape("sliding_window")?)),
            },
            LlmFamily::Qwen2 | LlmFamily::Qwen3 if self.flag("use_sliding_window") == Some(true) => Err(
                super::unsupported("attention", "use_sliding_window", "all layers over the whole text"),
            ),
            LlmFamily::Qwen2 | LlmFamily::Qwen3 => Ok(None),
        }
    }

    /// Divisors of the rotary frequencies. "llama3" divides low frequencies by its factor, leaves high ones as they
    /// are, and goes from one to the other in between (the published modelling code of Llama 3.1).
    fn rope_scaling(&self, head_width: usize, rotary: &Rotary<'_>) -> Result<Option<Vec<f32>>, ModelError> {
        let (base, scaling) = (rotary.base, rotary.scaling);
        let number = |name: &str| {
            let number = scaling.get(name).and_then(Value::as_f64).filter(|number| *number > 0.0);
            number.ok_or_else(|| self.invalid(format!("rope_scaling lacks \"{name}\"")))
        };
        match rotary.kind {
            "default" => Ok(None),
            "linear" => Ok(Some(vec![number("factor")? as f32; head_width / 2])),
            "llama3" => {
                let factor = number("factor")?;
                let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
                let original = number("original_max_position_embeddings")?;
                let divisor = |pair: usize| {
                    let wave = 2.0 * std::f64::consts::PI * base.powf(2.0 * pair as f64 / head_width as f64);
                    if wave < original / high {
                        1.0
                    } else if wave > original / low {
                        factor
                    } else {
                        let smooth = (original / wave - low) / (high - low);
                        1.0 / ((1.0 - smooth) / factor + smooth)
                    }
                };
                Ok(Some((0..head_width / 2).map(|pair| divisor(pair) as f32).collect()))
            }
            other => Err(super::unsupported("rotary scaling", other, "default, linear, llama3")),
        }
    }
}
