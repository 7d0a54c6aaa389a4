//! The meta page.

use super::IndexError;
use super::store::PageStore;
use super::types::IndexOptions;

/// What the meta pages say about an index.
#[derive(Clone, Debug)]
pub struct Meta {
    /// Options the index was created with.
    pub options: IndexOptions,
    /// Entries and rows at the time of the build.
    pub entries: u64,
    pub rows: u64,
    /// Number of lists.
    pub lists: u32,
    /// Lists that a scan reads first unless told otherwise.
    pub probes: u32,
}

impl Meta {
    /// Reads and checks the meta pages.
    pub fn open<S: PageStore>(_store: &S) -> Result<Meta, IndexError> {
        Err(IndexError::Store("not written yet".into()))
    }
}
