//! One LLM in memory and the answers that it works on.

use super::desk::{Desk, Job};
use super::runtime::{Batcher, Event, Llm, Message, Piece, Prompt, Request};
use super::wire::{Figures, Item, Part, PromptForm, Reply, Sampling};
use crate::model::ModelError;
use crate::pg::service::exchange::Sender;
use crate::pg::service::failure::{Failure, Kind};
use crate::pg::service::memory::GivesBack;
use crate::pg::service::statistics::add;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// An answer in progress.
struct Active {
    sender: Arc<Sender>,
    number: u64,
}

/// An LLM, its batch, and whose answers are in that.
pub struct Loaded {
    llm: Arc<Llm>,
    batcher: Batcher,
    active: HashMap<u64, Active>,
    next_key: u64,
    used: Instant,
    /// Items that asked for it.
    pub requests: u64,
    threads: usize,
    cache: usize,
    /// Behind all that the model holds.
    _memory: GivesBack,
}

impl Loaded {
    /// `threads` as the batcher takes them; `cache` bytes for the keys and values of all answers.
    pub fn new(llm: Arc<Llm>, threads: usize, cache: usize) -> Result<Loaded, ModelError> {
        Ok(Loaded {
            batcher: Batcher::new(llm.clone(), threads, cache)?,
            llm,
            active: HashMap::new(),
            next_key: 0,
            used: Instant::now(),
            requests: 0,
            threads,
            cache,
            _memory: GivesBack,
        })
    }

    /// Bytes of the weights.
    pub fn bytes(&self) -> usize {
        self.llm.memory()
    }

    /// Whether it works on nothing.
    pub fn is_idle(&self) -> bool {
        self.active.is_empty()
    }

    /// Since when nobody used it.
    pub fn idle_for(&self) -> Duration {
        match self.is_idle() {
            true => self.used.elapsed(),
            false => Duration::ZERO,
        }
    }

    /// Answers in progress.
    pub fn answers(&self) -> usize {
        self.active.len()
    }

    /// Takes other threads or another cache while nothing runs.
    pub fn follow(&mut self, threads: usize, cache: usize) -> Result<(), ModelError> {
        if self.is_idle() && (self.threads, self.cache) != (threads, cache) {
            self.batcher = Batcher::new(self.llm.clone(), threads, cache)?;
            (self.threads, self.cache) = (threads, cache);
        }
        Ok(())
    }

    /// Takes a job: answers it at once, or adds it to the batch.
    pub fn take(&mut self, job: Job) -> Option<Reply> {
        self.used = Instant::now();
        self.requests += 1;
        match self.begin(job) {
            Ok(reply) => reply,
            Err(failure) => Some(Reply::Failed(failure)),
        }
    }

    fn begin(&mut self, job: Job) -> Result<Option<Reply>, Failure> {
        let Job {
            sender,
            number,
            item,
            since,
            ..
        } = job;
        match item {
            Item::Generate { prompt, sampling } => {
                let prompt = assemble(&self.llm, prompt)?;
                let key = self.next_key;
                self.next_key += 1;
                self.batcher.add(key, request(prompt, sampling)).map_err(fail)?;
                self.active.insert(key, Active { sender, number });
                Ok(None)
            }
            Item::Embeds { prompt } => {
                let prompt = assemble(&self.llm, prompt)?;
                let values = self.llm.embeds(&prompt).map_err(fail)?;
                let columns = self.llm.config().hidden as u32;
                Ok(Some(Reply::Embeds { columns, values }))
            }
            Item::Warm => Ok(Some(Reply::Warmed {
                seconds: since.elapsed().as_secs_f64(),
                bytes: self.bytes() as u64,
            })),
            Item::Unload => Ok(None),
        }
    }

    /// Drops the answers whose sender has left; says how many those were.
    pub fn drop_left(&mut self) -> usize {
        let gone: Vec<u64> = self
            .active
            .iter()
            .filter(|(_, active)| active.sender.has_left())
            .map(|(key, _)| *key)
            .collect();
        for key in &gone {
            self.batcher.remove(*key);
            self.active.remove(key);
        }
        gone.len()
    }

    /// One step of all answers. Stops between layers where the process ends, or all senders have left.
    pub fn step(&mut self, desk: &Desk) {
        if self.active.is_empty() {
            return;
        }
        self.used = Instant::now();
        let counters = &desk.outbox.account.counters;
        let mut replies = Vec::new();
        let mut over = Vec::new();
        let active = &self.active;
        let stop = || {
            desk.stop.load(Ordering::Relaxed)
                || desk.news.load(Ordering::Relaxed) && active.values().all(|active| active.sender.has_left())
        };
        let mut sink = |key: u64, event: Event| {
            let Some(to) = active.get(&key) else { return };
            let reply = match event {
                Event::Token { id, text } => {
                    add(&counters.tokens, 1);
                    if !to.sender.has_left() {
                        add(&to.sender.progress.tokens, 1);
                    }
                    Reply::Token { id: Some(id), text }
                }
                Event::Rest(text) => Reply::Token { id: None, text },
                Event::Done {
                    prompt_tokens,
                    tokens,
                    prefill_ms,
                    decode_ms,
                    reason: _,
                } => {
                    over.push(key);
                    add(&counters.filled, prompt_tokens as u64);
                    Reply::Done(Figures {
                        prompt_tokens: prompt_tokens as u32,
                        tokens: tokens as u32,
                        prefill_ms,
                        decode_ms,
                    })
                }
                Event::Failed(error) => {
                    over.push(key);
                    Reply::Failed(fail(error))
                }
            };
            replies.push((to.sender.clone(), to.number, reply));
        };
        let result = self.batcher.step(&stop, &mut sink);
        for key in over {
            self.active.remove(&key);
        }
        match result {
            Ok(_) | Err(ModelError::Stopped) => {}
            Err(error) => {
                // What the batch holds is not known any more: its answers end, and the next ones get a new one.
                let failure = fail(error);
                for (_, active) in self.active.drain() {
                    replies.push((active.sender, active.number, Reply::Failed(failure.clone())));
                }
                if let Ok(batcher) = Batcher::new(self.llm.clone(), self.threads, self.cache) {
                    self.batcher = batcher;
                }
            }
        }
        desk.reply(replies);
    }
}

fn fail(error: ModelError) -> Failure {
    match &error {
        // What is wrong with a sequence here is the caller's: its length, or its vectors.
        ModelError::Sequence { what, .. } => {
            Failure::new(Kind::Argument, what.clone()).hint("Shorten the prompt or lower max_tokens.")
        }
        other => Failure::from(other),
    }
}

fn request(prompt: Prompt, sampling: Sampling) -> Request {
    Request {
        prompt,
        max_tokens: sampling.max_tokens as usize,
        temperature: sampling.temperature,
        top_k: sampling.top_k as usize,
        top_p: sampling.top_p,
        seed: sampling.seed,
        stop: sampling.stop,
    }
}

/// The prompt as tokens and vectors, in the chat template where it is a conversation.
fn assemble(llm: &Llm, form: PromptForm) -> Result<Prompt, Failure> {
    let (hidden, width) = (llm.config().hidden, form.width as usize);
    if form.rows() > 0 && width != hidden {
        let message = format!("the prompt's vectors have {width} dimensions, the LLM takes {hidden}");
        return Err(Failure::new(Kind::Argument, message)
            .hint("Vectors of a prompt come from situ.xrag_token with a bridge that was trained for this LLM."));
    }
    let mut rows = form.values.chunks_exact(width.max(1)).map(<[f32]>::to_vec);
    let turns: Vec<Message> = form
        .turns
        .into_iter()
        .map(|turn| Message {
            role: turn.role,
            pieces: turn
                .parts
                .into_iter()
                .map(|part| match part {
                    Part::Text(text) => Piece::Text(text),
                    Part::Vectors { rows: count } => Piece::Vectors(rows.by_ref().take(count as usize).collect()),
                })
                .collect(),
        })
        .collect();
    let pieces = match form.chat {
        true => llm.render(&turns).map_err(fail)?,
        false => turns.into_iter().flat_map(|turn| turn.pieces).collect(),
    };
    llm.prompt(&pieces).map_err(fail)
}
