//! One training as every kind's trainer is given it.

use super::data::{Encode, Monitor, Pair, Passage};
use crate::bridge::BridgeError;
use crate::compute::Pool;
use serde_json::Value;
use std::cell::OnceCell;
use std::rc::Rc;

/// Most threads that options can ask for.
const MOST_THREADS: usize = 1024;

/// What a training reads, whom it asks, and what it computes with.
pub struct Run<'a> {
    pub passages: &'a [Passage],
    /// The user's pairs; empty where the trainer makes its own of the passages.
    pub pairs: &'a [Pair],
    /// The options of the kind, `seed` and `threads` among them.
    pub options: &'a Value,
    pub encode: &'a mut dyn Encode,
    pub monitor: &'a mut dyn Monitor,
    /// A state to go on from.
    pub checkpoint: Option<&'a [u8]>,
    /// Of everything that is drawn.
    pub seed: u64,
    /// Threads of the pool.
    pub threads: usize,
    pool: OnceCell<Rc<Pool>>,
}

impl<'a> Run<'a> {
    /// A training that has not begun. Without a seed in the options it is 1; without threads, or for 0, they are the
    /// machine's.
    pub fn new(
        passages: &'a [Passage],
        pairs: &'a [Pair],
        options: &'a Value,
        encode: &'a mut dyn Encode,
        monitor: &'a mut dyn Monitor,
        checkpoint: Option<&'a [u8]>,
    ) -> Run<'a> {
        let number = |name: &str| options.get(name).and_then(Value::as_u64);
        let threads = match number("threads").unwrap_or(0) {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => usize::try_from(threads).map_or(MOST_THREADS, |threads| threads.min(MOST_THREADS)),
        };
        Run {
            passages,
            pairs,
            options,
            encode,
            monitor,
            checkpoint,
            seed: number("seed").unwrap_or(1),
            threads,
            pool: OnceCell::new(),
        }
    }

    /// The threads that compute, started when they are first asked for: options that are refused start none.
    ///
    /// # Errors
    /// [`BridgeError::Compute`] where they cannot be started.
    pub fn pool(&self) -> Result<Rc<Pool>, BridgeError> {
        if let Some(pool) = self.pool.get() {
            return Ok(pool.clone());
        }
        let pool = Rc::new(Pool::new(self.threads)?);
        Ok(self.pool.get_or_init(|| pool).clone())
    }
}
