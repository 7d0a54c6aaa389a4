//! A small random model written to disk in the published layout; here a BERT with a tokenizer of twelve words, the
//! other families in `families.rs`.

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tempfile::TempDir;

pub const HIDDEN: usize = 24;
pub const INTERMEDIATE: usize = 40;
pub const VOCABULARY: usize = 12;
pub const POSITIONS: usize = 40;

/// A model directory that a test can bend before it is written.
pub struct Maker {
    pub config: Value,
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    pub pooling: Option<Value>,
    pub normalize: bool,
    /// Whether modules.json is there and names a pooling, by the mean where no other is given.
    pub listed: bool,
    pub prompts: Option<Value>,
    pub dtype: Dtype,
    pub tokenizer: Value,
    /// Further files, by their names.
    pub files: Vec<(&'static str, Vec<u8>)>,
    /// Shards that the weights are written to; 0 for a single file.
    pub shards: usize,
}

/// Random numbers in -1..1 with a fixed seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn numbers(&mut self, count: usize, around: f32, range: f32) -> Vec<f32> {
        (0..count).map(|_| around + self.next() * range).collect()
    }

    pub fn ids(&mut self, count: usize, vocabulary: usize) -> Vec<u32> {
        (0..count)
            .map(|_| ((self.next() + 1.0) / 2.0 * vocabulary as f32) as u32 % vocabulary as u32)
            .collect()
    }
}

impl Maker {
    pub fn new() -> Maker {
        let mut tensors = BTreeMap::new();
        let mut random = Random(7);
        let mut add = |name: String, shape: Vec<usize>| {
            let around = if name.ends_with("LayerNorm.weight") { 1.0 } else { 0.0 };
            let numbers = random.numbers(shape.iter().product(), around, 0.5);
            tensors.insert(name, (shape, numbers));
        };
        add("embeddings.word_embeddings.weight".into(), vec![VOCABULARY, HIDDEN]);
        add("embeddings.position_embeddings.weight".into(), vec![POSITIONS, HIDDEN]);
        add("embeddings.token_type_embeddings.weight".into(), vec![2, HIDDEN]);
        let mut pair = |place: &str, outputs: usize, inputs: Option<usize>| {
            add(
                format!("{place}.weight"),
                inputs.map_or(vec![outputs], |inputs| vec![outputs, inputs]),
            );
            add(format!("{place}.bias"), vec![outputs]);
        };
        pair("embeddings.LayerNorm", HIDDEN, None);
        for layer in 0..2 {
            let layer = format!("encoder.layer.{layer}");
            for part in ["query", "key", "value"] {
                pair(&format!("{layer}.attention.self.{part}"), HIDDEN, Some(HIDDEN));
            }
            pair(&format!("{layer}.attention.output.dense"), HIDDEN, Some(HIDDEN));
            pair(&format!("{layer}.attention.output.LayerNorm"), HIDDEN, None);
            pair(&format!("{layer}.intermediate.dense"), INTERMEDIATE, Some(HIDDEN));
            pair(&format!("{layer}.output.dense"), HIDDEN, Some(INTERMEDIATE));
            pair(&format!("{layer}.output.LayerNorm"), HIDDEN, None);
        }
        let config = json!({
            "model_type": "bert", "hidden_size": HIDDEN, "num_attention_heads": 2, "num_hidden_layers": 2,
            "intermediate_size": INTERMEDIATE, "vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS,
            "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.0,
            "initializer_range": 0.02, "pad_token_id": 0, "attention_probs_dropout_prob": 0.0,
        });
        Maker {
            config,
            tensors,
            pooling: None,
            normalize: false,
            listed: true,
            prompts: None,
            dtype: Dtype::F32,
            tokenizer: word_pieces(),
            files: Vec::new(),
            shards: 0,
        }
    }

    pub fn write(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, value: &Value| std::fs::write(dir.path().join(name), value.to_string()).unwrap();
        put("config.json", &self.config);
        put("tokenizer.json", &self.tokenizer);
        if self.listed {
            let module =
                |kind: &str, path: &str| json!({"type": format!("sentence_transformers.models.{kind}"), "path": path});
            let mut modules = vec![module("Transformer", ""), module("Pooling", "1_Pooling")];
            if self.normalize {
                modules.push(module("Normalize", "2_Normalize"));
            }
            put("modules.json", &Value::Array(modules));
            let mean = json!({"pooling_mode_mean_tokens": true});
            std::fs::create_dir(dir.path().join("1_Pooling")).unwrap();
            put("1_Pooling/config.json", self.pooling.as_ref().unwrap_or(&mean));
        }
        if let Some(prompts) = &self.prompts {
            put("config_sentence_transformers.json", &json!({ "prompts": prompts }));
        }
        for (name, content) in &self.files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        if self.shards == 0 {
            std::fs::write(dir.path().join("model.safetensors"), self.weights(|_| true)).unwrap();
            return dir;
        }
        let shard_of: BTreeMap<&str, usize> = self
            .tensors
            .keys()
            .enumerate()
            .map(|(i, name)| (name.as_str(), i % self.shards))
            .collect();
        let file = |shard: usize| format!("model-{:05}-of-{:05}.safetensors", shard + 1, self.shards);
        for shard in 0..self.shards {
            std::fs::write(
                dir.path().join(file(shard)),
                self.weights(|name| shard_of[name] == shard),
            )
            .unwrap();
        }
        let map: serde_json::Map<String, Value> = shard_of
            .iter()
            .map(|(name, shard)| (name.to_string(), json!(file(*shard))))
            .collect();
        put(
            "model.safetensors.index.json",
            &json!({"metadata": {"total_size": 0}, "weight_map": map}),
        );
        dir
    }

    pub fn weights(&self, wanted: impl Fn(&str) -> bool) -> Vec<u8> {
        let tensors = self.tensors.iter().filter(|(name, _)| wanted(name));
        let bytes: Vec<(&str, &[usize], Vec<u8>)> = tensors
            .map(|(name, (shape, numbers))| {
                let bytes = numbers.iter().flat_map(|number| match self.dtype {
                    Dtype::F16 => f16::from_f32(*number).to_le_bytes().to_vec(),
                    Dtype::BF16 => bf16::from_f32(*number).to_le_bytes().to_vec(),
                    _ => number.to_le_bytes().to_vec(),
                });
                (name.as_str(), shape.as_slice(), bytes.collect())
            })
            .collect();
        let views = bytes
            .iter()
            .map(|(name, shape, bytes)| (*name, TensorView::new(self.dtype, shape.to_vec(), bytes).unwrap()));
        safetensors::serialize(views, None).unwrap()
    }
}

/// The tokenizer of the BERT: twelve words.
fn word_pieces() -> Value {
    let words = [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "query", ":", "red", "green", "blue", "##s", "passage", "a",
    ];
    let vocabulary: serde_json::Map<String, Value> = words
        .iter()
        .enumerate()
        .map(|(id, word)| (word.to_string(), json!(id)))
        .collect();
    let special: Vec<Value> = (0..4)
        .map(|id| {
            json!({"id": id, "content": words[id], "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false})
        })
        .collect();
    let piece = |id: usize| json!({"SpecialToken": {"id": words[id], "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let known = |id: usize| json!({"id": words[id], "ids": [id], "tokens": [words[id]]});
    json!({
            "version": "1.0", "added_tokens": special,
            "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
            "padding": {"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                "pad_type_id": 0, "pad_token": "[PAD]"},
            "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                "strip_accents": null, "lowercase": true},
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": {"type": "TemplateProcessing", "single": [piece(2), text, piece(3)], "pair": [],
                "special_tokens": {"[CLS]": known(2), "[SEP]": known(3)}},
            "decoder": null,
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": vocabulary},
    })
}
