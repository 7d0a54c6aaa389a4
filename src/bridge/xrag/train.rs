//! Training of a projector: options, the parts of the material, the loop, the figures.
//!
//! Stage 1 of xRAG: the frozen LLM is given a passage's vectors in one of thirteen instructions and has to say the
//! passage; the loss is `-log p` of its tokens. What is held out is judged in bits a token: given nothing, the passage's
//! own vectors, another passage's, and the beginning of its text. A bridge is accepted where its own vectors beat
//! another's by an interval without zero.

use super::fit::{AT_ONCE, Example, Given, Sizes, Trainee, pass};
use super::prompts::{Prompt, prompts};
use crate::bridge::BridgeError;
use crate::bridge::train::data::{Encode, Pair, Passage, Progress, Trained, Watch};
use crate::bridge::train::parts::{Epochs, mean, parted, passage_vectors};
use crate::compute::cpu::has_bf16;
use crate::compute::pooling::normalize;
use crate::compute::{Pool, Precision};
use crate::eval::bootstrap::{Draws, of_mean};
use crate::eval::random::Random;
use crate::model::llm::files::LlmFiles;
use crate::model::llm::gradient::Differentiable;
use crate::model::llm::{Chat, LlmTokenizer};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::sync::Arc;

/// Fewest passages of a part.
const FEWEST_PASSAGES: usize = 20;
/// Tokens of the text that is given in the place of vectors, for comparison.
const TEXT_TOKENS: usize = 32;
/// Rounds without a better one after which training ends.
const PATIENCE: usize = 4;

/// How a projector is trained. Unknown names are refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct XragOptions {
    /// The registered LLM that the vectors are for.
    pub llm: String,
    /// Vectors of a passage.
    pub tokens: usize,
    /// Width between the projector's layers, 0 for the LLM's.
    pub hidden: usize,
    /// Tokens of a passage that are to be said.
    pub text_tokens: usize,
    /// AdamW's highest learning rate, and its decay.
    pub rate: f32,
    pub decay: f32,
    pub epochs: usize,
    /// Passages of a step.
    pub batch: usize,
    /// Steps between two measurements.
    pub round_steps: usize,
    /// Share of the documents that is held out, half for stopping, half for the figures.
    pub held_out: f64,
    /// Most passages that choose, and that judge.
    pub measured: usize,
    pub seed: u64,
    /// Threads, 0 for the machine's.
    pub threads: usize,
}

impl Default for XragOptions {
    fn default() -> XragOptions {
        XragOptions {
            llm: String::new(),
            tokens: 1,
            hidden: 0,
            text_tokens: 64,
            rate: 2e-3,
            decay: 0.0,
            epochs: 3,
            batch: 16,
            round_steps: 50,
            held_out: 0.1,
            measured: 200,
            seed: 1,
            threads: 0,
        }
    }
}

impl XragOptions {
    fn read(options: &Value) -> Result<XragOptions, BridgeError> {
        let bad = |value: String, range: &'static str| BridgeError::Option {
            name: "options",
            value,
            range,
        };
        let names = "llm, tokens, hidden, text_tokens, rate, decay, epochs, batch, round_steps, held_out, measured, seed, \
                     threads";
        let read: XragOptions =
            serde_json::from_value(options.clone()).map_err(|error| bad(error.to_string(), names))?;
        let shown = || format!("{read:?}");
        if !(1..=16).contains(&read.tokens) || read.hidden > 8192 || !(4..=512).contains(&read.text_tokens) {
            return Err(bad(shown(), "tokens 1 to 16, hidden to 8192, text_tokens 4 to 512"));
        }
        if !(read.rate.is_finite() && read.rate > 0.0 && (0.0..=10.0).contains(&read.decay)) {
            return Err(bad(shown(), "rate above 0, decay 0 to 10"));
        }
        let counts = [read.epochs, read.batch, read.round_steps, read.measured];
        if !counts.iter().all(|count| (1..=100_000).contains(count)) {
            return Err(bad(shown(), "epochs, batch, round_steps and measured 1 to 100000"));
        }
        if !(0.02..=0.8).contains(&read.held_out) {
            return Err(bad(shown(), "held_out 0.02 to 0.8"));
        }
        Ok(read)
    }
}

/// What a training has.
struct Training<'a> {
    options: &'a XragOptions,
    pool: &'a Pool,
    decoder: &'a Differentiable,
    prompts: Vec<Prompt>,
    dimensions: usize,
    vectors: Vec<f32>,
    /// The tokens of each passage that are to be said.
    texts: Vec<Vec<u32>>,
}

/// Asks a watch from inside of a pass, and keeps what it said.
struct Asking<'a, 'b> {
    watch: RefCell<&'a mut dyn Watch>,
    progress: &'b Progress,
    said: RefCell<Option<BridgeError>>,
}

impl Asking<'_, '_> {
    fn stop(&self) -> bool {
        match self.watch.borrow_mut().step(self.progress) {
            Ok(()) => false,
            Err(error) => {
                *self.said.borrow_mut() = Some(error);
                true
            }
        }
    }
}

/// Runs something that asks the watch between layers.
fn watched<T>(
    watch: &mut dyn Watch,
    progress: &Progress,
    body: impl FnOnce(&dyn Fn() -> bool) -> Result<T, BridgeError>,
) -> Result<T, BridgeError> {
    let asking = Asking {
        watch: RefCell::new(watch),
        progress,
        said: RefCell::new(None),
    };
    let result = body(&|| asking.stop());
    match asking.said.into_inner() {
        Some(said) => Err(said),
        None => result,
    }
}

impl Training<'_> {
    fn vector(&self, passage: usize) -> &[f32] {
        &self.vectors[passage * self.dimensions..][..self.dimensions]
    }

    fn prompt(&self, place: usize) -> &Prompt {
        let bits = Random::new(self.options.seed ^ (place as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)).bits();
        &self.prompts[(bits % self.prompts.len() as u64) as usize]
    }

    /// Bits a token of passages, with what `given` puts in their place.
    fn bits<'b>(
        &'b self,
        passages: &'b [usize],
        given: impl Fn(usize) -> Given<'b>,
        watch: &mut dyn Watch,
        progress: &Progress,
    ) -> Result<Vec<f64>, BridgeError> {
        let examples: Vec<Example> = passages
            .iter()
            .enumerate()
            .map(|(number, passage)| Example {
                prompt: self.prompt(*passage),
                given: given(number),
                text: &self.texts[*passage],
            })
            .collect();
        Ok(watched(watch, progress, |stop| {
            pass(self.pool, self.decoder, &examples, 0.0, stop)
        })?
        .bits)
    }

    /// The projector's vectors of passages, those of each one after another.
    fn projected(&self, trainee: &Trainee, passages: &[usize]) -> Result<Vec<f32>, BridgeError> {
        let x: Vec<f32> = passages
            .iter()
            .flat_map(|passage| self.vector(*passage))
            .copied()
            .collect();
        Ok(trainee.forward(self.pool, &x)?.2)
    }

    fn step(
        &self,
        trainee: &mut Trainee,
        passages: &[usize],
        place: usize,
        rate: f32,
        watch: &mut dyn Watch,
        progress: &Progress,
    ) -> Result<f64, BridgeError> {
        let x: Vec<f32> = passages
            .iter()
            .flat_map(|passage| self.vector(*passage))
            .copied()
            .collect();
        let (_, _, out) = trainee.forward(self.pool, &x)?;
        let width = trainee.sizes.outputs;
        let examples: Vec<Example> = passages
            .iter()
            .enumerate()
            .map(|(number, passage)| Example {
                prompt: self.prompt(place + number + (1 << 32)),
                given: Given::Vectors(&out[number * width..(number + 1) * width]),
                text: &self.texts[*passage],
            })
            .collect();
        let tokens: usize = examples.iter().map(|example| example.text.len()).sum();
        let weight = 1.0 / tokens.max(1) as f32;
        let passed = watched(watch, progress, |stop| {
            pass(self.pool, self.decoder, &examples, weight, stop)
        })?;
        trainee.step(self.pool, &x, &passed.gradients.concat(), rate, self.options.decay)?;
        Ok(passed.bits.iter().sum::<f64>() / passed.bits.len().max(1) as f64)
    }
}

/// Trains a projector for the LLM that `encode` gives. Pairs are not read.
///
/// # Errors
/// [`BridgeError::Option`] for options out of range, [`BridgeError::TooLittle`] for too few passages,
/// [`BridgeError::Model`] for an LLM that gradients cannot go through, and what `encode` and `watch` fail with.
pub fn train(
    passages: &[Passage],
    _pairs: &[Pair],
    options: &Value,
    encode: &mut dyn Encode,
    watch: &mut dyn Watch,
    checkpoint: Option<&[u8]>,
) -> Result<Trained, BridgeError> {
    let options = XragOptions::read(options)?;
    let path = encode.language_model(&options.llm)?;
    let files = LlmFiles::open(&path)?;
    let tokenizer = Arc::new(LlmTokenizer::open(&files)?);
    let chat = Chat::open(&files, tokenizer.clone())?;
    let precision = if has_bf16() { Precision::Bf16 } else { Precision::F32 };
    let decoder = Differentiable::open(&files, precision)?;
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads.min(1024),
    };
    let pool = Pool::new(threads)?;
    let texts: Vec<&str> = passages.iter().map(|passage| passage.text.as_str()).collect();
    let (dimensions, mut vectors) = passage_vectors(encode, watch, passages)?;
    vectors.chunks_exact_mut(dimensions.max(1)).for_each(normalize);
    let mut ids = Vec::with_capacity(passages.len());
    for text in &texts {
        let mut own = tokenizer.encode(text)?;
        own.truncate(options.text_tokens);
        ids.push(own);
    }
    let training = Training {
        options: &options,
        pool: &pool,
        decoder: &decoder,
        prompts: prompts(&tokenizer, chat.as_ref())?,
        dimensions,
        vectors,
        texts: ids,
    };
    let with_text = passages.iter().zip(&training.texts).enumerate();
    let with_text = with_text.filter(|(_, (_, text))| !text.is_empty());
    let parts = parted(
        with_text.map(|(number, (passage, _))| (number, passage.document)),
        "passages",
        options.held_out,
        options.measured,
        FEWEST_PASSAGES,
        options.seed,
    )?;
    let hidden = decoder.config().hidden;
    let sizes = Sizes {
        inputs: dimensions,
        hidden: if options.hidden == 0 { hidden } else { options.hidden },
        outputs: hidden * options.tokens,
    };
    let trainee = Trainee::new(&pool, sizes, &training.vectors, decoder.input_scale(), options.seed)?;
    let (trainee, rounds, best_round) = fit(&training, trainee, &parts[0], &parts[1], watch, checkpoint)?;
    let figures = judge(
        &training,
        &trainee,
        &parts[2],
        watch,
        parts[0].len(),
        rounds,
        best_round,
    )?;
    let accepted = figures["saved_over_other"]["low"].as_f64().is_some_and(|low| low > 0.0);
    let more = Map::from_iter([
        ("figures".to_owned(), figures.clone()),
        ("llm".to_owned(), json!(files.fingerprint())),
        ("normalized".to_owned(), json!(true)),
        ("tokens".to_owned(), json!(options.tokens)),
    ]);
    Ok(Trained {
        weights: trainee.write(more)?,
        accepted,
        figures,
    })
}

/// The loop: the best round's projector, the rounds, and which it was.
fn fit(
    training: &Training<'_>,
    mut trainee: Trainee,
    passages: &[usize],
    choosing: &[usize],
    watch: &mut dyn Watch,
    checkpoint: Option<&[u8]>,
) -> Result<(Trainee, usize, usize), BridgeError> {
    let options = training.options;
    let steps = (passages.len() * options.epochs).div_ceil(options.batch);
    let rounds = steps.div_ceil(options.round_steps);
    let warm = (steps as f32 * 0.03).max(1.0);
    let (mut round, mut best_round, mut best_bits) = (0usize, 0usize, f64::INFINITY);
    let mut best = trainee.parts.clone();
    if let Some(bytes) = checkpoint {
        let state = trainee.resume(bytes)?;
        let number = |name: &str| state.get(name).and_then(Value::as_u64).map(|number| number as usize);
        let damaged = || BridgeError::File("the checkpoint is of another training".to_owned());
        let same = number("passages") == Some(passages.len());
        (round, best_round) = number("round")
            .zip(number("best_round"))
            .filter(|_| same)
            .ok_or_else(damaged)?;
        best_bits = state.get("best_bits").and_then(Value::as_f64).ok_or_else(damaged)?;
        // Checkpoints are kept at the best rounds' ends only where that is the last one: others begin from what was best then.
        best = trainee.parts.clone();
    }
    let mut epochs = Epochs::new(passages.len(), options.seed);
    while round < rounds && round - best_round < PATIENCE {
        let mut bits = 0.0;
        let range = round * options.round_steps..((round + 1) * options.round_steps).min(steps);
        for step in range.clone() {
            let of_step: Vec<usize> = (step * options.batch..(step + 1) * options.batch)
                .map(|place| passages[epochs.at(place)])
                .collect();
            let now = step as f32 + 1.0;
            let rate = options.rate * (now / warm).min((steps as f32 - now + 1.0) / steps as f32).min(1.0);
            let progress = Progress {
                step: step as u64,
                steps: steps as u64,
                loss: bits / (step - range.start).max(1) as f64,
                held_out: best_bits.is_finite().then_some(best_bits),
            };
            bits += training.step(&mut trainee, &of_step, step * options.batch, rate, watch, &progress)?;
        }
        round += 1;
        let progress = Progress {
            step: range.end as u64,
            steps: steps as u64,
            loss: bits / range.len().max(1) as f64,
            held_out: best_bits.is_finite().then_some(best_bits),
        };
        let vectors = training.projected(&trainee, choosing)?;
        let width = trainee.sizes.outputs;
        let given = |number: usize| Given::Vectors(&vectors[number * width..][..width]);
        let found = mean(&training.bits(choosing, given, watch, &progress)?);
        if found < best_bits {
            (best_bits, best_round) = (found, round);
            best = trainee.parts.clone();
            let state =
                json!({"round": round, "best_round": best_round, "best_bits": best_bits, "passages": passages.len()});
            watch.checkpoint(&trainee.checkpoint(state)?)?;
        }
    }
    trainee.parts = best;
    Ok((trainee, round, best_round))
}

/// The figures of passages that were never seen.
fn judge(
    training: &Training<'_>,
    trainee: &Trainee,
    judging: &[usize],
    watch: &mut dyn Watch,
    trained_on: usize,
    rounds: usize,
    best_round: usize,
) -> Result<Value, BridgeError> {
    let progress = Progress::default();
    let vectors = training.projected(trainee, judging)?;
    let width = trainee.sizes.outputs;
    let at = |number: usize| Given::Vectors(&vectors[number % judging.len() * width..][..width]);
    let own = training.bits(judging, at, watch, &progress)?;
    // Another passage that was drawn: the next of the shuffled ones.
    let other = training.bits(judging, |number| at(number + 1), watch, &progress)?;
    let none = training.bits(judging, |_| Given::Ids(&[]), watch, &progress)?;
    let beginning = |number: usize| {
        let text = &training.texts[judging[number]];
        Given::Ids(&text[..text.len().min(TEXT_TOKENS)])
    };
    let text = training.bits(judging, beginning, watch, &progress)?;
    let draws = Draws {
        seed: training.options.seed,
        ..Draws::default()
    };
    let saved = |over: &[f64]| {
        let saved: Vec<f64> = over.iter().zip(&own).map(|(over, own)| over - own).collect();
        let interval = of_mean(&saved, draws);
        json!({"value": mean(&saved), "low": interval.map(|found| found.low), "high": interval.map(|found| found.high)})
    };
    Ok(json!({
        "stage": "paraphrase", "trained_on": trained_on, "held_out": judging.len(), "rounds": rounds, "best_round": best_round,
        "tokens": training.options.tokens, "text_tokens": training.options.text_tokens, "at_once": AT_ONCE,
        "bits_per_token": {"own": mean(&own), "other": mean(&other), "none": mean(&none), "text": mean(&text)},
        "saved_over_other": saved(&other), "saved_over_none": saved(&none),
    }))
}
