//! Tokens of the families: special tokens around a text and never from it, prefixes, long texts, limits.

use super::families::{COLON_H, END, MASK, PIECES, Sizes, mistral, qwen3, xlm_roberta};
use super::maker::Maker;
use crate::model::cut::piece_end;
use crate::model::{Encoder, Family, Manifest, ModelError, PIECE_BYTES, Pooling, Role, stop};
use serde_json::json;
use std::cell::Cell;
use std::rc::Rc;

fn encoder(maker: &Maker) -> Encoder {
    Encoder::open(maker.write().path()).unwrap()
}

fn piece(name: &str) -> u32 {
    PIECES.iter().position(|piece| *piece == name).unwrap() as u32
}

fn pieces(names: &[&str]) -> Vec<u32> {
    names.iter().map(|name| piece(name)).collect()
}

/// Bytes of a text as the small Qwen3's tokens.
fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

#[test]
fn manifests_say_what_the_files_say() {
    let read = |maker: &Maker| Manifest::read(maker.write().path()).unwrap();
    let mut maker = xlm_roberta(514);
    maker.prompts = Some(json!({"query": "query: ", "passage": "passage: "}));
    maker
        .files
        .push(("sentence_bert_config.json", br#"{"max_seq_length": 8192}"#.to_vec()));
    let found = read(&maker);
    assert_eq!(
        (found.family, found.pooling, found.normalize),
        (Family::XlmRoberta, Pooling::Mean, false)
    );
    assert_eq!((found.dimensions, found.max_tokens, found.token_types), (24, 512, 1));
    assert_eq!(
        (found.query_prefix.as_str(), found.passage_prefix.as_str()),
        ("query: ", "passage: ")
    );
    assert_eq!(serde_json::to_value(found.family).unwrap(), json!("xlm_roberta"));
    let found = read(&qwen3(Sizes::SMALL));
    assert_eq!(
        (found.family, found.pooling, found.normalize),
        (Family::Qwen3, Pooling::Last, true)
    );
    assert_eq!((found.dimensions, found.max_tokens, found.window), (48, 32_768, None));
    assert_eq!(
        (found.heads, found.key_heads, found.head_width, found.rope_base),
        (4, 2, 16, 1e6)
    );
    assert!(found.query_prefix.ends_with("\nQuery:") && found.passage_prefix.is_empty());
    assert_eq!(serde_json::to_value(found.pooling).unwrap(), json!("last"));
    let mut maker = mistral(Sizes::SMALL);
    maker
        .files
        .push(("sentence_bert_config.json", br#"{"max_seq_length": 4096}"#.to_vec()));
    let found = read(&maker);
    assert_eq!(
        (found.family, found.max_tokens, found.window),
        (Family::Mistral, 4096, Some(4096))
    );
    assert_eq!(found.query_prefix, "Instruct: find a page\nQuery: ");
    assert_eq!(found.passage_prefix, "");
    // The names of newer files.
    let mut newer = qwen3(Sizes::SMALL);
    newer.config.as_object_mut().unwrap().remove("rope_theta");
    newer.config["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 5e5});
    newer.config["layer_types"] = json!(vec!["full_attention"; 3]);
    newer.pooling = Some(json!({"pooling_mode": "lasttoken"}));
    let found = read(&newer);
    assert_eq!((found.rope_base, found.pooling), (5e5, Pooling::Last));
    // Without any file of sentence-transformers a decoder reads its last token.
    newer.listed = false;
    assert_eq!(read(&newer).pooling, Pooling::Last);
    newer.prompts = Some(json!({"task": "do: "}));
    assert_eq!(read(&newer).query_prefix, "");
    let prompts = json!({"prompts": {"task": "do: "}, "default_prompt_name": "task"}).to_string();
    newer.prompts = None;
    newer
        .files
        .push(("config_sentence_transformers.json", prompts.into_bytes()));
    assert_eq!(
        (read(&newer).query_prefix.as_str(), read(&newer).passage_prefix.as_str()),
        ("do: ", "do: ")
    );
}

#[test]
fn xlm_roberta_spells_special_tokens_of_a_text() {
    let mut maker = xlm_roberta(514);
    maker.prompts = Some(json!({"query": "query: ", "passage": "passage: "}));
    let encoder = encoder(&maker);
    let text = encoder.text(Role::Plain, "red greens").unwrap();
    assert_eq!(text.ids, pieces(&["<s>", "▁red", "▁green", "s", "</s>"]));
    assert_eq!(
        encoder.text(Role::Query, "red").unwrap().ids,
        pieces(&["<s>", "▁query", ":", "▁red", "</s>"])
    );
    assert_eq!(
        encoder.text(Role::Passage, "red").unwrap().ids,
        pieces(&["<s>", "▁passage", ":", "▁red", "</s>"])
    );
    assert_eq!(
        encoder.assemble(Role::Passage, &[6]).unwrap().0,
        encoder.text(Role::Passage, "red").unwrap()
    );
    assert_eq!(encoder.room(Role::Passage), 512 - 4);
    // The scores of special tokens would make them the best way to cut this.
    let tokens = encoder.tokenize("red</s> <pad>").unwrap();
    assert_eq!(tokens.ids, pieces(&["▁red", "<", "/s", ">", "▁", "<", "p", "ad", ">"]));
    let of: Vec<&str> = tokens
        .spans
        .iter()
        .map(|span| span.of("red</s> <pad>").unwrap())
        .collect();
    assert_eq!(of, ["red", "<", "/s", ">", "<", "<", "p", "ad", ">"]);
    for text in ["<s>", "</s>", "<pad>x", "a<mask>b", "</s></s>", "<s> <mask>"] {
        let tokens = encoder.tokenize(text).unwrap();
        let special = |id: &u32| [0, 1, 2, MASK as u32].contains(id);
        assert!(
            tokens.ids.len() >= 3 && !tokens.ids.iter().any(special),
            "{text}: {:?}",
            tokens.ids
        );
        assert!(tokens.spans.windows(2).all(|pair| pair[0].start <= pair[1].start));
    }
    let long = encoder.text(Role::Query, &"red ".repeat(2000)).unwrap();
    assert_eq!((long.ids.len(), long.ids[511]), (512, 2));
}

#[test]
fn qwen3_ends_every_text_and_joins_queries_to_their_instruction() {
    let encoder = encoder(&qwen3(Sizes::SMALL));
    let end = |mut ids: Vec<u32>| {
        ids.push(END);
        ids
    };
    let plain: Vec<u32> = vocabulary_ids("red tea");
    assert_eq!(encoder.text(Role::Passage, "red tea").unwrap().ids, end(plain.clone()));
    assert_eq!(encoder.assemble(Role::Passage, &plain).unwrap().0.ids, end(plain));
    // "Query:" and "how" meet in the token ":h", as they do when the template is written out first.
    let query = encoder.text(Role::Query, "how").unwrap().ids;
    let whole = format!("{}how", encoder.manifest().query_prefix);
    assert_eq!(query, end(encoder.tokenize(&whole).unwrap().ids));
    assert!(query.contains(&COLON_H));
    // Special tokens of a text are spelt, the end token comes from the tokenizer alone.
    for text in ["<|endoftext|>", "a<|im_start|>b", "<|im_end|><|endoftext|>"] {
        let tokens = encoder.tokenize(text).unwrap();
        assert_eq!(tokens.ids, vocabulary_ids(text), "{text}");
        assert_eq!(
            encoder
                .text(Role::Passage, text)
                .unwrap()
                .ids
                .iter()
                .filter(|id| **id == END)
                .count(),
            1
        );
    }
    let long = encoder.text(Role::Passage, &"red tea ".repeat(20_000)).unwrap();
    assert_eq!((long.ids.len(), long.ids[32_767]), (32_768, END));
    let (pieces, start) = encoder.assemble(Role::Passage, &vec![65; 40_000]).unwrap();
    assert_eq!((pieces.ids.len(), pieces.ids[32_767], start), (32_768, END, 0));
    assert_eq!(encoder.room(Role::Passage), 32_767);
    assert_eq!(encoder.text(Role::Passage, "").unwrap().ids, [END]);
}

/// Ids of ASCII text in the small Qwen3: a byte a token but for its two merges.
fn vocabulary_ids(text: &str) -> Vec<u32> {
    // Printable ASCII stands for itself; ids are the bytes' own.
    let mut ids = bytes(text);
    let mut at = 0;
    while at + 1 < ids.len() {
        match (ids[at], ids[at + 1]) {
            (b, t) if b == u32::from(b' ') && t == u32::from(b't') => drop(ids.splice(at..at + 2, [256])),
            _ => at += 1,
        }
    }
    ids
}

#[test]
fn mistral_takes_its_end_token_from_the_tokenizers_configuration() {
    let encoder = encoder(&mistral(Sizes::SMALL));
    let text = encoder.text(Role::Passage, "a b").unwrap().ids;
    assert_eq!((text[0], text[text.len() - 1]), (1, 2));
    assert_eq!(text.len(), 5);
    let query = encoder.text(Role::Query, "b a").unwrap().ids;
    let (assembled, start) = encoder
        .assemble(Role::Query, &encoder.tokenize("b a").unwrap().ids)
        .unwrap();
    assert_eq!(query, assembled.ids);
    assert_eq!(encoder.room(Role::Query) + start + 1, encoder.manifest().max_tokens);
    assert!(
        !encoder
            .tokenize("</s><s><unk><0x0A>")
            .unwrap()
            .ids
            .iter()
            .any(|id| *id < 3)
    );
    let mut without = mistral(Sizes::SMALL);
    without.files.clear();
    assert_eq!(
        self::encoder(&without).text(Role::Passage, "a").unwrap().ids.last(),
        text.get(1)
    );
    let mut unknown = mistral(Sizes::SMALL);
    unknown.files = vec![(
        "tokenizer_config.json",
        br#"{"add_eos_token": true, "eos_token": "<end>"}"#.to_vec(),
    )];
    let error = Encoder::open(unknown.write().path()).err().expect("must fail");
    assert!(
        matches!(&error, ModelError::Tokenizer(what) if what.contains("<end>")),
        "{error}"
    );
    // What the end token is decides the vectors, so it is part of the content.
    let print = |maker: &Maker| Manifest::read(maker.write().path()).unwrap().fingerprint;
    assert_ne!(print(&without), print(&mistral(Sizes::SMALL)));
}

#[test]
fn long_texts_have_the_tokens_of_their_words() {
    let text = "one two three ab\n".repeat(12_000) + "end";
    for maker in [xlm_roberta(514), qwen3(Sizes::SMALL), mistral(Sizes::SMALL)] {
        let dir = maker.write();
        let encoder = Encoder::open(dir.path()).unwrap();
        let inner = tokenizers::Tokenizer::from_file(dir.path().join("tokenizer.json")).unwrap();
        let whole = inner.encode(text.as_str(), false).unwrap();
        let tokens = encoder.tokenize(&text).unwrap();
        assert!(tokens.ids == whole.get_ids(), "{:?}", encoder.manifest().family);
        // Spans lie on the words, without the space that a vocabulary joins them with.
        for (span, (from, to)) in tokens.spans.iter().zip(whole.get_offsets()).skip(1) {
            let word = text[*from..*to].trim_start();
            if !word.is_empty() {
                assert_eq!((span.start as usize, span.end as usize), (to - word.len(), *to));
            }
        }
    }
}

#[test]
fn configurations_that_are_not_supported_are_named() {
    type Bend = fn(&mut serde_json::Value);
    let cases: [(Bend, &str); 9] = [
        (
            |config| config["use_sliding_window"] = json!(true),
            "use_sliding_window",
        ),
        (
            |config| config["layer_types"] = json!(["full_attention", "full_attention", "sliding_attention"]),
            "sliding_attention",
        ),
        (
            |config| config["rope_scaling"] = json!({"rope_type": "yarn", "factor": 4.0}),
            "yarn",
        ),
        (|config| config["rope_scaling"] = json!({"type": "linear"}), "linear"),
        (
            |config| config["rope_parameters"] = json!({"rope_type": "llama3"}),
            "llama3",
        ),
        (|config| config["hidden_act"] = json!("gelu"), "gelu"),
        (|config| config["is_causal"] = json!(false), "is_causal"),
        (
            |config| config["quantization_config"] = json!({"quant_method": "awq"}),
            "awq",
        ),
        (|config| config["model_type"] = json!("qwen2"), "qwen2"),
    ];
    for (bend, named) in cases {
        let mut maker = qwen3(Sizes::SMALL);
        bend(&mut maker.config);
        let error = Manifest::read(maker.write().path()).expect_err("must fail");
        assert!(
            matches!(&error, ModelError::Unsupported { found, .. } if found.contains(named)),
            "{named}: {error}"
        );
    }
    let cases: [(Bend, &str); 7] = [
        (|config| config["num_key_value_heads"] = json!(3), "num_key_value_heads"),
        (
            |config| drop(config.as_object_mut().unwrap().remove("num_key_value_heads")),
            "num_key_value_heads",
        ),
        (|config| config["head_dim"] = json!(15), "15"),
        (|config| config["head_dim"] = json!(-4), "head_dim"),
        (|config| config["rope_theta"] = json!("x"), "rope_theta"),
        (|config| config["rope_theta"] = json!(0), "rope_theta"),
        (|config| config["rms_norm_eps"] = json!([]), "rms_norm_eps"),
    ];
    for (bend, named) in cases {
        let mut maker = qwen3(Sizes::SMALL);
        bend(&mut maker.config);
        let error = Manifest::read(maker.write().path()).expect_err("must fail");
        assert!(
            matches!(&error, ModelError::Invalid { what, .. } if what.contains(named)),
            "{named}: {error}"
        );
    }
    let mut maker = xlm_roberta(2);
    assert!(matches!(
        Manifest::read(maker.write().path()),
        Err(ModelError::Invalid { .. })
    ));
    maker.config["pad_token_id"] = json!("x");
    assert!(matches!(
        Manifest::read(maker.write().path()),
        Err(ModelError::Invalid { .. })
    ));
    let mut maker = xlm_roberta(60);
    maker.pooling = Some(json!({"pooling_mode_mean_tokens": true, "include_prompt": false}));
    assert!(Manifest::read(maker.write().path()).is_ok());
    maker.prompts = Some(json!({"query": "query: "}));
    let error = Manifest::read(maker.write().path()).expect_err("must fail");
    assert!(
        matches!(
            error,
            ModelError::Unsupported {
                what: "pooling option",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn weights_of_decoders_that_do_not_fit_are_named() {
    let error = |maker: &Maker| Manifest::read(maker.write().path()).expect_err("must fail");
    for name in [
        "layers.2.self_attn.q_norm.weight",
        "norm.weight",
        "embed_tokens.weight",
        "layers.0.mlp.up_proj.weight",
    ] {
        let mut maker = qwen3(Sizes::SMALL);
        maker.tensors.remove(name);
        let error = error(&maker);
        assert!(
            matches!(&error, ModelError::MissingTensor(found) if found == name),
            "{error}"
        );
    }
    let mut maker = qwen3(Sizes::SMALL);
    maker.config["head_dim"] = json!(12);
    let found = error(&maker);
    let named = |name: &str| name == "layers.0.self_attn.q_proj.weight";
    assert!(
        matches!(&found, ModelError::TensorShape { name, .. } if named(name)),
        "{found}"
    );
    let mut maker = xlm_roberta(60);
    maker.config["max_position_embeddings"] = json!(61);
    let found = error(&maker);
    let named = |name: &str| name == "roberta.embeddings.position_embeddings.weight";
    assert!(
        matches!(&found, ModelError::TensorShape { name, .. } if named(name)),
        "{found}"
    );
    let mut maker = mistral(Sizes::SMALL);
    maker.tensors.get_mut("model.layers.1.mlp.down_proj.weight").unwrap().1[7] = f32::NAN;
    let found = Encoder::open(maker.write().path()).err().expect("must fail");
    assert!(
        matches!(&found, ModelError::NotFinite(name) if name.contains("layers.1.mlp.down_proj")),
        "{found}"
    );
}

#[test]
fn long_texts_are_read_in_parts_with_the_same_tokens() {
    let texts = [
        "red tea ".repeat(20_000),
        "red\n\ntea, ".repeat(10_000),
        "x".repeat(100_000),
    ];
    for maker in [xlm_roberta(514), qwen3(Sizes::SMALL), mistral(Sizes::SMALL)] {
        let encoder = encoder(&maker);
        for text in &texts {
            let whole = encoder.tokenize(text).unwrap().ids;
            let mut parts = Vec::new();
            let (mut start, mut count) = (0, 0);
            while start < text.len() {
                let end = piece_end(text, start, PIECE_BYTES);
                let part = &text[start..end];
                parts.extend(match start {
                    0 => encoder.tokenize(part).unwrap().ids,
                    _ => encoder.tokenize_behind(part).unwrap().ids,
                });
                (start, count) = (end, count + 1);
            }
            assert!(count > 2 && parts == whole, "{count} parts of {}", &text[..12]);
        }
    }
}

#[test]
fn a_word_without_an_end_is_read_in_pieces_and_can_be_stopped() {
    let encoder = encoder(&qwen3(Sizes::SMALL));
    let word = "x".repeat(1 << 20);
    let asked = Rc::new(Cell::new(0));
    let own = asked.clone();
    let stop = move || {
        own.set(own.get() + 1);
        own.get() > 5
    };
    let result = stop::until(stop, || encoder.tokenize(&word));
    assert!(matches!(result, Err(ModelError::Stopped)) && asked.get() == 6);
    let own = asked.clone();
    asked.set(0);
    let count = move || {
        own.set(own.get() + 1);
        false
    };
    let tokens = stop::until(count, || encoder.tokenize(&word)).unwrap();
    assert_eq!(tokens.ids.len(), 1 << 20, "a byte a token");
    assert!(asked.get() >= 32, "{} pieces", asked.get());
    // A sequence has a limit, and nothing behind it is looked at.
    asked.set(0);
    let own = asked.clone();
    let count = move || {
        own.set(own.get() + 1);
        false
    };
    let sequence = stop::until(count, || encoder.text(Role::Passage, &word)).unwrap();
    assert_eq!(sequence.ids.len(), 32_768);
    assert!(asked.get() <= 3, "{} pieces", asked.get());
}
