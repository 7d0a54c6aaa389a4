//! Answers that are made together: each step runs one token of every answer that has begun, and a part of one prompt.
//!
//! A prompt is read in parts of [`PREFILL_ROWS`] so that other answers go on meanwhile. An answer begins where the
//! memory for its whole length is free; until then it waits, in the order of arrival.

use super::cache::Cache;
use super::hooks::{Hooks, StepHooks};
use super::llm::{Input, Llm, PREFILL_ROWS, Prompt};
use super::pass::Rows;
use super::sample::{Sampler, Sampling};
use super::tokenizer::DecodeStream;
use crate::compute::memory::{reserve, room_for};
use crate::compute::{Buffer, ComputeError, Pool};
use crate::model::ModelError;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Positions of a prompt that are read before another prompt has its turn.
const TURN_ROWS: usize = 4 * PREFILL_ROWS;

/// A prompt, and how its answer is made.
pub struct Request {
    pub prompt: Prompt,
    pub max_tokens: usize,
    pub temperature: f32,
    pub top_k: usize,
    pub top_p: f32,
    pub seed: u64,
    /// Texts before which an answer ends.
    pub stop: Vec<String>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it.
    End,
    /// One of the request's texts came.
    Stop,
    /// It has as many tokens as were asked for, or as the model has positions.
    Length,
}

/// What happens to a request in a step.
#[derive(Debug)]
pub enum Event {
    /// A token, and the text that it completes (which may be of tokens before it, or nothing yet).
    Token {
        id: u32,
        text: String,
    },
    /// Text that was held back when the answer ended: of the tokens that came.
    Rest(String),
    Done {
        reason: Finish,
        prompt_tokens: usize,
        tokens: usize,
        prefill_ms: f64,
        decode_ms: f64,
    },
    Failed(ModelError),
}

struct Answer {
    key: u64,
    request: Request,
    hooks: StepHooks,
    sampler: Sampler,
    cache: Cache,
    bytes: usize,
    /// Positions of the prompt that were read.
    read: usize,
    /// Tokens of the answer.
    ids: Vec<u32>,
    stream: DecodeStream,
    /// Text that was not given out because it may begin a stop text.
    held: String,
    prefill: Duration,
    began: Option<Instant>,
}

/// Answers that are decoded together.
pub struct Batcher {
    llm: Arc<Llm>,
    pool: Pool,
    budget: usize,
    used: usize,
    waiting: VecDeque<Answer>,
    active: Vec<Answer>,
}

impl Batcher {
    /// `threads` of its own (the caller's among them), and at most `cache_bytes` for what all answers keep.
    pub fn new(llm: Arc<Llm>, threads: usize, cache_bytes: usize) -> Result<Batcher, ModelError> {
        Ok(Batcher {
            llm,
            pool: Pool::new(threads)?,
            budget: cache_bytes,
            used: 0,
            waiting: VecDeque::new(),
            active: Vec::new(),
        })
    }

    /// Takes a request.
    ///
    /// # Errors
    /// [`ModelError::Sequence`] where prompt and answer are longer than the model's positions,
    /// [`ModelError::Compute`] (memory) where they can never fit.
    pub fn add(&mut self, key: u64, request: Request) -> Result<(), ModelError> {
        self.add_with(key, request, StepHooks::default())
    }

    /// [`Batcher::add`] with hooks into its steps.
    pub fn add_with(&mut self, key: u64, request: Request, hooks: StepHooks) -> Result<(), ModelError> {
        let bytes = self.needs(&request)?;
        let config = self.llm.config();
        let sampling = Sampling {
            temperature: request.temperature,
            top_k: request.top_k,
            top_p: request.top_p,
            seed: request.seed,
        };
        self.waiting.push_back(Answer {
            key,
            hooks,
            sampler: Sampler::new(sampling),
            cache: Cache::new(config),
            bytes,
            read: 0,
            ids: Vec::new(),
            stream: self.llm.tokenizer().stream(),
            held: String::new(),
            prefill: Duration::ZERO,
            began: None,
            request,
        });
        Ok(())
    }

    /// Bytes for keys and values that are free.
    pub fn room(&self) -> usize {
        let waiting: usize = self.waiting.iter().map(|answer| answer.bytes).sum();
        self.budget.saturating_sub(self.used + waiting)
    }

    /// Bytes for keys and values of all answers.
    pub fn budget(&self) -> usize {
        self.budget
    }

    /// Bytes that a request holds from its first step to its last.
    ///
    /// # Errors
    /// Those of [`Batcher::add`].
    pub fn needs(&self, request: &Request) -> Result<usize, ModelError> {
        let config = self.llm.config();
        let bad = |what: String| Err(ModelError::Sequence { index: 0, what });
        if request.max_tokens == 0 {
            return bad("an answer of no tokens".to_owned());
        }
        if request.prompt.is_empty() || request.prompt.len() >= config.positions {
            return bad(format!(
                "a prompt of {} tokens leaves no room for an answer in the model's {}",
                request.prompt.len(),
                config.positions
            ));
        }
        let longest = (request.prompt.len() + request.max_tokens).min(config.positions);
        let bytes = Cache::bytes(config, longest);
        if bytes > self.budget {
            return Err(ModelError::Compute(ComputeError::Memory { bytes }));
        }
        Ok(bytes)
    }

    /// Drops a request, wherever it is.
    pub fn remove(&mut self, key: u64) {
        self.waiting.retain(|answer| answer.key != key);
        let used = &mut self.used;
        self.active.retain(|answer| {
            let stays = answer.key != key;
            if !stays {
                *used -= answer.bytes;
            }
            stays
        });
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.active.is_empty()
    }

    /// One step of all answers: true while there is more to do. `stop` is asked every few milliseconds.
    ///
    /// # Errors
    /// [`ModelError::Stopped`]: the step did not happen, and the next call does it. Other errors leave the batch unusable.
    pub fn step(&mut self, stop: &dyn Fn() -> bool, sink: &mut dyn FnMut(u64, Event)) -> Result<bool, ModelError> {
        self.admit();
        if self.active.is_empty() {
            return Ok(false);
        }
        let begun = Instant::now();
        let mut plan = self.plan()?;
        let logits = self.run(&mut plan, stop)?;
        if let Some(part) = plan.parts.iter().find(|part| Some(part.answer) == plan.reading) {
            let answer = &mut self.active[part.answer];
            answer.read += part.tokens;
            answer.prefill += begun.elapsed();
        }
        self.choose(&plan, &logits, sink);
        Ok(!self.is_idle())
    }

    /// Begins answers for which there is memory, in the order of arrival.
    fn admit(&mut self) {
        let fits = |next: &Answer, used: usize| used + next.bytes <= self.budget;
        while self.waiting.front().is_some_and(|next| fits(next, self.used)) {
            if let Some(next) = self.waiting.pop_front() {
                self.used += next.bytes;
                self.active.push(next);
            }
        }
    }

    /// Who takes part in a step: all whose prompt was read, and one whose prompt was not.
    fn plan(&self) -> Result<Plan, ModelError> {
        let hidden = self.llm.config().hidden;
        let unread = self
            .active
            .iter()
            .enumerate()
            .filter(|(_, answer)| answer.ids.is_empty());
        // The first of several, but a long prompt lets pass those of which less was read.
        let reading = unread.min_by_key(|(_, answer)| answer.read / TURN_ROWS);
        let mut plan = Plan {
            parts: Vec::new(),
            reading: reading.map(|(place, _)| place),
            vectors: Vec::new(),
        };
        for (place, answer) in self.active.iter().enumerate() {
            let inputs = &answer.request.prompt.inputs;
            let new = match answer.ids.last() {
                Some(id) => &[Input::Token(*id)][..],
                None if plan.reading != Some(place) => continue,
                None => &inputs[answer.read..inputs.len().min(answer.read + PREFILL_ROWS)],
            };
            let start = plan.vectors.len();
            reserve(&mut plan.vectors, new.len() * hidden)?;
            plan.vectors.resize(start + new.len() * hidden, 0.0);
            for (input, out) in new.iter().zip(plan.vectors[start..].chunks_exact_mut(hidden)) {
                self.llm.input(input, out)?;
            }
            plan.parts.push(Part {
                answer: place,
                tokens: new.len(),
                chooses: !answer.ids.is_empty() || answer.read + new.len() >= answer.request.prompt.len(),
            });
        }
        Ok(plan)
    }

    /// Runs the new tokens: the logits of those parts that choose a token. Where it fails, the caches are as they were.
    fn run(&mut self, plan: &mut Plan, stop: &dyn Fn() -> bool) -> Result<Buffer<f32>, ModelError> {
        let counts: Vec<usize> = plan.parts.iter().map(|part| part.tokens).collect();
        let wanted = plan.wanted();
        let before: Vec<usize> = self.active.iter().map(|answer| answer.cache.len()).collect();
        let mut parts = plan.parts.iter().peekable();
        let mut takes_part = |place: usize| parts.next_if(|part| part.answer == place).is_some();
        let answers = self.active.iter_mut().enumerate();
        let answers = answers.filter_map(|(place, answer)| takes_part(place).then_some(answer));
        let mut caches: Vec<&mut Cache> = answers.map(|answer| &mut answer.cache).collect();
        // What the choice of a token takes: an id and a logit for each of the vocabulary.
        room_for(self.llm.config().vocabulary * 16)?;
        let rows = Rows {
            vectors: &mut plan.vectors,
            counts: &counts,
            wanted: &wanted,
        };
        let network = self.llm.network();
        let logits = network.forward(&self.pool, rows, &mut caches, &mut Hooks::default(), stop);
        if logits.is_err() {
            for (answer, before) in self.active.iter_mut().zip(before) {
                answer.cache.truncate(before);
            }
        }
        Ok(logits?)
    }

    /// Chooses a token for each part that has logits, and drops the answers that are over.
    fn choose(&mut self, plan: &Plan, logits: &[f32], sink: &mut dyn FnMut(u64, Event)) {
        let llm = self.llm.clone();
        let mut over = Vec::new();
        let parts = plan.parts.iter().filter(|part| part.chooses);
        for (part, logits) in parts.zip(logits.chunks_exact(llm.config().vocabulary)) {
            let answer = &mut self.active[part.answer];
            if answer.next(&llm, logits, sink) {
                over.push(answer.key);
            }
        }
        over.into_iter().for_each(|key| self.remove(key));
    }
}

/// What a step runs.
struct Plan {
    /// In the order of the active answers.
    parts: Vec<Part>,
    /// The active answer whose prompt is read.
    reading: Option<usize>,
    /// Input vectors of all parts' tokens.
    vectors: Vec<f32>,
}

/// An active answer's new tokens.
struct Part {
    answer: usize,
    tokens: usize,
    /// Whether the token behind them is chosen.
    chooses: bool,
}

impl Plan {
    /// Rows whose logits are wanted: the last of each part that chooses.
    fn wanted(&self) -> Vec<usize> {
        let ends = self.parts.iter().scan(0, |end, part| {
            *end += part.tokens;
            Some((*end - 1, part.chooses))
        });
        ends.filter_map(|(row, chooses)| chooses.then_some(row)).collect()
    }
}

impl Answer {
    /// Chooses the next token; true where the answer is over.
    fn next(&mut self, llm: &Llm, logits: &[f32], sink: &mut dyn FnMut(u64, Event)) -> bool {
        self.began.get_or_insert_with(Instant::now);
        let id = self.choose(logits);
        if llm.tokenizer().end().contains(&id) {
            self.finish(llm, Finish::End, sink);
            return true;
        }
        self.ids.push(id);
        let new = self.stream.push(llm.tokenizer(), id).unwrap_or_default();
        self.held.push_str(&new);
        let found = self
            .request
            .stop
            .iter()
            .filter(|stop| !stop.is_empty())
            .filter_map(|stop| self.held.find(stop.as_str()));
        if let Some(at) = found.min() {
            self.held.truncate(at);
            let text = std::mem::take(&mut self.held);
            sink(self.key, Event::Token { id, text });
            self.finish(llm, Finish::Stop, sink);
            return true;
        }
        let keep = self.may_begin();
        let text: String = self.held.drain(..self.held.len() - keep).collect();
        sink(self.key, Event::Token { id, text });
        let full = self.request.prompt.len() + self.ids.len() >= llm.config().positions;
        if self.ids.len() >= self.request.max_tokens || full {
            self.finish(llm, Finish::Length, sink);
            return true;
        }
        false
    }

    /// The next token, by the hooks' logits and among the tokens that they allow.
    fn choose(&mut self, logits: &[f32]) -> u32 {
        if self.hooks.logits.is_none() && self.hooks.allowed.is_none() {
            return self.sampler.choose(logits);
        }
        let mut own = logits.to_vec();
        if let Some(change) = &mut self.hooks.logits {
            change(&self.ids, &mut own);
        }
        let allowed = self.hooks.allowed.as_mut();
        if let Some(allowed) = allowed.and_then(|allowed| allowed(&self.ids)) {
            let logit = |id: &u32| Some((*id, *own.get(*id as usize)?));
            let kept: Vec<(u32, f32)> = allowed.iter().filter_map(logit).collect();
            own.fill(f32::NEG_INFINITY);
            for (id, logit) in kept {
                if let Some(place) = own.get_mut(id as usize) {
                    *place = logit;
                }
            }
        }
        self.sampler.choose(&own)
    }

    /// Bytes at the end of the held text that a stop text may begin with.
    fn may_begin(&self) -> usize {
        let longest = |stop: &String| {
            let lengths = (1..stop.len()).rev().filter(|length| stop.is_char_boundary(*length));
            lengths
                .into_iter()
                .find(|length| self.held.ends_with(&stop[..*length]))
                .unwrap_or(0)
        };
        self.request.stop.iter().map(longest).max().unwrap_or(0)
    }

    fn finish(&mut self, llm: &Llm, reason: Finish, sink: &mut dyn FnMut(u64, Event)) {
        if reason != Finish::Stop {
            let rest = self.stream.finish(llm.tokenizer()).unwrap_or_default();
            let text = std::mem::take(&mut self.held) + &rest;
            if !text.is_empty() {
                sink(self.key, Event::Rest(text));
            }
        }
        sink(
            self.key,
            Event::Done {
                reason,
                prompt_tokens: self.request.prompt.len(),
                tokens: self.ids.len(),
                prefill_ms: self.prefill.as_secs_f64() * 1e3,
                decode_ms: self.began.map_or(0.0, |began| began.elapsed().as_secs_f64() * 1e3),
            },
        );
    }
}
