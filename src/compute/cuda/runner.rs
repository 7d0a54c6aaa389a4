//! A model on a gpu: cuts a list of sequences into batches and keeps two of them under way.
//!
//! One caller at a time has the streams; others wait. Where the GPU has not enough memory for two batches, one is under way
//! at a time; where it has not enough for one, half of it is tried, and the size that failed is not tried again.

use super::super::ComputeError;
use super::batch_stream::{BatchStream, Network};
use super::engine::Engine;
use super::request::{Range, Request};
use parking_lot::Mutex;
use std::sync::Arc;

/// Tokens of a batch: enough that every product of a large model fills a large GPU several times.
const TOKENS_AT_ONCE: usize = 16_384;

struct Streams {
    streams: [BatchStream; 2],
    /// Tokens that a batch may have.
    limit: usize,
    /// Whether only one stream is used: the GPU has no memory for two.
    single: bool,
}

/// A model that is loaded on a GPU.
pub struct Runner {
    engine: Arc<Engine>,
    network: Box<dyn Network>,
    streams: Mutex<Streams>,
}

impl Runner {
    pub fn new(engine: &Arc<Engine>, network: Box<dyn Network>) -> Result<Runner, ComputeError> {
        Ok(Runner {
            engine: engine.clone(),
            network,
            streams: Mutex::new(Streams {
                streams: [BatchStream::new(engine)?, BatchStream::new(engine)?],
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
        self.streams.lock().limit
    }

    /// One vector a range, in order. `stop` is asked before each batch; [`ComputeError::Stopped`] where it says so.
    /// After [`ComputeError::DeviceLost`] nothing on this GPU works in this process any more.
    pub fn run(&self, requests: &[Request], stop: &dyn Fn() -> bool) -> Result<Vec<Vec<f32>>, ComputeError> {
        self.check(requests)?;
        let mut streams = self.streams.lock();
        let result = self.run_batches(&mut streams, requests, stop);
        if result.is_err() {
            // Nothing may still read or write the streams' memory when the next caller comes.
            streams.streams.iter_mut().for_each(BatchStream::release);
        }
        result
    }

    fn run_batches(
        &self,
        state: &mut Streams,
        requests: &[Request],
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<Vec<f32>>, ComputeError> {
        let Streams { streams, limit, single } = state;
        let [mut here, mut there] = streams.each_mut();
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
