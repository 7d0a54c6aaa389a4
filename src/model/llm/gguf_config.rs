//! The metadata of a GGUF file as a language model's configuration, with errors that name the key.

use super::super::ModelError;
use super::super::config_json::MAX_SHAPE;
use super::super::gguf::{Gguf, TensorInfo, Value};
use super::config::{LlmConfig, LlmFamily};

/// Reads the metadata of a GGUF file. `end` holds the ids that the metadata names; the tokenizer knows more.
pub(super) fn config(file: &Gguf) -> Result<LlmConfig, ModelError> {
    let fields = Fields::new(file)?;
    let family = LlmFamily::named("architecture", fields.architecture)?;
    if fields.optional_integer(&fields.key("expert_count"))?.unwrap_or(0) > 0 {
        return Err(ModelError::unsupported(
            "architecture",
            "mixture of experts",
            "dense layers",
        ));
    }
    let hidden = fields.own_shape("embedding_length")?;
    let heads = fields.own_shape("attention.head_count")?;
    let key_heads = match file.value(&fields.key("attention.head_count_kv")) {
        None => heads,
        Some(_) => fields.own_shape("attention.head_count_kv")?,
    };
    let head_width = fields.head_width(hidden, heads)?;
    let window = fields.optional_integer(&fields.key("attention.sliding_window"))?;
    let positions = fields.own_shape("context_length")?;
    let (bos, add_bos) = fields.beginning()?;
    let config = LlmConfig {
        family,
        vocabulary: fields.vocabulary()?,
        hidden,
        layers: fields.own_shape("block_count")?,
        heads,
        key_heads,
        head_width,
        intermediate: fields.own_shape("feed_forward_length")?,
        rope_base: fields
            .optional_float(&fields.key("rope.freq_base"))?
            .unwrap_or(10_000.0) as f32,
        rope_scaling: fields.rope_scaling(head_width)?,
        norm_epsilon: fields.float(&fields.key("attention.layer_norm_rms_epsilon"))? as f32,
        tied: file.info("output.weight").is_none(),
        qkv_bias: file.info("blk.0.attn_q.bias").is_some(),
        head_norms: file.info("blk.0.attn_q_norm.weight").is_some(),
        window: window
            .map(|window| window as usize)
            .filter(|window| (1..positions).contains(window)),
        positions,
        bos,
        end: fields.end_ids()?,
        add_bos,
    };
    config.checked(|what| fields.invalid(what))
}

/// Values of the metadata by kind, with errors that name the key.
struct Fields<'a> {
    file: &'a Gguf,
    /// The prefix of the keys that are the architecture's own.
    architecture: &'a str,
}

impl<'a> Fields<'a> {
    fn new(file: &'a Gguf) -> Result<Fields<'a>, ModelError> {
        let unnamed = Fields { file, architecture: "" };
        let architecture = unnamed.text("general.architecture")?;
        Ok(Fields { file, architecture })
    }

    /// A key of the architecture's own.
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn own_shape(&self, name: &str) -> Result<usize, ModelError> {
        self.shape(&self.key(name))
    }

    /// The width of a head, of which keys and values have the same and all is rotated.
    fn head_width(&self, hidden: usize, heads: usize) -> Result<usize, ModelError> {
        let width = match self.file.value(&self.key("attention.key_length")) {
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => return Err(self.invalid(format!("{hidden} numbers do not divide into {heads} heads"))),
            Some(_) => self.own_shape("attention.key_length")?,
        };
        for name in ["attention.value_length", "rope.dimension_count"] {
            let found = self.optional_integer(&self.key(name))?;
            if let Some(found) = found.filter(|found| *found as usize != width) {
                let what = "heads that turn in whole, as wide for values as for keys";
                return Err(ModelError::unsupported(
                    "width of heads",
                    format!("{name} {found}"),
                    what,
                ));
            }
        }
        Ok(width)
    }

    /// Rows of the token embeddings.
    fn vocabulary(&self) -> Result<usize, ModelError> {
        let table = self.file.info("token_embd.weight");
        let rows = table.and_then(|info: &TensorInfo| info.shape.first().copied());
        let rows = rows.ok_or_else(|| ModelError::MissingTensor("token_embd.weight".into()))?;
        match rows as u64 > MAX_SHAPE {
            true => Err(self.invalid(format!("a vocabulary of {rows} tokens"))),
            false => Ok(rows),
        }
    }

    /// The divisors of the rotary frequencies, where the file stretches them.
    fn rope_scaling(&self, head_width: usize) -> Result<Option<Vec<f32>>, ModelError> {
        let factor = self.linear_factor()?;
        match self.file.info("rope_freqs.weight") {
            Some(_) => Ok(Some(self.file.elements("rope_freqs.weight")?)),
            None => Ok(factor.map(|factor| vec![factor as f32; head_width / 2])),
        }
    }

    /// The token that begins a text, and whether a prompt begins with it.
    fn beginning(&self) -> Result<(Option<u32>, bool), ModelError> {
        let bos = self.id("tokenizer.ggml.bos_token_id")?;
        // Files whose vocabulary is SentencePiece's begin a text with its token unless they say otherwise.
        let pieces = self.optional_text("tokenizer.ggml.model")? == Some("llama");
        let add_bos = self.optional_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(pieces);
        Ok((bos, add_bos && bos.is_some()))
    }

    /// The ids that end an answer.
    fn end_ids(&self) -> Result<Vec<u32>, ModelError> {
        let mut end = Vec::new();
        for name in ["eos_token_id", "eot_token_id", "eom_token_id"] {
            end.extend(self.id(&format!("tokenizer.ggml.{name}"))?);
        }
        Ok(end)
    }

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
    fn linear_factor(&self) -> Result<Option<f64>, ModelError> {
        let key = |name: &str| self.key(name);
        let supported = "none, linear, llama3";
        for name in ["rope.freq_base_swa", "attention.sliding_window_pattern"] {
            if self.file.value(&key(name)).is_some() {
                return Err(ModelError::unsupported("attention", name, "layers that are alike"));
            }
        }
        let scale = self.optional_float(&key("rope.scaling.attn_factor"))?;
        if let Some(scale) = scale.filter(|scale| *scale != 1.0) {
            let found = format!("rope.scaling.attn_factor {scale}");
            return Err(ModelError::unsupported("rotary scaling", found, supported));
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
            Some(other) => Err(ModelError::unsupported("rotary scaling", other, supported)),
        }
    }

    /// A number from 1 that a shape may have. An array of equal numbers, one a layer, is that number.
    fn shape(&self, key: &str) -> Result<usize, ModelError> {
        let number = match self.file.value(key) {
            Some(Value::Integers(layers)) => match layers.split_first() {
                Some((first, rest)) if rest.iter().all(|other| other == first) => Some(*first),
                _ => return Err(ModelError::unsupported("shape", key, "the same in all layers")),
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
