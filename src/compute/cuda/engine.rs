//! What all models on one GPU share: the GPU, its kernels, the matrix library.

use super::super::ComputeError;
use super::compile::Kernels;
use super::gpu::{Gpu, Stream};
use super::launch::Launch;
use super::matmul::Library;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Weak};

/// An open GPU, ready for models.
pub struct Engine {
    pub gpu: Arc<Gpu>,
    pub matmul: Arc<Library>,
    kernels: Kernels,
}

/// Engines in use, by their GPUs' numbers.
static OPEN: Mutex<BTreeMap<u32, Weak<Engine>>> = Mutex::new(BTreeMap::new());

impl Engine {
    /// The engine of that GPU that another model uses already, or a new one.
    pub fn shared(ordinal: u32, cache: Option<&Path>) -> Result<Arc<Engine>, ComputeError> {
        let mut open = OPEN.lock();
        if let Some(engine) = open.get(&ordinal).and_then(Weak::upgrade) {
            return Ok(engine);
        }
        let engine = Engine::open(ordinal, cache)?;
        open.insert(ordinal, Arc::downgrade(&engine));
        Ok(engine)
    }

    /// Opens the GPU of that number. The kernels come from `cache`, a directory of the caller's, or are compiled and kept
    /// there; without one they are compiled each time (some seconds).
    pub fn open(ordinal: u32, cache: Option<&Path>) -> Result<Arc<Engine>, ComputeError> {
        let gpu = Gpu::open(ordinal)?;
        Ok(Arc::new(Engine {
            kernels: Kernels::load(&gpu, cache)?,
            matmul: Arc::new(Library::new(&gpu)?),
            gpu,
        }))
    }

    /// The kernels, to be put on that stream.
    pub(super) fn on<'a>(&'a self, stream: &'a Stream) -> Launch<'a> {
        Launch {
            kernels: &self.kernels,
            stream,
        }
    }
}
