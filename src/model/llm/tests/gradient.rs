//! Gradients against candle's autograd and finite differences, and the losses against the runtime's own probabilities.

use super::made::with_model_prefix;
use super::*;
use crate::compute::cpu::Level;
use crate::compute::{ComputeError, Pool, Precision};
use crate::model::llm::files::LlmFiles;
use crate::model::llm::gradient::{Batch, Differentiable, Sequence, Target};
use crate::model::llm::{LlmConfig, Packing, Piece};
use crate::model::tests::families::{Sizes, mistral, qwen3};
use crate::model::tests::maker::{Maker, Random};
use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::ops::{log_softmax, softmax};
use serde_json::json;
use std::collections::HashMap;

fn maker() -> Maker {
    let mut maker = mistral(Sizes::SMALL);
    maker.config["sliding_window"] = json!(6);
    // A head whose logits differ, unlike that of the fixture.
    let (_, head) = maker.tensors.get_mut("lm_head.weight").unwrap();
    *head = Random(9).numbers(head.len(), 0.0, 0.4);
    maker
}

fn sequences(rows: &[usize]) -> Vec<Sequence<'static>> {
    rows.iter()
        .map(|rows| Sequence {
            rows: *rows,
            past: None,
        })
        .collect()
}

/// Logarithms of probabilities over a vocabulary.
fn teacher(random: &mut Random, vocabulary: usize) -> Vec<f32> {
    let logits = random.numbers(vocabulary, 0.0, 1.5);
    let sum: f32 = logits.iter().map(|x| x.exp()).sum();
    logits.iter().map(|x| x - sum.ln()).collect()
}

/// A decoder of candle's operations, and what it is asked for.
struct Reference<'a> {
    tensors: HashMap<String, Tensor>,
    config: &'a LlmConfig,
}

impl Reference<'_> {
    fn tensor(&self, name: &str) -> &Tensor {
        &self.tensors[name]
    }

    fn norm(&self, x: &Tensor, scale: &Tensor) -> Result<Tensor> {
        let square = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(self.config.norm_epsilon))?;
        x.broadcast_div(&square.sqrt()?)?.broadcast_mul(scale)
    }

    /// Heads of `rows x heads * width` as `heads x rows x width`, normalised and turned where `norm` and `turn` say so.
    fn heads(&self, x: &Tensor, heads: usize, norm: Option<&Tensor>, turn: bool) -> Result<Tensor> {
        let (rows, width) = (x.dim(0)?, self.config.head_width);
        let mut x = x.reshape((rows, heads, width))?.transpose(0, 1)?.contiguous()?;
        if let Some(norm) = norm {
            x = self.norm(&x, norm)?;
        }
        if !turn {
            return Ok(x);
        }
        let pairs = width / 2;
        let angle = |at: usize| {
            let (row, pair) = (at / pairs, at % pairs);
            row as f32 / self.config.rope_base.powf(2.0 * pair as f32 / width as f32)
        };
        let angles: Vec<f32> = (0..rows * pairs).map(angle).collect();
        let angles = Tensor::from_vec(angles, (1, rows, pairs), &Device::Cpu)?;
        let (cosine, sine) = (angles.cos()?, angles.sin()?);
        let (low, high) = (x.narrow(2, 0, pairs)?, x.narrow(2, pairs, pairs)?);
        let turned_low = (low.broadcast_mul(&cosine)? - high.broadcast_mul(&sine)?)?;
        let turned_high = (high.broadcast_mul(&cosine)? + low.broadcast_mul(&sine)?)?;
        Tensor::cat(&[turned_low, turned_high], 2)
    }

    /// The logits of one sequence.
    fn logits(&self, x: &Tensor) -> Result<Tensor> {
        let (config, rows) = (self.config, x.dim(0)?);
        let seen = |row: usize, key: usize| key <= row && config.window.is_none_or(|window| row - key < window);
        let hidden = |at: usize| if seen(at / rows, at % rows) { 0.0 } else { -1e9f32 };
        let mask: Vec<f32> = (0..rows * rows).map(hidden).collect();
        let mask = Tensor::from_vec(mask, (1, rows, rows), &Device::Cpu)?;
        let group = config.heads / config.key_heads;
        let mut x = x.clone();
        for number in 0..config.layers {
            let name = |part: &str| format!("model.layers.{number}.{part}");
            let tensor = |part: &str| self.tensor(&name(part));
            let normed = self.norm(&x, tensor("input_layernorm.weight"))?;
            let product = |part: &str| -> Result<Tensor> {
                let out = normed.matmul(&tensor(&format!("self_attn.{part}_proj.weight")).t()?)?;
                match config.qkv_bias {
                    true => out.broadcast_add(tensor(&format!("self_attn.{part}_proj.bias"))),
                    false => Ok(out),
                }
            };
            let norm = |part: &str| config.head_norms.then(|| tensor(part));
            let q = self.heads(&product("q")?, config.heads, norm("self_attn.q_norm.weight"), true)?;
            let k = self.heads(&product("k")?, config.key_heads, norm("self_attn.k_norm.weight"), true)?;
            let v = self.heads(&product("v")?, config.key_heads, None, false)?;
            let shared = |x: &Tensor| -> Result<Tensor> {
                let of_head = (0..config.heads).map(|head| x.narrow(0, head / group, 1));
                Tensor::cat(&of_head.collect::<Result<Vec<_>>>()?, 0)
            };
            let (k, v) = (shared(&k)?, shared(&v)?);
            let scores =
                (q.contiguous()?.matmul(&k.transpose(1, 2)?.contiguous()?)? / (config.head_width as f64).sqrt())?;
            let shares = softmax(&scores.broadcast_add(&mask)?, D::Minus1)?;
            let context = shares.matmul(&v.contiguous()?)?.transpose(0, 1)?.contiguous()?;
            let context = context.reshape((rows, config.heads * config.head_width))?;
            x = (x + context.matmul(&tensor("self_attn.o_proj.weight").t()?)?)?;
            let normed = self.norm(&x, tensor("post_attention_layernorm.weight"))?;
            let gate = normed.matmul(&tensor("mlp.gate_proj.weight").t()?)?.silu()?;
            let gated = (gate * normed.matmul(&tensor("mlp.up_proj.weight").t()?)?)?;
            x = (x + gated.matmul(&tensor("mlp.down_proj.weight").t()?)?)?;
        }
        let head = if config.tied {
            "model.embed_tokens.weight"
        } else {
            "lm_head.weight"
        };
        self.norm(&x, self.tensor("model.norm.weight"))?
            .matmul(&self.tensor(head).t()?)
    }

    /// Nats and divergence of each target, and the gradient by the inputs of all sequences.
    fn gradient(&self, batch: &Batch<'_>, [weight, pull]: [f64; 2]) -> Result<(Vec<[f32; 2]>, Vec<f32>)> {
        let hidden = self.config.hidden;
        let input = Tensor::from_slice(batch.vectors, (batch.vectors.len() / hidden, hidden), &Device::Cpu)?;
        let input = Var::from_tensor(&input)?;
        let (mut parts, mut first) = (Vec::new(), 0);
        for sequence in batch.sequences {
            parts.push(self.logits(&input.narrow(0, first, sequence.rows)?)?);
            first += sequence.rows;
        }
        let logs = log_softmax(&Tensor::cat(&parts, 0)?, D::Minus1)?;
        let (mut losses, mut total) = (Vec::new(), Tensor::zeros((), DType::F32, &Device::Cpu)?);
        for target in batch.targets {
            let row = logs.get(target.row)?;
            let nats = row.get(target.id as usize)?.neg()?;
            let mut loss = [nats.to_scalar::<f32>()?, 0.0];
            total = (total + (nats * weight)?)?;
            if let Some(teacher) = target.teacher {
                let teacher = Tensor::from_slice(teacher, teacher.len(), &Device::Cpu)?;
                let divergence = (teacher.exp()? * (teacher - row)?)?.sum_all()?;
                loss[1] = divergence.to_scalar::<f32>()?;
                total = (total + (divergence * pull)?)?;
            }
            losses.push(loss);
        }
        let gradients = total.backward()?;
        Ok((losses, gradients.get(&input).unwrap().flatten_all()?.to_vec1::<f32>()?))
    }
}

/// The gradient of a random model's losses, with and without teachers, and behind a past, is candle's.
fn check(maker: &Maker) {
    let dir = maker.write();
    let model = Differentiable::open(&LlmFiles::open(dir.path()).unwrap(), Precision::F32).unwrap();
    let reference = Reference {
        tensors: candle_core::safetensors::load(dir.path().join("model.safetensors"), &Device::Cpu).unwrap(),
        config: model.config(),
    };
    let (hidden, vocabulary) = (model.config().hidden, model.config().vocabulary);
    let pool = Pool::new(2).unwrap();
    let mut random = Random(4);
    let vectors = random.numbers(94 * hidden, 0.0, 0.8);
    let teachers = [teacher(&mut random, vocabulary), teacher(&mut random, vocabulary)];
    let target = |row: usize| Target {
        row,
        id: row as u32 * 2,
        teacher: None,
    };
    let mut targets: Vec<Target> = (8..90).step_by(3).map(target).collect();
    targets[2].teacher = Some(&teachers[0]);
    targets.push(Target {
        row: 93,
        id: 5,
        teacher: Some(&teachers[1]),
    });
    let sequences = sequences(&[9, 81, 4]);
    let batch = Batch {
        vectors: &vectors,
        sequences: &sequences,
        targets: &targets,
    };
    let (losses, expected) = reference.gradient(&batch, [0.7, 2.0]).unwrap();
    let (loss, found) = model.gradient(&pool, &batch, [0.7, 2.0], &|| false).unwrap();
    let plain = model.losses(&pool, &batch, &|| false).unwrap();
    for (number, [nats, divergence]) in losses.iter().enumerate() {
        assert!((loss.nats[number] - nats).abs() < 1e-4, "{} {nats}", loss.nats[number]);
        assert!((loss.divergence[number] - divergence).abs() < 1e-4);
        assert_eq!(
            (plain.nats[number], plain.divergence[number]),
            (loss.nats[number], loss.divergence[number])
        );
    }
    let size = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let near = |found: &[f32], expected: &[f32]| {
        assert_eq!(found.len(), expected.len());
        for (place, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert!((found - expected).abs() < 1e-4 * size, "{place}: {found} {expected}");
        }
    };
    assert!(size > 1e-2, "{size}");
    near(&found, &expected);

    // The second sequence behind a past of its first 30 rows, of which it takes 20: the gradient of the rest is the same.
    let past = model.past(&pool, &vectors[9 * hidden..39 * hidden], &|| false).unwrap();
    assert!(past.rows() == 30 && past.memory() > 0);
    let behind = [
        sequences[0],
        Sequence {
            rows: 61,
            past: Some((&past, 20)),
        },
        sequences[2],
    ];
    let kept = |row: &usize| !(9..29).contains(row);
    let rows: Vec<f32> = (0..94)
        .filter(kept)
        .flat_map(|row| &vectors[row * hidden..][..hidden])
        .copied()
        .collect();
    let moved: Vec<Target> = targets
        .iter()
        .filter(|target| kept(&target.row))
        .map(|target| Target {
            row: if target.row < 9 { target.row } else { target.row - 20 },
            ..*target
        })
        .collect();
    let without: Vec<Target> = targets.iter().filter(|target| kept(&target.row)).copied().collect();
    let whole = Batch {
        targets: &without,
        ..batch
    };
    let (_, expected) = model.gradient(&pool, &whole, [0.7, 2.0], &|| false).unwrap();
    let expected: Vec<f32> = (0..94)
        .filter(kept)
        .flat_map(|row| &expected[row * hidden..][..hidden])
        .copied()
        .collect();
    let batch = Batch {
        vectors: &rows,
        sequences: &behind,
        targets: &moved,
    };
    let (_, found) = model.gradient(&pool, &batch, [0.7, 2.0], &|| false).unwrap();
    near(&found, &expected);
}

#[test]
fn gradients_with_a_window_are_those_of_autograd() {
    check(&maker());
}

#[test]
fn gradients_with_norms_of_heads_are_those_of_autograd() {
    let mut maker = qwen3(Sizes::SMALL);
    with_model_prefix(&mut maker);
    check(&maker);
}

#[test]
fn gradients_with_biases_are_those_of_autograd() {
    let sizes = Sizes {
        width: 12,
        ..Sizes::SMALL
    };
    let mut maker = qwen3(sizes);
    with_model_prefix(&mut maker);
    maker
        .tensors
        .retain(|name, _| !name.contains("q_norm") && !name.contains("k_norm"));
    for layer in 0..sizes.layers {
        for (part, heads) in [("q", sizes.heads), ("k", sizes.key_heads), ("v", sizes.key_heads)] {
            let (name, count) = (
                format!("model.layers.{layer}.self_attn.{part}_proj.bias"),
                heads * sizes.width,
            );
            let numbers = Random(8 + layer as u64).numbers(count, 0.0, 0.5);
            maker.tensors.insert(name, (vec![count], numbers));
        }
    }
    maker.config["model_type"] = json!("qwen2");
    maker.config["head_dim"] = json!(null);
    check(&maker);
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let dir = maker().write();
    let model = Differentiable::open(&LlmFiles::open(dir.path()).unwrap(), Precision::F32).unwrap();
    let (hidden, vocabulary) = (model.config().hidden, model.config().vocabulary);
    let pool = Pool::new(2).unwrap();
    let sequences = sequences(&[9, 4]);
    let mut random = Random(4);
    let vectors = random.numbers(13 * hidden, 0.0, 0.8);
    let teacher = teacher(&mut random, vocabulary);
    let target = |row: usize, id: u32| Target { row, id, teacher: None };
    let mut targets = [target(8, 7), target(4, 30), target(12, 100)];
    targets[1].teacher = Some(&teacher);
    let (weight, pull) = (0.7f32, 2.0f32);
    let batch = Batch {
        vectors: &vectors,
        sequences: &sequences,
        targets: &targets,
    };
    let value = |vectors: &[f32]| -> f64 {
        let batch = Batch {
            vectors,
            sequences: &sequences,
            targets: &targets,
        };
        let loss = model.losses(&pool, &batch, &|| false).unwrap();
        let sums = loss.nats.iter().zip(&loss.divergence);
        sums.map(|(nats, divergence)| f64::from(nats * weight) + f64::from(divergence * pull))
            .sum()
    };
    let (_, gradient) = model.gradient(&pool, &batch, [weight, pull], &|| false).unwrap();
    assert_eq!(gradient.len(), vectors.len());
    for place in (0..vectors.len()).step_by(29) {
        let step = 2e-2;
        let moved = |by: f32| {
            let mut vectors = vectors.clone();
            vectors[place] += by;
            value(&vectors)
        };
        let expected = (moved(step) - moved(-step)) / f64::from(2.0 * step);
        let found = f64::from(gradient[place]);
        assert!(
            (found - expected).abs() < 2e-3 + 2e-2 * expected.abs(),
            "{place}: {found} {expected}"
        );
    }
    // Later rows do not matter to earlier targets, nor does the other sequence.
    let second = Batch {
        targets: &targets[1..2],
        ..batch
    };
    let (_, first) = model.gradient(&pool, &second, [1.0, 0.0], &|| false).unwrap();
    assert!(first[5 * hidden..].iter().all(|x| *x == 0.0) && first[..hidden].iter().any(|x| *x != 0.0));
    let short = Batch {
        sequences: &sequences[..1],
        ..batch
    };
    assert!(matches!(
        model.losses(&pool, &short, &|| false),
        Err(ComputeError::Shape(_))
    ));
    let past = model.past(&pool, &vectors[..2 * hidden], &|| false).unwrap();
    let beyond = [
        sequences[0],
        Sequence {
            rows: 4,
            past: Some((&past, 3)),
        },
    ];
    let beyond = Batch {
        sequences: &beyond,
        ..batch
    };
    assert!(matches!(
        model.losses(&pool, &beyond, &|| false),
        Err(ComputeError::Shape(_))
    ));
    let stopped = model.gradient(&pool, &batch, [1.0, 0.0], &|| true);
    assert!(matches!(stopped, Err(ComputeError::Stopped)));
}

#[test]
fn losses_are_those_of_the_runtime() {
    let dir = maker().write();
    let packing = Packing {
        level: Level::detect(),
        precision: Precision::F32,
        unpack: false,
    };
    let llm = Llm::open_with(dir.path(), packing).unwrap();
    let model = Differentiable::open(&LlmFiles::open(dir.path()).unwrap(), Precision::F32).unwrap();
    let pool = Pool::new(2).unwrap();
    let mut ids = Random(6).ids(20, 200);
    // What a prompt of this model begins with.
    ids[0] = 1;
    let (hidden, vocabulary) = (model.config().hidden, model.config().vocabulary);
    let mut vectors = vec![0.0f32; ids.len() * hidden];
    for (id, out) in ids.iter().zip(vectors.chunks_exact_mut(hidden)) {
        model.embed(*id, out);
    }
    let targets: Vec<Target> = (9..19)
        .map(|row| Target {
            row,
            id: ids[row + 1],
            teacher: None,
        })
        .collect();
    let batch = Batch {
        vectors: &vectors,
        sequences: &sequences(&[20]),
        targets: &targets,
    };
    let loss = model.losses(&pool, &batch, &|| false).unwrap();
    let logs = model.log_probabilities(&pool, &batch, &|| false).unwrap();
    let prompt = llm.prompt(&[Piece::Tokens(ids[..10].to_vec())]).unwrap();
    let scores = llm.score(&pool, &prompt, &ids[10..]).unwrap();
    assert_eq!(scores.len(), loss.nats.len());
    for (number, (nats, score)) in loss.nats.iter().zip(&scores).enumerate() {
        assert!((nats + score).abs() < 1e-3, "{nats} {score}");
        let log = logs[number * vocabulary + targets[number].id as usize];
        assert!((nats + log).abs() < 1e-5, "{nats} {log}");
    }
    let mass: f32 = logs[..vocabulary].iter().map(|log| log.exp()).sum();
    assert!((mass - 1.0).abs() < 1e-4, "{mass}");
    assert!(model.input_scale() > 0.0);
}
