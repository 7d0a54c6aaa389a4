//! The worker's compute thread, which runs batches, and its planner thread, which tokenises the next ones meanwhile.
//! Neither calls anything of the server.
//!
//! Before each batch the query lane goes first, and while a batch of bulk work runs on the processor, queries go in
//! between its loops ([`Engine::let_queries_pass`]). With nothing to run the compute thread plans as well, so a query that
//! comes alone passes through no other thread. A batch that fails, by error or panic, is run again piece by piece, so
//! that only the item at fault is answered with the error.

use super::jobs::{Batch, Piece};
use super::models::Model;
use super::plan::{cost, guarded};
use super::scheduler::Scheduler;
use crate::compute::Pool;
use crate::compute::cpu::pool::inside_loop;
use crate::compute::memory::spare;
use crate::model::{Device, ModelError, Sequence};
use crate::serve::ipc::failure::{Failure, Kind};
use crate::serve::ipc::wire::{Lane, Reply};
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Seconds that a bulk batch should take at most, where `situ.batch_tokens` leaves it to the measured speed.
const BATCH_SECONDS: f64 = 0.08;
/// How long a query waits for the end of a loop, which it has all threads after, until it goes in between two tasks.
const PATIENCE: Duration = Duration::from_millis(15);
/// Tokens of a model's first batches.
const FIRST_BATCH: usize = 512;
/// Items that the compute thread plans by itself before it wakes the planner.
const ALONE: usize = 4;
/// Tokens from which on a batch says something about the speed.
const MEASURED: usize = 128;

/// Threads for `situ.cpu_threads`.
pub fn threads(setting: usize) -> usize {
    match setting {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    }
}

/// The life of the planner thread: until [`Scheduler::end`].
pub fn plan_ahead(scheduler: &Arc<Scheduler>) {
    while !scheduler.stop.load(Ordering::SeqCst) {
        if !scheduler.plan_next() {
            scheduler.wait_to_plan();
        }
    }
}

/// The compute thread's state.
pub struct Engine {
    scheduler: Arc<Scheduler>,
    pool: Arc<Pool>,
    /// Threads that were asked for when the pool was made.
    wanted: usize,
    tidied: Instant,
    /// Time that went to queries since the running batch of bulk work began.
    between: Cell<Duration>,
    /// Since when a query waits for the running loop to end.
    waits: Cell<Option<Instant>>,
}

impl Engine {
    pub fn new(scheduler: Arc<Scheduler>) -> Engine {
        let pool = scheduler.pool.lock().clone();
        Engine {
            wanted: threads(scheduler.settings.threads.load(Ordering::Relaxed)),
            scheduler,
            pool,
            tidied: Instant::now(),
            between: Cell::default(),
            waits: Cell::default(),
        }
    }

    /// Works until [`Scheduler::end`].
    pub fn run(mut self) {
        let scheduler = self.scheduler.clone();
        let mut planned = 0;
        while !scheduler.stop.load(Ordering::SeqCst) {
            self.follow_settings();
            scheduler.forget_gone();
            if let Some(batch) = scheduler.batch(&|model| self.budget(model)) {
                planned = 0;
                self.run_batch(batch);
            } else if scheduler.plan_next() {
                planned += 1;
                if planned == ALONE {
                    scheduler.help_planning();
                }
            } else {
                planned = 0;
                scheduler.wait_to_run();
            }
        }
    }

    /// Models are looked at once a second, threads before every batch.
    fn follow_settings(&mut self) {
        let wanted = threads(self.scheduler.settings.threads.load(Ordering::Relaxed));
        if wanted != self.wanted {
            self.wanted = wanted;
            // Where the system refuses threads, the old ones stay.
            if let Ok(pool) = Pool::new(wanted) {
                self.pool = Arc::new(pool);
                *self.scheduler.pool.lock() = self.pool.clone();
            }
        }
        if self.tidied.elapsed() >= Duration::from_secs(1) {
            self.tidied = Instant::now();
            self.scheduler.tidy_models();
        }
    }

    fn budget(&self, model: &Model) -> usize {
        let speed = model.speed.load(Ordering::Relaxed) as f64;
        match self.scheduler.settings.batch_tokens.load(Ordering::Relaxed) {
            0 if speed == 0.0 => FIRST_BATCH,
            0 => ((speed * BATCH_SECONDS) as usize).clamp(256, self.scheduler.device.most_tokens()),
            tokens => tokens,
        }
    }

    /// Runs the queries that are there in the midst of a batch of bulk work: between two loops on all threads, or, where
    /// the loop is a long one, between two of its tasks on this thread. (A pass in the midst of another has memory of
    /// its own, so neither's vectors know of the other.)
    fn let_queries_pass(&self) {
        if self
            .scheduler
            .outbox
            .account
            .counters
            .queued_queries
            .load(Ordering::Relaxed)
            == 0
        {
            return self.waits.set(None);
        }
        if inside_loop() {
            let since = self.waits.get().unwrap_or_else(Instant::now);
            self.waits.set(Some(since));
            if since.elapsed() < PATIENCE {
                return;
            }
        }
        self.waits.set(None);
        let started = Instant::now();
        while let Some(batch) = self.scheduler.queries_between(&|model| self.budget(model)) {
            self.run_batch(batch);
        }
        self.between.set(self.between.get() + started.elapsed());
    }

    fn run_batch(&self, batch: Batch) {
        let counters = &self.scheduler.outbox.account.counters;
        let started = Instant::now();
        if batch.lane == Lane::Bulk {
            self.between.set(Duration::ZERO);
        }
        let result = self.encode(&batch);
        let mut elapsed = started.elapsed();
        if batch.lane == Lane::Bulk {
            elapsed = elapsed.saturating_sub(self.between.take());
        }
        counters.busy.fetch_add(elapsed.as_micros() as u64, Ordering::Relaxed);
        match result {
            // Stopped: the senders have left, or the worker ends and a new one gets the items again.
            Ok(None) => self.scheduler.complete(batch.pieces, None),
            Ok(Some((vectors, tokens))) => {
                counters.tokens.fetch_add(tokens as u64, Ordering::Relaxed);
                counters.batches.fetch_add(1, Ordering::Relaxed);
                if batch.lane == Lane::Bulk {
                    counters.filled.fetch_add(tokens as u64, Ordering::Relaxed);
                    counters
                        .budget
                        .fetch_add(batch.budget.max(tokens) as u64, Ordering::Relaxed);
                    if tokens >= MEASURED {
                        let speed = note_speed(&batch.model, tokens as f64 / elapsed.as_secs_f64().max(1e-6));
                        counters.speed.store(speed, Ordering::Relaxed);
                    }
                }
                self.scheduler.complete(batch.pieces, Some(vectors));
            }
            Err(failure) if failure.kind == Kind::DeviceLost => self.scheduler.lose_device(&failure.message),
            Err(failure) if batch.pieces.len() == 1 => {
                let job = batch.pieces.first().map(|piece| piece.job);
                self.scheduler.complete(batch.pieces, None);
                if let Some(job) = job {
                    self.scheduler.reply(job, Reply::Failed(failure));
                }
            }
            Err(_) => {
                for piece in batch.pieces {
                    self.run_batch(Batch {
                        model: batch.model.clone(),
                        lane: batch.lane,
                        budget: batch.budget,
                        pieces: vec![piece],
                    });
                }
            }
        }
    }

    /// The vectors of each piece, and the tokens that were run. `None` where the batch was stopped.
    #[allow(clippy::type_complexity)]
    fn encode(&self, batch: &Batch) -> Result<Option<(Vec<Vec<Vec<f32>>>, usize)>, Failure> {
        let Batch {
            model, lane, pieces, ..
        } = batch;
        spare()?;
        // Equal sequences are run once.
        let mut distinct: Vec<&Sequence> = Vec::new();
        let mut places: HashMap<&[u32], Vec<usize>> = HashMap::new();
        let mut place_of = Vec::with_capacity(pieces.len());
        for Piece { sequence, .. } in pieces {
            let same = places.entry(&sequence.ids).or_default();
            let place = same.iter().copied().find(|&place| *distinct[place] == *sequence);
            place_of.push(place.unwrap_or_else(|| {
                same.push(distinct.len());
                distinct.push(sequence);
                distinct.len() - 1
            }));
        }
        // Long ones first: threads that share the batch end at about the same time.
        let mut order: Vec<usize> = (0..distinct.len()).collect();
        order.sort_by_key(|&place| std::cmp::Reverse(distinct[place].ids.len()));
        let sequences: Vec<Sequence> = order.iter().map(|&place| distinct[place].clone()).collect();
        let mut rank = vec![0; order.len()];
        order.iter().enumerate().for_each(|(at, &place)| rank[place] = at);

        let tokens: usize = sequences.iter().map(cost).sum();
        let scheduler = &self.scheduler;
        let gone = |piece: &Piece| piece.sender.has_left();
        let interrupted = *lane == Lane::Bulk && scheduler.device == Device::Cpu;
        let stop = || {
            if scheduler.stop.load(Ordering::Relaxed) || pieces.iter().all(gone) {
                return true;
            }
            if interrupted {
                self.let_queries_pass();
            }
            false
        };
        let vectors = guarded(|| match model.encoder.encode_until(&self.pool, &sequences, &stop) {
            Ok(vectors) => split(&sequences, vectors).map(Some),
            Err(ModelError::Stopped) => Ok(None),
            Err(error) => Err(Failure::from(&error)),
        })?;
        Ok(vectors.map(|vectors| {
            let own = place_of.iter().map(|&place| vectors[rank[place]].clone());
            (own.collect(), tokens)
        }))
    }
}

/// Adds a measured speed to the model's, and returns that.
fn note_speed(model: &Model, speed: f64) -> u64 {
    let before = model.speed.load(Ordering::Relaxed) as f64;
    let smoothed = if before == 0.0 {
        speed
    } else {
        0.8 * before + 0.2 * speed
    };
    let smoothed = (smoothed as u64).max(1);
    model.speed.store(smoothed, Ordering::Relaxed);
    smoothed
}

/// Vectors by sequence: each sequence gives as many as it has read-outs.
fn split(sequences: &[Sequence], vectors: Vec<Vec<f32>>) -> Result<Vec<Vec<Vec<f32>>>, Failure> {
    let found = vectors.len();
    let expected: usize = sequences.iter().map(Sequence::vectors).sum();
    if found != expected {
        let message = format!("expected {expected} vectors of the model, not {found}");
        return Err(Failure::new(Kind::Internal, message));
    }
    let mut rest = vectors.into_iter();
    let each = sequences
        .iter()
        .map(|sequence| rest.by_ref().take(sequence.vectors()).collect());
    Ok(each.collect())
}
