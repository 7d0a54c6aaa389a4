//! What the worker does between two steps: looks for what is asked of it, says where it is, keeps checkpoints.

use super::jobs;
use crate::bridge::BridgeError;
use crate::bridge::train::data::{Monitor, Progress};
use crate::pg::settings;
use pgrx::pg_sys;
use std::time::{Duration, Instant};

/// How often the job's row is looked at, and written.
const LOOK: Duration = Duration::from_millis(100);
const WRITE: Duration = Duration::from_secs(1);

/// Does something in a transaction of its own, with a snapshot.
pub fn transaction<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: outside of a transaction; an error leaves it to whoever catches it to abort.
    unsafe {
        pg_sys::StartTransactionCommand();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let result = work();
        pg_sys::PopActiveSnapshot();
        pg_sys::CommitTransactionCommand();
        result
    }
}

/// The monitor over a job.
pub struct JobMonitor {
    id: i64,
    looked: Instant,
    written: Option<Instant>,
    kept: Instant,
    /// The last checkpoint, where it was not kept yet: a pause keeps it.
    offered: Option<Vec<u8>>,
    /// Whether the training was ended by a pause.
    pub paused: bool,
    /// Where the training's own allocations go; emptied between steps.
    memory: pg_sys::MemoryContext,
}

impl JobMonitor {
    pub fn new(id: i64) -> JobMonitor {
        // SAFETY: a context below the one that lives as long as the process.
        let memory = unsafe {
            pg_sys::AllocSetContextCreateExtended(
                pg_sys::TopMemoryContext,
                c"situ training".as_ptr(),
                0,
                8 * 1024,
                8 * 1024 * 1024,
            )
        };
        let now = Instant::now();
        let row = JobMonitor {
            id,
            looked: now,
            written: None,
            kept: now,
            offered: None,
            paused: false,
            memory,
        };
        row.clear();
        row
    }

    /// Empties the memory of the last step and makes it the current one. Nothing of the server's outlives a step.
    fn clear(&self) {
        // SAFETY: outside of a transaction; the trainers keep their state in Rust's own memory.
        unsafe {
            pg_sys::MemoryContextReset(self.memory);
            pg_sys::MemoryContextSwitchTo(self.memory);
        }
    }

    fn look(&mut self, progress: &Progress) -> Result<(), BridgeError> {
        self.looked = Instant::now();
        let due = self.written.is_none_or(|written| written.elapsed() >= WRITE);
        let asked = transaction(|| match due {
            true => jobs::progress(self.id, progress, "running"),
            false => jobs::request(self.id),
        });
        if due {
            self.written = Some(Instant::now());
        }
        if asked == "pause" {
            transaction(|| jobs::progress(self.id, progress, "running"));
            // Nobody may have asked to go on meanwhile: then the process stays.
            self.paused = transaction(|| jobs::pause(self.id, self.offered.as_deref()));
        }
        self.clear();
        match &*asked {
            "cancel" => Err(BridgeError::Stopped),
            _ if self.paused => Err(BridgeError::Stopped),
            _ => Ok(()),
        }
    }
}

impl Monitor for JobMonitor {
    fn step(&mut self, progress: &Progress) -> Result<(), BridgeError> {
        pgrx::check_for_interrupts!();
        match self.looked.elapsed() >= LOOK || self.written.is_none() {
            true => self.look(progress),
            false => {
                self.clear();
                Ok(())
            }
        }
    }

    fn checkpoint(&mut self, bytes: &[u8]) -> Result<(), BridgeError> {
        pgrx::check_for_interrupts!();
        if self.kept.elapsed() >= settings::training_checkpoint() {
            transaction(|| jobs::keep(self.id, bytes));
            self.kept = Instant::now();
            self.offered = None;
            self.clear();
        } else {
            // Without the memory for a copy a pause goes back to the one that was kept.
            let mut copy = self.offered.take().unwrap_or_default();
            copy.clear();
            self.offered = copy.try_reserve_exact(bytes.len()).is_ok().then(|| {
                copy.extend_from_slice(bytes);
                copy
            });
        }
        Ok(())
    }
}
