//! Building an index.

use super::IndexError;
use super::spool::SpoolFactory;
use super::store::PageStore;
use super::types::{BuildStats, Entry, IndexOptions, Phase};

/// Told where the build is: phase, units done, units in all (0 where not known).
pub type Progress = Box<dyn FnMut(Phase, u64, u64)>;

/// An index that is being built.
pub struct Build<S: PageStore> {
    store: S,
}

impl<S: PageStore> Build<S> {
    /// Starts a build into an empty store.
    pub fn new(
        store: S,
        _options: IndexOptions,
        _memory_bytes: usize,
        _threads: usize,
        _spools: SpoolFactory,
        _progress: Progress,
    ) -> Result<Self, IndexError> {
        Ok(Build { store })
    }

    /// Takes one entry in. Entries of one row follow one another.
    pub fn add(&mut self, _entry: Entry<'_>) -> Result<(), IndexError> {
        self.store.check_cancel()
    }

    /// Replaces [`IndexOptions::extra`], with at most as many bytes as it had at the start.
    pub fn set_extra(&mut self, _extra: Vec<u8>) {}

    /// Clusters, writes and calibrates.
    pub fn finish(self) -> Result<BuildStats, IndexError> {
        Err(IndexError::Store("not written yet".into()))
    }
}
