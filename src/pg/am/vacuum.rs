//! VACUUM: entries of dead rows leave the index; the counts go to the statistics.

use super::kind;
use crate::index::{self, VacuumStats};
use crate::pg::error::OrRaise;
use crate::pg::store::RelationStore;
use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use std::ffi::c_void;

/// The result that VACUUM carries from callback to callback, allocated at the first.
unsafe fn result_of(stats: *mut pg_sys::IndexBulkDeleteResult) -> *mut pg_sys::IndexBulkDeleteResult {
    if stats.is_null() {
        // SAFETY: zeroed memory of the right size in the caller's context.
        return unsafe { pg_sys::palloc0(std::mem::size_of::<pg_sys::IndexBulkDeleteResult>()).cast() };
    }
    stats
}

/// Writes the index's own counts; a document with many chunks counts as one row.
unsafe fn fill(result: *mut pg_sys::IndexBulkDeleteResult, counts: &VacuumStats) {
    // SAFETY: `result` comes from `result_of`.
    let result = unsafe { &mut *result };
    result.num_pages = counts.pages;
    result.num_index_tuples = counts.rows as f64;
    result.tuples_removed += counts.removed as f64;
    result.pages_deleted = counts.free_pages;
    result.pages_free = counts.free_pages;
    result.estimated_count = false;
}

/// Access-method callback: removes the entries of rows that the callback names dead.
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn ambulkdelete(
    info: *mut pg_sys::IndexVacuumInfo,
    stats: *mut pg_sys::IndexBulkDeleteResult,
    callback: pg_sys::IndexBulkDeleteCallback,
    callback_state: *mut c_void,
) -> *mut pg_sys::IndexBulkDeleteResult {
    // SAFETY: the server's contract for ambulkdelete.
    unsafe {
        let result = result_of(stats);
        let Some(is_dead) = callback else { return result };
        let store = RelationStore::new((*info).index);
        let mut dead = |tid: u64| {
            let mut pointer = kind::unpack_tid(tid);
            let pointer = &raw mut pointer;
            // An error in the server's function must unwind through this room, which holds its own state.
            pg_guard_ffi_boundary(|| is_dead(pointer, callback_state))
        };
        let counts = index::bulk_delete(&store, &mut dead).or_raise();
        fill(result, &counts);
        result
    }
}

/// Access-method callback: the end of VACUUM. Nothing is done for ANALYZE.
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn amvacuumcleanup(
    info: *mut pg_sys::IndexVacuumInfo,
    stats: *mut pg_sys::IndexBulkDeleteResult,
) -> *mut pg_sys::IndexBulkDeleteResult {
    // SAFETY: the server's contract for amvacuumcleanup.
    unsafe {
        if (*info).analyze_only {
            return stats;
        }
        let result = result_of(stats);
        let removed = (*result).tuples_removed;
        let store = RelationStore::new((*info).index);
        let counts = index::cleanup(&store).or_raise();
        fill(result, &counts);
        (*result).tuples_removed = removed;
        pg_sys::IndexFreeSpaceMapVacuum((*info).index);
        result
    }
}
