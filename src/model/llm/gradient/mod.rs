//! Gradients through a frozen decoder, to its input vectors: what a projector is trained by.
//!
//! Whole sequences, packed one behind the other, run forward with what the way back needs kept for every layer; the way
//! back gives the gradient of the loss by the input vectors alone. Weights are packed twice, as they are and transposed.
//! The loss is the cross entropy of chosen positions, `-log softmax(logits)[id]`, and where a position has a teacher,
//! `KL(teacher || softmax(logits))` besides; both have a gradient of one row of the vocabulary a position.
//!
//! With `r = 1 / sqrt(mean(x^2) + e)`, `y = g r x` has `dx = r g dy - x r^3 / n sum(x g dy)`; `a = silu(b) u` has
//! `db = da u s (1 + b (1 - s))` with `s = sigmoid(b)`; softmax rows `p` have `ds = p (dp - sum(p dp))`.

use super::config::LlmConfig;
use super::files::LlmFiles;
use crate::compute::apply::{Apply, transposed};
use crate::compute::cpu::Level;
use crate::compute::{Buffer, ComputeError, Linear, Pool, Precision, Shared};
use crate::model::ModelError;

/// Rows of a task of what is done row by row.
const TASK_ROWS: usize = 8;
/// Positions whose logits are in memory at once.
const LOGIT_ROWS: usize = 64;

/// A linear layer and its transpose.
struct Both {
    forward: Linear,
    back: Linear,
}

impl Both {
    fn new(weights: &[f32], bias: Option<&[f32]>, inputs: usize, precision: Precision) -> Result<Both, ComputeError> {
        let (level, outputs) = (Level::detect(), weights.len() / inputs.max(1));
        let none = vec![0.0; outputs.max(inputs)];
        let bias = bias.unwrap_or(&none[..outputs]);
        Ok(Both {
            forward: Linear::new(level, precision, weights, bias, inputs)?,
            back: Linear::new(level, precision, &transposed(weights, inputs), &none[..inputs], outputs)?,
        })
    }
}

struct Layer {
    attention_norm: Vec<f32>,
    qkv: Both,
    output: Both,
    feed_norm: Vec<f32>,
    gate_up: Both,
    down: Both,
}

/// What a layer keeps of a pass.
struct Kept {
    before: Vec<f32>,
    qkv: Vec<f32>,
    between: Vec<f32>,
    gate_up: Vec<f32>,
}

/// A position whose next token is wanted.
#[derive(Clone, Debug)]
pub struct Target {
    /// Row of the pass.
    pub row: usize,
    pub id: u32,
    /// Probabilities over the vocabulary that are to be met.
    pub teacher: Option<Vec<f32>>,
}

/// What a pass gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// `-log p` of each target, in nats.
    pub nats: Vec<f32>,
    /// The divergence from the teacher of each target that has one, else 0.
    pub divergence: Vec<f32>,
}

/// A frozen decoder that gradients go through.
pub struct Differentiable {
    config: LlmConfig,
    embeddings: Vec<f32>,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Both,
    frequencies: Vec<f32>,
}

impl Differentiable {
    /// Reads a model's tensors, whatever they are stored as, for products in `precision`.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] for models with norms of heads, and what reading fails with.
    pub fn open(files: &LlmFiles, precision: Precision) -> Result<Differentiable, ModelError> {
        let config = files.config().clone();
        if config.head_norms {
            return Err(super::unsupported(
                "gradients",
                "norms of heads",
                "Llama, Mistral, Qwen2",
            ));
        }
        let hidden = config.hidden;
        let vector = |name: &str, count: usize| -> Result<Vec<f32>, ModelError> {
            let tensor = files.tensor(name)?;
            match tensor.rows * tensor.columns == count {
                true => Ok(tensor.to_f32()),
                false => Err(ModelError::TensorShape {
                    name: name.to_owned(),
                    expected: vec![count],
                    found: vec![tensor.rows, tensor.columns],
                }),
            }
        };
        let (queries, keys) = (config.heads * config.head_width, config.key_heads * config.head_width);
        let mut layers = Vec::new();
        for number in 0..config.layers {
            let name = |part: &str| format!("model.layers.{number}.{part}");
            let mut stacked = Vec::new();
            let mut bias = Vec::new();
            for (part, outputs) in [("q", queries), ("k", keys), ("v", keys)] {
                stacked.extend(vector(
                    &name(&format!("self_attn.{part}_proj.weight")),
                    outputs * hidden,
                )?);
                if config.qkv_bias {
                    bias.extend(vector(&name(&format!("self_attn.{part}_proj.bias")), outputs)?);
                }
            }
            let bias = config.qkv_bias.then_some(bias.as_slice());
            let wide = config.intermediate;
            let mut gate_up = vector(&name("mlp.gate_proj.weight"), wide * hidden)?;
            gate_up.extend(vector(&name("mlp.up_proj.weight"), wide * hidden)?);
            let output = vector(&name("self_attn.o_proj.weight"), hidden * queries)?;
            let down = vector(&name("mlp.down_proj.weight"), hidden * wide)?;
            layers.push(Layer {
                attention_norm: vector(&name("input_layernorm.weight"), hidden)?,
                qkv: Both::new(&stacked, bias, hidden, precision)?,
                output: Both::new(&output, None, queries, precision)?,
                feed_norm: vector(&name("post_attention_layernorm.weight"), hidden)?,
                gate_up: Both::new(&gate_up, None, hidden, precision)?,
                down: Both::new(&down, None, wide, precision)?,
            });
        }
        let embeddings = vector("model.embed_tokens.weight", config.vocabulary * hidden)?;
        let head = match config.tied {
            true => Both::new(&embeddings, None, hidden, precision)?,
            false => Both::new(
                &vector("lm_head.weight", config.vocabulary * hidden)?,
                None,
                hidden,
                precision,
            )?,
        };
        let norm = vector("model.norm.weight", hidden)?;
        files.unchanged()?;
        let frequency = |pair: usize| {
            let plain = 1.0 / f64::from(config.rope_base).powf(2.0 * pair as f64 / config.head_width as f64);
            let divisor = config
                .rope_scaling
                .as_ref()
                .and_then(|scaling| scaling.get(pair))
                .copied();
            (plain / f64::from(divisor.unwrap_or(1.0))) as f32
        };
        Ok(Differentiable {
            frequencies: (0..config.head_width / 2).map(frequency).collect(),
            embeddings,
            layers,
            norm,
            head,
            config,
        })
    }

    pub fn config(&self) -> &LlmConfig {
        &self.config
    }

    /// The input vector of a token; zeros for one that there is not.
    pub fn embed(&self, id: u32, out: &mut [f32]) {
        let hidden = self.config.hidden;
        let row = self.embeddings.get(id as usize * hidden..(id as usize + 1) * hidden);
        out.iter_mut()
            .zip(row.unwrap_or_default())
            .for_each(|(to, from)| *to = *from);
    }

    /// The mean length of the token embeddings' numbers: `sqrt(mean(x^2))`, the scale that inputs have.
    pub fn input_scale(&self) -> f32 {
        let squares: f64 = self.embeddings.iter().map(|x| f64::from(*x).powi(2)).sum();
        (squares / self.embeddings.len().max(1) as f64).sqrt() as f32
    }

    /// The losses of a pass, and with `back` the gradient of `sum(nats * weight + divergence * pull)` by the input
    /// vectors, row by row as `vectors`. `starts` holds the first row of each sequence, and the end.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where rows, starts and targets do not fit; [`ComputeError::Stopped`] where `stop` says so, which
    /// is asked after every layer.
    #[allow(clippy::too_many_arguments)]
    pub fn pass(
        &self,
        pool: &Pool,
        vectors: &[f32],
        starts: &[usize],
        targets: &[Target],
        weight: f32,
        pull: f32,
        back: bool,
        stop: &dyn Fn() -> bool,
    ) -> Result<(Loss, Vec<f32>), ComputeError> {
        let hidden = self.config.hidden;
        let rows = vectors.len() / hidden;
        let ascending = starts.windows(2).all(|pair| pair[0] < pair[1]);
        let fits = starts.first() == Some(&0) && starts.last() == Some(&rows) && ascending;
        let known = |target: &Target| {
            let teacher = target
                .teacher
                .as_ref()
                .is_none_or(|teacher| teacher.len() == self.config.vocabulary);
            target.row < rows && (target.id as usize) < self.config.vocabulary && teacher
        };
        if !fits || vectors.len() != rows * hidden || !targets.iter().all(known) {
            return Err(ComputeError::Shape(
                "the rows of a pass do not fit its sequences".to_owned(),
            ));
        }
        let widest = hidden.max(self.config.intermediate * 2).max(self.config.vocabulary);
        let apply = Apply::new(pool, widest)?;
        let turns = self.turns(starts);
        let mut x = vectors.to_vec();
        let mut kept = Vec::new();
        for layer in &self.layers {
            let own = self.layer_forward(pool, &apply, layer, &mut x, starts, &turns)?;
            if back {
                kept.push(own);
            }
            if stop() {
                return Err(ComputeError::Stopped);
            }
        }
        let (loss, mut dx) = self.losses(pool, &apply, &x, targets, weight, pull, back)?;
        if !back {
            return Ok((loss, Vec::new()));
        }
        for (layer, kept) in self.layers.iter().zip(&kept).rev() {
            self.layer_back(pool, &apply, layer, kept, &mut dx, starts, &turns)?;
            if stop() {
                return Err(ComputeError::Stopped);
            }
        }
        Ok((loss, dx))
    }

    fn turns(&self, starts: &[usize]) -> Vec<f32> {
        let longest = starts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
        let mut turns = Vec::with_capacity(longest * self.frequencies.len() * 2);
        for position in 0..longest {
            turns.extend(
                self.frequencies
                    .iter()
                    .map(|frequency| (position as f32 * frequency).cos()),
            );
            turns.extend(
                self.frequencies
                    .iter()
                    .map(|frequency| (position as f32 * frequency).sin()),
            );
        }
        turns
    }

    /// Turns queries and keys of all rows; `back` turns them the other way.
    fn rotate(&self, qkv: &mut [f32], starts: &[usize], turns: &[f32], back: bool) {
        let (width, heads) = (self.config.head_width, self.config.heads + self.config.key_heads);
        let row = (self.config.heads + 2 * self.config.key_heads) * width;
        let pairs = width / 2;
        for pair in starts.windows(2) {
            let own = &mut qkv[pair[0] * row..pair[1] * row];
            for (qkv, turns) in own.chunks_exact_mut(row).zip(turns.chunks_exact(2 * pairs)) {
                let (cosines, sines) = turns.split_at(pairs);
                for head in qkv[..heads * width].chunks_exact_mut(width) {
                    let (first, second) = head.split_at_mut(pairs);
                    for (((a, b), cosine), sine) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
                        let sine = if back { -sine } else { *sine };
                        (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
                    }
                }
            }
        }
    }

    fn layer_forward(
        &self,
        pool: &Pool,
        apply: &Apply,
        layer: &Layer,
        x: &mut [f32],
        starts: &[usize],
        turns: &[f32],
    ) -> Result<Kept, ComputeError> {
        let hidden = self.config.hidden;
        let rows = x.len() / hidden;
        let before = x.to_vec();
        let normed = self.normalise(pool, x, &layer.attention_norm)?;
        let mut qkv = vec![0.0f32; rows * layer.qkv.forward.outputs()];
        apply.run(pool, &layer.qkv.forward, &normed, &mut qkv)?;
        self.rotate(&mut qkv, starts, turns, false);
        let context = self.attend(pool, &qkv, starts)?;
        let mut part = vec![0.0f32; rows * hidden];
        apply.run(pool, &layer.output.forward, &context, &mut part)?;
        x.iter_mut().zip(&part).for_each(|(x, part)| *x += part);
        let between = x.to_vec();
        let normed = self.normalise(pool, x, &layer.feed_norm)?;
        let wide = self.config.intermediate;
        let mut gate_up = vec![0.0f32; rows * 2 * wide];
        apply.run(pool, &layer.gate_up.forward, &normed, &mut gate_up)?;
        let mut gated = vec![0.0f32; rows * wide];
        each_row(pool, &mut gated, wide, |row, out| {
            let (gate, up) = gate_up[row * 2 * wide..(row + 1) * 2 * wide].split_at(wide);
            for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                *out = gate / (1.0 + (-gate).exp()) * up;
            }
        })?;
        apply.run(pool, &layer.down.forward, &gated, &mut part)?;
        x.iter_mut().zip(&part).for_each(|(x, part)| *x += part);
        Ok(Kept {
            before,
            qkv,
            between,
            gate_up,
        })
    }

    #[allow(clippy::too_many_arguments)]
    fn layer_back(
        &self,
        pool: &Pool,
        apply: &Apply,
        layer: &Layer,
        kept: &Kept,
        dx: &mut [f32],
        starts: &[usize],
        turns: &[f32],
    ) -> Result<(), ComputeError> {
        let (hidden, wide) = (self.config.hidden, self.config.intermediate);
        let rows = dx.len() / hidden;
        let mut gated = vec![0.0f32; rows * wide];
        apply.run(pool, &layer.down.back, dx, &mut gated)?;
        let mut gate_up = vec![0.0f32; rows * 2 * wide];
        each_row(pool, &mut gate_up, 2 * wide, |row, out| {
            let (gate, up) = kept.gate_up[row * 2 * wide..(row + 1) * 2 * wide].split_at(wide);
            let (dgate, dup) = out.split_at_mut(wide);
            let all = dgate.iter_mut().zip(dup).zip(gate).zip(up).zip(&gated[row * wide..]);
            for ((((dgate, dup), gate), up), da) in all {
                let sigmoid = 1.0 / (1.0 + (-gate).exp());
                *dgate = da * up * sigmoid * (1.0 + gate * (1.0 - sigmoid));
                *dup = da * gate * sigmoid;
            }
        })?;
        let mut dnormed = vec![0.0f32; rows * hidden];
        apply.run(pool, &layer.gate_up.back, &gate_up, &mut dnormed)?;
        self.normalise_back(pool, &kept.between, &layer.feed_norm, &dnormed, dx)?;
        let mut dcontext = vec![0.0f32; rows * layer.output.forward.inputs()];
        apply.run(pool, &layer.output.back, dx, &mut dcontext)?;
        let mut dqkv = self.attend_back(pool, &kept.qkv, &dcontext, starts)?;
        self.rotate(&mut dqkv, starts, turns, true);
        apply.run(pool, &layer.qkv.back, &dqkv, &mut dnormed)?;
        self.normalise_back(pool, &kept.before, &layer.attention_norm, &dnormed, dx)
    }

    /// `1 / sqrt(mean(x^2) + e)` of a row.
    fn inverse(&self, row: &[f32]) -> f32 {
        let mean = row.iter().map(|x| x * x).sum::<f32>() / row.len() as f32;
        1.0 / (mean + self.config.norm_epsilon).sqrt()
    }

    fn normalise(&self, pool: &Pool, x: &[f32], scale: &[f32]) -> Result<Vec<f32>, ComputeError> {
        let hidden = self.config.hidden;
        let mut out = vec![0.0f32; x.len()];
        each_row(pool, &mut out, hidden, |row, out| {
            let x = &x[row * hidden..(row + 1) * hidden];
            let inverse = self.inverse(x);
            out.iter_mut()
                .zip(x)
                .zip(scale)
                .for_each(|((out, x), scale)| *out = x * inverse * scale);
        })?;
        Ok(out)
    }

    /// Adds the gradient through a norm of `x` to `dx`.
    fn normalise_back(
        &self,
        pool: &Pool,
        x: &[f32],
        scale: &[f32],
        dy: &[f32],
        dx: &mut [f32],
    ) -> Result<(), ComputeError> {
        let hidden = self.config.hidden;
        each_row(pool, dx, hidden, |row, dx| {
            let (x, dy) = (
                &x[row * hidden..(row + 1) * hidden],
                &dy[row * hidden..(row + 1) * hidden],
            );
            let inverse = self.inverse(x);
            let along: f32 = x.iter().zip(dy).zip(scale).map(|((x, dy), scale)| x * dy * scale).sum();
            let factor = inverse.powi(3) * along / hidden as f32;
            for (((dx, x), dy), scale) in dx.iter_mut().zip(x).zip(dy).zip(scale) {
                *dx += inverse * scale * dy - x * factor;
            }
        })
    }

    /// For each sequence and head of keys: the first row, the rows, and the head.
    fn tasks(&self, starts: &[usize]) -> Vec<(usize, usize, usize)> {
        let heads = 0..self.config.key_heads;
        let sequences = starts.windows(2).map(|pair| (pair[0], pair[1] - pair[0]));
        sequences
            .flat_map(|(first, count)| heads.clone().map(move |head| (first, count, head)))
            .collect()
    }

    /// The attention of one query over the keys up to its own, into `row`.
    fn softmax<'k>(&self, query: &[f32], key: impl Fn(usize) -> &'k [f32], from: usize, until: usize, row: &mut [f32]) {
        let width = self.config.head_width;
        let scale = 1.0 / (width as f32).sqrt();
        let mut most = f32::NEG_INFINITY;
        for (position, score) in row.iter_mut().enumerate().take(until).skip(from) {
            *score = dot(query, key(position)) * scale;
            most = most.max(*score);
        }
        let mut sum = 0.0;
        for score in &mut row[from..until] {
            *score = (*score - most).exp();
            sum += *score;
        }
        row[from..until].iter_mut().for_each(|score| *score /= sum);
    }

    fn first_seen(&self, position: usize) -> usize {
        self.config
            .window
            .map_or(0, |window| (position + 1).saturating_sub(window))
    }

    fn attend(&self, pool: &Pool, qkv: &[f32], starts: &[usize]) -> Result<Vec<f32>, ComputeError> {
        let (width, heads, key_heads) = (self.config.head_width, self.config.heads, self.config.key_heads);
        let (row, group) = ((heads + 2 * key_heads) * width, heads / key_heads);
        let tasks = self.tasks(starts);
        let mut context = vec![0.0f32; qkv.len() / row * heads * width];
        let shared = Shared::new(&mut context);
        pool.run(tasks.len(), |task| {
            let (first, count, head) = tasks[task];
            let mut scores = vec![0.0f32; count];
            let key = |position: usize| &qkv[(first + position) * row + (heads + head) * width..][..width];
            for position in 0..count {
                for query in head * group..(head + 1) * group {
                    let at = first + position;
                    let own = &qkv[at * row + query * width..][..width];
                    let from = self.first_seen(position);
                    self.softmax(own, key, from, position + 1, &mut scores);
                    // SAFETY: each task has heads of its own.
                    let out = unsafe { shared.part(at * heads * width + query * width, width) };
                    for (other, share) in scores.iter().enumerate().take(position + 1).skip(from) {
                        add(
                            out,
                            *share,
                            &qkv[(first + other) * row + (heads + key_heads + head) * width..][..width],
                        );
                    }
                }
            }
        })?;
        Ok(context)
    }

    fn attend_back(
        &self,
        pool: &Pool,
        qkv: &[f32],
        dcontext: &[f32],
        starts: &[usize],
    ) -> Result<Vec<f32>, ComputeError> {
        let (width, heads, key_heads) = (self.config.head_width, self.config.heads, self.config.key_heads);
        let (row, group) = ((heads + 2 * key_heads) * width, heads / key_heads);
        let scale = 1.0 / (width as f32).sqrt();
        let tasks = self.tasks(starts);
        let mut dqkv = vec![0.0f32; qkv.len()];
        let shared = Shared::new(&mut dqkv);
        pool.run(tasks.len(), |task| {
            let (first, count, head) = tasks[task];
            let (mut scores, mut back) = (vec![0.0f32; count], vec![0.0f32; count]);
            let key = |position: usize| &qkv[(first + position) * row + (heads + head) * width..][..width];
            for position in 0..count {
                for query in head * group..(head + 1) * group {
                    let at = first + position;
                    let own = &qkv[at * row + query * width..][..width];
                    let dout = &dcontext[at * heads * width + query * width..][..width];
                    let from = self.first_seen(position);
                    self.softmax(own, key, from, position + 1, &mut scores);
                    let mut along = 0.0;
                    for other in from..=position {
                        let value = (first + other) * row + (heads + key_heads + head) * width;
                        back[other] = dot(dout, &qkv[value..][..width]);
                        along += back[other] * scores[other];
                        // SAFETY: each task has heads of its own, of queries, keys and values.
                        add(unsafe { shared.part(value, width) }, scores[other], dout);
                    }
                    for other in from..=position {
                        let ds = scores[other] * (back[other] - along) * scale;
                        let at_key = (first + other) * row + (heads + head) * width;
                        // SAFETY: as above.
                        add(
                            unsafe { shared.part(at * row + query * width, width) },
                            ds,
                            &qkv[at_key..][..width],
                        );
                        // SAFETY: as above.
                        add(unsafe { shared.part(at_key, width) }, ds, own);
                    }
                }
            }
        })?;
        Ok(dqkv)
    }

    /// The losses of the targets, and the gradient by the last layer's states.
    #[allow(clippy::too_many_arguments)]
    fn losses(
        &self,
        pool: &Pool,
        apply: &Apply,
        x: &[f32],
        targets: &[Target],
        weight: f32,
        pull: f32,
        back: bool,
    ) -> Result<(Loss, Vec<f32>), ComputeError> {
        let (hidden, vocabulary) = (self.config.hidden, self.config.vocabulary);
        let mut loss = Loss {
            nats: Vec::with_capacity(targets.len()),
            divergence: Vec::with_capacity(targets.len()),
        };
        let mut dx = vec![0.0f32; if back { x.len() } else { 0 }];
        let mut logits: Buffer<f32> = Buffer::zeroed(LOGIT_ROWS.min(targets.len().max(1)) * vocabulary)?;
        for part in targets.chunks(LOGIT_ROWS) {
            let mut states = Vec::with_capacity(part.len() * hidden);
            part.iter()
                .for_each(|target| states.extend_from_slice(&x[target.row * hidden..][..hidden]));
            let normed = self.normalise(pool, &states, &self.norm)?;
            let logits = &mut logits[..part.len() * vocabulary];
            apply.run(pool, &self.head.forward, &normed, logits)?;
            let mut both = vec![0.0f32; part.len() * 2];
            let found = Shared::new(&mut both);
            each_row(pool, logits, vocabulary, |row, logits| {
                // SAFETY: each row has numbers of its own.
                let out = unsafe { found.part(row * 2, 2) };
                let target = &part[row];
                let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let own = logits[target.id as usize] - most;
                let mut sum = 0.0f64;
                for logit in logits.iter_mut() {
                    *logit = (*logit - most).exp();
                    sum += f64::from(*logit);
                }
                out[0] = (sum.ln() - f64::from(own)) as f32;
                let inverse = (1.0 / sum) as f32;
                match &target.teacher {
                    None => logits.iter_mut().for_each(|p| *p *= inverse * weight),
                    Some(teacher) => {
                        let mut divergence = 0.0f64;
                        for (p, teacher) in logits.iter_mut().zip(teacher) {
                            let own = *p * inverse;
                            if *teacher > 0.0 {
                                divergence +=
                                    f64::from(*teacher) * f64::from(teacher.ln() - own.max(f32::MIN_POSITIVE).ln());
                            }
                            *p = own * weight + pull * (own - teacher);
                        }
                        out[1] = divergence as f32;
                    }
                }
                logits[target.id as usize] -= weight;
            })?;
            for pair in both.chunks_exact(2) {
                loss.nats.push(pair[0]);
                loss.divergence.push(pair[1]);
            }
            if back {
                let mut dnormed = vec![0.0f32; part.len() * hidden];
                apply.run(pool, &self.head.back, logits, &mut dnormed)?;
                let mut dstates = vec![0.0f32; part.len() * hidden];
                self.normalise_back(pool, &states, &self.norm, &dnormed, &mut dstates)?;
                for (target, from) in part.iter().zip(dstates.chunks_exact(hidden)) {
                    add(&mut dx[target.row * hidden..][..hidden], 1.0, from);
                }
            }
        }
        Ok((loss, dx))
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    // Eight sums, so that the compiler may keep them in a vector.
    let mut sums = [0.0f32; 8];
    let (a, b) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a.0.iter().zip(b.0) {
        sums.iter_mut()
            .zip(a.iter().zip(b))
            .for_each(|(sum, (a, b))| *sum += a * b);
    }
    let rest: f32 = a.1.iter().zip(b.1).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

fn add(to: &mut [f32], factor: f32, from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
}

/// Calls `body(row, numbers)` for each row of `out`.
fn each_row(
    pool: &Pool,
    out: &mut [f32],
    width: usize,
    body: impl Fn(usize, &mut [f32]) + Sync,
) -> Result<(), ComputeError> {
    let rows = out.len() / width.max(1);
    let shared = Shared::new(out);
    pool.run(rows.div_ceil(TASK_ROWS), |task| {
        for row in task * TASK_ROWS..((task + 1) * TASK_ROWS).min(rows) {
            // SAFETY: each row is one task's.
            body(row, unsafe { shared.part(row * width, width) });
        }
    })
}
