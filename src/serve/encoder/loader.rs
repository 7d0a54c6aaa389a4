//! What takes seconds and needs no batch: loading models, giving their memory back, calibrating. Each kind has at most
//! one thread, which ends when nothing is left to do, so that never more than one model is on its way into memory and
//! one under calibration.

use super::models::{self, Model};
use super::plan::guarded;
use super::scheduler::Scheduler;
use crate::model::calibrate::{Calibration, calibrate};
use crate::model::{Device, ModelError, Precision, stop};
use crate::serve::ipc::failure::{Failure, Kind};
use crate::serve::ipc::memory;
use crate::serve::ipc::queues::Work;
use crate::serve::ipc::threads::spawn;
use crate::serve::ipc::wire::{Item, ModelKey, Reply, Report};
use parking_lot::Mutex;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

/// Calibrations that are kept, so that the same files are measured once for all databases.
const MOST_KEPT: usize = 256;

/// Something to do beside the batches.
pub enum Task {
    Load(ModelKey),
    /// The last holders let go of the weights.
    Drop(Vec<Arc<Model>>),
    /// A job and its item.
    Calibrate(u64, Arc<Work>),
}

#[derive(Default)]
struct Queue {
    tasks: VecDeque<Task>,
    /// The thread takes another task.
    runs: bool,
    thread: Option<JoinHandle<()>>,
}

/// The tasks of a worker: models, calibrations.
#[derive(Default)]
pub struct Background {
    queues: [Mutex<Queue>; 2],
    /// By fingerprint.
    calibrations: Mutex<HashMap<String, Calibration>>,
}

impl Background {
    /// Whether no thread of it runs.
    pub fn is_over(&self) -> bool {
        self.queues.iter().all(|queue| {
            let queue = queue.lock();
            !queue.runs && queue.thread.as_ref().is_none_or(JoinHandle::is_finished)
        })
    }
}

/// Has a task done on its thread.
pub fn start(scheduler: &Arc<Scheduler>, task: Task) {
    let kind = match &task {
        Task::Drop(models) if models.is_empty() => return,
        Task::Load(_) | Task::Drop(_) => 0,
        Task::Calibrate(..) => 1,
    };
    let mut queue = scheduler.background.queues[kind].lock();
    queue.tasks.push_back(task);
    if queue.runs {
        return;
    }
    let own = scheduler.clone();
    let name = ["situ loader", "situ calibrator"][kind];
    // The new thread waits for the queue, so that nobody finds it running without its handle.
    match spawn(name, move || run(&own, kind)) {
        Ok(thread) => {
            queue.runs = true;
            queue.thread = Some(thread);
        }
        Err(error) => {
            let failure = Failure::new(Kind::Memory, format!("cannot start a thread: {error}"));
            let tasks = std::mem::take(&mut queue.tasks);
            drop(queue);
            refuse(scheduler, tasks, &failure);
        }
    }
}

fn refuse(scheduler: &Scheduler, tasks: VecDeque<Task>, failure: &Failure) {
    for task in tasks {
        match task {
            Task::Load(key) => scheduler.loaded(&key, Err(failure.clone())),
            Task::Calibrate(number, _) => scheduler.reply(number, Reply::Failed(failure.clone())),
            Task::Drop(_) => {}
        }
    }
}

fn run(scheduler: &Arc<Scheduler>, kind: usize) {
    loop {
        let mut queue = scheduler.background.queues[kind].lock();
        let Some(task) = queue.tasks.pop_front() else {
            queue.runs = false;
            return;
        };
        drop(queue);
        if scheduler.stop.load(Ordering::SeqCst) {
            continue;
        }
        match task {
            Task::Load(key) => {
                let own = scheduler.clone();
                let ends = move || own.stop.load(Ordering::Relaxed);
                let result = stop::until(ends, || guarded(|| Model::load(&key, scheduler.device).map(Arc::new)));
                // Stopped: the process ends, and the requests go to the next worker.
                if !scheduler.stop.load(Ordering::SeqCst) {
                    scheduler.loaded(&key, result);
                }
                // What the files took on their way into the model.
                memory::give_back();
            }
            Task::Drop(models) => drop(models),
            Task::Calibrate(number, work) => {
                let (own, sender) = (scheduler.clone(), work.sender.clone());
                let ends = move || own.stop.load(Ordering::Relaxed) || sender.has_left();
                let reply = match stop::until(ends, || guarded(|| measure(scheduler, &work))) {
                    Ok(calibration) => Reply::Report(Report::Calibrated(calibration)),
                    Err(failure) => Reply::Failed(failure),
                };
                if !scheduler.stop.load(Ordering::SeqCst) {
                    scheduler.reply(number, reply);
                }
            }
        }
    }
}

fn measure(scheduler: &Scheduler, work: &Work) -> Result<Calibration, Failure> {
    let key = &work.model;
    let again = work.item == Item::Calibrate { again: true };
    if !again && let Some(known) = scheduler.background.calibrations.lock().get(&key.fingerprint) {
        return Ok(known.clone());
    }
    let directory = models::resolve(&key.root, &key.path)?;
    let refused = RefCell::new(None);
    let open = |precision: Precision| {
        let encoder = models::open(&directory, Device::Cpu, precision)?;
        models::verify(key, &encoder).map_err(|failure| {
            refused.replace(Some(failure));
            ModelError::Stopped
        })?;
        Ok(encoder)
    };
    let stop = || scheduler.stop.load(Ordering::Relaxed) || work.sender.has_left();
    let pool = scheduler.pool.lock().clone();
    let result = calibrate(&open, &pool, &stop);
    let calibration = result.map_err(|error| refused.take().unwrap_or_else(|| Failure::from(&error)))?;
    let mut kept = scheduler.background.calibrations.lock();
    if kept.len() >= MOST_KEPT {
        kept.clear();
    }
    kept.insert(key.fingerprint.clone(), calibration.clone());
    Ok(calibration)
}
