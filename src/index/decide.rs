//! How an undecided index becomes one that may hold entries.

use super::IndexError;
use super::build::Build;
use super::memory_store::MemoryStore;
use super::meta::{Meta, check_options};
use super::spool::memory_spool;
use super::store::{PageChange, PageStore};
use super::types::IndexOptions;

/// Makes an undecided index an empty one with these options; one that is decided already stays what it is.
///
/// Pages behind the first become durable one by one, and the meta page last: after a crash between, the index is
/// undecided as before, and the next decision takes the pages that are there. Scans meanwhile see an undecided index.
pub fn decide<S: PageStore>(store: &S, options: IndexOptions) -> Result<(), IndexError> {
    check_options(&options)?;
    let _whole = store.lock_whole()?;
    if Meta::open(store)?.is_decided() {
        return Ok(());
    }
    let empty = MemoryStore::new();
    let quiet = Box::new(|_, _, _| {});
    Build::new(empty.clone(), options, 0, 1, memory_spool(), quiet)?.finish()?;
    for block in (0..empty.blocks()?).rev() {
        store.check_cancel()?;
        while store.blocks()? <= block {
            let mut change = store.change()?;
            change.extend()?;
            change.commit()?;
        }
        let page = *empty.read(block)?;
        let mut change = store.change()?;
        // What comes before belongs to the server: the log's position and the checksum.
        change.renew(block)?[12..].copy_from_slice(&page[12..]);
        change.commit()?;
    }
    Ok(())
}
