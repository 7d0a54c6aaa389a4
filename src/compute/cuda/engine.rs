//! What all models on one card share: the card, its kernels, the matrix library.

use super::super::ComputeError;
use super::card::{Card, Stream};
use super::compile::Kernels;
use super::launch::Launch;
use super::matmul::Library;
use std::path::Path;
use std::sync::Arc;

/// An open card, ready for models.
pub struct Engine {
    pub card: Arc<Card>,
    pub matmul: Arc<Library>,
    kernels: Kernels,
}

impl Engine {
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
