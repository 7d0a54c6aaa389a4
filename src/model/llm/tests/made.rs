//! Small random models of every family, as directories, against candle's own forward passes in f32.

use super::*;
use crate::compute::cpu::Level;
use crate::compute::{Pool, Precision};
use crate::model::llm::cache::Cache;
use crate::model::llm::hooks::Hooks;
use crate::model::llm::{LlmFamily, Packing, Piece};
use crate::model::tests::families::{END, Sizes, mistral, qwen3};
use crate::model::tests::maker::{Maker, Random};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models;
use serde_json::{Value, json};
use std::path::Path;

fn open(dir: &Path) -> Arc<Llm> {
    let packing = Packing {
        level: Level::detect(),
        precision: Precision::F32,
        unpack: false,
    };
    Arc::new(Llm::open_with(dir, packing).unwrap())
}

fn builder(dir: &Path) -> VarBuilder<'static> {
    let tensors = candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu).unwrap();
    VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)
}

/// The logits of the last token, token by token behind a first part, as an answer is made.
fn check(llm: &Llm, mut reference: impl FnMut(&[u32]) -> Vec<f32>) {
    let pool = Pool::new(2).unwrap();
    let mut random = Random(3);
    let ids = random.ids(90, 200);
    let mut cache = Cache::new(llm.config());
    let mut done = 0;
    for until in [1, 2, 40, 41, 66, 90] {
        let prompt = Prompt {
            inputs: ids[done..until]
                .iter()
                .map(|id| super::super::llm::Input::Token(*id))
                .collect(),
        };
        let logits = llm
            .read(&pool, &prompt, &mut cache, 1, &mut Hooks::default(), &|| false)
            .unwrap();
        done = until;
        let expected = reference(&ids[..until]);
        assert_eq!(logits.len(), expected.len());
        let size = expected.iter().fold(1.0f32, |most, x| most.max(x.abs()));
        for (found, expected) in logits.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-4 * size, "{until}: {found} {expected}");
        }
    }
}

fn row(ids: &[u32]) -> Tensor {
    Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap()
}

fn numbers(logits: Tensor) -> Vec<f32> {
    logits.flatten_all().unwrap().to_vec1::<f32>().unwrap()
}

fn change(maker: &mut Maker, more: Value) {
    for (name, value) in more.as_object().unwrap() {
        maker.config[name] = value.clone();
    }
}

#[test]
fn mistral_with_a_window() {
    let mut maker = mistral(Sizes::SMALL);
    // Shorter than what is read, so that it matters.
    change(&mut maker, json!({"sliding_window": 30}));
    let dir = maker.write();
    let llm = open(dir.path());
    assert_eq!(
        (llm.config().family, llm.config().window),
        (LlmFamily::Mistral, Some(30))
    );
    let mut config: models::mistral::Config = serde_json::from_value(maker.config.clone()).unwrap();
    config.use_flash_attn = false;
    // candle counts the tokens before the one that looks, transformers (and we) that one too.
    config.sliding_window = Some(29);
    check(&llm, |ids| {
        let mut model = models::mistral::Model::new(&config, builder(dir.path())).unwrap();
        numbers(model.forward(&row(ids), 0).unwrap())
    });
}

#[test]
fn llama_with_its_scaled_rotation() {
    let mut maker = mistral(Sizes::SMALL);
    let scaling = json!({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32, "rope_type": "llama3"});
    change(
        &mut maker,
        json!({"model_type": "llama", "sliding_window": null, "rope_scaling": scaling, "head_dim": 12}),
    );
    let width = Sizes::SMALL.hidden / Sizes::SMALL.heads;
    // candle's model takes the width of heads from the hidden size.
    for (name, (shape, numbers)) in &mut maker.tensors {
        let heads = match name {
            name if name.contains("q_proj") => Sizes::SMALL.heads,
            name if name.contains("k_proj") || name.contains("v_proj") => Sizes::SMALL.key_heads,
            name if name.contains("o_proj") => 0,
            _ => continue,
        };
        match heads {
            0 => shape[1] = Sizes::SMALL.heads * width,
            heads => shape[0] = heads * width,
        }
        numbers.truncate(shape.iter().product());
    }
    let dir = maker.write();
    let llm = open(dir.path());
    assert_eq!(llm.config().family, LlmFamily::Llama);
    assert!(llm.config().rope_scaling.is_some());
    let config: models::llama::LlamaConfig = serde_json::from_value(maker.config.clone()).unwrap();
    let config = config.into_config(false);
    check(&llm, |ids| {
        let model = models::llama::Llama::load(builder(dir.path()), &config).unwrap();
        let mut cache = models::llama::Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
        numbers(model.forward(&row(ids), 0, &mut cache).unwrap())
    });
}

pub(super) fn with_model_prefix(maker: &mut Maker) {
    let tensors = std::mem::take(&mut maker.tensors);
    maker.tensors = tensors
        .into_iter()
        .map(|(name, tensor)| (format!("model.{name}"), tensor))
        .collect();
    change(maker, json!({"bos_token_id": null, "eos_token_id": END}));
}

#[test]
fn qwen3_with_norms_of_heads() {
    let mut maker = qwen3(Sizes::SMALL);
    with_model_prefix(&mut maker);
    let dir = maker.write();
    let llm = open(dir.path());
    assert!(llm.config().head_norms && llm.config().tied);
    let config: models::qwen3::Config = serde_json::from_value(maker.config.clone()).unwrap();
    check(&llm, |ids| {
        let mut model = models::qwen3::ModelForCausalLM::new(&config, builder(dir.path())).unwrap();
        numbers(model.forward(&row(ids), 0).unwrap())
    });
    // A text's special tokens are those of the file.
    let ids = llm.tokenizer().encode("a <|im_end|>").unwrap();
    assert!(ids.iter().all(|id| *id < END), "{ids:?}");
    assert!(llm.tokenizer().end().contains(&END) && llm.tokenizer().end().contains(&260));
    assert!(llm.prompt(&[Piece::Tokens(vec![100_000])]).is_err());
}

#[test]
fn qwen2_with_biases() {
    let sizes = Sizes {
        width: 12,
        ..Sizes::SMALL
    };
    let mut maker = qwen3(sizes);
    with_model_prefix(&mut maker);
    maker
        .tensors
        .retain(|name, _| !name.contains("q_norm") && !name.contains("k_norm"));
    let mut random = Random(8);
    for layer in 0..sizes.layers {
        for (part, heads) in [("q", sizes.heads), ("k", sizes.key_heads), ("v", sizes.key_heads)] {
            let count = heads * sizes.width;
            let name = format!("model.layers.{layer}.self_attn.{part}_proj.bias");
            maker
                .tensors
                .insert(name, (vec![count], random.numbers(count, 0.0, 0.5)));
        }
    }
    change(
        &mut maker,
        json!({"model_type": "qwen2", "head_dim": null, "sliding_window": 4096}),
    );
    let dir = maker.write();
    let llm = open(dir.path());
    assert!(llm.config().qkv_bias);
    let config: models::qwen2::Config = serde_json::from_value(maker.config.clone()).unwrap();
    check(&llm, |ids| {
        let mut model = models::qwen2::ModelForCausalLM::new(&config, builder(dir.path())).unwrap();
        numbers(model.forward(&row(ids), 0).unwrap())
    });
}

#[test]
fn a_missing_tensor_and_a_wrong_shape_are_named() {
    let mut maker = mistral(Sizes::SMALL);
    maker.tensors.remove("model.layers.1.mlp.up_proj.weight");
    let error = Llm::open(maker.write().path()).err().unwrap();
    assert!(error.to_string().contains("layers.1.mlp.up_proj"), "{error}");
    let mut maker = mistral(Sizes::SMALL);
    let (shape, _) = maker.tensors.get_mut("model.layers.0.mlp.down_proj.weight").unwrap();
    shape.reverse();
    let error = Llm::open(maker.write().path()).err().unwrap();
    assert!(error.to_string().contains("down_proj"), "{error}");
}
