//! config.json: the family of a model and the shapes of its tensors, with errors that name the field.

use super::ModelError;
use super::files::{read_json, required};
use super::manifest::{Family, Manifest, Pooling, Similarity};
use super::rotary::{FULL, Fields, SLIDING};
use crate::compute::Activation;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Largest number that is accepted for a shape, so that products of shapes cannot overflow.
const MAX_SHAPE: u64 = 1 << 24;

/// config.json, parsed.
pub struct Config {
    value: Value,
    path: PathBuf,
}

impl Config {
    /// Reads the file of a model directory.
    pub fn read(dir: &Path) -> Result<Config, ModelError> {
        let path = required(dir.join("config.json"))?;
        Ok(Config {
            value: read_json(&path)?,
            path,
        })
    }

    /// The forward pass that the file asks for.
    pub fn family(&self) -> Result<Family, ModelError> {
        match self.text("model_type")?.as_str() {
            "bert" => Ok(Family::Bert),
            // CamemBERT's class is RoBERTa's under another name: the same tensors and the same pass.
            "xlm-roberta" | "roberta" | "camembert" => Ok(Family::XlmRoberta),
            "qwen3" => Ok(Family::Qwen3),
            "mistral" => Ok(Family::Mistral),
            "modernbert" => Ok(Family::ModernBert),
            other => Err(unsupported(
                "model type",
                other,
                "bert, xlm-roberta, roberta, camembert, modernbert, qwen3, mistral",
            )),
        }
    }

    /// What the file says; pooling, prefixes, fingerprint and a lower limit of tokens come from other files.
    pub fn manifest(&self) -> Result<Manifest, ModelError> {
        if !self.field("quantization_config").is_null() {
            let method = self
                .field("quantization_config")
                .get("quant_method")
                .and_then(Value::as_str);
            let supported = "weights in F32, F16 and BF16";
            return Err(unsupported("quantisation", method.unwrap_or("unknown"), supported));
        }
        let family = self.family()?;
        match family {
            Family::Bert | Family::XlmRoberta => self.bidirectional(family),
            Family::ModernBert => self.modern_bert(),
            Family::Qwen3 | Family::Mistral => self.decoder(family),
        }
    }

    /// BERT and XLM-RoBERTa.
    fn bidirectional(&self, family: Family) -> Result<Manifest, ModelError> {
        let kind = self.field("position_embedding_type").as_str().unwrap_or("absolute");
        if kind != "absolute" {
            return Err(unsupported("position embedding", kind, "absolute"));
        }
        let hidden = self.shape("hidden_size")?;
        let heads = self.shape("num_attention_heads")?;
        if !hidden.is_multiple_of(heads) {
            return Err(self.invalid(format!("hidden_size {hidden} is not divisible by {heads} heads")));
        }
        let rows = self.shape("max_position_embeddings")?;
        // RoBERTa counts positions from the one behind the padding's.
        let first_position = match (family, self.field("pad_token_id")) {
            (Family::XlmRoberta, Value::Null) => 2,
            (Family::XlmRoberta, pad) => match pad.as_u64() {
                Some(pad) if pad < MAX_SHAPE => pad as usize + 1,
                _ => return Err(self.invalid("field \"pad_token_id\" is not an id".to_string())),
            },
            _ => 0,
        };
        if rows <= first_position {
            return Err(self.invalid(format!(
                "max_position_embeddings {rows} leaves no position behind the padding's"
            )));
        }
        let positions = rows - first_position;
        Ok(Manifest {
            family,
            dimensions: hidden,
            hidden,
            layers: self.shape("num_hidden_layers")?,
            heads,
            key_heads: heads,
            head_width: hidden / heads,
            intermediate: self.shape("intermediate_size")?,
            vocabulary: self.shape("vocab_size")?,
            positions,
            first_position,
            token_types: self.shape("type_vocab_size")?,
            max_tokens: positions,
            activation: self.activation("hidden_act")?,
            layer_norm_epsilon: self.number("layer_norm_eps", 1e-12)? as f32,
            rope_base: 0.0,
            window_rope_base: None,
            window: None,
            full_attention_every: 0,
            attention_bias: true,
            pooling: Pooling::Mean,
            normalize: false,
            similarity: Similarity::Cosine,
            query_prefix: String::new(),
            passage_prefix: String::new(),
            fingerprint: String::new(),
        })
    }

    /// ModernBERT. Fields that a file lacks have the defaults of the published configuration class.
    fn modern_bert(&self) -> Result<Manifest, ModelError> {
        for bias in ["attention_bias", "mlp_bias", "norm_bias"] {
            if self.flag(bias) == Some(true) {
                return Err(unsupported("configuration", bias, "layers without bias"));
            }
        }
        let hidden = self.shape("hidden_size")?;
        let heads = self.shape("num_attention_heads")?;
        if !hidden.is_multiple_of(heads * 2) {
            return Err(self.invalid(format!(
                "hidden_size {hidden} does not divide into {heads} heads of pairs"
            )));
        }
        let activation = match self.field("hidden_activation") {
            Value::Null => Activation::Gelu,
            _ => self.activation("hidden_activation")?,
        };
        let positions = self.shape("max_position_embeddings")?;
        let layers = self.shape("num_hidden_layers")?;
        let every = match self.fields().full_attention_every(layers)? {
            Some(every) => every,
            None => self.shape_or("global_attn_every_n_layers", 3)?,
        };
        let old = [("global_rope_theta", 160_000.0), ("local_rope_theta", 10_000.0)];
        let sliding = every > 1 && layers > 1;
        let [base, window_base] = self.fields().of_both_kinds(old, sliding)?;
        Ok(Manifest {
            family: Family::ModernBert,
            dimensions: hidden,
            hidden,
            layers,
            heads,
            key_heads: heads,
            head_width: hidden / heads,
            intermediate: self.shape("intermediate_size")?,
            vocabulary: self.shape("vocab_size")?,
            positions,
            first_position: 0,
            token_types: 0,
            max_tokens: positions,
            activation,
            layer_norm_epsilon: self.number("norm_eps", self.number("layer_norm_eps", 1e-5)?)? as f32,
            rope_base: base,
            window_rope_base: Some(window_base),
            window: Some(self.modern_window()?),
            full_attention_every: every,
            attention_bias: false,
            pooling: Pooling::Mean,
            normalize: false,
            similarity: Similarity::Cosine,
            query_prefix: String::new(),
            passage_prefix: String::new(),
            fingerprint: String::new(),
        })
    }

    /// Tokens that a token of ModernBERT sees on either side: half of the field, or all of the property that newer
    /// files may have in its place.
    fn modern_window(&self) -> Result<usize, ModelError> {
        let half = self.shape_or("local_attention", 128)? / 2;
        match (self.field("sliding_window"), self.field("local_attention")) {
            (Value::Null, _) => Ok(half),
            (_, Value::Null) => self.shape("sliding_window"),
            _ if self.shape("sliding_window")? == half => Ok(half),
            _ => Err(self.invalid("\"sliding_window\" is not half of \"local_attention\"".to_string())),
        }
    }

    /// Qwen3 and Mistral. Fields that a file lacks have the defaults of the published configuration classes.
    fn decoder(&self, family: Family) -> Result<Manifest, ModelError> {
        let hidden = self.shape("hidden_size")?;
        let heads = self.shape("num_attention_heads")?;
        let key_heads = self.shape("num_key_value_heads")?;
        if !heads.is_multiple_of(key_heads) {
            return Err(self.invalid(format!(
                "num_attention_heads {heads} is not a multiple of num_key_value_heads {key_heads}"
            )));
        }
        let head_width = match (self.field("head_dim"), family) {
            (Value::Null, Family::Qwen3) => 128,
            (Value::Null, _) if hidden.is_multiple_of(heads) => hidden / heads,
            (Value::Null, _) => {
                return Err(self.invalid(format!("hidden_size {hidden} is not divisible by {heads} heads")));
            }
            _ => self.shape("head_dim")?,
        };
        if !head_width.is_multiple_of(2) {
            return Err(self.invalid(format!("heads of {head_width} numbers cannot be turned in pairs")));
        }
        let activation = self.text("hidden_act")?;
        if activation != "silu" {
            return Err(unsupported("activation", &activation, "silu"));
        }
        if self.flag("is_causal") == Some(false) {
            return Err(unsupported("attention", "is_causal false", "causal"));
        }
        let positions = self.shape("max_position_embeddings")?;
        let window = self.window(family)?.filter(|window| *window < positions);
        Ok(Manifest {
            family,
            dimensions: hidden,
            hidden,
            layers: self.shape("num_hidden_layers")?,
            heads,
            key_heads,
            head_width,
            intermediate: self.shape("intermediate_size")?,
            vocabulary: self.shape("vocab_size")?,
            positions,
            first_position: 0,
            token_types: 0,
            max_tokens: positions,
            activation: Activation::Silu,
            layer_norm_epsilon: self.number("rms_norm_eps", 1e-6)? as f32,
            rope_base: self.rope_base()?,
            window_rope_base: None,
            window,
            full_attention_every: 0,
            attention_bias: self.flag("attention_bias") == Some(true),
            pooling: Pooling::Last,
            normalize: false,
            similarity: Similarity::Cosine,
            query_prefix: String::new(),
            passage_prefix: String::new(),
            fingerprint: String::new(),
        })
    }

    /// Tokens that a token sees to its left, itself included, where they are limited.
    fn window(&self, family: Family) -> Result<Option<usize>, ModelError> {
        let alike = "layers that are alike";
        match (family, self.field("sliding_window")) {
            (Family::Mistral, window) if !window.is_null() => self.fields().layers_are(SLIDING, alike)?,
            _ => self.fields().layers_are(FULL, alike)?,
        }
        if family == Family::Qwen3 && self.flag("use_sliding_window") == Some(true) {
            return Err(unsupported(
                "attention",
                "use_sliding_window",
                "all layers over the whole text",
            ));
        }
        match (family, self.value.get("sliding_window")) {
            (Family::Mistral, None) => Ok(Some(4096)),
            (Family::Mistral, Some(window)) if !window.is_null() => Ok(Some(self.shape("sliding_window")?)),
            _ => Ok(None),
        }
    }

    /// The base of the rotary embedding's angles, which no scaling stretches.
    fn rope_base(&self) -> Result<f64, ModelError> {
        let rotary = self.fields().of_all_layers()?;
        match rotary.kind {
            "default" => Ok(rotary.base),
            other => Err(unsupported("rotary embedding", other, "default")),
        }
    }

    fn fields(&self) -> Fields<'_> {
        Fields {
            value: &self.value,
            path: &self.path,
        }
    }

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

    fn number(&self, field: &str, default: f64) -> Result<f64, ModelError> {
        match self.field(field) {
            Value::Null => Ok(default),
            value => value
                .as_f64()
                .ok_or_else(|| self.invalid(format!("field \"{field}\" is not a number"))),
        }
    }

    fn text(&self, field: &str) -> Result<String, ModelError> {
        let value = self.field(field).as_str().map(str::to_string);
        value.ok_or_else(|| self.invalid(format!("field \"{field}\" is missing or not a string")))
    }

    fn shape(&self, field: &str) -> Result<usize, ModelError> {
        match self.field(field).as_u64() {
            Some(value) if (1..=MAX_SHAPE).contains(&value) => Ok(value as usize),
            _ => Err(self.invalid(format!(
                "field \"{field}\" is missing or not a number from 1 to {MAX_SHAPE}"
            ))),
        }
    }

    fn shape_or(&self, field: &str, default: usize) -> Result<usize, ModelError> {
        match self.field(field) {
            Value::Null => Ok(default),
            _ => self.shape(field),
        }
    }

    fn activation(&self, field: &str) -> Result<Activation, ModelError> {
        match self.text(field)?.as_str() {
            "gelu" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
            "relu" => Ok(Activation::Relu),
            other => {
                let supported = "gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, relu";
                Err(unsupported("activation", other, supported))
            }
        }
    }
}

fn unsupported(what: &'static str, found: &str, supported: &'static str) -> ModelError {
    let found = found.to_string();
    ModelError::Unsupported { what, found, supported }
}
