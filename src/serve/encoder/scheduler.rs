//! Where items wait in the worker, in order and between its threads.
//!
//! The jobs themselves and their queues are in [`super::jobs`]. The main thread brings items ([`Scheduler::push`]). The
//! planner thread, and the compute thread while it has nothing to run, take the next one whose model is in memory
//! ([`Scheduler::plan_next`]), tokenise it outside of the lock and leave its sequences; the compute thread takes batches of
//! sequences and leaves vectors ([`Scheduler::batch`], [`Scheduler::complete`]). Planned ahead is no more than two batches, so
//! memory is bounded. One lock is held by each for microseconds; nothing is planned, loaded or run under it.
//!
//! Equal texts of one role for one model and use are encoded once (of several roles each its own: that somebody's text is
//! in work is nobody else's business): the first that is planned leads, the others follow and get
//! its reply. When a leader leaves, its followers wait again, so nobody depends on another's staying. A query does not
//! follow a bulk item that has not started.

use super::jobs::{Batch, Finished, Next, Outcome, Piece, State};
use super::loader::{self, Task};
use super::models::Model;
use super::plan::{cost, finish, plan};
use crate::compute::Pool;
use crate::model::{Device, stop};
use crate::serve::ipc::failure::{Failure, Kind};
use crate::serve::ipc::queues::{Answer, Outbox, Settings, Work};
use crate::serve::ipc::wire::{BadMessage, Item, Lane, ModelKey, Reply, Report, encode_reply};
use parking_lot::{Condvar, Mutex};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// See the head of the file.
pub struct Scheduler {
    state: Mutex<State>,
    compute: Condvar,
    planner: Condvar,
    pub stop: AtomicBool,
    /// A sender has left since the compute thread looked.
    left: AtomicBool,
    pub settings: Settings,
    pub outbox: Outbox,
    pub device: Device,
    /// Why the device does not work any more.
    lost: OnceLock<String>,
    /// The threads that batches and calibrations run on.
    pub pool: Mutex<Arc<Pool>>,
    pub background: loader::Background,
}

impl Scheduler {
    pub fn new(device: Device, outbox: Outbox, settings: Settings, pool: Pool) -> Scheduler {
        Scheduler {
            state: Mutex::default(),
            compute: Condvar::new(),
            planner: Condvar::new(),
            stop: AtomicBool::new(false),
            left: AtomicBool::new(false),
            settings,
            outbox,
            device,
            lost: OnceLock::new(),
            pool: Mutex::new(Arc::new(pool)),
            background: loader::Background::default(),
        }
    }

    /// Takes items in.
    pub fn push(self: &Arc<Self>, work: Vec<Work>) {
        let (arrived, mut answers, mut tasks) = (Instant::now(), Vec::new(), Vec::new());
        let mut state = self.state.lock();
        for work in work {
            let beside = matches!(work.item, Item::Calibrate { .. } | Item::Unload);
            let unload = (work.item == Item::Unload).then(|| work.model.clone());
            let number = state.admit(work, arrived, beside);
            if let Some(key) = unload {
                let gone = state.models.unload(&key);
                let report = Report::Unloaded {
                    models: gone.len() as u64,
                    bytes: gone.iter().map(|model| model.bytes as u64).sum(),
                };
                answers.extend(state.finish_with(number, Reply::Report(report)));
                tasks.push(Task::Drop(gone));
            } else if beside && let Some(job) = state.jobs.get(&number) {
                tasks.push(Task::Calibrate(number, job.work.clone()));
            }
        }
        self.publish(&state);
        match state.idle {
            true => self.compute.notify_one(),
            false => self.planner.notify_one(),
        };
        drop(state);
        self.answer(answers);
        tasks.into_iter().for_each(|task| loader::start(self, task));
    }

    /// Tells that a sender has left (its `gone` is set): its work is dropped before the next batch.
    pub fn sender_left(&self) {
        self.left.store(true, Ordering::Release);
        let state = self.state.lock();
        if state.idle {
            self.compute.notify_one();
        }
    }

    /// Makes all threads end; the running batch ends after the layer that it computes.
    pub fn end(&self) {
        self.stop.store(true, Ordering::SeqCst);
        let _guard = self.state.lock();
        self.compute.notify_all();
        self.planner.notify_all();
    }

    /// Tells that the device does not work any more: nothing is answered from now on, so that the senders go elsewhere.
    pub fn lose_device(&self, why: &str) {
        let _ = self.lost.set(why.to_owned());
        self.end();
        self.outbox.wake();
    }

    /// Why the device does not work any more, if so.
    pub fn lost(&self) -> Option<&str> {
        self.lost.get().map(String::as_str)
    }

    /// Drops the work of senders that have left.
    pub fn forget_gone(&self) {
        if !self.left.swap(false, Ordering::Acquire) {
            return;
        }
        let mut state = self.state.lock();
        let gone = state.jobs.iter().filter(|(_, job)| job.work.sender.has_left());
        let numbers: Vec<u64> = gone.map(|(number, _)| *number).collect();
        let mut dropped = Vec::with_capacity(numbers.len());
        for number in numbers {
            dropped.extend(state.remove(number));
        }
        self.outbox
            .account
            .counters
            .cancelled
            .fetch_add(dropped.len() as u64, Ordering::Relaxed);
        self.publish(&state);
        drop(state);
    }

    /// Plans one item; false where none waits, or enough is planned. Models that are not in memory are sent for.
    pub fn plan_next(self: &Arc<Self>) -> bool {
        self.plan_of(&Lane::ALL)
    }

    fn plan_of(self: &Arc<Self>, lanes: &[Lane]) -> bool {
        let mut state = self.state.lock();
        let Some(next) = state.pick(lanes) else { return false };
        let (number, work, model, estimate) = match next {
            Next::Load(key) => {
                drop(state);
                loader::start(self, Task::Load(key));
                return true;
            }
            Next::Parked => return true,
            Next::Plan(number, work, model, estimate) => (number, work, model, estimate),
        };
        drop(state);
        let (scheduler, sender) = (self.clone(), work.sender.clone());
        let ends = move || scheduler.stop.load(Ordering::Relaxed) || sender.has_left();
        let planned = stop::until(ends, || plan(&model.encoder, &work.item));
        // Nobody waits for it any more: it leaves the scheduler with its sender, and those with the same text wait again.
        if self.stop.load(Ordering::SeqCst) || work.sender.has_left() {
            return true;
        }
        let mut state = self.state.lock();
        let finished = match planned {
            Ok(planned) => {
                state.leave(number, planned, model, estimate);
                if state.idle {
                    self.compute.notify_one();
                }
                None
            }
            Err(reply) => state.finish_with(number, reply),
        };
        self.publish(&state);
        drop(state);
        self.answer(finished);
        true
    }

    /// The planner waits here for something to plan.
    pub fn wait_to_plan(&self) {
        let mut state = self.state.lock();
        if !self.stop.load(Ordering::SeqCst) && !state.can_plan() {
            self.planner.wait_for(&mut state, Duration::from_secs(1));
        }
    }

    /// The compute thread waits here for something to plan or to run.
    pub fn wait_to_run(&self) {
        let mut state = self.state.lock();
        let left = self.left.load(Ordering::Acquire);
        if !self.stop.load(Ordering::SeqCst) && !left && !state.can_plan() && state.lane().is_none() {
            state.idle = true;
            self.compute.wait_for(&mut state, Duration::from_secs(1));
            state.idle = false;
        }
    }

    /// The next batch: up to `budget(model)` tokens of one model and lane. `None` where nothing is planned, or where
    /// more could be planned for a batch that would not be full: the caller plans first.
    pub fn batch(&self, budget: &dyn Fn(&Model) -> usize) -> Option<Batch> {
        let mut state = self.state.lock();
        let lane = state.lane()?;
        // Queries that are not planned yet come before bulk work that is.
        let queries =
            lane == Lane::Bulk && state.ready_tokens[Lane::Query] == 0 && !state.waiting[Lane::Query].is_empty();
        let short = lane == Lane::Bulk && state.ready_tokens[lane] < state.budget && !state.waiting[lane].is_empty();
        if queries || short {
            return None;
        }
        let batch = state.fill(lane, budget);
        if state.can_plan() {
            self.planner.notify_one();
        }
        batch
    }

    /// Queries that go in between while a batch of bulk work runs: up to `budget(model)` tokens of one model, planned
    /// here where nobody has done so. `None` where no query is there, or as many batches of them have gone in between
    /// as one of bulk work has to let pass.
    pub fn queries_between(self: &Arc<Self>, budget: &dyn Fn(&Model) -> usize) -> Option<Batch> {
        loop {
            let mut state = self.state.lock();
            if !state.may_interrupt() {
                return None;
            }
            if state.ready_tokens[Lane::Query] > 0 {
                return state.fill(Lane::Query, budget);
            }
            drop(state);
            if !self.plan_of(&[Lane::Query]) {
                return None;
            }
        }
    }

    /// Whether more waits than one thread should plan alone.
    pub fn help_planning(&self) {
        self.planner.notify_one();
    }

    /// Takes the vectors of pieces, `None` where the batch was stopped; answers the jobs that are complete.
    pub fn complete(&self, pieces: Vec<Piece>, vectors: Option<Vec<Vec<Vec<f32>>>>) {
        let mut finished = Vec::new();
        let mut state = self.state.lock();
        for piece in &pieces {
            piece.sender.finished();
        }
        for (piece, vectors) in pieces.into_iter().zip(vectors.into_iter().flatten()) {
            let tokens = cost(&piece.sequence) as u64;
            piece.sender.progress.tokens.fetch_add(tokens, Ordering::Relaxed);
            let Some(job) = state.jobs.get_mut(&piece.job) else {
                continue;
            };
            if let Some(place) = job.vectors.get_mut(piece.index) {
                *place = vectors;
                job.done += 1;
            }
            if job.done == job.vectors.len() {
                finished.extend(state.finish(piece.job, Outcome::Vectors));
            }
        }
        self.publish(&state);
        drop(state);
        self.answer(finished);
    }

    /// Answers a job, and those with the same text, with a reply.
    pub fn reply(&self, number: u64, reply: Reply) {
        if let Reply::Failed(failure) = &reply
            && failure.kind == Kind::DeviceLost
        {
            return self.lose_device(&failure.message);
        }
        let mut state = self.state.lock();
        let finished = state.finish_with(number, reply);
        self.publish(&state);
        drop(state);
        self.answer(finished);
    }

    /// A model was loaded, or could not be: those who wait for it go on.
    pub fn loaded(&self, key: &ModelKey, result: Result<Arc<Model>, Failure>) {
        if let Err(failure) = &result
            && failure.kind == Kind::DeviceLost
        {
            return self.lose_device(&failure.message);
        }
        let most = self.settings.model_memory.load(Ordering::Relaxed);
        let (mut gone, mut finished) = (Vec::new(), Vec::new());
        let mut state = self.state.lock();
        let parked = state.parked.remove(key).unwrap_or_default();
        match result {
            Ok(model) => {
                gone = state.models.insert(model.clone(), most);
                parked
                    .into_iter()
                    .rev()
                    .for_each(|number| state.again(number, Some(&model)));
            }
            Err(failure) => {
                for number in parked {
                    finished.extend(state.finish_with(number, Reply::Failed(failure.clone())));
                }
            }
        }
        self.publish(&state);
        self.compute.notify_one();
        drop(state);
        drop(gone);
        self.answer(finished);
    }

    /// Follows the settings on models.
    pub fn tidy_models(&self) {
        let idle = self.settings.model_idle.load(Ordering::Relaxed);
        let most = self.settings.model_memory.load(Ordering::Relaxed);
        let mut state = self.state.lock();
        let mut gone = match idle {
            0 => Vec::new(),
            _ => state.models.unload_idle(Duration::from_secs(idle)),
        };
        gone.extend(state.models.shrink(most, None));
        self.publish(&state);
        drop(state);
        drop(gone);
    }

    /// What is loaded, as JSON of at most `most` bytes.
    pub fn describe_models(&self, most: usize) -> String {
        self.state.lock().models.describe(most)
    }

    /// Tokens that are planned and not run yet.
    #[cfg(test)]
    pub fn planned_tokens(&self) -> usize {
        let state = self.state.lock();
        Lane::ALL.into_iter().map(|lane| state.ready_tokens[lane]).sum()
    }

    fn publish(&self, state: &State) {
        let counters = &self.outbox.account.counters;
        counters
            .queued_queries
            .store(state.count[Lane::Query], Ordering::Relaxed);
        counters.queued_bulk.store(state.count[Lane::Bulk], Ordering::Relaxed);
        counters.models.store(state.models.count() as u64, Ordering::Relaxed);
        counters
            .model_bytes
            .store(state.models.bytes() as u64, Ordering::Relaxed);
    }

    /// Puts replies together and hands them over. Without the lock: a document's vectors are mixed here.
    fn answer(&self, finished: impl IntoIterator<Item = Finished>) {
        let mut answers = Vec::new();
        for Finished { mut jobs, outcome } in finished {
            let now = Instant::now();
            let reply = match outcome {
                Outcome::Reply(reply) => reply,
                Outcome::Vectors => match jobs.first_mut().map(|job| (job.planned.take(), job.model.take(), job)) {
                    Some((Some(planned), Some(model), job)) => {
                        let since = [job.arrived, job.started.unwrap_or(job.arrived)].map(|time| now - time);
                        finish(planned, &model, std::mem::take(&mut job.vectors), since)
                    }
                    _ => Reply::Failed(Failure::new(
                        Kind::Internal,
                        "an item was answered before it was planned",
                    )),
                },
            };
            let counters = &self.outbox.account.counters;
            let followers = jobs.len().saturating_sub(1) as u64;
            counters.shared.fetch_add(followers, Ordering::Relaxed);
            if let Reply::Vector(_) | Reply::Passages(_) = &reply {
                let vectors = match &reply {
                    Reply::Passages(passages) => passages.iter().filter(|one| !one.vector.is_empty()).count(),
                    _ => 1,
                };
                counters.vectors.fetch_add(vectors as u64, Ordering::Relaxed);
            }
            for job in jobs {
                let lane = job.lane();
                let started = job.started.unwrap_or(now);
                let latencies = &self.outbox.account.latencies;
                latencies.wait[lane as usize].count(started.saturating_duration_since(job.arrived));
                latencies.run[lane as usize].count(now.saturating_duration_since(started));
                answers.extend(message(&job.work, &reply));
            }
        }
        self.outbox.push(answers);
    }
}

fn message(work: &Work, reply: &Reply) -> Option<Answer> {
    let mut error = match reply {
        Reply::Failed(failure) => Some(failure.to_string()),
        _ => None,
    };
    let message = encode_reply(work.number, reply).or_else(|bad| {
        let failure = unsendable(&bad);
        error = Some(failure.to_string());
        encode_reply(work.number, &Reply::Failed(failure))
    });
    Some(Answer {
        sender: work.sender.clone(),
        bytes: work.item.bytes(),
        message: message.ok()?,
        error,
    })
}

/// What is answered in the place of a reply that is no message.
pub fn unsendable(bad: &BadMessage) -> Failure {
    Failure::new(Kind::Memory, format!("the answer cannot be sent: {bad}"))
        .hint("Ask for less at once: shorter texts, or larger chunks.")
}
