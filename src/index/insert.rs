//! Inserting into a built index.

use super::IndexError;
use super::store::PageStore;
use super::types::Entry;

/// Puts all entries of one row into their nearest lists.
pub fn insert<S: PageStore>(_store: &S, _entries: &[Entry<'_>]) -> Result<(), IndexError> {
    Err(IndexError::Store("not written yet".into()))
}
