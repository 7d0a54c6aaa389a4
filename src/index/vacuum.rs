//! Removing dead entries.

use super::IndexError;
use super::store::PageStore;
use super::types::{Tid, VacuumStats};

/// Removes the entries whose tid is dead.
pub fn bulk_delete<S: PageStore>(_store: &S, _dead: &mut dyn FnMut(Tid) -> bool) -> Result<VacuumStats, IndexError> {
    Err(IndexError::Store("not written yet".into()))
}

/// Counts what is live and records free pages.
pub fn cleanup<S: PageStore>(_store: &S) -> Result<VacuumStats, IndexError> {
    Err(IndexError::Store("not written yet".into()))
}
