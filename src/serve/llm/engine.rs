//! The thread that decodes: takes jobs, has models loaded and unloaded, and steps the batch of each in turn.
//!
//! Models are loaded by threads of their own, so that answers of others go on meanwhile.

use super::inbox::{Inbox, Job, Load, Prepared};
use super::planner::Planner;
use super::runtime::Llm;
use super::session::Session;
use super::wire::{Item, LlmKey, Reply};
use crate::model::stop;
use crate::serve::encoder::models::resolve;
use crate::serve::encoder::plan::guarded;
use crate::serve::ipc::failure::{Failure, Kind};
use crate::serve::ipc::memory;
use crate::serve::ipc::statistics::{add, put};
use crate::serve::ipc::threads::spawn;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

/// Bytes for keys and values where no limit is set, and the least where one is.
const CACHE: usize = 2 << 30;
const LEAST_CACHE: usize = 64 << 20;
/// How long the engine sleeps where there is nothing to do.
const NAP: Duration = Duration::from_millis(500);

enum Place {
    /// On its way into memory, and who waits for it.
    Loading(Vec<Job>),
    Ready(Box<Session>),
}

/// The models of the worker.
pub struct Engine {
    inbox: Arc<Inbox>,
    planner: Arc<Planner>,
    places: HashMap<LlmKey, Place>,
    loaders: Vec<JoinHandle<()>>,
}

impl Engine {
    pub fn new(inbox: Arc<Inbox>) -> Engine {
        Engine {
            inbox,
            planner: Arc::default(),
            places: HashMap::new(),
            loaders: Vec::new(),
        }
    }

    /// Runs until the inbox says stop, and until all that it has started is over. Fails where no thread can be started.
    pub fn run(mut self) -> std::io::Result<()> {
        let (planner, inbox) = (self.planner.clone(), self.inbox.clone());
        let planner = spawn("situ llm planner", move || planner.run(&inbox))?;
        self.serve();
        // Nothing runs while the process takes itself apart. All of them look whether they are to stop.
        self.planner.wake();
        for thread in self.loaders.drain(..).chain([planner]) {
            let _ = thread.join();
        }
        Ok(())
    }

    fn serve(&mut self) {
        while !self.inbox.stop.load(Ordering::SeqCst) {
            let busy = self.places.values().any(|place| match place {
                Place::Ready(loaded) => loaded.has_steps(),
                Place::Loading(_) => false,
            });
            let inbox = self.inbox.take((!busy).then_some(NAP));
            for load in inbox.loads {
                self.accept(load);
            }
            self.drop_left();
            for prepared in inbox.prepared {
                self.begin(prepared);
            }
            for job in inbox.jobs {
                self.dispatch(job);
            }
            self.unload_idle();
            self.publish();
            for place in self.places.values_mut() {
                if let Place::Ready(loaded) = place {
                    loaded.step(&self.inbox);
                }
            }
        }
    }

    fn dispatch(&mut self, job: Job) {
        if let Item::Unload = job.item {
            let bytes = self.unload(&job.model);
            return self.answer(job, Reply::Unloaded { bytes: bytes as u64 });
        }
        if let Err(failure) = self.follow(&job.model) {
            return self.answer(job, Reply::Failed(failure));
        }
        job.sender.started();
        match self.places.get_mut(&job.model) {
            Some(Place::Loading(waiting)) => waiting.push(job),
            Some(Place::Ready(loaded)) => {
                let (sender, number) = (job.sender.clone(), job.number);
                if let Some(reply) = loaded.take(job, &self.planner) {
                    self.inbox.reply(vec![(sender, number, reply)]);
                }
            }
            None => {
                let key = job.model.clone();
                self.places.insert(key.clone(), Place::Loading(vec![job]));
                let inbox = self.inbox.clone();
                let own = key.clone();
                let load = move || {
                    let ends = inbox.clone();
                    let ends = move || ends.stop.load(Ordering::Relaxed);
                    let result = stop::until(ends, || guarded(|| open(&own)));
                    inbox.loaded(Load { key: own, result });
                    memory::give_back();
                };
                self.loaders.retain(|thread| !thread.is_finished());
                match spawn("situ llm loader", load) {
                    Ok(thread) => self.loaders.push(thread),
                    Err(error) => {
                        let failure = Failure::new(Kind::Memory, format!("cannot start a thread: {error}"));
                        self.accept(Load {
                            key,
                            result: Err(failure),
                        });
                    }
                }
            }
        }
    }

    /// Has a model that works on nothing take the settings of now: it may have been loaded under others.
    fn follow(&mut self, key: &LlmKey) -> Result<(), Failure> {
        // Its own weights are among those that are counted.
        let (threads, cache) = (self.threads(), self.cache(0));
        match self.places.get_mut(key) {
            Some(Place::Ready(loaded)) => loaded.follow(threads, cache).map_err(|error| Failure::from(&error)),
            _ => Ok(()),
        }
    }

    /// Takes what was made of a job.
    fn begin(&mut self, prepared: Prepared) {
        // A model whose prompts are being made stays.
        let Some(Place::Ready(loaded)) = self.places.get_mut(&prepared.key) else {
            return;
        };
        let (sender, number) = (prepared.sender.clone(), prepared.number);
        let reply = loaded.begin(prepared);
        if sender.has_left() {
            add(&self.inbox.outbox.account.counters.cancelled, 1);
        } else if let Some(reply) = reply {
            self.inbox.reply(vec![(sender, number, reply)]);
        }
    }

    fn answer(&self, job: Job, reply: Reply) {
        self.inbox.reply(vec![(job.sender, job.number, reply)]);
    }

    fn accept(&mut self, load: Load) {
        let Some(Place::Loading(waiting)) = self.places.remove(&load.key) else {
            return;
        };
        let ready = load.result.and_then(|llm| {
            self.make_room(llm.memory());
            let (threads, cache) = (self.threads(), self.cache(llm.memory()));
            Session::new(llm, threads, cache).map_err(|error| Failure::from(&error))
        });
        match ready {
            Ok(loaded) => {
                self.places.insert(load.key, Place::Ready(Box::new(loaded)));
                for job in waiting {
                    // Counted as running already.
                    job.sender.finished();
                    self.dispatch(job);
                }
            }
            Err(failure) => {
                for job in waiting {
                    self.answer(job, Reply::Failed(failure.clone()));
                }
            }
        }
    }

    fn drop_left(&mut self) {
        let mut gone = 0;
        for place in self.places.values_mut() {
            match place {
                Place::Ready(loaded) => gone += loaded.drop_left(),
                Place::Loading(waiting) => {
                    let before = waiting.len();
                    waiting.retain(|job| !job.sender.has_left());
                    gone += before - waiting.len();
                }
            }
        }
        add(&self.inbox.outbox.account.counters.cancelled, gone as u64);
    }

    fn ready(&self) -> impl Iterator<Item = (&LlmKey, &Session)> {
        self.places.iter().filter_map(|(key, place)| match place {
            Place::Ready(loaded) => Some((key, &**loaded)),
            Place::Loading(_) => None,
        })
    }

    /// Bytes of the weights in memory.
    fn bytes(&self) -> usize {
        self.ready().map(|(_, loaded)| loaded.bytes()).sum()
    }

    /// Drops a model that works on nothing; bytes of its weights, 0 where it is not there or works.
    fn unload(&mut self, key: &LlmKey) -> usize {
        let bytes = match self.places.get(key) {
            Some(Place::Ready(loaded)) if loaded.is_idle() => loaded.bytes(),
            _ => return 0,
        };
        self.places.remove(key);
        bytes
    }

    /// Has models that work on nothing leave, the longest unused first, until `more` bytes of weights fit.
    fn make_room(&mut self, more: usize) {
        let limit = self.inbox.settings.memory.load(Ordering::Relaxed);
        while limit > 0 && self.bytes() + more + LEAST_CACHE > limit {
            let idle = self.ready().filter(|(_, loaded)| loaded.is_idle());
            let Some(key) = idle
                .max_by_key(|(_, loaded)| loaded.idle_for())
                .map(|(key, _)| key.clone())
            else {
                return;
            };
            self.unload(&key);
        }
    }

    fn unload_idle(&mut self) {
        let idle = self.inbox.settings.idle.load(Ordering::Relaxed);
        if idle == 0 {
            return;
        }
        let over = self
            .ready()
            .filter(|(_, loaded)| loaded.idle_for() >= Duration::from_secs(idle));
        let keys: Vec<LlmKey> = over.map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.unload(&key);
        }
    }

    fn threads(&self) -> usize {
        match self.inbox.settings.threads.load(Ordering::Relaxed) {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }

    /// Bytes for keys and values of a model whose weights take `own` bytes.
    fn cache(&self, own: usize) -> usize {
        match self.inbox.settings.memory.load(Ordering::Relaxed) {
            0 => CACHE,
            limit => limit.saturating_sub(self.bytes() + own).max(LEAST_CACHE),
        }
    }

    fn publish(&self) {
        let counters = &self.inbox.outbox.account.counters;
        put(&counters.models, self.ready().count() as u64);
        put(&counters.model_bytes, self.bytes() as u64);
        let active: usize = self.ready().map(|(_, loaded)| loaded.answers()).sum();
        let waiting = self.places.values().map(|place| match place {
            Place::Loading(waiting) => waiting.len(),
            Place::Ready(_) => 0,
        });
        put(&counters.queued_queries, (active + waiting.sum::<usize>()) as u64);
        let described: Vec<serde_json::Value> = self
            .ready()
            .map(|(key, loaded)| {
                serde_json::json!({
                    "path": key.path,
                    "fingerprint": key.fingerprint,
                    "bytes": loaded.bytes(),
                    "requests": loaded.requests,
                    "answers": loaded.answers(),
                    "idle_seconds": loaded.idle_for().as_secs(),
                })
            })
            .collect();
        *self.inbox.described.lock() = serde_json::Value::from(described).to_string();
    }
}

/// Loads a model and checks that it is the one that was registered.
fn open(key: &LlmKey) -> Result<Arc<Llm>, Failure> {
    let path = resolve(&key.root, &key.path)?;
    let llm = Llm::open(&path).map_err(|error| Failure::from(&error))?;
    if llm.fingerprint() != key.fingerprint {
        let message = format!(
            "the files of LLM \"{}\" are not the ones that were registered",
            key.path
        );
        return Err(Failure::new(Kind::Changed, message)
            .detail(format!(
                "Registered fingerprint {}, found {}.",
                key.fingerprint,
                llm.fingerprint()
            ))
            .hint("Bring the old files back, or call situ.register_model(..., replace => true)."));
    }
    Ok(Arc::new(llm))
}
