//! What published files say besides shapes: new fields of configurations, other names of a family, files that name others,
//! and options that change what a text is read as. Each is followed or refused by its name, never read as the default.

use super::families::{Sizes, mistral, modern_bert, qwen3, xlm_roberta};
use super::maker::{Maker, POSITIONS};
use crate::compute::Pool;
use crate::model::{Encoder, Family, Manifest, ModelError, Pooling, Role};
use serde_json::{Value, json};

type Bend = fn(&mut Value);

fn read(maker: &Maker) -> Manifest {
    Manifest::read(maker.write().path()).unwrap()
}

fn refused(maker: &Maker) -> ModelError {
    Manifest::read(maker.write().path()).expect_err("must fail")
}

fn refused_as_unsupported(maker: &Maker, named: &str) {
    let error = refused(maker);
    assert!(
        matches!(&error, ModelError::Unsupported { found, .. } if found.contains(named)),
        "{named}: {error}"
    );
}

fn refused_as_invalid(maker: &Maker, named: &str) {
    let error = refused(maker);
    assert!(
        matches!(&error, ModelError::Invalid { what, .. } if what.contains(named)),
        "{named}: {error}"
    );
}

fn vector(maker: &Maker, text: &str) -> Vec<f32> {
    let encoder = Encoder::open(maker.write().path()).unwrap();
    let sequence = encoder.text(Role::Plain, text).unwrap();
    let vectors = encoder.encode(&Pool::new(1).unwrap(), &[sequence]).unwrap();
    vectors.into_iter().next().unwrap()
}

fn change(maker: &mut Maker, fields: &Value) {
    for (name, value) in fields.as_object().unwrap() {
        maker.config[name] = value.clone();
    }
}

/// The small ModernBERT of five layers as the current library saves it.
fn new_modern_bert() -> Maker {
    let mut maker = modern_bert();
    let config = maker.config.as_object_mut().unwrap();
    for old in ["global_attn_every_n_layers", "global_rope_theta", "local_rope_theta"] {
        config.remove(old);
    }
    let (full, sliding) = ("full_attention", "sliding_attention");
    maker.config["layer_types"] = json!([full, sliding, sliding, full, sliding]);
    maker.config["rope_parameters"] = json!({
        full: {"rope_type": "default", "rope_theta": 160000.0},
        sliding: {"rope_type": "default", "rope_theta": 10000.0},
    });
    maker
}

#[test]
fn modern_bert_in_the_new_fields_is_that_in_the_old_ones() {
    let text = "red greens blue";
    let (mut old, mut new) = (modern_bert(), new_modern_bert());
    let (found, expected) = (read(&new), read(&old));
    assert_eq!((found.rope_base, found.window_rope_base), (160_000.0, Some(10_000.0)));
    assert_eq!((found.full_attention_every, found.window), (3, expected.window));
    assert_eq!(vector(&new, text), vector(&old, text));
    // Other numbers than the defaults, in both.
    let numbers = json!({"global_rope_theta": 500, "local_rope_theta": 300.0, "global_attn_every_n_layers": 2});
    change(&mut old, &numbers);
    let kinds = ["full_attention", "sliding_attention"];
    new.config["layer_types"] = (0..5).map(|layer| kinds[layer % 2]).collect();
    new.config["rope_parameters"]["full_attention"]["rope_theta"] = json!(500);
    new.config["rope_parameters"]["sliding_attention"]["rope_theta"] = json!(300.0);
    assert_eq!(vector(&new, text), vector(&old, text));
    assert_ne!(vector(&new, text), vector(&modern_bert(), text));
    // One full layer at the head; all layers full, where the other kind needs no base.
    new.config["layer_types"] = (0..5).map(|layer| kinds[layer.min(1)]).collect();
    assert_eq!(read(&new).full_attention_every, 5);
    new.config["layer_types"] = json!(vec!["full_attention"; 5]);
    new.config["rope_parameters"] = json!({"full_attention": {"rope_theta": 500}});
    assert_eq!(read(&new).full_attention_every, 1);
    // The window under the name of the class's property.
    let mut new = new_modern_bert();
    change(&mut new, &json!({"local_attention": null, "sliding_window": 8}));
    assert_eq!(read(&new).window, Some(8));
}

#[test]
fn new_fields_of_modern_bert_that_are_not_understood_are_refused() {
    let unsupported: [(Bend, &str); 9] = [
        (
            |config| config["rope_parameters"]["full_attention"]["rope_type"] = json!("yarn"),
            "yarn",
        ),
        (
            |config| config["rope_parameters"]["sliding_attention"]["rope_type"] = json!("linear"),
            "linear",
        ),
        (
            |config| config["rope_parameters"]["other"] = json!({"type": "dynamic", "factor": 2.0}),
            "dynamic",
        ),
        (
            |config| config["rope_scaling"] = json!({"rope_type": "yarn", "factor": 4.0}),
            "yarn",
        ),
        // The class reads no flat object, so nobody knows which base is meant.
        (
            |config| config["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 1e4}),
            "rope_",
        ),
        (
            |config| config["rope_parameters"]["full_attention"]["partial_rotary_factor"] = json!(0.5),
            "partial_rotary_factor",
        ),
        (
            |config| config["layer_types"][0] = json!("sliding_attention"),
            "sliding_attention as layer 0",
        ),
        (
            |config| config["layer_types"][2] = json!("chunked_attention"),
            "chunked_attention as layer 2",
        ),
        (
            |config| config["layer_types"][4] = json!("full_attention"),
            "full_attention as layer 4",
        ),
    ];
    for (bend, named) in unsupported {
        let mut maker = new_modern_bert();
        bend(&mut maker.config);
        refused_as_unsupported(&maker, named);
    }
    let invalid: [(Bend, &str); 7] = [
        // An object that says nothing would be filled with defaults.
        (|config| config["rope_parameters"] = json!({}), "full_attention"),
        (
            |config| {
                drop(
                    config["rope_parameters"]
                        .as_object_mut()
                        .unwrap()
                        .remove("sliding_attention"),
                )
            },
            "sliding_attention",
        ),
        (
            |config| config["rope_parameters"]["full_attention"]["rope_theta"] = json!("x"),
            "rope_theta",
        ),
        (|config| config["rope_parameters"] = json!([1]), "rope_parameters"),
        (
            |config| config["rope_parameters"]["full_attention"]["rope_type"] = json!(7),
            "rope_type",
        ),
        (
            |config| config["layer_types"] = json!(["full_attention"]),
            "layer_types",
        ),
        (|config| config["sliding_window"] = json!(7), "sliding_window"),
    ];
    for (bend, named) in invalid {
        let mut maker = new_modern_bert();
        bend(&mut maker.config);
        refused_as_invalid(&maker, named);
    }
}

#[test]
fn rotary_embeddings_of_decoders_are_never_read_as_the_default() {
    let nested = json!({"full_attention": {"rope_type": "default", "rope_theta": 1e6}});
    let yarn = json!({"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e6});
    for (fields, named) in [
        (json!({ "rope_parameters": nested }), "by kind of layer"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (
            json!({"rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 0.25}}),
            "partial_rotary_factor",
        ),
        (
            json!({"rope_scaling": {"rope_type": "default"}, "rope_parameters": yarn}),
            "yarn",
        ),
        (
            json!({"layer_types": ["sliding_attention", "full_attention", "full_attention"]}),
            "_attention",
        ),
    ] {
        for mut maker in [qwen3(Sizes::SMALL), mistral(Sizes::SMALL)] {
            change(&mut maker, &fields);
            refused_as_unsupported(&maker, named);
        }
    }
    for (fields, named) in [
        (json!({"rope_scaling": {"factor": 2.0}}), "rope_type"),
        (json!({"rope_theta": null, "rope_parameters": {}}), "rope_theta"),
    ] {
        let mut maker = qwen3(Sizes::SMALL);
        change(&mut maker, &fields);
        refused_as_invalid(&maker, named);
    }
    let mut maker = qwen3(Sizes::SMALL);
    maker.config["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 1.0});
    assert_eq!(read(&maker).rope_base, 5e5);
}

#[test]
fn camembert_is_roberta_under_another_name() {
    let (roberta, mut camembert) = (xlm_roberta(60), xlm_roberta(60));
    let named = json!({"model_type": "camembert", "architectures": ["CamembertModel"]});
    change(&mut camembert, &named);
    assert_eq!(read(&camembert).family, Family::XlmRoberta);
    assert_eq!(vector(&camembert, "red greens"), vector(&roberta, "red greens"));
    // Kindred names whose pass or tensors are others.
    for other in ["xlm-roberta-xl", "roberta-prelayernorm", "data2vec-text"] {
        camembert.config["model_type"] = json!(other);
        refused_as_unsupported(&camembert, other);
    }
}

#[test]
fn families_that_are_not_there_are_named() {
    for kind in [
        "mpnet",
        "distilbert",
        "albert",
        "nomic_bert",
        "gemma3_text",
        "xlm-roberta-xl",
        "model2vec",
        "electra",
    ] {
        let mut maker = Maker::new();
        maker.config["model_type"] = json!(kind);
        refused_as_unsupported(&maker, kind);
        assert!(refused(&maker).to_string().contains("supported: bert, xlm-roberta"));
    }
}

#[test]
fn a_pooling_that_is_named_is_there() {
    let mut maker = Maker::new();
    maker.pooling = Some(json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}));
    let dir = maker.write();
    assert_eq!(Manifest::read(dir.path()).unwrap().pooling, Pooling::Cls);
    std::fs::remove_dir_all(dir.path().join("1_Pooling")).unwrap();
    let error = Manifest::read(dir.path()).expect_err("must fail");
    assert!(
        matches!(&error, ModelError::Missing(path) if path.ends_with("1_Pooling/config.json")),
        "{error}"
    );
    // Without a list of modules there is nothing that names it.
    std::fs::remove_file(dir.path().join("modules.json")).unwrap();
    assert_eq!(Manifest::read(dir.path()).unwrap().pooling, Pooling::Mean);
    // The folder without a list is read all the same.
    let dir = maker.write();
    std::fs::remove_file(dir.path().join("modules.json")).unwrap();
    assert_eq!(Manifest::read(dir.path()).unwrap().pooling, Pooling::Cls);
}

#[test]
fn lists_of_modules_that_do_not_say_how_a_vector_is_made_are_refused() {
    let module = |kind: &str, path: &str| json!({"type": format!("sentence_transformers.models.{kind}"), "path": path});
    let (transformer, pooling) = (module("Transformer", ""), module("Pooling", "1_Pooling"));
    let normalize = module("Normalize", "2_Normalize");
    let mut maker = Maker::new();
    maker.pooling = Some(json!({"pooling_mode": "cls"}));
    let with = |list: Value| {
        let dir = maker.write();
        std::fs::write(dir.path().join("modules.json"), list.to_string()).unwrap();
        Manifest::read(dir.path())
    };
    let found = with(json!([transformer, pooling])).unwrap();
    assert_eq!(found.pooling, Pooling::Cls);
    for (list, named) in [
        (json!([transformer]), "no module Pooling"),
        (json!([transformer, normalize]), "no module Pooling"),
        (json!([transformer, pooling, pooling]), "two modules Pooling"),
        (json!({"0": "Transformer"}), "not a list"),
    ] {
        let error = with(list).expect_err("must fail");
        assert!(
            matches!(&error, ModelError::Invalid { what, .. } if what.contains(named)),
            "{named}: {error}"
        );
    }
    let error = with(json!([module("Transformer", "0_Transformer"), pooling])).expect_err("must fail");
    assert!(
        matches!(&error, ModelError::Unsupported { found, .. } if found == "0_Transformer"),
        "{error}"
    );
    maker.pooling = Some(json!({"pooling_mode_cls_token": false, "pooling_mode_mean_tokens": false}));
    refused_as_unsupported(&maker, "none");
}

/// The small BERT whose tokenizer keeps case, with a file of options of the encoder.
fn cased(file: &'static str, options: &Value) -> Maker {
    let mut maker = Maker::new();
    maker.tokenizer["normalizer"]["lowercase"] = json!(false);
    maker.files.push((file, options.to_string().into_bytes()));
    maker
}

const OPTIONS: &str = "sentence_bert_config.json";

#[test]
fn texts_are_read_in_lower_case_where_the_files_say_so() {
    let tokens = |maker: &Maker, text: &str| {
        let encoder = Encoder::open(maker.write().path()).unwrap();
        encoder.tokenize(text).unwrap()
    };
    let yes = json!({"max_seq_length": 32, "do_lower_case": true});
    let (kept, lower) = (cased(OPTIONS, &json!({"do_lower_case": false})), cased(OPTIONS, &yes));
    assert_eq!(tokens(&kept, "Red green").ids, [1, 7]);
    assert_eq!(tokens(&lower, "Red GREENS").ids, [6, 7, 9]);
    assert_ne!(vector(&kept, "Red"), vector(&kept, "red"));
    assert_eq!(vector(&lower, "Red"), vector(&lower, "red"));
    assert_eq!(read(&lower).max_tokens, 32);
    // The dotted capital has two bytes, and three in lower case; spans stay those of the text.
    let text = "İSTANBUL Red İİ GREENS";
    let found = tokens(&lower, text);
    let words: Vec<&str> = found.spans.iter().map(|span| span.of(text).unwrap()).collect();
    assert_eq!(words, ["İSTANBUL", "Red", "İİ", "GREEN", "S"]);
    assert_eq!(found.ids, [1, 6, 1, 7, 9]);
    // What is read before a text is in lower case with it.
    let mut prompted = cased(OPTIONS, &yes);
    prompted.prompts = Some(json!({"query": "Query : "}));
    let encoder = Encoder::open(prompted.write().path()).unwrap();
    assert_eq!(encoder.text(Role::Query, "RED").unwrap().ids, [2, 4, 5, 6, 3]);
    // A tokenizer without any such step, and one that does it itself.
    let mut pieces = xlm_roberta(60);
    pieces.files.push((OPTIONS, yes.to_string().into_bytes()));
    assert_eq!(tokens(&pieces, "RED GREEN").ids, tokens(&pieces, "red green").ids);
    let mut itself = cased(OPTIONS, &yes);
    itself.tokenizer["normalizer"] = json!({"type": "Sequence", "normalizers": [{"type": "Lowercase"}]});
    assert_eq!(tokens(&itself, "Red").ids, [6]);
}

#[test]
fn options_have_several_files_and_those_that_are_not_known_are_refused() {
    for file in [
        "sentence_roberta_config.json",
        "sentence_camembert_config.json",
        "sentence_xlm-roberta_config.json",
    ] {
        let [seven, eight] = [7, 8].map(|limit| read(&cased(file, &json!({ "max_seq_length": limit }))));
        assert_eq!((seven.max_tokens, eight.max_tokens), (7, 8), "{file}");
        assert_ne!(seven.fingerprint, eight.fingerprint);
    }
    for (options, named) in [
        (json!({"transformer_task": "fill-mask"}), "fill-mask"),
        (
            json!({"module_output_name": "sentence_embedding"}),
            "sentence_embedding",
        ),
        (json!({"config_args": {"num_hidden_layers": 1}}), "num_hidden_layers"),
        (json!({"tokenizer_args": {"do_lower_case": true}}), "do_lower_case"),
    ] {
        refused_as_unsupported(&cased(OPTIONS, &options), named);
    }
    refused_as_invalid(&cased(OPTIONS, &json!({"max_seq_length": "many"})), "max_seq_length");
    refused_as_invalid(&cased(OPTIONS, &json!({"do_lower_case": "yes"})), "do_lower_case");
    let harmless = json!({"transformer_task": "feature-extraction", "module_output_name": "token_embeddings",
        "max_seq_length": null, "config_args": {"trust_remote_code": true}, "model_args": {"dtype": "float16"}});
    assert_eq!(read(&cased(OPTIONS, &harmless)).max_tokens, POSITIONS);
    let mut sparse = Maker::new();
    let kind = br#"{"model_type": "SparseEncoder"}"#.to_vec();
    sparse.files.push(("config_sentence_transformers.json", kind));
    refused_as_unsupported(&sparse, "SparseEncoder");
}

#[test]
fn a_tokenizer_that_its_class_would_change_is_refused() {
    let open = |config: &Value| {
        let mut maker = Maker::new();
        let file = config.to_string().into_bytes();
        maker.files.push(("tokenizer_config.json", file));
        Encoder::open(maker.write().path()).map(drop)
    };
    for class in ["BertTokenizer", "BertTokenizerFast"] {
        let agreeing = json!({"tokenizer_class": class, "do_lower_case": true, "strip_accents": null});
        assert!(open(&agreeing).is_ok());
        for (field, value) in [
            ("do_lower_case", false),
            ("tokenize_chinese_chars", false),
            ("strip_accents", true),
        ] {
            let error = open(&json!({"tokenizer_class": class, field: value})).expect_err("must fail");
            assert!(
                matches!(&error, ModelError::Unsupported { found, .. } if found.contains(field)),
                "{error}"
            );
        }
    }
    // Another class does not read the field.
    assert!(open(&json!({"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": false})).is_ok());
}
