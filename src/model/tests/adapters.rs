//! LoRA adapters: merged against computed apart and against candle, and every adapter that is refused.

use super::families::{Sizes, qwen3};
use super::forward::qwen3_states;
use super::maker::{Maker, Random};
use crate::compute::cpu::Level;
use crate::compute::forward::bert::Packed;
use crate::compute::{Pool, Precision};
use crate::model::network::Network;
use crate::model::weights::Weights;
use crate::model::{Encoder, Manifest, ModelError};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const RANK: usize = 4;
const ALPHA: f64 = 6.0;

/// An adapter of a Qwen3 in the layout that PEFT writes.
struct Lora {
    config: Value,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Lora {
    /// Factors of all four projections of the attention.
    fn new(sizes: Sizes) -> Lora {
        let mut random = Random(77);
        let mut tensors = BTreeMap::new();
        let Sizes {
            hidden,
            heads,
            key_heads,
            width,
            layers,
            ..
        } = sizes;
        for layer in 0..layers {
            for (name, outputs, inputs) in [
                ("q_proj", heads * width, hidden),
                ("k_proj", key_heads * width, hidden),
                ("v_proj", key_heads * width, hidden),
                ("o_proj", hidden, heads * width),
            ] {
                let place = format!("base_model.model.layers.{layer}.self_attn.{name}");
                let a = (vec![RANK, inputs], random.numbers(RANK * inputs, 0.0, 0.3));
                let b = (vec![outputs, RANK], random.numbers(outputs * RANK, 0.0, 0.3));
                tensors.insert(format!("{place}.lora_A.weight"), a);
                tensors.insert(format!("{place}.lora_B.weight"), b);
            }
        }
        let config = json!({
            "alpha_pattern": {}, "auto_mapping": null, "base_model_name_or_path": "Qwen/Qwen3-Embedding-8B",
            "bias": "none", "corda_config": null, "eva_config": null, "exclude_modules": null,
            "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true, "layer_replication": null,
            "layers_pattern": null, "layers_to_transform": null, "loftq_config": {}, "lora_alpha": ALPHA,
            "lora_bias": false, "lora_dropout": 0.05, "megatron_config": null,
            "megatron_core": "megatron.core", "modules_to_save": null, "peft_type": "LORA", "r": RANK,
            "rank_pattern": {}, "revision": null, "target_modules": ["k_proj", "o_proj", "q_proj", "v_proj"],
            "task_type": "FEATURE_EXTRACTION", "trainable_token_indices": null, "use_dora": false,
            "use_rslora": false,
        });
        Lora { config, tensors }
    }

    /// A base with this adapter's files in a folder of it.
    fn beside(&self, mut base: Maker, folder: &str) -> Maker {
        let mut weights = Maker::new();
        weights.tensors = self.tensors.clone();
        weights.dtype = base.dtype;
        let (config, weights) = (self.config.to_string().into_bytes(), weights.weights(|_| true));
        let names: [&'static str; 2] = match folder {
            "" => ["adapter_config.json", "adapter_model.safetensors"],
            _ => ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"],
        };
        base.files.extend(names.into_iter().zip([config, weights]));
        base
    }

    /// The base with the change in its own weights, in f64.
    fn merged(&self, mut base: Maker, scale: f64) -> Maker {
        for (name, (shape, numbers)) in &mut base.tensors {
            let place = format!("base_model.model.{}", name.trim_end_matches(".weight"));
            let Some((_, a)) = self.tensors.get(&format!("{place}.lora_A.weight")) else {
                continue;
            };
            let b = &self.tensors[&format!("{place}.lora_B.weight")].1;
            let inputs = shape[1];
            for (at, number) in numbers.iter_mut().enumerate() {
                let (o, i) = (at / inputs, at % inputs);
                let sum: f64 = (0..RANK)
                    .map(|k| b[o * RANK + k] as f64 * a[k * inputs + i] as f64)
                    .sum();
                *number = (*number as f64 + scale * sum) as f32;
            }
        }
        base
    }
}

fn states(maker: &Maker, ids: &[u32]) -> Vec<f32> {
    let dir = maker.write();
    let manifest = Manifest::read(dir.path()).unwrap();
    let weights = Weights::open(dir.path()).unwrap();
    let network = Network::load(&manifest, &weights, Level::detect(), Precision::F32).unwrap();
    let packed = Packed {
        ids: ids.to_vec(),
        starts: vec![0, ids.len()],
    };
    network
        .forward(&Pool::new(2).unwrap(), &packed, &|| false)
        .unwrap()
        .to_vec()
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_merged_adapter_equals_candle_on_changed_weights() {
    let ids = Random(4).ids(60, 258);
    let plain = states(&qwen3(Sizes::SMALL), &ids);
    for (rslora, scale) in [(false, ALPHA / RANK as f64), (true, ALPHA / (RANK as f64).sqrt())] {
        for (folder, prefix) in [("", ""), ("adapter", "model.")] {
            let mut lora = Lora::new(Sizes::SMALL);
            lora.config["use_rslora"] = json!(rslora);
            let expected = qwen3_states(&lora.merged(qwen3(Sizes::SMALL), scale), &ids).concat();
            lora.tensors = lora
                .tensors
                .into_iter()
                .map(|(name, t)| {
                    (
                        name.replace("base_model.model.", &format!("base_model.model.{prefix}")),
                        t,
                    )
                })
                .collect();
            let found = states(&lora.beside(qwen3(Sizes::SMALL), folder), &ids);
            assert!(
                worst(&found, &expected) <= 1e-4,
                "{rslora} {folder}: {}",
                worst(&found, &expected)
            );
            assert!(worst(&found, &plain) > 0.1);
        }
    }
}

#[test]
fn merged_weights_give_what_the_factors_give_apart() {
    let lora = Lora::new(Sizes::SMALL);
    let base = qwen3(Sizes::SMALL);
    let dir = lora.beside(qwen3(Sizes::SMALL), "").write();
    let weights = Weights::open(dir.path()).unwrap();
    let x = Random(6).numbers(64, 0.0, 1.0);
    for (name, (shape, before)) in &base.tensors {
        let merged = weights.read(name, shape).unwrap();
        let place = format!("base_model.model.{}", name.trim_end_matches(".weight"));
        let Some((_, a)) = lora.tensors.get(&format!("{place}.lora_A.weight")) else {
            assert_eq!(merged, *before, "{name} is not the adapter's");
            continue;
        };
        let b = &lora.tensors[&format!("{place}.lora_B.weight")].1;
        let inputs = shape[1];
        let dot = |row: &[f32]| row.iter().zip(&x).map(|(w, x)| *w as f64 * *x as f64).sum::<f64>();
        let inner: Vec<f64> = a.chunks(inputs).map(dot).collect();
        for o in 0..shape[0] {
            let change: f64 = (0..RANK).map(|k| b[o * RANK + k] as f64 * inner[k]).sum();
            let expected = dot(&before[o * inputs..][..inputs]) + ALPHA / RANK as f64 * change;
            assert!((dot(&merged[o * inputs..][..inputs]) - expected).abs() < 1e-4, "{name}");
        }
    }
}

#[test]
fn the_fingerprint_covers_the_adapter() {
    let print = |maker: &Maker| Manifest::read(maker.write().path()).unwrap().fingerprint;
    let lora = Lora::new(Sizes::SMALL);
    let with = print(&lora.beside(qwen3(Sizes::SMALL), "adapter"));
    assert_ne!(print(&qwen3(Sizes::SMALL)), with);
    assert_eq!(print(&lora.beside(qwen3(Sizes::SMALL), "adapter")), with);
    let mut other = Lora::new(Sizes::SMALL);
    other.config["lora_alpha"] = json!(7);
    assert_ne!(print(&other.beside(qwen3(Sizes::SMALL), "adapter")), with);
    let mut other = Lora::new(Sizes::SMALL);
    other.tensors.values_mut().next().unwrap().1[0] += 0.5;
    assert_ne!(print(&other.beside(qwen3(Sizes::SMALL), "adapter")), with);
}

fn error(maker: &Maker) -> ModelError {
    let dir = maker.write();
    let error = Manifest::read(dir.path()).expect_err("must fail");
    assert!(Encoder::open(dir.path()).is_err());
    error
}

#[test]
fn options_beyond_plain_lora_are_refused_by_name() {
    for (field, value) in [
        ("use_dora", json!(true)),
        ("bias", json!("lora_only")),
        ("modules_to_save", json!(["embed_tokens"])),
        ("rank_pattern", json!({"q_proj": 2})),
        ("alpha_pattern", json!({"q_proj": 2})),
        ("fan_in_fan_out", json!(true)),
        ("lora_bias", json!(true)),
        ("layer_replication", json!([[0, 2]])),
        ("init_lora_weights", json!("pissa_niter_4")),
        ("trainable_token_indices", json!([1])),
    ] {
        let mut lora = Lora::new(Sizes::SMALL);
        lora.config[field] = value;
        let error = error(&lora.beside(qwen3(Sizes::SMALL), ""));
        let ModelError::Unsupported {
            what: "adapter option",
            found,
            ..
        } = &error
        else {
            panic!("{field}: {error}")
        };
        assert!(found.contains(field), "{field}: {error}");
    }
    let mut lora = Lora::new(Sizes::SMALL);
    lora.config["peft_type"] = json!("IA3");
    let error = error(&lora.beside(qwen3(Sizes::SMALL), ""));
    assert!(
        matches!(&error, ModelError::Unsupported { what: "adapter type", found, .. } if found == "IA3"),
        "{error}"
    );
}

#[test]
fn adapters_that_do_not_fit_name_their_tensor() {
    let q = "base_model.model.layers.1.self_attn.q_proj";
    let bend = |bend: &dyn Fn(&mut Lora)| {
        let mut lora = Lora::new(Sizes::SMALL);
        bend(&mut lora);
        error(&lora.beside(qwen3(Sizes::SMALL), "adapter"))
    };
    let found = bend(&|lora| drop(lora.tensors.remove(&format!("{q}.lora_B.weight"))));
    assert!(
        matches!(&found, ModelError::MissingTensor(name) if name.starts_with(q)),
        "{found}"
    );
    let found = bend(&|lora| drop(lora.tensors.remove(&format!("{q}.lora_A.weight"))));
    assert!(
        matches!(&found, ModelError::MissingTensor(name) if name.starts_with(q)),
        "{found}"
    );
    let found = bend(&|lora| lora.config["r"] = json!(5));
    let ModelError::TensorShape { name, expected, found } = &found else {
        panic!("{found}")
    };
    assert!(name.ends_with("k_proj.lora_A.weight"), "{name}");
    assert_eq!((expected, found), (&vec![5, 48], &vec![4, 48]));
    let found = bend(&|lora| {
        lora.tensors
            .insert(format!("{q}.lora_B.weight"), (vec![63, RANK], vec![0.0; 63 * RANK]));
    });
    assert!(
        matches!(&found, ModelError::TensorShape { name, .. } if name.starts_with(q)),
        "{found}"
    );
    for (name, shape) in [
        (
            "base_model.model.layers.9.self_attn.q_proj.lora_A.weight",
            vec![RANK, 48],
        ),
        (
            "base_model.model.layers.0.self_attn.q_norm.lora_A.weight",
            vec![RANK, 48],
        ),
        ("base_model.model.embed_tokens.lora_embedding_A", vec![RANK, 48]),
        ("base_model.model.layers.0.mlp.up_proj.lora_A.weight", vec![RANK, 48]),
        (
            "base_model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
            vec![64],
        ),
        ("layers.0.self_attn.q_proj.weight", vec![64, 48]),
    ] {
        let found = bend(&|lora| {
            let count = shape.iter().product();
            lora.tensors.insert(name.to_string(), (shape.clone(), vec![0.0; count]));
            if name.contains("q_norm") {
                let targets = lora.config["target_modules"].as_array_mut().unwrap();
                targets.push(json!("q_norm"));
            }
        });
        assert!(
            matches!(&found, ModelError::Invalid { what, .. } if what.contains(name)),
            "{name}: {found}"
        );
    }
    let found = bend(&|lora| lora.config["target_modules"] = json!(["q_proj", "k_proj", "v_proj", "o_proj", "lost"]));
    assert!(
        matches!(&found, ModelError::Invalid { what, .. } if what.contains("lost")),
        "{found}"
    );
    let found = bend(&|lora| lora.config["target_modules"] = Value::Null);
    assert!(
        matches!(&found, ModelError::Invalid { what, .. } if what.contains("target_modules")),
        "{found}"
    );
    let found = bend(&|lora| lora.config["lora_alpha"] = json!("x"));
    assert!(
        matches!(&found, ModelError::Invalid { what, .. } if what.contains("lora_alpha")),
        "{found}"
    );
    // A number that is not finite is found when the weights are read.
    let mut lora = Lora::new(Sizes::SMALL);
    lora.tensors.get_mut(&format!("{q}.lora_A.weight")).unwrap().1[3] = f32::INFINITY;
    let dir = lora.beside(qwen3(Sizes::SMALL), "").write();
    let found = Encoder::open(dir.path()).err().expect("must fail");
    assert!(
        matches!(&found, ModelError::NotFinite(name) if name.starts_with(q)),
        "{found}"
    );
}

#[test]
fn files_of_an_adapter_must_be_whole_and_beside_their_base() {
    let lora = Lora::new(Sizes::SMALL);
    let open = |dir: &std::path::Path| Manifest::read(dir).expect_err("must fail");
    let dir = lora.beside(qwen3(Sizes::SMALL), "adapter").write();
    std::fs::remove_file(dir.path().join("adapter/adapter_model.safetensors")).unwrap();
    let error = open(dir.path());
    assert!(
        matches!(&error, ModelError::Missing(path) if path.ends_with("adapter_model.safetensors")),
        "{error}"
    );
    let dir = lora.beside(lora.beside(qwen3(Sizes::SMALL), "adapter"), "").write();
    assert!(matches!(&open(dir.path()), ModelError::Invalid { what, .. } if what.contains("two adapters")));
    let dir = lora.beside(qwen3(Sizes::SMALL), "").write();
    let weights = dir.path().join("adapter_model.safetensors");
    std::fs::write(&weights, &std::fs::read(&weights).unwrap()[..300]).unwrap();
    assert!(matches!(&open(dir.path()), ModelError::Corrupt { path, .. } if *path == weights));
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    assert!(matches!(Encoder::open(dir.path()), Err(ModelError::Invalid { .. })));
    let error = open(dir.path());
    let named = |what: &str| what.contains("Qwen/Qwen3-Embedding-8B") && what.contains("config.json");
    assert!(
        matches!(&error, ModelError::Invalid { what, .. } if named(what)),
        "{error}"
    );
}
