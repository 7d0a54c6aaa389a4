//! The forward pass that a language model's files ask for, with errors that name the field.
//!
//! `gguf` reads it from the metadata of a GGUF file, `directory` from config.json and generation_config.json.

use super::super::ModelError;
use super::super::gguf::{Gguf, TensorInfo, Value};
use serde::Serialize;

/// Largest number that is accepted for a shape, so that products of shapes cannot overflow.
pub(super) const MAX_SHAPE: u64 = 1 << 24;
/// Most layers that are believed.
const MAX_LAYERS: usize = 1024;

/// Decoders that differ in biases and norms of heads, and in nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LlmFamily {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

/// The shapes and constants of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct LlmConfig {
    pub family: LlmFamily,
    /// Rows of the token embeddings.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    pub layers: usize,
    /// Query heads, and heads of keys and values; the first is a multiple of the second.
    pub heads: usize,
    pub key_heads: usize,
    /// Numbers of one head; even.
    pub head_width: usize,
    /// Width between the two products of the feed-forward part.
    pub intermediate: usize,
    /// Base of the rotary angles: pair j of a head turns by position / base^(2 j / head_width).
    pub rope_base: f32,
    /// What the frequency of each pair (`head_width / 2` of them) is divided by, where the model stretches them.
    pub rope_scaling: Option<Vec<f32>>,
    /// Added to the mean square in RMS norms.
    pub norm_epsilon: f32,
    /// Whether the token embeddings are the output's weights too.
    pub tied: bool,
    /// Whether the products for queries, keys and values add a bias.
    pub qkv_bias: bool,
    /// Whether every head of queries and keys has an RMS norm of its own before the rotary angles.
    pub head_norms: bool,
    /// Tokens that a token sees to its left, itself included, where they are limited.
    pub window: Option<usize>,
    /// Tokens that the model was made for.
    pub positions: usize,
    /// The token that begins a text, where there is one.
    pub bos: Option<u32>,
    /// Every id that ends an answer, ascending.
    pub end: Vec<u32>,
    /// Whether a prompt begins with `bos`.
    pub add_bos: bool,
}

impl LlmConfig {
    /// Checks what no container checks by itself: products, parity, ids.
    pub(super) fn checked(self, invalid: impl Fn(String) -> ModelError) -> Result<LlmConfig, ModelError> {
        let LlmConfig {
            heads,
            key_heads,
            head_width,
            ..
        } = self;
        if !heads.is_multiple_of(key_heads) {
            return Err(invalid(format!(
                "{heads} heads are not a multiple of {key_heads} heads of keys"
            )));
        }
        if !head_width.is_multiple_of(2) {
            return Err(invalid(format!(
                "heads of {head_width} numbers cannot be turned in pairs"
            )));
        }
        if self.layers > MAX_LAYERS || heads * head_width > MAX_SHAPE as usize {
            return Err(invalid(format!(
                "{} layers of {heads} heads of {head_width} numbers",
                self.layers
            )));
        }
        if !(self.rope_base.is_finite() && self.rope_base >= 1.0) {
            return Err(invalid(format!("the base of rotary angles is {}", self.rope_base)));
        }
        if !(self.norm_epsilon.is_finite() && self.norm_epsilon >= 0.0) {
            return Err(invalid(format!("the epsilon of norms is {}", self.norm_epsilon)));
        }
        let scaling = self.rope_scaling.as_deref().unwrap_or_default();
        if scaling.iter().any(|divisor| !(divisor.is_finite() && *divisor > 0.0)) {
            return Err(invalid("a divisor of rotary frequencies is not positive".to_string()));
        }
        if self.rope_scaling.is_some() && scaling.len() != head_width / 2 {
            return Err(invalid(format!("{} divisors of rotary frequencies", scaling.len())));
        }
        let ids = self.bos.iter().chain(&self.end);
        if let Some(id) = ids.copied().find(|id| *id as usize >= self.vocabulary) {
            return Err(invalid(format!(
                "the special id {id} lies outside the vocabulary of {}",
                self.vocabulary
            )));
        }
        Ok(self)
    }
}

/// Reads the metadata of a GGUF file. `end` holds the ids that the metadata names; the tokenizer knows more.
pub(super) fn gguf(file: &Gguf) -> Result<LlmConfig, ModelError> {
    let fields = Fields { file };
    let architecture = fields.text("general.architecture")?;
    let family = match architecture {
        "llama" => LlmFamily::Llama,
        "mistral" => LlmFamily::Mistral,
        "qwen2" => LlmFamily::Qwen2,
        "qwen3" => LlmFamily::Qwen3,
        other => {
            return Err(super::unsupported(
                "architecture",
                other,
                "llama, mistral, qwen2, qwen3",
            ));
        }
    };
    let key = |name: &str| format!("{architecture}.{name}");
    let shape = |name: &str| fields.shape(&key(name));
    if fields.optional_integer(&key("expert_count"))?.unwrap_or(0) > 0 {
        return Err(super::unsupported("architecture", "mixture of experts", "dense layers"));
    }
    let hidden = shape("embedding_length")?;
    let heads = shape("attention.head_count")?;
    let key_heads = match file.value(&key("attention.head_count_kv")) {
        None => heads,
        Some(_) => shape("attention.head_count_kv")?,
    };
    let head_width = match file.value(&key("attention.key_length")) {
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => return Err(fields.invalid(format!("{hidden} numbers do not divide into {heads} heads"))),
        Some(_) => shape("attention.key_length")?,
    };
    for (name, wanted) in [
        ("attention.value_length", head_width),
        ("rope.dimension_count", head_width),
    ] {
        if let Some(found) = fields
            .optional_integer(&key(name))?
            .filter(|found| *found as usize != wanted)
        {
            let what = "heads that turn in whole, as wide for values as for keys";
            return Err(super::unsupported("width of heads", &format!("{name} {found}"), what));
        }
    }
    let row = |name: &str| {
        file.info(name)
            .and_then(|info: &TensorInfo| info.shape.first().copied())
    };
    let vocabulary = row("token_embd.weight").ok_or_else(|| ModelError::MissingTensor("token_embd.weight".into()))?;
    if vocabulary as u64 > MAX_SHAPE {
        return Err(fields.invalid(format!("a vocabulary of {vocabulary} tokens")));
    }
    let scaling = fields.linear_factor(architecture)?;
    let rope_scaling = match (file.info("rope_freqs.weight"), scaling) {
        (Some(_), _) => Some(super::files::floats(file, "rope_freqs.weight")?),
        (None, Some(factor)) => Some(vec![factor as f32; head_width / 2]),
        (None, None) => None,
    };
    let mut end = Vec::new();
    for name in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        end.extend(fields.id(&format!("tokenizer.ggml.{name}"))?);
    }
    let bos = fields.id("tokenizer.ggml.bos_token_id")?;
    // Files whose vocabulary is SentencePiece's begin a text with its token unless they say otherwise.
    let pieces = fields.optional_text("tokenizer.ggml.model")? == Some("llama");
    let add_bos = fields.optional_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(pieces);
    let window = fields.optional_integer(&key("attention.sliding_window"))?;
    let positions = shape("context_length")?;
    let config = LlmConfig {
        family,
        vocabulary,
        hidden,
        layers: shape("block_count")?,
        heads,
        key_heads,
        head_width,
        intermediate: shape("feed_forward_length")?,
        rope_base: fields.optional_float(&key("rope.freq_base"))?.unwrap_or(10_000.0) as f32,
        rope_scaling,
        norm_epsilon: fields.float(&key("attention.layer_norm_rms_epsilon"))? as f32,
        tied: file.info("output.weight").is_none(),
        qkv_bias: file.info("blk.0.attn_q.bias").is_some(),
        head_norms: file.info("blk.0.attn_q_norm.weight").is_some(),
        window: window
            .map(|window| window as usize)
            .filter(|window| (1..positions).contains(window)),
        positions,
        bos,
        end,
        add_bos: add_bos && bos.is_some(),
    };
    config.checked(|what| fields.invalid(what))
}

/// Values of the metadata by kind, with errors that name the key.
struct Fields<'a> {
    file: &'a Gguf,
}

impl<'a> Fields<'a> {
    fn invalid(&self, what: String) -> ModelError {
        ModelError::Invalid {
            path: self.file.path().to_path_buf(),
            what,
        }
    }

    fn wrong(&self, key: &str, wanted: &str) -> ModelError {
        match self.file.value(key) {
            None => self.invalid(format!("key \"{key}\" is missing")),
            Some(value) => self.invalid(format!("key \"{key}\" is {}, not {wanted}", value.kind())),
        }
    }

    fn optional_text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        match self.file.value(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "a string")),
        }
    }

    fn text(&self, key: &str) -> Result<&'a str, ModelError> {
        self.optional_text(key)?.ok_or_else(|| self.wrong(key, "a string"))
    }

    fn optional_integer(&self, key: &str) -> Result<Option<u64>, ModelError> {
        match self.file.value(key) {
            None => Ok(None),
            Some(Value::Integer(number)) if (0..=1 << 32).contains(number) => Ok(Some(*number as u64)),
            Some(Value::Integer(number)) => Err(self.invalid(format!("key \"{key}\" is {number}"))),
            Some(_) => Err(self.wrong(key, "an integer")),
        }
    }

    fn optional_float(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.file.value(key) {
            None => Ok(None),
            Some(Value::Float(number)) => Ok(Some(*number)),
            Some(_) => Err(self.wrong(key, "a float")),
        }
    }

    fn float(&self, key: &str) -> Result<f64, ModelError> {
        self.optional_float(key)?.ok_or_else(|| self.wrong(key, "a float"))
    }

    fn optional_bool(&self, key: &str) -> Result<Option<bool>, ModelError> {
        match self.file.value(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.wrong(key, "a bool")),
        }
    }

    /// What rotary frequencies are divided by, where they are. Layers that differ in theirs are refused.
    fn linear_factor(&self, architecture: &str) -> Result<Option<f64>, ModelError> {
        let key = |name: &str| format!("{architecture}.{name}");
        let supported = "none, linear, llama3";
        for name in ["rope.freq_base_swa", "attention.sliding_window_pattern"] {
            if self.file.value(&key(name)).is_some() {
                return Err(super::unsupported("attention", name, "layers that are alike"));
            }
        }
        let scale = self.optional_float(&key("rope.scaling.attn_factor"))?;
        if let Some(scale) = scale.filter(|scale| *scale != 1.0) {
            let found = format!("rope.scaling.attn_factor {scale}");
            return Err(super::unsupported("rotary scaling", &found, supported));
        }
        // The factor had another name once.
        let factor = match self.optional_float(&key("rope.scaling.factor"))? {
            None => self.optional_float(&key("rope.scale_linear"))?,
            factor => factor,
        };
        match self.optional_text(&key("rope.scaling.type"))? {
            Some("none") => Ok(None),
            // llama.cpp reads a factor without a type so.
            None => Ok(factor),
            Some("linear") if factor.is_some() => Ok(factor),
            Some("linear") => Err(self.wrong(&key("rope.scaling.factor"), "a float")),
            Some(other) => Err(super::unsupported("rotary scaling", other, supported)),
        }
    }

    /// A number from 1 that a shape may have. An array of equal numbers, one a layer, is that number.
    fn shape(&self, key: &str) -> Result<usize, ModelError> {
        let number = match self.file.value(key) {
            Some(Value::Integers(layers)) => match layers.split_first() {
                Some((first, rest)) if rest.iter().all(|other| other == first) => Some(*first),
                _ => return Err(super::unsupported("shape", key, "the same in all layers")),
            },
            Some(Value::Integer(number)) => Some(*number),
            Some(_) => None,
            None => return Err(self.wrong(key, "")),
        };
        let number = number.ok_or_else(|| self.wrong(key, "an integer"))?;
        match u64::try_from(number) {
            Ok(number) if (1..=MAX_SHAPE).contains(&number) => Ok(number as usize),
            _ => Err(self.invalid(format!("key \"{key}\" is {number}, not from 1 to {MAX_SHAPE}"))),
        }
    }

    fn id(&self, key: &str) -> Result<Option<u32>, ModelError> {
        let number = self.optional_integer(key)?;
        // 2^32 - 1 stands for none.
        Ok(number
            .and_then(|number| u32::try_from(number).ok())
            .filter(|id| *id != u32::MAX))
    }
}
