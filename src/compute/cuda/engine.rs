//! What all models on one card share: the card, its kernels, the matrix library.

use super::super::ComputeError;
use super::card::{Card, Stream};
use super::compile::Kernels;
use super::launch::Launch;
use super::matmul::Library;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Weak};

/// An open card, ready for models.
pub struct Engine {
    pub card: Arc<Card>,
    pub matmul: Arc<Library>,
    kernels: Kernels,
}

/// Engines in use, by their cards' numbers.
static OPEN: Mutex<BTreeMap<u32, Weak<Engine>>> = Mutex::new(BTreeMap::new());

impl Engine {
    /// The engine of that card that another model uses already, or a new one.
    pub fn shared(ordinal: u32, cache: Option<&Path>) -> Result<Arc<Engine>, ComputeError> {
        let mut open = OPEN.lock();
        if let Some(engine) = open.get(&ordinal).and_then(Weak::upgrade) {
            return Ok(engine);
        }
        let engine = Engine::open(ordinal, cache)?;
        open.insert(ordinal, Arc::downgrade(&engine));
        Ok(engine)
    }

    /// Opens the card of that number. The kernels come from `cache`, a directory of the caller's, or are compiled and kept
    /// there; without one they are compiled each time (some seconds).
    pub fn open(ordinal: u32, cache: Option<&Path>) -> Result<Arc<Engine>, ComputeError> {
        let card = Card::open(ordinal)?;
        Ok(Arc::new(Engine {
            kernels: Kernels::load(&card, cache)?,
            matmul: Arc::new(Library::new(&card)?),
            card,
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
