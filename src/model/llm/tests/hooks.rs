//! Every hook against a decoder written out in f64 over the same random weights, which shows and changes the same things.

use super::*;
use crate::compute::cpu::Level;
use crate::compute::{Pool, Precision};
use crate::model::llm::cache::Cache;
use crate::model::llm::hooks::{Hooks, StepHooks};
use crate::model::llm::sample::largest;
use crate::model::llm::{Packing, Piece};
use crate::model::tests::families::{Sizes, mistral};
use crate::model::tests::maker::{Maker, Random};

const SIZES: Sizes = Sizes::SMALL;
const EPSILON: f64 = 1e-5;
const BASE: f64 = 10_000.0;

/// A change of the rows of a layer.
type Change<'a> = Option<(usize, &'a dyn Fn(&mut [Vec<f64>]))>;

/// What a pass of the reference is told to do differently.
#[derive(Default)]
struct Changes<'a> {
    residual: Change<'a>,
    keys: Change<'a>,
    factors: Option<&'a [f32]>,
}

/// What a pass of the reference shows.
#[derive(Default)]
struct Shown {
    /// Rows before each layer, and after the last one.
    residual: Vec<Vec<Vec<f64>>>,
    /// Rows of keys before their rotation, by layer.
    keys: Vec<Vec<Vec<f64>>>,
    /// Weights of the last row, by layer and head.
    attention: Vec<Vec<Vec<f64>>>,
    /// Of the last row.
    logits: Vec<f64>,
}

struct Reference {
    maker: Maker,
}

impl Reference {
    fn tensor(&self, name: &str) -> &[f32] {
        &self.maker.tensors[name].1
    }

    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let rows = self.tensor(name).chunks_exact(x.len());
        rows.map(|row| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum())
            .collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let size = (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + EPSILON).sqrt();
        let weights = self.tensor(name).iter();
        weights.zip(x).map(|(w, x)| f64::from(*w) * x / size).collect()
    }

    fn embedding(&self, id: u32) -> Vec<f64> {
        let row = &self.tensor("model.embed_tokens.weight")[id as usize * SIZES.hidden..][..SIZES.hidden];
        row.iter().map(|x| f64::from(*x)).collect()
    }

    fn run(&self, mut x: Vec<Vec<f64>>, positions: &[u32], changes: &Changes<'_>) -> Shown {
        let (width, group) = (SIZES.width, SIZES.heads / SIZES.key_heads);
        let mut shown = Shown::default();
        let turned = |heads: &[f64], position: u32| -> Vec<f64> {
            let turn = |head: &[f64]| {
                let half = width / 2;
                let mut out = head.to_vec();
                for pair in 0..half {
                    let angle = f64::from(position) * BASE.powf(-2.0 * pair as f64 / width as f64);
                    let (a, b) = (head[pair], head[half + pair]);
                    out[pair] = a * angle.cos() - b * angle.sin();
                    out[half + pair] = b * angle.cos() + a * angle.sin();
                }
                out
            };
            heads.chunks_exact(width).flat_map(turn).collect()
        };
        for layer in 0..SIZES.layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            if let Some((_, change)) = changes.residual.as_ref().filter(|(at, _)| *at == layer) {
                change(&mut x);
            }
            shown.residual.push(x.clone());
            let normed: Vec<Vec<f64>> = x.iter().map(|x| self.norm(&name("input_layernorm"), x)).collect();
            let part = |part: &str| -> Vec<Vec<f64>> {
                let name = name(&format!("self_attn.{part}"));
                normed.iter().map(|x| self.linear(&name, x)).collect()
            };
            let (queries, mut keys, values) = (part("q_proj"), part("k_proj"), part("v_proj"));
            shown.keys.push(keys.clone());
            if let Some((_, change)) = changes.keys.as_ref().filter(|(at, _)| *at == layer) {
                change(&mut keys);
            }
            let rotate = |rows: &[Vec<f64>]| -> Vec<Vec<f64>> {
                let rows = rows.iter().zip(positions);
                rows.map(|(row, position)| turned(row, *position)).collect()
            };
            let (queries, keys) = (rotate(&queries), rotate(&keys));
            let mut last = Vec::new();
            for row in 0..x.len() {
                let mut context = Vec::new();
                last.clear();
                for head in 0..SIZES.heads {
                    let of_key = head / group * width..(head / group + 1) * width;
                    let query = &queries[row][head * width..(head + 1) * width];
                    let score = |key: &Vec<f64>| -> f64 {
                        let pairs = key[of_key.clone()].iter().zip(query);
                        (pairs.map(|(a, b)| a * b).sum::<f64>() / (width as f64).sqrt()).exp()
                    };
                    let scores: Vec<f64> = keys[..=row].iter().map(score).collect();
                    let sum: f64 = scores.iter().sum();
                    let weights: Vec<f64> = scores.iter().map(|score| score / sum).collect();
                    let factor = changes
                        .factors
                        .map_or(1.0, |factors| f64::from(factors[layer * SIZES.heads + head]));
                    context.extend(of_key.clone().map(|at| {
                        let weighed = weights.iter().zip(&values).map(|(w, value)| w * value[at]);
                        factor * weighed.sum::<f64>()
                    }));
                    last.push(weights);
                }
                for (x, add) in x[row].iter_mut().zip(self.linear(&name("self_attn.o_proj"), &context)) {
                    *x += add;
                }
            }
            shown.attention.push(last);
            for x in &mut x {
                let normed = self.norm(&name("post_attention_layernorm"), x);
                let gate = self.linear(&name("mlp.gate_proj"), &normed);
                let up = self.linear(&name("mlp.up_proj"), &normed);
                let gated: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                for (x, add) in x.iter_mut().zip(self.linear(&name("mlp.down_proj"), &gated)) {
                    *x += add;
                }
            }
        }
        shown.residual.push(x.clone());
        let last = self.norm("model.norm.weight", &x[x.len() - 1]);
        shown.logits = self.linear("lm_head.weight", &last);
        shown
    }
}

/// The reference, the model over the same files, and a prompt of 12 tokens with a vector at place 4.
fn made() -> (Reference, Arc<Llm>, Prompt, Vec<Vec<f64>>) {
    let maker = mistral(SIZES);
    let dir = maker.write();
    let packing = Packing {
        level: Level::detect(),
        precision: Precision::F32,
        unpack: false,
    };
    let llm = Arc::new(Llm::open_with(dir.path(), packing).unwrap());
    let mut random = Random(21);
    let mut ids = vec![1];
    ids.extend(random.ids(11, 250));
    let vector = random.numbers(SIZES.hidden, 0.0, 1.0);
    let pieces = [
        Piece::Tokens(ids[..4].to_vec()),
        Piece::Vectors(vec![vector.clone()]),
        Piece::Tokens(ids[5..].to_vec()),
    ];
    let prompt = llm.prompt(&pieces).unwrap();
    let reference = Reference { maker };
    let mut rows: Vec<Vec<f64>> = ids.iter().map(|id| reference.embedding(*id)).collect();
    rows[4] = vector.iter().map(|x| f64::from(*x)).collect();
    (reference, llm, prompt, rows)
}

fn read(llm: &Llm, prompt: &Prompt, hooks: &mut Hooks<'_>) -> Vec<f32> {
    let pool = Pool::new(2).unwrap();
    let mut cache = Cache::new(llm.config());
    let logits = llm.read(&pool, prompt, &mut cache, 1, hooks, &|| false).unwrap();
    logits.to_vec()
}

/// Fails unless both are the same to 1e-4 of the largest.
fn close(found: &[f32], expected: impl IntoIterator<Item = f64>, what: &str) {
    let expected: Vec<f64> = expected.into_iter().collect();
    assert_eq!(found.len(), expected.len(), "{what}");
    let size = expected.iter().fold(1.0f64, |most, x| most.max(x.abs()));
    for (found, expected) in found.iter().zip(&expected) {
        assert!(
            (f64::from(*found) - expected).abs() < 1e-4 * size,
            "{what}: {found} {expected}"
        );
    }
}

/// How far two rows are apart, over the largest number.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    let size = a.iter().fold(1.0f64, |most, x| most.max(x.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / size
}

const IN_ORDER: [u32; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];

#[test]
fn a_vector_stands_in_the_place_of_a_token_and_hidden_states_are_seen() {
    let (reference, llm, prompt, rows) = made();
    let expected = reference.run(rows, &IN_ORDER, &Changes::default());
    let mut states = Vec::new();
    let mut residual = |layer: usize, x: &mut [f32]| states.push((layer, x.to_vec()));
    let logits = read(
        &llm,
        &prompt,
        &mut Hooks {
            residual: Some(&mut residual),
            ..Hooks::default()
        },
    );
    close(&logits, expected.logits, "logits");
    assert_eq!(states.len(), SIZES.layers + 1);
    for ((layer, found), expected) in states.iter().zip(&expected.residual) {
        close(found, expected.concat(), &format!("before layer {layer}"));
    }
}

#[test]
fn what_is_written_into_the_residual_stream_goes_on() {
    let (reference, llm, prompt, rows) = made();
    let plain = reference.run(rows.clone(), &IN_ORDER, &Changes::default()).logits;
    let change = |x: &mut [Vec<f64>]| {
        x[5].iter_mut()
            .enumerate()
            .for_each(|(at, x)| *x += 0.1 * at as f64 - 2.0)
    };
    let changes = Changes {
        residual: Some((1, &change)),
        ..Changes::default()
    };
    let expected = reference.run(rows, &IN_ORDER, &changes).logits;
    assert!(apart(&plain, &expected) > 1e-2, "the change would not be seen");
    let mut residual = |layer: usize, x: &mut [f32]| {
        if layer == 1 {
            let row = &mut x[5 * SIZES.hidden..6 * SIZES.hidden];
            row.iter_mut()
                .enumerate()
                .for_each(|(at, x)| *x += 0.1 * at as f32 - 2.0);
        }
    };
    let mut hooks = Hooks {
        residual: Some(&mut residual),
        ..Hooks::default()
    };
    close(&read(&llm, &prompt, &mut hooks), expected, "logits");
}

#[test]
fn attention_of_the_last_token_is_shown() {
    let (reference, llm, prompt, rows) = made();
    let expected = reference.run(rows, &IN_ORDER, &Changes::default()).attention;
    let mut shown = Vec::new();
    let mut attention = |layer: usize, head: usize, row: &[f32]| shown.push((layer, head, row.to_vec()));
    read(
        &llm,
        &prompt,
        &mut Hooks {
            attention: Some(&mut attention),
            ..Hooks::default()
        },
    );
    assert_eq!(shown.len(), SIZES.layers * SIZES.heads);
    for (place, (layer, head, row)) in shown.iter().enumerate() {
        assert_eq!((*layer, *head), (place / SIZES.heads, place % SIZES.heads));
        close(
            row,
            expected[*layer][*head].iter().copied(),
            &format!("layer {layer} head {head}"),
        );
    }
}

#[test]
fn heads_add_as_much_as_their_factors_say() {
    let (reference, llm, prompt, rows) = made();
    let plain = reference.run(rows.clone(), &IN_ORDER, &Changes::default()).logits;
    let mut factors = vec![1.0f32; SIZES.layers * SIZES.heads];
    (factors[1], factors[SIZES.heads + 2], factors[2 * SIZES.heads]) = (0.0, 0.0, 0.5);
    let changes = Changes {
        factors: Some(&factors),
        ..Changes::default()
    };
    let expected = reference.run(rows, &IN_ORDER, &changes).logits;
    assert!(apart(&plain, &expected) > 1e-2, "the factors would not be seen");
    let mut hooks = Hooks {
        head_factors: Some(&factors),
        ..Hooks::default()
    };
    close(&read(&llm, &prompt, &mut hooks), expected, "logits");
}

#[test]
fn keys_are_seen_and_changed_before_they_are_turned_to_explicit_positions() {
    let (reference, llm, prompt, rows) = made();
    let in_order = reference.run(rows.clone(), &IN_ORDER, &Changes::default()).logits;
    // The first part follows what is kept by itself, the second stands where it is told.
    let positions: Vec<u32> = IN_ORDER
        .iter()
        .map(|at| if *at < 7 { *at } else { at * 9 + 40 })
        .collect();
    let spread = reference.run(rows.clone(), &positions, &Changes::default()).logits;
    assert!(apart(&in_order, &spread) > 1e-2, "positions would not be seen");
    let change = |keys: &mut [Vec<f64>]| keys[8].iter_mut().for_each(|x| *x *= -3.0);
    let changes = Changes {
        keys: Some((2, &change)),
        ..Changes::default()
    };
    let expected = reference.run(rows, &positions, &changes);
    assert!(apart(&spread, &expected.logits) > 1e-3, "the change would not be seen");

    let pool = Pool::new(2).unwrap();
    let mut cache = Cache::new(llm.config());
    let part = |range: std::ops::Range<usize>| Prompt {
        inputs: prompt.inputs[range].to_vec(),
    };
    llm.read(&pool, &part(0..7), &mut cache, 0, &mut Hooks::default(), &|| false)
        .unwrap();
    let mut shown = Vec::new();
    let numbers = SIZES.key_heads * SIZES.width;
    let mut keys = |layer: usize, keys: &mut [f32]| {
        shown.push((layer, keys.to_vec()));
        if layer == 2 {
            keys[numbers..2 * numbers].iter_mut().for_each(|x| *x *= -3.0);
        }
    };
    let mut hooks = Hooks {
        keys: Some(&mut keys),
        positions: Some(&positions[7..]),
        ..Hooks::default()
    };
    let logits = llm
        .read(&pool, &part(7..12), &mut cache, 1, &mut hooks, &|| false)
        .unwrap();
    assert_eq!(shown.len(), SIZES.layers);
    for ((layer, found), expected) in shown.iter().zip(&expected.keys) {
        close(found, expected[7..].concat(), &format!("keys of layer {layer}"));
    }
    close(&logits, expected.logits, "logits");
}

/// Answers of six tokens by hand: what `choose` takes of each step's logits.
fn by_hand(llm: &Llm, prompt: &Prompt, mut choose: impl FnMut(&[u32], &[f32]) -> u32) -> Vec<u32> {
    let mut ids: Vec<u32> = Vec::new();
    for _ in 0..6 {
        let mut whole = prompt.clone();
        whole
            .inputs
            .extend(ids.iter().map(|id| super::super::llm::Input::Token(*id)));
        let logits = read(llm, &whole, &mut Hooks::default());
        ids.push(choose(&ids, &logits));
    }
    ids
}

#[test]
fn logits_are_changed_and_tokens_allowed_at_each_step() {
    let (_, llm, prompt, _) = made();
    // Ends and what came last are never taken, so that there are six different steps.
    let change = |ids: &[u32], logits: &mut [f32]| {
        logits[..3].fill(f32::NEG_INFINITY);
        if let Some(last) = ids.last() {
            logits[*last as usize] -= 100.0;
        }
    };
    let allowed = |ids: &[u32]| -> Vec<u32> { (0..9).map(|n| 20 + 7 * n + ids.len() as u32).collect() };
    let answer = |hooks: StepHooks| {
        let mut batcher = Batcher::new(llm.clone(), 2, 1 << 30).unwrap();
        batcher.add_with(0, request(prompt.clone(), 6), hooks).unwrap();
        run(&mut batcher, 1).remove(0).ids
    };
    let changed = by_hand(&llm, &prompt, |ids, logits| {
        let mut logits = logits.to_vec();
        change(ids, &mut logits);
        largest(&logits)
    });
    let hooks = StepHooks {
        logits: Some(Box::new(change)),
        ..StepHooks::default()
    };
    assert_eq!(answer(hooks), changed);
    let among = |ids: &[u32], logits: &[f32]| {
        let mut only = vec![f32::NEG_INFINITY; logits.len()];
        for id in allowed(ids) {
            only[id as usize] = logits[id as usize];
        }
        largest(&only)
    };
    let chosen = by_hand(&llm, &prompt, among);
    let hooks = StepHooks {
        allowed: Some(Box::new(move |ids| Some(allowed(ids)))),
        ..StepHooks::default()
    };
    assert_eq!(answer(hooks), chosen);
    // Both: of the allowed ones the best of the changed logits.
    let both = by_hand(&llm, &prompt, |ids, logits| {
        let mut logits = logits.to_vec();
        change(ids, &mut logits);
        among(ids, &logits)
    });
    let hooks = StepHooks {
        logits: Some(Box::new(change)),
        allowed: Some(Box::new(move |ids| Some(allowed(ids)))),
    };
    assert_eq!(answer(hooks), both);
    assert_ne!(both, changed);
}
