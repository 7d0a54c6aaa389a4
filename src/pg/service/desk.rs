//! Where items wait in the worker, in order and between its threads.
//!
//! An item passes through the stages of [`Stage`]. The main thread brings items ([`Desk::push`]). The planner thread,
//! and the compute thread while it has nothing to run, take the next one whose model is in memory
//! ([`Desk::plan_next`]), tokenise it outside of the lock and leave its sequences; the compute thread takes batches of
//! sequences and leaves vectors ([`Desk::batch`], [`Desk::complete`]). Planned ahead is no more than [`AHEAD`] batches,
//! so memory is bounded. One lock is held by each for microseconds; nothing is planned, loaded or run under it.
//!
//! Equal texts for one model and role are encoded once: the first that is planned leads, the others follow and get
//! its reply. When a leader leaves, its followers wait again, so nobody depends on another's staying. A query does not
//! follow a bulk item that has not started.

use super::exchange::{Answer, Outbox, Sender, Settings, Work};
use super::failure::Failure;
use super::loader::{self, Task};
use super::models::{Model, Models};
use super::plan::{Planned, cost, finish, plan};
use super::schedule::{Flow, Rotation};
use super::wire::{Item, Lane, ModelKey, Reply, Report, encode_reply};
use crate::compute::Pool;
use crate::model::Sequence;
use parking_lot::{Condvar, Mutex};
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Batches that are planned ahead.
const AHEAD: usize = 2;
/// Query batches in a row after which waiting bulk work gets one batch.
const QUERY_BATCHES: u32 = 32;
/// Bytes of text that count as a token until the tokens are known.
const BYTES_A_TOKEN: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// In its sender's queue of `waiting`.
    Waiting,
    /// Some thread tokenises it.
    Planning,
    /// Its model is being loaded, or the item is being worked on beside the queues.
    Parked,
    /// Another job with the same text brings its reply.
    Follows,
    /// In its sender's queue of `ready`.
    Ready,
}

struct Job {
    work: Arc<Work>,
    stage: Stage,
    arrived: Instant,
    /// When its first sequence went into a batch.
    started: Option<Instant>,
    /// Which texts are equal to its own.
    text: Option<u64>,
    model: Option<Arc<Model>>,
    planned: Option<Planned>,
    /// Sequences that went into batches so far, and tokens of the others.
    taken: usize,
    left: usize,
    /// Vectors by sequence, and how many sequences have them.
    vectors: Vec<Vec<Vec<f32>>>,
    done: usize,
}

impl Job {
    fn lane(&self) -> usize {
        usize::from(self.work.lane == Lane::Bulk)
    }

    fn flow(&self) -> Flow {
        Flow {
            database: self.work.sender.database,
            sender: self.work.sender.slot,
        }
    }
}

/// Jobs with equal texts.
#[derive(Default)]
struct Group {
    leader: Option<u64>,
    members: Vec<u64>,
}

/// A sequence of a job in a batch.
pub struct Piece {
    pub job: u64,
    pub index: usize,
    pub sequence: Sequence,
    pub sender: Arc<Sender>,
}

/// What runs together.
pub struct Batch {
    pub model: Arc<Model>,
    pub lane: usize,
    /// Tokens that it had room for.
    pub budget: usize,
    pub pieces: Vec<Piece>,
}

#[derive(Default)]
struct State {
    jobs: HashMap<u64, Job>,
    next_job: u64,
    waiting: [Rotation<u64>; 2],
    ready: [Rotation<u64>; 2],
    /// Tokens in `ready`.
    ready_tokens: [usize; 2],
    /// Jobs of each lane, whatever their stage.
    count: [u64; 2],
    texts: HashMap<u64, Group>,
    hasher: RandomState,
    models: Models,
    /// Jobs that wait for a model, and the models that are to be loaded.
    parked: HashMap<ModelKey, Vec<u64>>,
    /// The compute thread waits.
    idle: bool,
    query_batches: u32,
    /// Tokens of the batches lately: what is planned ahead.
    budget: usize,
}

/// Jobs that left the desk with the same outcome.
pub struct Finished {
    jobs: Vec<Job>,
    outcome: Outcome,
}

enum Outcome {
    /// Of the first job; the others have its reply.
    Vectors,
    Reply(Reply),
}

/// See the head of the file.
pub struct Desk {
    state: Mutex<State>,
    compute: Condvar,
    planner: Condvar,
    pub stop: AtomicBool,
    /// A sender has left since the compute thread looked.
    left: AtomicBool,
    pub settings: Settings,
    pub outbox: Outbox,
    /// The threads that batches and calibrations run on.
    pub pool: Mutex<Arc<Pool>>,
    pub background: loader::Background,
}

impl Desk {
    pub fn new(outbox: Outbox, settings: Settings, pool: Pool) -> Desk {
        let state = State {
            budget: 512,
            ..State::default()
        };
        Desk {
            state: Mutex::new(state),
            compute: Condvar::new(),
            planner: Condvar::new(),
            stop: AtomicBool::new(false),
            left: AtomicBool::new(false),
            settings,
            outbox,
            pool: Mutex::new(Arc::new(pool)),
            background: loader::Background::default(),
        }
    }

    /// Takes items in.
    pub fn push(self: &Arc<Self>, work: Vec<Work>) {
        let (arrived, mut answers, mut tasks) = (Instant::now(), Vec::new(), Vec::new());
        let mut state = self.state.lock();
        for work in work {
            let beside = matches!(work.item, Item::Calibrate | Item::Unload);
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

    /// Drops the work of senders that have left.
    pub fn forget_gone(&self) {
        if !self.left.swap(false, Ordering::Acquire) {
            return;
        }
        let mut state = self.state.lock();
        let gone = |job: &Job| job.work.sender.gone.load(Ordering::Relaxed);
        let numbers: Vec<u64> = state
            .jobs
            .iter()
            .filter(|(_, job)| gone(job))
            .map(|(n, _)| *n)
            .collect();
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
        let mut state = self.state.lock();
        let Some(next) = state.pick() else { return false };
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
        let planned = plan(&model.encoder, &work.item);
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
        let queries = lane == 1 && state.ready_tokens[0] == 0 && !state.waiting[0].is_empty();
        let short = lane == 1 && state.ready_tokens[1] < state.budget && !state.waiting[1].is_empty();
        if queries || short {
            return None;
        }
        let batch = state.fill(lane, budget);
        if state.can_plan() {
            self.planner.notify_one();
        }
        batch
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
            piece.sender.progress.running.fetch_sub(1, Ordering::Relaxed);
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
        let mut state = self.state.lock();
        let finished = state.finish_with(number, reply);
        self.publish(&state);
        drop(state);
        self.answer(finished);
    }

    /// A model was loaded, or could not be: those who wait for it go on.
    pub fn loaded(&self, key: &ModelKey, result: Result<Arc<Model>, Failure>) {
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

    fn publish(&self, state: &State) {
        let counters = &self.outbox.account.counters;
        counters.queued_queries.store(state.count[0], Ordering::Relaxed);
        counters.queued_bulk.store(state.count[1], Ordering::Relaxed);
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
                    _ => continue,
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
                latencies.wait[lane].count(started.saturating_duration_since(job.arrived));
                latencies.run[lane].count(now.saturating_duration_since(started));
                answers.extend(message(&job.work, &reply));
            }
        }
        self.outbox.push(answers);
    }
}

fn message(work: &Work, reply: &Reply) -> Option<Answer> {
    let error = match reply {
        Reply::Failed(failure) => Some(failure.to_string()),
        _ => None,
    };
    let message = encode_reply(work.number, reply).or_else(|error| {
        let failure = Failure::new(super::Kind::Memory, error.to_string());
        encode_reply(work.number, &Reply::Failed(failure))
    });
    Some(Answer {
        sender: work.sender.clone(),
        bytes: work.item.bytes(),
        message: message.ok()?,
        error,
    })
}

enum Next {
    Plan(u64, Arc<Work>, Arc<Model>, usize),
    /// It waits for a model that somebody loads already.
    Parked,
    Load(ModelKey),
}

impl State {
    fn admit(&mut self, work: Work, arrived: Instant, beside: bool) -> u64 {
        let number = self.next_job;
        self.next_job += 1;
        let mut job = Job {
            work: Arc::new(work),
            stage: if beside { Stage::Parked } else { Stage::Waiting },
            arrived,
            started: None,
            text: None,
            model: None,
            planned: None,
            taken: 0,
            left: 0,
            vectors: Vec::new(),
            done: 0,
        };
        if let Item::Embed { role, text } = &job.work.item {
            let mut hasher = self.hasher.build_hasher();
            (&job.work.model, role, text).hash(&mut hasher);
            let key = hasher.finish();
            let group = self.texts.entry(key).or_default();
            let other = group.members.first().and_then(|first| self.jobs.get(first));
            // Two texts with the same hash: the later one is encoded by itself.
            if other.is_none_or(|other| (&other.work.model, &other.work.item) == (&job.work.model, &job.work.item)) {
                group.members.push(number);
                job.text = Some(key);
            }
        }
        self.count[job.lane()] += 1;
        if !beside {
            self.waiting[job.lane()].push(job.flow(), number);
        }
        self.jobs.insert(number, job);
        number
    }

    fn can_plan(&self) -> bool {
        (0..2).any(|lane| self.ready_tokens[lane] < AHEAD * self.budget && !self.waiting[lane].is_empty())
    }

    /// The lane of the next batch.
    fn lane(&self) -> Option<usize> {
        match [0, 1].map(|lane| self.ready_tokens[lane] > 0) {
            [false, false] => None,
            [true, false] => Some(0),
            [false, true] => Some(1),
            [true, true] => Some(usize::from(self.query_batches >= QUERY_BATCHES)),
        }
    }

    /// The next job to plan; it is out of its queue then.
    fn pick(&mut self) -> Option<Next> {
        for lane in 0..2 {
            if self.ready_tokens[lane] >= AHEAD * self.budget {
                continue;
            }
            let (jobs, texts) = (&mut self.jobs, &mut self.texts);
            let mut found = None;
            self.waiting[lane].fill(1, |queue| {
                while let Some(number) = queue.pop_front() {
                    let Some(lead) = leads(number, jobs, texts) else {
                        continue;
                    };
                    let Some(job) = jobs.get_mut(&number) else { continue };
                    if !lead {
                        job.stage = Stage::Follows;
                        continue;
                    }
                    job.stage = Stage::Planning;
                    let estimate = job.work.item.bytes() / BYTES_A_TOKEN + 1;
                    found = Some((number, job.work.clone(), job.model.clone(), estimate));
                    return Some(estimate);
                }
                None
            });
            let Some((number, work, model, estimate)) = found else {
                continue;
            };
            if let Some(model) = model.or_else(|| self.models.find(&work.model)) {
                return Some(Next::Plan(number, work, model, estimate));
            }
            if let Some(job) = self.jobs.get_mut(&number) {
                job.stage = Stage::Parked;
            }
            if let Some(parked) = self.parked.get_mut(&work.model) {
                parked.push(number);
                return Some(Next::Parked);
            }
            self.parked.insert(work.model.clone(), vec![number]);
            return Some(Next::Load(work.model.clone()));
        }
        None
    }

    /// Puts a planned job where batches are taken from.
    fn leave(&mut self, number: u64, planned: Planned, model: Arc<Model>, estimate: usize) {
        let Some(job) = self.jobs.get_mut(&number) else { return };
        let tokens = planned.tokens();
        job.stage = Stage::Ready;
        job.left = tokens;
        job.vectors = vec![Vec::new(); planned.sequences().len()];
        job.planned = Some(planned);
        job.model = Some(model);
        let (lane, flow) = (job.lane(), job.flow());
        self.waiting[lane].charge(flow, tokens as i64 - estimate as i64);
        self.ready[lane].push(flow, number);
        self.ready_tokens[lane] += tokens;
    }

    /// Puts a job back at the front of its queue.
    fn again(&mut self, number: u64, model: Option<&Arc<Model>>) {
        if let Some(job) = self.jobs.get_mut(&number) {
            job.stage = Stage::Waiting;
            job.model = model.cloned();
            let (lane, flow) = (job.lane(), job.flow());
            self.waiting[lane].push_front(flow, number);
        }
    }

    fn fill(&mut self, lane: usize, budget: &dyn Fn(&Model) -> usize) -> Option<Batch> {
        let (jobs, ready_tokens) = (&mut self.jobs, &mut self.ready_tokens[lane]);
        let mut batch: Option<Batch> = None;
        let most = std::cell::Cell::new(1);
        let now = Instant::now();
        let take = |queue: &mut VecDeque<u64>| {
            while let Some(&number) = queue.front() {
                let ready = jobs.get_mut(&number).and_then(|job| {
                    let sequence = job.planned.as_ref()?.sequences().get(job.taken)?.clone();
                    Some((sequence, job.model.clone()?, job))
                });
                let Some((sequence, model, job)) = ready else {
                    queue.pop_front();
                    continue;
                };
                let batch = batch.get_or_insert_with(|| Batch {
                    budget: budget(&model),
                    lane,
                    pieces: Vec::new(),
                    model: model.clone(),
                });
                if !Arc::ptr_eq(&batch.model, &model) {
                    return None;
                }
                most.set(batch.budget);
                let tokens = cost(&sequence);
                job.started.get_or_insert(now);
                job.left = job.left.saturating_sub(tokens);
                *ready_tokens = ready_tokens.saturating_sub(tokens);
                job.work.sender.progress.running.fetch_add(1, Ordering::Relaxed);
                batch.pieces.push(Piece {
                    job: number,
                    index: job.taken,
                    sequence,
                    sender: job.work.sender.clone(),
                });
                job.taken += 1;
                if job.taken == job.vectors.len() {
                    queue.pop_front();
                }
                return Some(tokens);
            }
            None
        };
        self.ready[lane].fill_while(|total| total < most.get(), take);
        if let Some(batch) = &batch {
            self.query_batches = if lane == 0 { self.query_batches + 1 } else { 0 };
            if lane == 1 {
                self.budget = batch.budget;
            }
        } else {
            *ready_tokens = 0;
        }
        batch
    }

    /// Takes a job off the desk, as one that is not answered; those that follow it wait again.
    fn remove(&mut self, number: u64) -> Option<Job> {
        let job = self.jobs.remove(&number)?;
        let lane = job.lane();
        self.count[lane] = self.count[lane].saturating_sub(1);
        self.ready_tokens[lane] = self.ready_tokens[lane].saturating_sub(job.left);
        let mut followers = Vec::new();
        if let Some(key) = job.text
            && let Some(group) = self.texts.get_mut(&key)
        {
            group.members.retain(|member| *member != number);
            if group.leader == Some(number) {
                group.leader = None;
                followers.clone_from(&group.members);
            }
            if group.members.is_empty() {
                self.texts.remove(&key);
            }
        }
        for follower in followers {
            if self.jobs.get(&follower).is_some_and(|job| job.stage == Stage::Follows) {
                self.again(follower, None);
            }
        }
        Some(job)
    }

    /// Takes a job and all with the same text off the desk, to be answered.
    fn finish(&mut self, number: u64, outcome: Outcome) -> Option<Finished> {
        let text = self.jobs.get(&number)?.text;
        let group = text.and_then(|key| self.texts.remove(&key)).unwrap_or_default();
        let others: HashSet<u64> = group.members.into_iter().filter(|member| *member != number).collect();
        let mut jobs: Vec<Job> = self.remove(number).into_iter().collect();
        for other in others {
            jobs.extend(self.remove(other));
        }
        Some(Finished { jobs, outcome })
    }

    fn finish_with(&mut self, number: u64, reply: Reply) -> Option<Finished> {
        self.finish(number, Outcome::Reply(reply))
    }
}

/// Whether a job is encoded itself, or follows another with the same text. `None` where it is gone.
fn leads(number: u64, jobs: &HashMap<u64, Job>, texts: &mut HashMap<u64, Group>) -> Option<bool> {
    let job = jobs.get(&number)?;
    let Some(group) = job.text.and_then(|key| texts.get_mut(&key)) else {
        return Some(true);
    };
    let leader = group
        .leader
        .filter(|leader| *leader != number)
        .and_then(|leader| jobs.get(&leader));
    let follows = leader.is_some_and(|leader| leader.started.is_some() || leader.lane() <= job.lane());
    if !follows {
        group.leader = Some(number);
    }
    Some(!follows)
}
