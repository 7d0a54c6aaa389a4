//! What goes between the worker's main thread and its other threads: items one way, answers the other.

use super::statistics::{Counters, Latencies, Progress};
use super::wire::{Item, Lane, ModelKey};
use parking_lot::Mutex;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// One owner of a slot, as the worker knows it.
pub struct Sender {
    pub slot: usize,
    /// Tells senders of one slot apart.
    pub serial: u64,
    /// The sender's database, among which the service is shared out.
    pub database: u32,
    /// The role that it works as.
    pub user: u32,
    /// Set when the sender has left: its work is dropped.
    pub gone: AtomicBool,
    /// What was done for it, for everybody to see.
    pub progress: &'static Progress,
}

impl Sender {
    /// Whether its work is dropped.
    pub fn has_left(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// A sequence of it goes into a batch. What `progress` says belongs to the slot's next owner once this one has left.
    pub fn started(&self) {
        if !self.has_left() {
            self.progress.running.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The batch is over.
    pub fn finished(&self) {
        if !self.has_left() {
            let less = |running: u32| running.checked_sub(1);
            let _ = self
                .progress
                .running
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
    }
}

/// An item and where it came from.
pub struct Work {
    pub sender: Arc<Sender>,
    pub number: u64,
    pub lane: Lane,
    pub model: ModelKey,
    pub item: Item,
}

/// An answer on its way out.
pub struct Answer {
    pub sender: Arc<Sender>,
    /// Bytes of text of the item that is answered.
    pub bytes: usize,
    pub message: Vec<u8>,
    /// The error, for the log and the statistics.
    pub error: Option<String>,
}

/// What the worker counts, in shared memory.
#[derive(Default)]
#[repr(C)]
pub struct Account {
    pub counters: Counters,
    pub latencies: Latencies,
}

/// Settings that the threads follow while they run.
#[derive(Default)]
pub struct Settings {
    /// 0: the machine's.
    pub threads: AtomicUsize,
    /// Tokens a batch, 0: from the speed.
    pub batch_tokens: AtomicUsize,
    /// Seconds after which a model that nobody uses is unloaded, 0: never.
    pub model_idle: AtomicU64,
    /// Bytes of models, 0: no limit.
    pub model_memory: AtomicUsize,
}

/// Answers on their way to the main thread.
pub struct Outbox {
    queue: Mutex<Vec<Answer>>,
    /// Writes a byte here after each push: wakes the main thread's wait.
    pipe: OwnedFd,
    pub account: &'static Account,
}

impl Outbox {
    pub fn new(pipe: OwnedFd, account: &'static Account) -> Outbox {
        Outbox {
            queue: Mutex::default(),
            pipe,
            account,
        }
    }

    /// Everything that was pushed.
    pub fn take(&self) -> Vec<Answer> {
        std::mem::take(&mut *self.queue.lock())
    }

    /// Hands answers over and wakes the main thread.
    pub fn push(&self, answers: Vec<Answer>) {
        if answers.is_empty() {
            return;
        }
        self.queue.lock().extend(answers);
        self.wake();
    }

    /// Wakes the main thread.
    pub fn wake(&self) {
        // SAFETY: an open, non-blocking descriptor; a full pipe wakes the reader as well.
        unsafe { libc::write(self.pipe.as_raw_fd(), [1u8].as_ptr().cast(), 1) };
    }
}
