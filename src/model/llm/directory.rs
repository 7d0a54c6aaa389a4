//! config.json, generation_config.json and tokenizer_config.json of a directory of safetensors, as a language model's
//! configuration.

use super::super::ModelError;
use super::super::config_json::ConfigJson;
use super::super::files::read_optional_json;
use super::super::rotary::Rotary;
use super::super::weights::Weights;
use super::config::{LlmConfig, LlmFamily};
use serde_json::Value;
use std::path::Path;

/// Reads the configuration of a directory. Fields that a file lacks have the defaults of the published classes.
pub(super) fn config(dir: &Path, weights: &Weights) -> Result<LlmConfig, ModelError> {
    let json = ConfigJson::read(dir)?;
    let family = json.field("model_type").as_str().unwrap_or_default();
    let family = LlmFamily::named("model type", family)?;
    let fields = Fields { json, family };
    fields.refuse_variants()?;
    let json = &fields.json;
    let hidden = json.shape("hidden_size")?;
    let heads = json.shape("num_attention_heads")?;
    let key_heads = json.shape_or("num_key_value_heads", heads)?;
    let default = (family == LlmFamily::Qwen3).then_some(128);
    let head_width = json.head_width(hidden, heads, default)?;
    let positions = json.shape("max_position_embeddings")?;
    let rotary = json.rotary()?;
    let window = fields.window()?;
    let (bos, add_bos) = fields.beginning(dir)?;
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
        rope_scaling: fields.rope_scaling(head_width, &rotary)?,
        norm_epsilon: json.number("rms_norm_eps", 1e-6)? as f32,
        tied: fields.tied(weights)?,
        qkv_bias: weights.contains("model.layers.0.self_attn.q_proj.bias"),
        head_norms: weights.contains("model.layers.0.self_attn.q_norm.weight"),
        window: window.filter(|window| *window < positions),
        positions,
        bos,
        end: fields.end_ids(dir)?,
        add_bos,
    };
    config.checked(|what| json.invalid(what))
}

/// A token id in a configuration.
fn id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// config.json of a language model.
struct Fields {
    json: ConfigJson,
    family: LlmFamily,
}

impl Fields {
    /// Fails for what a decoder of the family may have and the forward pass lacks.
    fn refuse_variants(&self) -> Result<(), ModelError> {
        let json = &self.json;
        if !json.field("quantization_config").is_null() {
            let supported = "weights in F32, F16 and BF16, or a GGUF file";
            return Err(ModelError::unsupported(
                "quantisation",
                "quantization_config",
                supported,
            ));
        }
        let activation = json.field("hidden_act").as_str().unwrap_or("silu");
        if activation != "silu" {
            return Err(ModelError::unsupported("activation", activation, "silu"));
        }
        // A bias on the output product goes with it in the one family that has the option.
        let biases = match self.family {
            LlmFamily::Qwen2 => &["mlp_bias"][..],
            _ => &["mlp_bias", "attention_bias"],
        };
        match biases.iter().find(|bias| json.flag(bias) == Some(true)) {
            Some(bias) => Err(ModelError::unsupported("configuration", *bias, "layers without it")),
            None => Ok(()),
        }
    }

    /// Tokens that a token sees to its left. Layers that differ in it are refused.
    fn window(&self) -> Result<Option<usize>, ModelError> {
        let mistral = self.family == LlmFamily::Mistral;
        let windowed = mistral && !self.json.field("sliding_window").is_null();
        self.json.layers_are_alike(windowed)?;
        match self.family {
            LlmFamily::Llama => Ok(None),
            LlmFamily::Mistral => self.json.mistral_window(),
            LlmFamily::Qwen2 | LlmFamily::Qwen3 => self.json.without_qwen_window().map(|()| None),
        }
    }

    /// The ids that end an answer, of both files that name them.
    fn end_ids(&self, dir: &Path) -> Result<Vec<u32>, ModelError> {
        let generation = read_optional_json(&dir.join("generation_config.json"))?;
        let mut end = Vec::new();
        let other = generation.get("eos_token_id").unwrap_or(&Value::Null);
        for value in [self.json.field("eos_token_id"), other] {
            match value {
                Value::Array(ids) => end.extend(ids.iter().filter_map(id)),
                other => end.extend(id(other)),
            }
        }
        Ok(end)
    }

    /// The token that begins a text, and whether a prompt begins with it.
    fn beginning(&self, dir: &Path) -> Result<(Option<u32>, bool), ModelError> {
        let tokenizer = read_optional_json(&dir.join("tokenizer_config.json"))?;
        let bos = id(self.json.field("bos_token_id"));
        // SentencePiece's class begins a text with its token by default; the byte-level ones say so in tokenizer.json.
        let class = tokenizer.get("tokenizer_class").and_then(Value::as_str);
        let default = class.is_some_and(|class| class.starts_with("LlamaTokenizer"));
        let add_bos = tokenizer.get("add_bos_token").and_then(Value::as_bool);
        Ok((bos, add_bos.unwrap_or(default) && bos.is_some()))
    }

    /// Whether the token embeddings are the output's weights too.
    fn tied(&self, weights: &Weights) -> Result<bool, ModelError> {
        let tied = self.json.flag("tie_word_embeddings");
        let untied = weights.contains("lm_head.weight");
        match (untied, tied) {
            (false, Some(false)) => Err(ModelError::MissingTensor("lm_head.weight".to_string())),
            _ => Ok(!untied || tied == Some(true)),
        }
    }

    /// Divisors of the rotary frequencies, where the file stretches them.
    fn rope_scaling(&self, head_width: usize, rotary: &Rotary<'_>) -> Result<Option<Vec<f32>>, ModelError> {
        let (base, scaling) = (rotary.base, rotary.scaling);
        let number = |name: &str| {
            let number = scaling.get(name).and_then(Value::as_f64).filter(|number| *number > 0.0);
            number.ok_or_else(|| self.json.invalid(format!("rope_scaling lacks \"{name}\"")))
        };
        match rotary.kind {
            "default" => Ok(None),
            "linear" => Ok(Some(vec![number("factor")? as f32; head_width / 2])),
            "llama3" => {
                let llama3 = Llama3 {
                    base,
                    factor: number("factor")?,
                    low: number("low_freq_factor")?,
                    high: number("high_freq_factor")?,
                    positions: number("original_max_position_embeddings")?,
                };
                Ok(Some(llama3.divisors(head_width)))
            }
            other => Err(ModelError::unsupported(
                "rotary scaling",
                other,
                "default, linear, llama3",
            )),
        }
    }
}

/// The stretched rotary frequencies of Llama 3.1, by the published modelling code: low frequencies are divided by the
/// factor, high ones are left as they are, and between them one goes over into the other.
struct Llama3 {
    base: f64,
    factor: f64,
    low: f64,
    high: f64,
    /// Positions that the model was trained for before.
    positions: f64,
}

impl Llama3 {
    fn divisors(&self, head_width: usize) -> Vec<f32> {
        let divisor = |pair: usize| {
            let wave = 2.0 * std::f64::consts::PI * self.base.powf(2.0 * pair as f64 / head_width as f64);
            if wave < self.positions / self.high {
                1.0
            } else if wave > self.positions / self.low {
                self.factor
            } else {
                let smooth = (self.positions / wave - self.low) / (self.high - self.low);
                1.0 / ((1.0 - smooth) / self.factor + smooth)
            }
        };
        (0..head_width / 2).map(|pair| divisor(pair) as f32).collect()
    }
}
