//! What config.json says of an encoder: its family and the shapes of its tensors.

use super::ModelError;
use super::config_json::{ConfigJson, MAX_SHAPE};
use super::manifest::{Family, Manifest, Pooling, Similarity};
use crate::compute::Activation;
use serde_json::Value;
use std::path::Path;

/// config.json of an encoder.
pub struct Config {
    json: ConfigJson,
}

impl Config {
    /// Reads the file of a model directory.
    pub fn read(dir: &Path) -> Result<Config, ModelError> {
        let json = ConfigJson::read(dir)?;
        Ok(Config { json })
    }

    /// The forward pass that the file asks for.
    pub fn family(&self) -> Result<Family, ModelError> {
        match self.json.text("model_type")? {
            "bert" => Ok(Family::Bert),
            // CamemBERT's class is RoBERTa's under another name: the same tensors and the same pass.
            "xlm-roberta" | "roberta" | "camembert" => Ok(Family::XlmRoberta),
            "qwen3" => Ok(Family::Qwen3),
            "mistral" => Ok(Family::Mistral),
            "modernbert" => Ok(Family::ModernBert),
            other => Err(ModelError::unsupported(
                "model type",
                other,
                "bert, xlm-roberta, roberta, camembert, modernbert, qwen3, mistral",
            )),
        }
    }

    /// What the file says; pooling, prefixes, fingerprint and a lower limit of tokens come from other files.
    pub fn manifest(&self) -> Result<Manifest, ModelError> {
        if !self.json.field("quantization_config").is_null() {
            let method = self
                .json
                .field("quantization_config")
                .get("quant_method")
                .and_then(Value::as_str);
            let supported = "weights in F32, F16 and BF16";
            return Err(ModelError::unsupported(
                "quantisation",
                method.unwrap_or("unknown"),
                supported,
            ));
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
        let kind = self
            .json
            .field("position_embedding_type")
            .as_str()
            .unwrap_or("absolute");
        if kind != "absolute" {
            return Err(ModelError::unsupported("position embedding", kind, "absolute"));
        }
        let hidden = self.json.shape("hidden_size")?;
        let heads = self.json.shape("num_attention_heads")?;
        if !hidden.is_multiple_of(heads) {
            return Err(self
                .json
                .invalid(format!("hidden_size {hidden} is not divisible by {heads} heads")));
        }
        let rows = self.json.shape("max_position_embeddings")?;
        let first_position = self.first_position(family)?;
        if rows <= first_position {
            return Err(self.json.invalid(format!(
                "max_position_embeddings {rows} leaves no position behind the padding's"
            )));
        }
        let positions = rows - first_position;
        Ok(Manifest {
            family,
            dimensions: hidden,
            hidden,
            layers: self.json.shape("num_hidden_layers")?,
            heads,
            key_heads: heads,
            head_width: hidden / heads,
            intermediate: self.json.shape("intermediate_size")?,
            vocabulary: self.json.shape("vocab_size")?,
            positions,
            first_position,
            token_types: self.json.shape("type_vocab_size")?,
            max_tokens: positions,
            activation: self.activation("hidden_act")?,
            layer_norm_epsilon: self.json.number("layer_norm_eps", 1e-12)? as f32,
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

    /// The row of the first token's position: RoBERTa counts them from the one behind the padding's.
    fn first_position(&self, family: Family) -> Result<usize, ModelError> {
        match (family, self.json.field("pad_token_id")) {
            (Family::XlmRoberta, Value::Null) => Ok(2),
            (Family::XlmRoberta, pad) => match pad.as_u64() {
                Some(pad) if pad < MAX_SHAPE => Ok(pad as usize + 1),
                _ => Err(self.json.invalid("field \"pad_token_id\" is not an id")),
            },
            _ => Ok(0),
        }
    }

    /// ModernBERT. Fields that a file lacks have the defaults of the published configuration class.
    fn modern_bert(&self) -> Result<Manifest, ModelError> {
        for bias in ["attention_bias", "mlp_bias", "norm_bias"] {
            if self.json.flag(bias) == Some(true) {
                return Err(ModelError::unsupported("configuration", bias, "layers without bias"));
            }
        }
        let hidden = self.json.shape("hidden_size")?;
        let heads = self.json.shape("num_attention_heads")?;
        if !hidden.is_multiple_of(heads * 2) {
            return Err(self.json.invalid(format!(
                "hidden_size {hidden} does not divide into {heads} heads of pairs"
            )));
        }
        let activation = match self.json.field("hidden_activation") {
            Value::Null => Activation::Gelu,
            _ => self.activation("hidden_activation")?,
        };
        let positions = self.json.shape("max_position_embeddings")?;
        let layers = self.json.shape("num_hidden_layers")?;
        let every = match self.json.full_attention_every(layers)? {
            Some(every) => every,
            None => self.json.shape_or("global_attn_every_n_layers", 3)?,
        };
        let old = [("global_rope_theta", 160_000.0), ("local_rope_theta", 10_000.0)];
        let sliding = every > 1 && layers > 1;
        let [base, window_base] = self.json.rotary_bases(old, sliding)?;
        Ok(Manifest {
            family: Family::ModernBert,
            dimensions: hidden,
            hidden,
            layers,
            heads,
            key_heads: heads,
            head_width: hidden / heads,
            intermediate: self.json.shape("intermediate_size")?,
            vocabulary: self.json.shape("vocab_size")?,
            positions,
            first_position: 0,
            token_types: 0,
            max_tokens: positions,
            activation,
            layer_norm_epsilon: self
                .json
                .number("norm_eps", self.json.number("layer_norm_eps", 1e-5)?)? as f32,
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
        let half = self.json.shape_or("local_attention", 128)? / 2;
        match (self.json.field("sliding_window"), self.json.field("local_attention")) {
            (Value::Null, _) => Ok(half),
            (_, Value::Null) => self.json.shape("sliding_window"),
            _ if self.json.shape("sliding_window")? == half => Ok(half),
            _ => Err(self
                .json
                .invalid("\"sliding_window\" is not half of \"local_attention\"".to_string())),
        }
    }

    /// Qwen3 and Mistral. Fields that a file lacks have the defaults of the published configuration classes.
    fn decoder(&self, family: Family) -> Result<Manifest, ModelError> {
        let hidden = self.json.shape("hidden_size")?;
        let heads = self.json.shape("num_attention_heads")?;
        let key_heads = self.json.shape("num_key_value_heads")?;
        if !heads.is_multiple_of(key_heads) {
            return Err(self.json.invalid(format!(
                "num_attention_heads {heads} is not a multiple of num_key_value_heads {key_heads}"
            )));
        }
        let default = (family == Family::Qwen3).then_some(128);
        let head_width = self.json.head_width(hidden, heads, default)?;
        if !head_width.is_multiple_of(2) {
            return Err(self
                .json
                .invalid(format!("heads of {head_width} numbers cannot be turned in pairs")));
        }
        let activation = self.json.text("hidden_act")?;
        if activation != "silu" {
            return Err(ModelError::unsupported("activation", activation, "silu"));
        }
        if self.json.flag("is_causal") == Some(false) {
            return Err(ModelError::unsupported("attention", "is_causal false", "causal"));
        }
        let positions = self.json.shape("max_position_embeddings")?;
        let window = self.window(family)?.filter(|window| *window < positions);
        Ok(Manifest {
            family,
            dimensions: hidden,
            hidden,
            layers: self.json.shape("num_hidden_layers")?,
            heads,
            key_heads,
            head_width,
            intermediate: self.json.shape("intermediate_size")?,
            vocabulary: self.json.shape("vocab_size")?,
            positions,
            first_position: 0,
            token_types: 0,
            max_tokens: positions,
            activation: Activation::Silu,
            layer_norm_epsilon: self.json.number("rms_norm_eps", 1e-6)? as f32,
            rope_base: self.rope_base()?,
            window_rope_base: None,
            window,
            full_attention_every: 0,
            attention_bias: self.json.flag("attention_bias") == Some(true),
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
        let mistral = family == Family::Mistral;
        self.json
            .layers_are_alike(mistral && !self.json.field("sliding_window").is_null())?;
        match mistral {
            true => self.json.mistral_window(),
            false => self.json.without_qwen_window().map(|()| None),
        }
    }

    /// The base of the rotary embedding's angles, which no scaling stretches.
    fn rope_base(&self) -> Result<f64, ModelError> {
        let rotary = self.json.rotary()?;
        match rotary.kind {
            "default" => Ok(rotary.base),
            other => Err(ModelError::unsupported("rotary embedding", other, "default")),
        }
    }

    fn activation(&self, field: &str) -> Result<Activation, ModelError> {
        match self.json.text(field)? {
            "gelu" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
            "relu" => Ok(Activation::Relu),
            other => {
                let supported = "gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, relu";
                Err(ModelError::unsupported("activation", other, supported))
            }
        }
    }
}
