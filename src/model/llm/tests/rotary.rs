//! Rotary embeddings in both kinds of files: followed or refused, never read as the default.

use super::gguf_maker::{Entry, float, metadata, number, tensors, text, write};
use super::made::with_model_prefix;
use crate::model::ModelError;
use crate::model::llm::{LlmConfig, LlmFiles};
use crate::model::tests::families::{Sizes, mistral, qwen3};
use crate::model::tests::maker::Maker;
use serde_json::{Value, json};

fn directory(mut maker: Maker, fields: &Value) -> Result<LlmConfig, ModelError> {
    for (name, value) in fields.as_object().unwrap() {
        maker.config[name] = value.clone();
    }
    Ok(LlmFiles::open(maker.write().path())?.config().clone())
}

fn qwen(fields: &Value) -> Result<LlmConfig, ModelError> {
    let mut maker = qwen3(Sizes::SMALL);
    with_model_prefix(&mut maker);
    directory(maker, fields)
}

fn unsupported(result: Result<LlmConfig, ModelError>, named: &str) {
    let error = result.expect_err("must fail");
    assert!(
        matches!(&error, ModelError::Unsupported { found, .. } if found.contains(named)),
        "{named}: {error}"
    );
}

#[test]
fn directories_in_the_new_fields_are_those_in_the_old_ones() {
    let scaling = json!({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32, "rope_type": "llama3"});
    let mut whole = scaling.clone();
    whole["rope_theta"] = json!(5e5);
    let old = qwen(&json!({"rope_scaling": scaling, "rope_theta": 5e5})).unwrap();
    let new = qwen(&json!({"rope_theta": null, "rope_parameters": whole})).unwrap();
    assert_eq!(old, new);
    assert_eq!(new.rope_base, 5e5);
    assert!(new.rope_scaling.is_some());
    let nested = json!({"full_attention": {"rope_type": "default", "rope_theta": 1e6}});
    unsupported(qwen(&json!({ "rope_parameters": nested })), "by kind of layer");
    unsupported(
        qwen(&json!({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}})),
        "yarn",
    );
    unsupported(qwen(&json!({"partial_rotary_factor": 0.5})), "partial_rotary_factor");
    let kinds = json!(["full_attention", "sliding_attention", "full_attention"]);
    unsupported(qwen(&json!({ "layer_types": kinds })), "sliding_attention");
    unsupported(
        directory(mistral(Sizes::SMALL), &json!({ "layer_types": kinds })),
        "full_attention",
    );
    assert!(
        directory(
            mistral(Sizes::SMALL),
            &json!({"layer_types": vec!["sliding_attention"; 3]})
        )
        .is_ok()
    );
    for fields in [
        json!({"rope_scaling": {"factor": 2.0}}),
        json!({"rope_theta": null, "rope_parameters": {}}),
        json!({"rope_theta": "x"}),
    ] {
        let error = qwen(&fields).expect_err("must fail");
        assert!(matches!(error, ModelError::Invalid { .. }), "{error}");
    }
}

fn gguf(more: &[Entry]) -> Result<LlmConfig, ModelError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    write(&path, &[&metadata(), more].concat(), &tensors());
    Ok(LlmFiles::open(&path)?.config().clone())
}

#[test]
fn gguf_files_say_their_scaling_whole() {
    let (kind, factor) = ("llama.rope.scaling.type", "llama.rope.scaling.factor");
    let scaling = |more: &[Entry]| gguf(more).unwrap().rope_scaling;
    assert_eq!(scaling(&[]), None);
    assert_eq!(scaling(&[text(kind, "none"), float(factor, 4.0)]), None);
    let four = Some(vec![4.0; 4]);
    assert_eq!(scaling(&[text(kind, "linear"), float(factor, 4.0)]), four);
    // A factor alone is linear, and has an older name.
    assert_eq!(scaling(&[float(factor, 4.0)]), four);
    assert_eq!(scaling(&[float("llama.rope.scale_linear", 4.0)]), four);
    let error = gguf(&[text(kind, "linear")]).expect_err("must fail");
    assert!(
        matches!(&error, ModelError::Invalid { what, .. } if what.contains(factor)),
        "{error}"
    );
    unsupported(gguf(&[text(kind, "yarn"), float(factor, 4.0)]), "yarn");
    unsupported(gguf(&[float("llama.rope.scaling.attn_factor", 1.2)]), "attn_factor");
    unsupported(gguf(&[float("llama.rope.freq_base_swa", 1e4)]), "freq_base_swa");
    unsupported(
        gguf(&[number("llama.attention.sliding_window_pattern", 4)]),
        "sliding_window_pattern",
    );
}
