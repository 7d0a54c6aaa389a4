//! The worker's compute thread: plans items, runs batches, answers. It calls nothing of the server.
//!
//! The main thread hands items over through [`Inbox`] and takes answers from [`Outbox`]; both are a lock around a
//! queue. Before each batch the query lane goes first. An item that fails, by error or panic, is answered with its
//! error; the others of its batch are run again without it.

use super::exchange::{Answer, Inbox, Outbox, Sender, Work};
use super::failure::{Failure, Kind};
use super::models::Models;
use super::schedule::Rotation;
use super::wire::{Item, Lane, Passage, Reply, encode_reply};
use crate::bridge::situate::{self, Plan};
use crate::compute::Pool;
use crate::model::{Encoder, ModelError, Sequence};
use crate::text;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Seconds that a bulk batch should take at most, where `situ.batch_tokens` leaves it to the measured speed.
const BATCH_SECONDS: f64 = 0.08;
/// Query batches in a row after which waiting bulk work gets one batch.
const QUERY_BATCHES: u32 = 32;

/// What has to be encoded for an item.
enum Planned {
    One(Sequence),
    Document(Plan),
}

impl Planned {
    fn sequences(&self) -> &[Sequence] {
        match self {
            Planned::One(sequence) => std::slice::from_ref(sequence),
            Planned::Document(plan) => &plan.sequences,
        }
    }
}

struct Job {
    work: Work,
    ready: Option<(Arc<Encoder>, Planned)>,
    /// Sequences that went into batches so far.
    taken: usize,
    /// Vectors of the sequences that were run, by sequence.
    vectors: Vec<Vec<Vec<f32>>>,
    done: usize,
}

/// A sequence of a job in a batch.
type Piece = (u64, usize);

/// The compute thread's state.
pub struct Engine {
    inbox: Arc<Inbox>,
    outbox: Arc<Outbox>,
    pool: Pool,
    pool_threads: usize,
    models: Models,
    /// Numbers of jobs that have sequences to run: query lane, bulk lane.
    lanes: [Rotation<u64>; 2],
    jobs: HashMap<u64, Job>,
    next_job: u64,
    answers: Vec<Answer>,
    /// Tokens a second in bulk batches, smoothed; 0 before the first.
    speed: f64,
    query_batches: u32,
}

/// Threads for `situ.cpu_threads`.
pub fn threads(setting: usize) -> usize {
    match setting {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    }
}

impl Engine {
    pub fn new(inbox: Arc<Inbox>, outbox: Arc<Outbox>) -> Result<Engine, Failure> {
        let pool_threads = threads(inbox.threads.load(Ordering::Relaxed));
        let pool = Pool::new(pool_threads).map_err(|error| Failure::new(Kind::Internal, error.to_string()))?;
        Ok(Engine {
            inbox,
            outbox,
            pool,
            pool_threads,
            models: Models::default(),
            lanes: [Rotation::default(), Rotation::default()],
            jobs: HashMap::new(),
            next_job: 0,
            answers: Vec::new(),
            speed: 0.0,
            query_batches: 0,
        })
    }

    /// Works until [`Inbox::stop`].
    pub fn run(mut self) {
        while !self.inbox.stop.load(Ordering::SeqCst) {
            let idle = self.lanes.iter().all(Rotation::is_empty);
            let wait = if idle { Duration::from_secs(1) } else { Duration::ZERO };
            for work in self.inbox.take(wait) {
                self.admit(work);
            }
            self.forget_gone();
            self.publish();
            let [queries, bulk] = &self.lanes;
            let lane = match (queries.is_empty(), bulk.is_empty()) {
                (true, true) => {
                    self.tidy();
                    continue;
                }
                (false, true) => 0,
                (true, false) => 1,
                (false, false) => usize::from(self.query_batches >= QUERY_BATCHES),
            };
            self.query_batches = if lane == 0 { self.query_batches + 1 } else { 0 };
            self.step(lane);
            self.publish();
            self.outbox.push(std::mem::take(&mut self.answers));
        }
    }

    fn admit(&mut self, work: Work) {
        let lane = usize::from(work.lane == Lane::Bulk);
        self.lanes[lane].push(work.sender.slot, self.next_job);
        let job = Job {
            work,
            ready: None,
            taken: 0,
            vectors: Vec::new(),
            done: 0,
        };
        self.jobs.insert(self.next_job, job);
        self.next_job += 1;
    }

    fn forget_gone(&mut self) {
        self.jobs.retain(|_, job| !job.work.sender.gone.load(Ordering::Relaxed));
        let jobs = &self.jobs;
        self.lanes
            .iter_mut()
            .for_each(|lane| lane.retain(|number| jobs.contains_key(number)));
    }

    fn publish(&self) {
        for (lane, queued) in self.lanes.iter().zip(&self.outbox.queued) {
            queued.store(lane.len() as u64, Ordering::Relaxed);
        }
        self.outbox.models.store(self.models.count() as u64, Ordering::Relaxed);
        self.outbox
            .model_bytes
            .store(self.models.bytes() as u64, Ordering::Relaxed);
    }

    /// Follows the settings, while nothing waits.
    fn tidy(&mut self) {
        let idle = self.inbox.model_idle.load(Ordering::Relaxed);
        if idle > 0 {
            self.models.unload_idle(Duration::from_secs(idle));
        }
        let wanted = threads(self.inbox.threads.load(Ordering::Relaxed));
        if wanted != self.pool_threads
            && let Ok(pool) = Pool::new(wanted)
        {
            self.pool = pool;
            self.pool_threads = wanted;
        }
    }

    fn budget(&self) -> usize {
        match self.inbox.batch_tokens.load(Ordering::Relaxed) {
            0 if self.speed == 0.0 => 512,
            0 => ((self.speed * BATCH_SECONDS) as usize).clamp(256, 16 << 10),
            tokens => tokens,
        }
    }

    /// Fills a batch from a lane and runs it.
    fn step(&mut self, lane: usize) {
        let budget = self.budget();
        let mut rotation = std::mem::take(&mut self.lanes[lane]);
        let mut batch: Vec<Piece> = Vec::new();
        let mut model: Option<Arc<Encoder>> = None;
        rotation.fill(budget, |queue| {
            while let Some(&number) = queue.front() {
                if !self.prepare(number) {
                    queue.pop_front();
                    continue;
                }
                let job = self.jobs.get_mut(&number)?;
                let (encoder, planned) = job.ready.as_ref()?;
                match &model {
                    None => model = Some(encoder.clone()),
                    Some(model) if Arc::ptr_eq(model, encoder) => {}
                    Some(_) => return None,
                }
                let tokens = planned.sequences().get(job.taken)?.ids.len();
                batch.push((number, job.taken));
                job.taken += 1;
                if job.taken == planned.sequences().len() {
                    queue.pop_front();
                }
                return Some(tokens.max(1));
            }
            None
        });
        self.lanes[lane] = rotation;
        if let Some(encoder) = model {
            self.run_batch(&encoder, &batch, lane);
        }
    }

    /// Plans a job where that was not done yet. False where nothing is left to run: it was answered.
    fn prepare(&mut self, number: u64) -> bool {
        let Some(job) = self.jobs.get(&number) else {
            return false;
        };
        if job.ready.is_some() {
            return true;
        }
        let most = self.inbox.model_memory.load(Ordering::Relaxed);
        let (models, work) = (&mut self.models, &job.work);
        let result = guarded(|| {
            let encoder = models.get(&work.model, most)?;
            plan(&encoder, &work.item).map(|planned| (encoder, planned))
        });
        match result {
            Err(failure) => self.answer(number, Reply::Failed(failure)),
            Ok((_, Err(reply))) => self.answer(number, reply),
            Ok((_, Ok(Planned::Document(plan)))) if plan.sequences.is_empty() => {
                self.answer(number, Reply::Passages(Vec::new()));
            }
            Ok((encoder, Ok(planned))) => {
                if let Some(job) = self.jobs.get_mut(&number) {
                    job.vectors = vec![Vec::new(); planned.sequences().len()];
                    job.ready = Some((encoder, planned));
                }
                return true;
            }
        }
        false
    }

    fn run_batch(&mut self, encoder: &Encoder, batch: &[Piece], lane: usize) {
        // Equal sequences are run once.
        let mut distinct: Vec<&Sequence> = Vec::new();
        let mut places: HashMap<&[u32], Vec<usize>> = HashMap::new();
        let mut place_of = Vec::with_capacity(batch.len());
        for (number, index) in batch {
            let Some(sequence) = self.sequence(*number, *index) else {
                return;
            };
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
        drop((distinct, places));

        let tokens: usize = sequences.iter().map(|sequence| sequence.ids.len()).sum();
        let started = Instant::now();
        let senders: Vec<Arc<Sender>> = batch
            .iter()
            .filter_map(|(number, _)| self.jobs.get(number))
            .map(|job| job.work.sender.clone())
            .collect();
        let inbox = self.inbox.clone();
        let stop =
            || inbox.stop.load(Ordering::Relaxed) || senders.iter().all(|sender| sender.gone.load(Ordering::Relaxed));
        let pool = &self.pool;
        let result = guarded(|| match encoder.encode_until(pool, &sequences, &stop) {
            Ok(vectors) => split(&sequences, vectors).map(Some),
            Err(ModelError::Stopped) => Ok(None),
            Err(error) => Err(Failure::from(&error)),
        });
        let elapsed = started.elapsed();
        self.outbox
            .busy
            .fetch_add(elapsed.as_micros() as u64, Ordering::Relaxed);
        match result {
            // Stopped: the senders have left, or the worker ends and a new one gets the items again.
            Ok(None) => {}
            Ok(Some(vectors)) => {
                self.outbox.tokens.fetch_add(tokens as u64, Ordering::Relaxed);
                self.outbox.batches.fetch_add(1, Ordering::Relaxed);
                if lane == 1 && tokens >= 128 {
                    let speed = tokens as f64 / elapsed.as_secs_f64().max(1e-6);
                    self.speed = if self.speed == 0.0 {
                        speed
                    } else {
                        0.8 * self.speed + 0.2 * speed
                    };
                }
                for ((number, index), place) in batch.iter().zip(place_of) {
                    self.store(*number, *index, vectors[rank[place]].clone());
                }
            }
            Err(failure) if batch.len() == 1 => self.answer(batch[0].0, Reply::Failed(failure)),
            Err(_) => batch.iter().for_each(|piece| self.run_batch(encoder, &[*piece], lane)),
        }
    }

    fn sequence(&self, number: u64, index: usize) -> Option<&Sequence> {
        let (_, planned) = self.jobs.get(&number)?.ready.as_ref()?;
        planned.sequences().get(index)
    }

    /// Keeps the vectors of a sequence; with the last one of its job the job is answered.
    fn store(&mut self, number: u64, index: usize, vectors: Vec<Vec<f32>>) {
        let Some(job) = self.jobs.get_mut(&number) else {
            return;
        };
        self.outbox.vectors.fetch_add(vectors.len() as u64, Ordering::Relaxed);
        job.vectors[index] = vectors;
        job.done += 1;
        if job.done < job.vectors.len() {
            return;
        }
        let vectors: Vec<Vec<f32>> = std::mem::take(&mut job.vectors).into_iter().flatten().collect();
        let reply = match job.ready.take() {
            Some((_, Planned::One(_))) => match vectors.into_iter().next() {
                Some(vector) => Reply::Vector(vector),
                None => Reply::Failed(Failure::new(Kind::Internal, "the model gave no vector")),
            },
            Some((_, Planned::Document(plan))) => {
                match guarded(|| situate::finish(plan, &vectors).map_err(|error| Failure::from(&error))) {
                    Ok(chunks) => Reply::Passages(
                        chunks
                            .into_iter()
                            .map(|chunk| Passage {
                                span: chunk.span,
                                tokens: chunk.tokens,
                                vector: chunk.vector,
                            })
                            .collect(),
                    ),
                    Err(failure) => Reply::Failed(failure),
                }
            }
            None => Reply::Failed(Failure::new(Kind::Internal, "an item lost its plan")),
        };
        self.answer(number, reply);
    }

    fn answer(&mut self, number: u64, reply: Reply) {
        let Some(job) = self.jobs.remove(&number) else {
            return;
        };
        let error = match &reply {
            Reply::Failed(failure) => Some(failure.to_string()),
            _ => None,
        };
        let message = encode_reply(job.work.number, &reply).or_else(|error| {
            let failure = Failure::new(Kind::Memory, error.to_string());
            encode_reply(job.work.number, &Reply::Failed(failure))
        });
        let Ok(message) = message else { return };
        self.answers.push(Answer {
            sender: job.work.sender,
            bytes: job.work.item.bytes(),
            message,
            error,
        });
    }
}

/// What has to be encoded for an item, or its answer where nothing has to be.
fn plan(encoder: &Encoder, item: &Item) -> Result<Result<Planned, Reply>, Failure> {
    let model = |error: ModelError| Failure::from(&error);
    match item {
        Item::Embed { role, text } => encoder
            .text(*role, text)
            .map(|one| Ok(Planned::One(one)))
            .map_err(model),
        Item::Situate {
            title,
            headings,
            text,
            options,
        } => situate::plan(encoder, title.as_deref(), headings, text, options)
            .map(|plan| Ok(Planned::Document(plan)))
            .map_err(|error| Failure::from(&error)),
        Item::Chunks {
            headings,
            text,
            chunk_tokens,
        } => {
            let tokens = encoder.tokenize(text).map_err(model)?;
            let chunks = text::chunks(text, headings, *chunk_tokens as usize, &tokens.spans);
            let passages = chunks.into_iter().map(|chunk| Passage {
                span: chunk.span,
                tokens: chunk.tokens,
                vector: Vec::new(),
            });
            Ok(Err(Reply::Passages(passages.collect())))
        }
    }
}

/// Vectors by sequence: each sequence gives as many as it has read-outs.
fn split(sequences: &[Sequence], vectors: Vec<Vec<f32>>) -> Result<Vec<Vec<Vec<f32>>>, Failure> {
    let found = vectors.len();
    let mut rest = vectors.into_iter();
    let split: Vec<Vec<Vec<f32>>> = sequences
        .iter()
        .map(|sequence| {
            let count = match &sequence.read {
                crate::model::Read::Pooled => 1,
                crate::model::Read::Spans(spans) => spans.len(),
            };
            rest.by_ref().take(count).collect()
        })
        .collect();
    let complete: usize = split.iter().map(Vec::len).sum();
    let expected: usize = sequences
        .iter()
        .map(|sequence| match &sequence.read {
            crate::model::Read::Pooled => 1,
            crate::model::Read::Spans(spans) => spans.len(),
        })
        .sum();
    if complete != expected || found != expected {
        return Err(Failure::new(
            Kind::Internal,
            format!("expected {expected} vectors of the model, not {found}"),
        ));
    }
    Ok(split)
}

/// Runs `body`; a panic in it becomes an error.
fn guarded<T>(body: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("unknown");
        Err(Failure::new(Kind::Internal, format!("the encoder panicked: {text}")))
    })
}
