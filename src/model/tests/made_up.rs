//! Small random models: pooling, prefixes, name variants, number types, and every broken directory.

use super::maker::{HIDDEN, INTERMEDIATE, Maker, POSITIONS, VOCABULARY};
use crate::compute::Pool;
use crate::model::{Encoder, Manifest, ModelError, Pooling, Read, Role, Sequence};
use candle_core::{DType, Device, Tensor};
use candle_transformers::models::bert::{BertModel, Config};
use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::json;
use std::path::Path;

/// Token vectors by candle.
fn candle(dir: &Path, ids: &[u32]) -> Vec<Vec<f32>> {
    let config: Config = serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
    let tensors = candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu).unwrap();
    let builder = candle_nn::VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let model = BertModel::load(builder, &config).unwrap();
    let ids = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let states = model.forward(&ids, &ids.zeros_like().unwrap(), None).unwrap();
    states.squeeze(0).unwrap().to_vec2().unwrap()
}

fn close(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() <= tolerance, "{a} {b}");
    }
}

fn encode(dir: &Path, text: &str) -> (Sequence, Vec<f32>) {
    let encoder = Encoder::open(dir).unwrap();
    let sequence = encoder.text(Role::Plain, text).unwrap();
    let vectors = encoder
        .encode(&Pool::new(1).unwrap(), std::slice::from_ref(&sequence))
        .unwrap();
    (sequence, vectors.into_iter().next().unwrap())
}

fn open_error(maker: &Maker, bend: impl FnOnce(&Path)) -> ModelError {
    let dir = maker.write();
    bend(dir.path());
    let error = Encoder::open(dir.path()).err().expect("must fail");
    let manifest = Manifest::read(dir.path());
    assert!(
        manifest.is_err() || matches!(error, ModelError::NotFinite(_) | ModelError::Tokenizer(_)),
        "{error}"
    );
    error
}

#[test]
fn pooling_activation_and_limits_follow_the_files() {
    let text = "red greens blue red";
    for (name, pooling) in [
        ("cls_token", Pooling::Cls),
        ("max_tokens", Pooling::Max),
        ("mean_tokens", Pooling::Mean),
        ("lasttoken", Pooling::Last),
    ] {
        for activation in ["gelu", "gelu_new", "relu"] {
            let mut maker = Maker::new();
            maker.config["hidden_act"] = json!(activation);
            if activation == "gelu_new" {
                // The name that candle knows the tanh form by.
                maker.config["hidden_act"] = json!("geluapproximate");
            }
            maker.pooling = Some(json!({ format!("pooling_mode_{name}"): true }));
            let dir = maker.write();
            let rows = candle(dir.path(), &[2, 6, 7, 9, 8, 6, 3]);
            let mut config = maker.config.clone();
            config["hidden_act"] = json!(activation);
            std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
            let (sequence, vector) = encode(dir.path(), text);
            assert_eq!(sequence.ids, [2, 6, 7, 9, 8, 6, 3]);
            let column = |i: usize| rows.iter().map(move |row| row[i]);
            let expected: Vec<f32> = (0..HIDDEN)
                .map(|i| match pooling {
                    Pooling::Cls => rows[0][i],
                    Pooling::Max => column(i).fold(f32::MIN, f32::max),
                    Pooling::Last => rows[rows.len() - 1][i],
                    Pooling::Mean => column(i).sum::<f32>() / rows.len() as f32,
                })
                .collect();
            close(&vector, &expected, 2e-5);
        }
    }
}

#[test]
fn normalisation_and_prefixes_follow_the_files() {
    let mut maker = Maker::new();
    maker.normalize = true;
    maker.prompts = Some(json!({"query": "query: ", "document": "passage: "}));
    let dir = maker.write();
    let (_, vector) = encode(dir.path(), "red");
    assert!((vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-6);
    let encoder = Encoder::open(dir.path()).unwrap();
    // The made-up tokenizer splits at white space only: "query:" is unknown to it.
    assert_eq!(encoder.text(Role::Query, "red").unwrap().ids, [2, 1, 6, 3]);
    assert_eq!(encoder.text(Role::Passage, "red").unwrap().ids, [2, 1, 6, 3]);
    assert_eq!(encoder.text(Role::Plain, "red").unwrap().ids, [2, 6, 3]);
    assert_eq!(encoder.manifest().query_prefix, "query: ");
    assert_eq!(
        (encoder.room(Role::Query), encoder.room(Role::Plain)),
        (POSITIONS - 3, POSITIONS - 2)
    );
    let long = encoder.text(Role::Query, &"red ".repeat(100)).unwrap();
    assert_eq!((long.ids.len(), long.ids[POSITIONS - 1]), (POSITIONS, 3));
    // A tokenizer that takes words as they are still never yields a special token.
    assert_eq!(encoder.tokenize("[SEP] red").unwrap().ids, [1, 6]);
}

#[test]
fn names_with_prefix_old_names_and_half_numbers_are_read() {
    let plain = Maker::new();
    let (_, expected) = encode(plain.write().path(), "red green");
    let mut renamed = Maker::new();
    renamed.tensors = renamed
        .tensors
        .into_iter()
        .map(|(name, tensor)| {
            let name = name
                .replace("LayerNorm.weight", "LayerNorm.gamma")
                .replace("LayerNorm.bias", "LayerNorm.beta");
            (format!("bert.{name}"), tensor)
        })
        .collect();
    assert_eq!(encode(renamed.write().path(), "red green").1, expected);
    for dtype in [Dtype::F16, Dtype::BF16] {
        let mut halves = Maker::new();
        halves.dtype = dtype;
        let mut rounded = Maker::new();
        for (_, numbers) in rounded.tensors.values_mut() {
            for number in numbers {
                *number = match dtype {
                    Dtype::F16 => f16::from_f32(*number).to_f32(),
                    _ => bf16::from_f32(*number).to_f32(),
                };
            }
        }
        let halves = encode(halves.write().path(), "red green").1;
        assert_eq!(halves, encode(rounded.write().path(), "red green").1);
        assert_ne!(halves, expected);
    }
}

#[test]
fn sharded_weights_are_read() {
    let maker = Maker::new();
    let dir = maker.write();
    let (_, expected) = encode(dir.path(), "red green");
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let mut map = serde_json::Map::new();
    for name in maker.tensors.keys() {
        let shard = if name.contains("layer.1") {
            "b.safetensors"
        } else {
            "a.safetensors"
        };
        map.insert(name.clone(), json!(shard));
    }
    std::fs::write(
        dir.path().join("a.safetensors"),
        maker.weights(|name| !name.contains("layer.1")),
    )
    .unwrap();
    std::fs::write(
        dir.path().join("model.safetensors.index.json"),
        json!({ "weight_map": map }).to_string(),
    )
    .unwrap();
    assert!(matches!(Encoder::open(dir.path()), Err(ModelError::Missing(path)) if path.ends_with("b.safetensors")));
    std::fs::write(
        dir.path().join("b.safetensors"),
        maker.weights(|name| name.contains("layer.1")),
    )
    .unwrap();
    assert_eq!(encode(dir.path(), "red green").1, expected);
}

#[test]
fn the_fingerprint_follows_the_content() {
    let maker = Maker::new();
    let (one, two) = (maker.write(), maker.write());
    let first = Manifest::read(one.path()).unwrap();
    assert_eq!(first.fingerprint.len(), 64);
    assert_eq!(first, Manifest::read(two.path()).unwrap());
    let mut other = Maker::new();
    other.tensors.get_mut("embeddings.LayerNorm.bias").unwrap().1[3] += 1e-3;
    assert_ne!(
        first.fingerprint,
        Manifest::read(other.write().path()).unwrap().fingerprint
    );
    let mut other = Maker::new();
    other.pooling = Some(json!({"pooling_mode_cls_token": true}));
    assert_ne!(
        first.fingerprint,
        Manifest::read(other.write().path()).unwrap().fingerprint
    );
}

#[test]
fn missing_and_broken_files_are_named() {
    let maker = Maker::new();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let error = open_error(&maker, |dir| std::fs::remove_file(dir.join(name)).unwrap());
        assert!(
            matches!(&error, ModelError::Missing(path) if path.ends_with(name)),
            "{name}: {error}"
        );
    }
    assert!(matches!(
        Encoder::open(Path::new("/nonexistent")),
        Err(ModelError::NotADirectory(_))
    ));
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(matches!(Manifest::read(file.path()), Err(ModelError::NotADirectory(_))));
    let error = open_error(&maker, |dir| std::fs::write(dir.join("config.json"), "{").unwrap());
    assert!(matches!(error, ModelError::Invalid { .. }), "{error}");
    let error = open_error(&maker, |dir| std::fs::write(dir.join("tokenizer.json"), "{}").unwrap());
    assert!(matches!(error, ModelError::Tokenizer(_)), "{error}");
    let weights = maker.weights(|_| true);
    for keep in [0, 5, 8, 100, weights.len() / 2, weights.len() - 1] {
        let error = open_error(&maker, |dir| {
            std::fs::write(dir.join("model.safetensors"), &weights[..keep]).unwrap()
        });
        assert!(matches!(error, ModelError::Corrupt { .. }), "{keep}: {error}");
    }
    for (at, byte) in [(0, 0xff), (7, 0xff), (9, b'x')] {
        let mut broken = weights.clone();
        broken[at] = byte;
        let error = open_error(&maker, |dir| {
            std::fs::write(dir.join("model.safetensors"), &broken).unwrap()
        });
        assert!(matches!(error, ModelError::Corrupt { .. }), "{at}: {error}");
    }
}

#[test]
fn weights_that_do_not_fit_are_named() {
    let mut maker = Maker::new();
    maker.tensors.remove("encoder.layer.1.output.dense.bias");
    let error = open_error(&maker, |_| ());
    assert!(
        matches!(&error, ModelError::MissingTensor(name) if name == "encoder.layer.1.output.dense.bias"),
        "{error}"
    );
    let mut maker = Maker::new();
    maker.config["intermediate_size"] = json!(41);
    let error = open_error(&maker, |_| ());
    let ModelError::TensorShape { name, expected, found } = &error else {
        panic!("{error}")
    };
    assert_eq!(name, "encoder.layer.0.intermediate.dense.weight");
    assert_eq!((expected, found), (&vec![41, HIDDEN], &vec![INTERMEDIATE, HIDDEN]));
    let mut maker = Maker::new();
    maker.tensors.get_mut("encoder.layer.0.output.dense.weight").unwrap().1[5] = f32::NAN;
    let error = open_error(&maker, |_| ());
    assert!(
        matches!(&error, ModelError::NotFinite(name) if name == "encoder.layer.0.output.dense.weight"),
        "{error}"
    );
    let mut maker = Maker::new();
    maker.dtype = Dtype::I32;
    assert!(matches!(open_error(&maker, |_| ()), ModelError::TensorType { .. }));
}

#[test]
fn what_is_not_supported_is_named() {
    for (field, value) in [
        ("model_type", json!("t5")),
        ("hidden_act", json!("silu")),
        ("position_embedding_type", json!("relative_key")),
    ] {
        let mut maker = Maker::new();
        maker.config[field] = value.clone();
        let error = open_error(&maker, |_| ());
        assert!(
            matches!(&error, ModelError::Unsupported { found, .. } if found == value.as_str().unwrap()),
            "{error}"
        );
    }
    for (field, value) in [
        ("hidden_size", json!(0)),
        ("num_attention_heads", json!(7)),
        ("vocab_size", json!("x")),
    ] {
        let mut maker = Maker::new();
        maker.config[field] = value;
        let error = open_error(&maker, |_| ());
        assert!(matches!(error, ModelError::Invalid { .. }), "{error}");
    }
    for pooling in [
        json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}),
        json!({"pooling_mode_weightedmean_tokens": true}),
        json!({"pooling_mode": "weightedmean"}),
    ] {
        let mut maker = Maker::new();
        maker.pooling = Some(pooling);
        let error = open_error(&maker, |_| ());
        assert!(
            matches!(error, ModelError::Unsupported { what: "pooling", .. }),
            "{error}"
        );
    }
    let error = open_error(&Maker::new(), |dir| {
        let modules = json!([{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]);
        std::fs::write(dir.join("modules.json"), modules.to_string()).unwrap();
    });
    assert!(
        matches!(error, ModelError::Unsupported { what: "module", .. }),
        "{error}"
    );
    let error = open_error(&Maker::new(), |dir| {
        let modules = json!([{"type": "sentence_transformers.models.Pooling", "path": "../other"}]);
        std::fs::write(dir.join("modules.json"), modules.to_string()).unwrap();
    });
    assert!(matches!(error, ModelError::Invalid { .. }), "{error}");
    // An id of the tokenizer that the word table lacks.
    let mut maker = Maker::new();
    maker.config["vocab_size"] = json!(11);
    let words = maker.tensors.get_mut("embeddings.word_embeddings.weight").unwrap();
    words.0[0] = 11;
    words.1.truncate(11 * HIDDEN);
    assert!(matches!(open_error(&maker, |_| ()), ModelError::Tokenizer(_)));
}

#[test]
fn bad_sequences_are_errors_that_name_them() {
    let dir = Maker::new().write();
    let encoder = Encoder::open(dir.path()).unwrap();
    let pool = Pool::new(2).unwrap();
    let good = encoder.text(Role::Plain, "red").unwrap();
    let bad = [
        Sequence {
            ids: vec![],
            read: Read::Pooled,
        },
        Sequence {
            ids: vec![2, VOCABULARY as u32, 3],
            read: Read::Pooled,
        },
        Sequence {
            ids: vec![2; POSITIONS + 1],
            read: Read::Pooled,
        },
        Sequence {
            ids: vec![2, 6, 3],
            read: Read::Spans(vec![0..1, 1..1]),
        },
        Sequence {
            ids: vec![2, 6, 3],
            read: Read::Spans(vec![0..1, 1..4]),
        },
    ];
    for bad in bad {
        let error = encoder.encode(&pool, &[good.clone(), bad]).unwrap_err();
        assert!(matches!(error, ModelError::Sequence { index: 1, .. }), "{error}");
    }
    assert!(encoder.encode(&pool, &[]).unwrap().is_empty());
}
