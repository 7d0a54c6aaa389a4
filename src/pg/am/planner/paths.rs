//! What the paths of a table cost that orders by distances: those that are not of an index over text have to encode its documents.

use super::nodes::{length, nth};
use crate::pg::am::cost::amcostestimate;
use pgrx::{is_a, pg_sys};
use std::sync::OnceLock;

/// What encoding one document costs, some 60 ms, in units of `seq_page_cost`; as `COST` of the functions that encode.
const DOCUMENT_COST: f64 = 25_000.0;

static PREVIOUS: OnceLock<pg_sys::set_rel_pathlist_hook_type> = OnceLock::new();

/// Registers the hook on paths.
pub fn define() {
    // SAFETY: a hook of the server, set while the library is loaded, in the only thread.
    unsafe {
        if PREVIOUS.set(pg_sys::set_rel_pathlist_hook).is_ok() {
            pg_sys::set_rel_pathlist_hook = Some(cost_of_encoding);
        }
    }
}

/// Whether a path is a scan of an index over text in the order of its distances.
unsafe fn has_distances(path: *mut pg_sys::Path) -> bool {
    // SAFETY: a path of the planner.
    unsafe {
        if !is_a(path.cast(), pg_sys::NodeTag::T_IndexPath) {
            return false;
        }
        let path = &*path.cast::<pg_sys::IndexPath>();
        let index = &*path.indexinfo;
        let estimate = index.amcostestimate.map(|function| function as usize);
        let kind = *index.opcintype;
        !path.indexorderbys.is_null()
            && estimate == Some(amcostestimate as *const () as usize)
            && (kind == pg_sys::TEXTOID || kind == pg_sys::BPCHAROID)
    }
}

/// Where one path of a table has the distances that the query orders by, the others have to encode its documents.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn cost_of_encoding(
    root: *mut pg_sys::PlannerInfo,
    relation: *mut pg_sys::RelOptInfo,
    number: pg_sys::Index,
    entry: *mut pg_sys::RangeTblEntry,
) {
    // SAFETY: the server's contract for the hook; paths that lose are the planner's to free.
    unsafe {
        if let Some(previous) = PREVIOUS.get().copied().flatten() {
            pg_sys::ffi::pg_guard_ffi_boundary(|| previous(root, relation, number, entry));
        }
        let paths = (*relation).pathlist;
        let all: Vec<*mut pg_sys::Path> = (0..length(paths)).map(|at| nth(paths, at).cast()).collect();
        if !all.iter().any(|path| has_distances(*path)) {
            return;
        }
        (*relation).pathlist = std::ptr::null_mut();
        for path in all {
            if !has_distances(path) {
                (*path).total_cost += (*path).rows * DOCUMENT_COST;
            }
            pg_sys::add_path(relation, path);
        }
        let paths = (*relation).partial_pathlist;
        let all: Vec<*mut pg_sys::Path> = (0..length(paths)).map(|at| nth(paths, at).cast()).collect();
        (*relation).partial_pathlist = std::ptr::null_mut();
        for path in all {
            // The operator runs in the leader alone.
            (*path).total_cost += (*relation).rows * DOCUMENT_COST;
            pg_sys::add_partial_path(relation, path);
        }
    }
}
