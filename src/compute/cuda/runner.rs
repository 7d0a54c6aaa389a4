//! A model on a card: cuts a list of sequences into batches and keeps two of them under way.
//!
//! One caller at a time has the lanes; others wait. Where the card has not enough memory for two batches, one is under way
//! at a time; where it has not enough for one, half of it is tried, and the size that failed is not tried again.

use super::super::ComputeError;
use super::engine::Engine;
use super::lane::{Lane, Network};
use parking_lot::Mutex;
use std::sync::Arc;

/// Tokens of a batch: enough that every product of a large model fills a large card several times.
const TOKENS_AT_ONCE: usize = 16_384;

/// Tokens of a sequence that become one vector, `start..end` (not empty).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub start: u32,
    pub end: u32,
    /// The largest number of each column instead of the mean.
    pub largest: bool,
    /// To unit length.
    pub unit: bool,
}

/// A sequence and what is read out of it.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    pub ids: &'a [u32],
    pub ranges: Vec<Range>,
}

struct Lanes {
    lanes: [Lane; 2],
    /// Tokens that a batch may have.
    limit: usize,
    /// Whether only one lane is used: the card has no memory for two.
    single: bool,
}

/// A model that is loaded on a card.
pub struct Runner {
    engine: Arc<Engine>,
    network: Box<dyn Network>,
    lanes: Mutex<Lanes>,
}

impl Runner {
    pub fn new(engine: &Arc<Engine>, network: Box<dyn Network>) -> Result<Runner, ComputeError> {
        Ok(Runner {
            engine: engine.clone(),
            network,
            lanes: Mutex::new(Lanes {
                lanes: [Lane::new(engine)?, Lane::new(engine)?],
                limit: TOKENS_AT_ONCE,
                single: false,
            }),
        })
    }

    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Bytes of device memory of the weights.
    pub fn memory(&self) -> usize {
        self.network.memory()
    }

    /// Tokens of a batch at present; less than at first where memory was short.
    pub fn tokens_at_once(&self) -> usize {
        self.lanes.lock().limit
    }

    /// One vector a range, in order. `stop` is asked before each batch; [`ComputeError::Stopped`] where it says so.
    /// After [`ComputeError::DeviceLost`] nothing on this card works in this process any more.
    pub fn run(&self, requests: &[Request], stop: &dyn Fn() -> bool) -> Result<Vec<Vec<f32>>, ComputeError> {
        self.check(requests)?;
        let mut lanes = self.lanes.lock();
        let result = self.run_batches(&mut lanes, requests, stop);
        if result.is_err() {
            // Nothing may still read or write the lanes' memory when the next caller comes.
            lanes.lanes.iter_mut().for_each(Lane::release);
        }
        result
    }

    fn run_batches(
        &self,
        state: &mut Lanes,
        requests: &[Request],
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<Vec<f32>>, ComputeError> {
        let Lanes { lanes, limit, single } = state;
        let [mut here, mut there] = lanes.each_mut();
        let network = &*self.network;
        let mut vectors = Vec::with_capacity(requests.iter().map(|request| request.ranges.len()).sum());
        let mut rest = requests;
        // Batches under way on `here` and `there`; the one on `here` is the older.
        let (mut older, mut newer) = (false, false);
        while !rest.is_empty() || older || newer {
            if std::mem::take(&mut older) {
                vectors.extend(here.finish(network)?);
            }
            if stop() {
                return Err(ComputeError::Stopped);
            }
            if !rest.is_empty() {
                let mut tokens = 0;
                let fits = |request: &&Request| {
                    tokens += request.ids.len();
                    tokens <= *limit
                };
                let count = rest.iter().take_while(fits).count().max(1);
                let (batch, others) = rest.split_at(count);
                match here.start(network, batch) {
                    Ok(()) => {
                        older = true;
                        rest = others;
                    }
                    Err(ComputeError::DeviceMemory { .. }) if !*single || count > 1 => {
                        if std::mem::take(&mut newer) {
                            vectors.extend(there.finish(network)?);
                        }
                        here.release();
                        there.release();
                        if *single {
                            let tokens: usize = batch.iter().map(|request| request.ids.len()).sum();
                            *limit = (tokens / 2).max(1);
                        }
                        *single = true;
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            if !*single {
                std::mem::swap(&mut here, &mut there);
                std::mem::swap(&mut older, &mut newer);
            }
        }
        Ok(vectors)
    }

    /// Fails where an id, a length or a range is outside its table: the kernels do not check.
    fn check(&self, requests: &[Request]) -> Result<(), ComputeError> {
        let (vocabulary, longest) = self.network.limits();
        for (index, request) in requests.iter().enumerate() {
            let length = request.ids.len();
            let range = |range: &Range| range.start < range.end && range.end as usize <= length;
            let ids = request.ids.iter().all(|id| (*id as usize) < vocabulary);
            if length == 0 || length > longest || !ids || request.ranges.is_empty() || !request.ranges.iter().all(range)
            {
                let what =
                    format!("sequence {index} of {length} tokens has an id, a length or a range outside its table");
                return Err(ComputeError::Shape(what));
            }
        }
        Ok(())
    }
}
