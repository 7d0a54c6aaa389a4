//! Small random XLM-RoBERTa, ModernBERT, Qwen3 and Mistral directories in the published layout, with their kinds of tokenizer.

use super::maker::{Maker, Random};
use safetensors::Dtype;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Shapes of a small decoder.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub hidden: usize,
    pub heads: usize,
    pub key_heads: usize,
    pub width: usize,
    pub intermediate: usize,
    pub layers: usize,
}

impl Sizes {
    pub const SMALL: Sizes = Sizes {
        hidden: 48,
        heads: 4,
        key_heads: 2,
        width: 16,
        intermediate: 72,
        layers: 3,
    };
}

/// Words of the small XLM-RoBERTa, pieces of sentencepiece kind with their scores.
pub const PIECES: [&str; 24] = [
    "<s>",
    "<pad>",
    "</s>",
    "<unk>",
    ",",
    "▁",
    "▁red",
    "▁green",
    "s",
    "<",
    "/",
    ">",
    "/s",
    "▁query",
    ":",
    "▁passage",
    "e",
    "▁<",
    "a",
    "▁a",
    "p",
    "ad",
    "u",
    "nk",
];
/// Its last id, `<mask>`.
pub const MASK: usize = PIECES.len();

fn maker(config: Value, tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>, tokenizer: Value) -> Maker {
    Maker {
        config,
        tensors,
        pooling: None,
        normalize: false,
        listed: true,
        prompts: None,
        dtype: Dtype::F32,
        tokenizer,
        files: Vec::new(),
        shards: 0,
    }
}

fn added(id: usize, content: &str) -> Value {
    json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false})
}

/// A template around a text: special tokens before and after it.
fn template(before: &[(&str, usize)], after: &[(&str, usize)]) -> Value {
    let piece = |(name, _): &(&str, usize)| json!({"SpecialToken": {"id": name, "type_id": 0}});
    let mut single: Vec<Value> = before.iter().map(piece).collect();
    single.push(json!({"Sequence": {"id": "A", "type_id": 0}}));
    single.extend(after.iter().map(piece));
    let known: serde_json::Map<String, Value> = before
        .iter()
        .chain(after)
        .map(|(name, id)| (name.to_string(), json!({"id": name, "ids": [id], "tokens": [name]})))
        .collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": known})
}

/// XLM-RoBERTa: two positions are lost to the padding's, one token type, sentencepiece tokenizer.
pub fn xlm_roberta(positions: usize) -> Maker {
    let (hidden, wide, vocabulary) = (24, 40, MASK + 1);
    let mut tensors = BTreeMap::new();
    let mut random = Random(11);
    let mut add = |name: String, shape: Vec<usize>| {
        let around = if name.ends_with("LayerNorm.weight") { 1.0 } else { 0.0 };
        let numbers = random.numbers(shape.iter().product(), around, 0.5);
        tensors.insert(format!("roberta.{name}"), (shape, numbers));
    };
    add("embeddings.word_embeddings.weight".into(), vec![vocabulary, hidden]);
    add("embeddings.position_embeddings.weight".into(), vec![positions, hidden]);
    add("embeddings.token_type_embeddings.weight".into(), vec![1, hidden]);
    let mut pair = |place: &str, outputs: usize, inputs: Option<usize>| {
        let shape = inputs.map_or(vec![outputs], |inputs| vec![outputs, inputs]);
        add(format!("{place}.weight"), shape);
        add(format!("{place}.bias"), vec![outputs]);
    };
    pair("embeddings.LayerNorm", hidden, None);
    for layer in 0..2 {
        let layer = format!("encoder.layer.{layer}");
        for part in ["query", "key", "value"] {
            pair(&format!("{layer}.attention.self.{part}"), hidden, Some(hidden));
        }
        pair(&format!("{layer}.attention.output.dense"), hidden, Some(hidden));
        pair(&format!("{layer}.attention.output.LayerNorm"), hidden, None);
        pair(&format!("{layer}.intermediate.dense"), wide, Some(hidden));
        pair(&format!("{layer}.output.dense"), hidden, Some(wide));
        pair(&format!("{layer}.output.LayerNorm"), hidden, None);
    }
    let config = json!({
        "architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta", "hidden_size": hidden,
        "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": wide, "vocab_size": vocabulary,
        "max_position_embeddings": positions, "type_vocab_size": 1, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
        "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "position_embedding_type": "absolute",
        "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "output_past": true, "use_cache": true,
    });
    let mut pieces: Vec<Value> = PIECES
        .iter()
        .enumerate()
        .map(|(id, piece)| json!([piece, if id < 4 { 0.0 } else { -3.0 - id as f64 / 10.0 }]))
        .collect();
    pieces.push(json!(["<mask>", 0.0]));
    let mut special: Vec<Value> = (0..4).map(|id| added(id, PIECES[id])).collect();
    special.push(added(MASK, "<mask>"));
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": special, "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "WhitespaceSplit"},
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}]},
        "post_processor": template(&[("<s>", 0)], &[("</s>", 2)]), "decoder": null,
        "model": {"type": "Unigram", "unk_id": 3, "vocab": pieces, "byte_fallback": false},
    });
    maker(config, tensors, tokenizer)
}

/// ModernBERT: full attention on every third layer, a window of 8 on each side on the others; twelve words.
pub fn modern_bert() -> Maker {
    let (hidden, wide, layers, vocabulary) = (32, 40, 5, 12);
    let mut tensors = BTreeMap::new();
    let mut random = Random(31);
    let mut add = |name: String, shape: &[usize]| {
        let around = if name.contains("norm") { 1.0 } else { 0.0 };
        let range = if shape.len() == 1 { 0.5 } else { 0.25 };
        let numbers = random.numbers(shape.iter().product(), around, range);
        tensors.insert(format!("model.{name}.weight"), (shape.to_vec(), numbers));
    };
    add("embeddings.tok_embeddings".into(), &[vocabulary, hidden]);
    add("embeddings.norm".into(), &[hidden]);
    add("final_norm".into(), &[hidden]);
    for layer in 0..layers {
        if layer > 0 {
            add(format!("layers.{layer}.attn_norm"), &[hidden]);
        }
        add(format!("layers.{layer}.attn.Wqkv"), &[3 * hidden, hidden]);
        add(format!("layers.{layer}.attn.Wo"), &[hidden, hidden]);
        add(format!("layers.{layer}.mlp_norm"), &[hidden]);
        add(format!("layers.{layer}.mlp.Wi"), &[2 * wide, hidden]);
        add(format!("layers.{layer}.mlp.Wo"), &[hidden, wide]);
    }
    let mut maker = Maker::new();
    maker.tensors = tensors;
    maker.config = json!({
        "architectures": ["ModernBertModel"], "model_type": "modernbert", "attention_bias": false,
        "attention_dropout": 0.0, "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0,
        "hidden_activation": "gelu", "hidden_size": hidden, "intermediate_size": wide, "layer_norm_eps": 1e-5,
        "local_attention": 16, "local_rope_theta": 10000.0, "max_position_embeddings": 8192, "mlp_bias": false,
        "norm_bias": false, "norm_eps": 1e-5, "num_attention_heads": 2, "num_hidden_layers": layers,
        "pad_token_id": 0, "position_embedding_type": "absolute", "vocab_size": vocabulary,
    });
    maker
}

/// Tensors of a decoder, named without prefix.
fn decoder_tensors(sizes: Sizes, vocabulary: usize, head_norms: bool) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let Sizes {
        hidden,
        heads,
        key_heads,
        width,
        intermediate,
        layers,
    } = sizes;
    let mut tensors = BTreeMap::new();
    let mut random = Random(23);
    let mut add = |name: String, shape: &[usize]| {
        let around = if name.contains("norm") { 1.0 } else { 0.0 };
        let numbers = random.numbers(
            shape.iter().product(),
            around,
            if shape.len() == 1 { 0.5 } else { 0.25 },
        );
        tensors.insert(name, (shape.to_vec(), numbers));
    };
    add("embed_tokens.weight".into(), &[vocabulary, hidden]);
    add("norm.weight".into(), &[hidden]);
    for layer in 0..layers {
        let layer = format!("layers.{layer}");
        add(format!("{layer}.input_layernorm.weight"), &[hidden]);
        add(format!("{layer}.post_attention_layernorm.weight"), &[hidden]);
        add(format!("{layer}.self_attn.q_proj.weight"), &[heads * width, hidden]);
        add(format!("{layer}.self_attn.k_proj.weight"), &[key_heads * width, hidden]);
        add(format!("{layer}.self_attn.v_proj.weight"), &[key_heads * width, hidden]);
        add(format!("{layer}.self_attn.o_proj.weight"), &[hidden, heads * width]);
        if head_norms {
            add(format!("{layer}.self_attn.q_norm.weight"), &[width]);
            add(format!("{layer}.self_attn.k_norm.weight"), &[width]);
        }
        add(format!("{layer}.mlp.gate_proj.weight"), &[intermediate, hidden]);
        add(format!("{layer}.mlp.up_proj.weight"), &[intermediate, hidden]);
        add(format!("{layer}.mlp.down_proj.weight"), &[hidden, intermediate]);
    }
    tensors
}

/// Characters that stand for the 256 bytes in byte-level vocabularies.
pub fn byte_characters() -> Vec<char> {
    let plain = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut beyond = 256..;
    let mut character = |byte: u32| if plain(byte) { byte } else { beyond.next().unwrap() };
    (0..256).map(|byte| char::from_u32(character(byte)).unwrap()).collect()
}

/// `<|endoftext|>` of the small Qwen3; `:h` is its last ordinary token.
pub const END: u32 = 258;
pub const COLON_H: u32 = 257;
pub const QWEN3_VOCABULARY: usize = 264;

/// Qwen3-Embedding: normalised heads, byte-level tokenizer that puts `<|endoftext|>` behind a text, last-token pooling.
pub fn qwen3(sizes: Sizes) -> Maker {
    let tensors = decoder_tensors(sizes, QWEN3_VOCABULARY, true);
    let config = json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151643, "head_dim": sizes.width, "hidden_act": "silu",
        "hidden_size": sizes.hidden, "intermediate_size": sizes.intermediate, "max_position_embeddings": 32768,
        "max_window_layers": sizes.layers, "num_attention_heads": sizes.heads, "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.key_heads, "rms_norm_eps": 1e-6, "rope_scaling": null, "rope_theta": 1000000,
        "sliding_window": null, "tie_word_embeddings": true, "use_cache": true, "use_sliding_window": false,
        "vocab_size": QWEN3_VOCABULARY, "torch_dtype": "bfloat16",
    });
    let mut vocabulary: serde_json::Map<String, Value> = byte_characters()
        .iter()
        .enumerate()
        .map(|(id, c)| (c.to_string(), json!(id)))
        .collect();
    vocabulary.insert("Ġt".into(), json!(256));
    vocabulary.insert(":h".into(), json!(COLON_H));
    let pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(258, "<|endoftext|>"), added(259, "<|im_start|>"), added(260, "<|im_end|>")],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}, byte_level]},
        "post_processor": {"type": "Sequence", "processors": [
            byte_level, template(&[], &[("<|endoftext|>", END as usize)])]},
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": [["Ġ", "t"], [":", "h"]]},
    });
    let mut maker = maker(config, tensors, tokenizer);
    maker.pooling = Some(
        json!({"word_embedding_dimension": sizes.hidden, "pooling_mode_cls_token": false,
        "pooling_mode_mean_tokens": false, "pooling_mode_max_tokens": false, "pooling_mode_mean_sqrt_len_tokens": false,
        "pooling_mode_weightedmean_tokens": false, "pooling_mode_lasttoken": true, "include_prompt": true}),
    );
    maker.normalize = true;
    maker.prompts = Some(
        json!({"document": "", "query": "Instruct: Given a web search query, retrieve relevant \
        passages that answer the query\nQuery:"}),
    );
    maker
}

/// e5-mistral: names with `model.` and a language model's head, a sentencepiece tokenizer of merges whose end token comes
/// from tokenizer_config.json, several prompts.
pub fn mistral(sizes: Sizes) -> Maker {
    let characters: Vec<char> = "▁abcdefghijklmnopqrstuvwxyzIQG:<>/".chars().collect();
    let mut words = vec!["<unk>".to_string(), "<s>".into(), "</s>".into()];
    words.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    words.extend(characters.iter().map(char::to_string));
    words.push("▁a".into());
    let vocabulary: serde_json::Map<String, Value> = words
        .iter()
        .enumerate()
        .map(|(id, word)| (word.clone(), json!(id)))
        .collect();
    let count = words.len();
    let mut tensors: BTreeMap<_, _> = decoder_tensors(sizes, count, false)
        .into_iter()
        .map(|(name, tensor)| (format!("model.{name}"), tensor))
        .collect();
    // Its first rows pass the states on, so that a language model's numbers are the states of the last token.
    let head = (0..count * sizes.hidden)
        .map(|at| f32::from(at / sizes.hidden == at % sizes.hidden))
        .collect();
    tensors.insert("lm_head.weight".into(), (vec![count, sizes.hidden], head));
    let config = json!({
        "architectures": ["MistralModel"], "model_type": "mistral", "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": sizes.hidden, "head_dim": sizes.width,
        "intermediate_size": sizes.intermediate, "max_position_embeddings": 32768,
        "num_attention_heads": sizes.heads, "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.key_heads, "pad_token_id": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "sliding_window": 4096, "tie_word_embeddings": false, "use_cache": false, "vocab_size": count,
    });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "post_processor": template(&[("<s>", 1)], &[]), "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocabulary,
            "merges": [["▁", "a"]]},
    });
    let mut maker = maker(config, tensors, tokenizer);
    maker.pooling = Some(json!({"pooling_mode_lasttoken": true, "pooling_mode_mean_tokens": false}));
    maker.normalize = true;
    maker.prompts =
        Some(json!({"web_search_query": "Instruct: find a page\nQuery: ", "sts_query": "Instruct: x\nQuery: "}));
    let special = json!({"add_bos_token": true, "add_eos_token": true, "eos_token": "</s>", "bos_token": "<s>"});
    maker
        .files
        .push(("tokenizer_config.json", special.to_string().into_bytes()));
    maker
}
