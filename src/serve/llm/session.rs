//! One LLM in memory and the answers that it works on.

use super::inbox::{Inbox, Job, Made, Prepared};
use super::pending::{Active, Pending};
use super::planner::Planner;
use super::prompt::fail;
use super::runtime::{Batcher, Event, Llm};
use super::wire::{Figures, Item, Reply};
use crate::model::ModelError;
use crate::serve::ipc::memory::GivesBack;
use crate::serve::ipc::queues::Sender;
use crate::serve::ipc::statistics::{Counters, add};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// An LLM, its batch, and whose answers are in that.
pub struct Session {
    llm: Arc<Llm>,
    batcher: Batcher,
    active: HashMap<u64, Active>,
    /// Answers that have not begun.
    pending: Pending,
    /// Jobs whose prompts are being made.
    planning: usize,
    next_key: u64,
    used: Instant,
    /// Items that asked for it.
    pub requests: u64,
    threads: usize,
    cache: usize,
    /// Behind all that the model holds.
    _memory: GivesBack,
}

impl Session {
    /// `threads` as the batcher takes them; `cache` bytes for the keys and values of all answers.
    pub fn new(llm: Arc<Llm>, threads: usize, cache: usize) -> Result<Session, ModelError> {
        Ok(Session {
            batcher: Batcher::new(llm.clone(), threads, cache)?,
            llm,
            active: HashMap::new(),
            pending: Pending::default(),
            planning: 0,
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
        self.planning == 0 && !self.has_steps()
    }

    /// Whether a step would do something.
    pub fn has_steps(&self) -> bool {
        !self.active.is_empty() || !self.pending.is_empty()
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
        self.active.len() + self.pending.len() + self.planning
    }

    /// Takes other threads or another cache while nothing runs.
    pub fn follow(&mut self, threads: usize, cache: usize) -> Result<(), ModelError> {
        if self.is_idle() && (self.threads, self.cache) != (threads, cache) {
            self.batcher = Batcher::new(self.llm.clone(), threads, cache)?;
            (self.threads, self.cache) = (threads, cache);
        }
        Ok(())
    }

    /// Takes a job: answers it at once, or has its prompt made.
    pub fn take(&mut self, job: Job, planner: &Planner) -> Option<Reply> {
        self.used = Instant::now();
        self.requests += 1;
        match job.item {
            Item::Generate { .. } | Item::Embeds { .. } => {
                self.planning += 1;
                planner.push(self.llm.clone(), job);
                None
            }
            Item::Warm => Some(Reply::Warmed {
                seconds: job.since.elapsed().as_secs_f64(),
                bytes: self.bytes() as u64,
            }),
            Item::Unload => None,
        }
    }

    /// Takes what was made of a job: answers it, or has the answer begin when it is its turn.
    pub fn begin(&mut self, prepared: Prepared) -> Option<Reply> {
        self.used = Instant::now();
        self.planning = self.planning.saturating_sub(1);
        let Prepared {
            sender, number, result, ..
        } = prepared;
        if sender.has_left() {
            return None;
        }
        let made = match result {
            Ok(Made::Answer(request)) => self.batcher.needs(&request).map_err(fail).map(|bytes| (request, bytes)),
            Ok(Made::Embeds { columns, values }) => return Some(Reply::Embeds { columns, values }),
            Err(failure) => Err(failure),
        };
        match made {
            Ok((request, bytes)) => {
                let key = self.next_key;
                self.next_key += 1;
                let owner = Active { sender, number };
                self.pending.push(key, owner, request, bytes, Instant::now());
                None
            }
            Err(failure) => Some(Reply::Failed(failure)),
        }
    }

    /// Has answers begin, as far as there is memory for them.
    fn admit(&mut self, replies: &mut Vec<(Arc<Sender>, u64, Reply)>) {
        let (room, budget) = (self.batcher.room(), self.batcher.budget());
        for (key, owner, request) in self.pending.admit(room, budget, Instant::now()) {
            match self.batcher.add(key, request) {
                Ok(()) => {
                    self.active.insert(key, owner);
                }
                Err(error) => {
                    self.pending.release(key);
                    replies.push((owner.sender, owner.number, Reply::Failed(fail(error))));
                }
            }
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
            self.pending.release(*key);
        }
        gone.len() + self.pending.drop_left()
    }

    /// One step of all answers. Stops between layers where the process ends, or all senders have left.
    pub fn step(&mut self, inbox: &Inbox) {
        if !self.has_steps() {
            return;
        }
        self.used = Instant::now();
        let counters = &inbox.outbox.account.counters;
        let mut replies = Vec::new();
        self.admit(&mut replies);
        let mut over = Vec::new();
        let active = &self.active;
        let stop = || {
            inbox.stop.load(Ordering::Relaxed)
                || inbox.news.load(Ordering::Relaxed) && active.values().all(|active| active.sender.has_left())
        };
        let mut sink = |key: u64, event: Event| {
            let Some(to) = active.get(&key) else { return };
            if matches!(event, Event::Done { .. } | Event::Failed(_)) {
                over.push(key);
            }
            replies.push((to.sender.clone(), to.number, to.reply(event, counters)));
        };
        let result = self.batcher.step(&stop, &mut sink);
        for key in over {
            self.active.remove(&key);
            self.pending.release(key);
        }
        if let Err(error) = result
            && !matches!(error, ModelError::Stopped)
        {
            self.begin_anew(error, &mut replies);
        }
        inbox.reply(replies);
    }

    /// After an error of a step: what the batch holds is not known any more, so its answers end, and the next ones get a new
    /// one.
    fn begin_anew(&mut self, error: ModelError, replies: &mut Vec<(Arc<Sender>, u64, Reply)>) {
        let failure = fail(error);
        for (key, active) in self.active.drain() {
            self.pending.release(key);
            replies.push((active.sender, active.number, Reply::Failed(failure.clone())));
        }
        if let Ok(batcher) = Batcher::new(self.llm.clone(), self.threads, self.cache) {
            self.batcher = batcher;
        }
    }
}

impl Active {
    /// What the sender is told of an event, which is counted.
    fn reply(&self, event: Event, counters: &Counters) -> Reply {
        match event {
            Event::Token { id, text } => {
                add(&counters.tokens, 1);
                if !self.sender.has_left() {
                    add(&self.sender.progress.tokens, 1);
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
                add(&counters.filled, prompt_tokens as u64);
                Reply::Done(Figures {
                    prompt_tokens: prompt_tokens as u32,
                    tokens: tokens as u32,
                    prefill_ms,
                    decode_ms,
                })
            }
            Event::Failed(error) => Reply::Failed(fail(error)),
        }
    }
}
