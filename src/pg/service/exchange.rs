//! Between the worker's main thread and its compute thread: items one way, answers the other.

use super::wire::{Item, Lane, ModelKey};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// One owner of a slot, as the worker knows it.
pub struct Sender {
    pub slot: usize,
    /// Tells senders of one slot apart.
    pub serial: u64,
    /// Set when the sender has left: its work is dropped.
    pub gone: AtomicBool,
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

/// What the main thread tells the compute thread.
#[derive(Default)]
pub struct Inbox {
    queue: Mutex<VecDeque<Work>>,
    filled: Condvar,
    pub stop: AtomicBool,
    /// Settings: threads (0: the machine's), tokens a batch (0: from the speed), seconds idle and bytes of models.
    pub threads: AtomicUsize,
    pub batch_tokens: AtomicUsize,
    pub model_idle: AtomicU64,
    pub model_memory: AtomicUsize,
}

impl Inbox {
    /// Hands items over.
    pub fn push(&self, work: Vec<Work>) {
        self.queue.lock().extend(work);
        self.filled.notify_one();
    }

    /// Makes the compute thread end after the layer that it computes.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        let _guard = self.queue.lock();
        self.filled.notify_one();
    }

    /// Everything that came; waits up to `wait` for something.
    pub fn take(&self, wait: Duration) -> VecDeque<Work> {
        let mut queue = self.queue.lock();
        if queue.is_empty() && !self.stop.load(Ordering::SeqCst) && !wait.is_zero() {
            self.filled.wait_for(&mut queue, wait);
        }
        std::mem::take(&mut *queue)
    }
}

/// What the compute thread tells the main thread.
pub struct Outbox {
    queue: Mutex<Vec<Answer>>,
    /// Writes a byte here after each push: wakes the main thread's wait.
    pipe: OwnedFd,
    pub vectors: AtomicU64,
    pub tokens: AtomicU64,
    pub batches: AtomicU64,
    pub busy: AtomicU64,
    pub models: AtomicU64,
    pub model_bytes: AtomicU64,
    pub queued: [AtomicU64; 2],
}

impl Outbox {
    pub fn new(pipe: OwnedFd) -> Outbox {
        Outbox {
            queue: Mutex::default(),
            pipe,
            vectors: AtomicU64::new(0),
            tokens: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            models: AtomicU64::new(0),
            model_bytes: AtomicU64::new(0),
            queued: [AtomicU64::new(0), AtomicU64::new(0)],
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

    fn wake(&self) {
        // SAFETY: an open, non-blocking descriptor; a full pipe wakes the reader as well.
        unsafe { libc::write(self.pipe.as_raw_fd(), [1u8].as_ptr().cast(), 1) };
    }
}
