//! The jobs on the scheduler: what the lock of [`super::scheduler::Scheduler`] guards, and every change of it.
//!
//! A job passes through the stages of [`Stage`]. Its number lies in at most one queue of `waiting` and one of `ready`;
//! a job that is taken off the scheduler early leaves its number there, and whoever comes upon it drops it.

use super::models::{Model, Models};
use super::plan::{Planned, cost};
use crate::model::Sequence;
use crate::serve::fair_queue::{FairQueue, Flow};
use crate::serve::ipc::queues::{Sender, Work};
use crate::serve::ipc::wire::{Item, Lane, ModelKey, PerLane, Reply};
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

/// Batches that are planned ahead.
const AHEAD: usize = 2;
/// Tokens of a batch before the first was made.
const FIRST_BUDGET: usize = 512;
/// Query batches after which waiting bulk work gets one batch, and which may go in between while that runs.
const QUERY_BATCHES: u32 = 32;
/// Bytes of text that count as a token until the tokens are known.
const BYTES_A_TOKEN: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
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

pub struct Job {
    pub work: Arc<Work>,
    stage: Stage,
    pub arrived: Instant,
    /// When its first sequence went into a batch.
    pub started: Option<Instant>,
    /// Key of the group of jobs with the same text.
    text: Option<u64>,
    pub model: Option<Arc<Model>>,
    pub planned: Option<Planned>,
    /// Sequences that went into batches so far, and tokens of the others.
    taken: usize,
    left: usize,
    /// Vectors by sequence, and how many sequences have them.
    pub vectors: Vec<Vec<Vec<f32>>>,
    pub done: usize,
}

impl Job {
    pub fn lane(&self) -> Lane {
        self.work.lane
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
    pub lane: Lane,
    /// Tokens that it had room for.
    pub budget: usize,
    pub pieces: Vec<Piece>,
}

pub struct State {
    pub jobs: HashMap<u64, Job>,
    next_job: u64,
    pub waiting: PerLane<FairQueue<u64>>,
    ready: PerLane<FairQueue<u64>>,
    /// Tokens in `ready`.
    pub ready_tokens: PerLane<usize>,
    /// Jobs of each lane, whatever their stage.
    pub count: PerLane<u64>,
    texts: HashMap<u64, Group>,
    hasher: RandomState,
    pub models: Models,
    /// Jobs that wait for a model, and the models that are to be loaded.
    pub parked: HashMap<ModelKey, Vec<u64>>,
    /// The compute thread waits.
    pub idle: bool,
    query_batches: u32,
    /// Tokens of the batches lately: what is planned ahead.
    pub budget: usize,
}

/// Jobs that left the scheduler with the same outcome.
pub struct Finished {
    pub jobs: Vec<Job>,
    pub outcome: Outcome,
}

pub enum Outcome {
    /// Of the first job; the others have its reply.
    Vectors,
    Reply(Reply),
}

/// What [`State::pick`] found.
pub enum Next {
    Plan(u64, Arc<Work>, Arc<Model>, usize),
    /// It waits for a model that somebody loads already.
    Parked,
    Load(ModelKey),
}

impl Default for State {
    fn default() -> Self {
        State {
            jobs: HashMap::new(),
            next_job: 0,
            waiting: Default::default(),
            ready: Default::default(),
            ready_tokens: PerLane::default(),
            count: PerLane::default(),
            texts: HashMap::new(),
            hasher: RandomState::new(),
            models: Models::default(),
            parked: HashMap::new(),
            idle: false,
            query_batches: 0,
            budget: FIRST_BUDGET,
        }
    }
}

impl State {
    /// Takes an item in; `beside`: it does not go through the queues.
    pub fn admit(&mut self, work: Work, arrived: Instant, beside: bool) -> u64 {
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
            let user = job.work.sender.user;
            let key = self.hasher.hash_one((&job.work.model, user, role, text));
            let group = self.texts.entry(key).or_default();
            let other = group.members.first().and_then(|first| self.jobs.get(first));
            // Two texts with the same hash: the later one is encoded by itself.
            let same = |other: &Job| {
                let work = (&other.work.model, other.work.sender.user, &other.work.item);
                work == (&job.work.model, user, &job.work.item)
            };
            if other.is_none_or(same) {
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

    /// Whether something waits that may be planned.
    pub fn can_plan(&self) -> bool {
        Lane::ALL
            .into_iter()
            .any(|lane| self.ready_tokens[lane] < AHEAD * self.budget && !self.waiting[lane].is_empty())
    }

    /// The lane of the next batch.
    pub fn lane(&self) -> Option<Lane> {
        match Lane::ALL.map(|lane| self.ready_tokens[lane] > 0) {
            [false, false] => None,
            [true, false] => Some(Lane::Query),
            [false, true] => Some(Lane::Bulk),
            [true, true] if self.query_batches >= QUERY_BATCHES => Some(Lane::Bulk),
            [true, true] => Some(Lane::Query),
        }
    }

    /// Whether a batch of queries may go in between while bulk work runs: some are there, and bulk work has its turn.
    pub fn may_interrupt(&self) -> bool {
        self.query_batches < QUERY_BATCHES
            && (self.ready_tokens[Lane::Query] > 0 || !self.waiting[Lane::Query].is_empty())
    }

    /// The next job of these lanes to plan; it is out of its queue then.
    pub fn pick(&mut self, lanes: &[Lane]) -> Option<Next> {
        for &lane in lanes {
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
    pub fn leave(&mut self, number: u64, planned: Planned, model: Arc<Model>, estimate: usize) {
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
    pub fn again(&mut self, number: u64, model: Option<&Arc<Model>>) {
        if let Some(job) = self.jobs.get_mut(&number) {
            job.stage = Stage::Waiting;
            job.model = model.cloned();
            let (lane, flow) = (job.lane(), job.flow());
            self.waiting[lane].push_front(flow, number);
        }
    }

    /// The next batch of a lane: up to `budget(model)` tokens of one model.
    pub fn fill(&mut self, lane: Lane, budget: &dyn Fn(&Model) -> usize) -> Option<Batch> {
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
                job.work.sender.started();
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
            match lane {
                Lane::Query => self.query_batches += 1,
                Lane::Bulk => (self.query_batches, self.budget) = (0, batch.budget),
            }
        } else {
            *ready_tokens = 0;
        }
        batch
    }

    /// Takes a job off the scheduler, as one that is not answered; those that follow it wait again.
    pub fn remove(&mut self, number: u64) -> Option<Job> {
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

    /// Takes a job and all with the same text off the scheduler, to be answered.
    pub fn finish(&mut self, number: u64, outcome: Outcome) -> Option<Finished> {
        let text = self.jobs.get(&number)?.text;
        let group = text.and_then(|key| self.texts.remove(&key)).unwrap_or_default();
        let others: HashSet<u64> = group.members.into_iter().filter(|member| *member != number).collect();
        let mut jobs: Vec<Job> = self.remove(number).into_iter().collect();
        for other in others {
            jobs.extend(self.remove(other));
        }
        Some(Finished { jobs, outcome })
    }

    /// The same with a reply that is known.
    pub fn finish_with(&mut self, number: u64, reply: Reply) -> Option<Finished> {
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
