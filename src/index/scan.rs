//! Answering a query.

use super::IndexError;
use super::store::PageStore;
use super::types::{Hit, ScanParams};

/// A running scan. Holds no page between calls.
pub struct Scan<S: PageStore> {
    store: S,
}

impl<S: PageStore> Scan<S> {
    /// Prepares a scan; no list is read yet.
    pub fn new(store: S, _query: &[f32], _params: ScanParams) -> Result<Scan<S>, IndexError> {
        Ok(Scan { store })
    }

    /// The next hit, in order of distance; `None` when every live entry has come out.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Hit>, IndexError> {
        self.store.check_cancel()?;
        Ok(None)
    }
}
