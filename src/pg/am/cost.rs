//! What a scan costs, for the planner.
//!
//! A scan reads the centroids and the first round of lists before its first row, and further lists only as more rows
//! are asked for. So most of the start-up cost is the first round, and the total cost is the whole index. Over text,
//! the start-up includes the encoding of the question. Without an order by distance the index cannot be used at all.

use super::kind::{self, KeyKind};
use super::settings;
use crate::index::Meta;
use crate::pg::store::RelationStore;
use pgrx::pg_sys;

/// Encoding one question takes some milliseconds: as much as this many operator calls.
const QUESTION_OPERATORS: f64 = 20_000.0;
/// Estimating one distance from a code is far cheaper than an operator call.
const CODE_OPERATORS: f64 = 0.02;

/// Leaves a path its first distance alone. The server offers an index every distance of ORDER BY that it has an operator
/// for, and takes it to break the ties of one by the next; a scan knows one order. What is left to sort by the other
/// distances is an incremental sort above.
///
/// # Safety
/// `path` is being costed: nothing has been made of it yet. Its lists are shared with other paths, so they are copied.
unsafe fn order_by_first(path: *mut pg_sys::IndexPath) {
    // SAFETY: the caller's promise; pathkeys stand beside the distances one for one.
    unsafe {
        let path = &mut *path;
        if (*path.indexorderbys).length > 1 {
            path.indexorderbys = pg_sys::list_copy_head(path.indexorderbys, 1);
            path.indexorderbycols = pg_sys::list_copy_head(path.indexorderbycols, 1);
            path.path.pathkeys = pg_sys::list_copy_head(path.path.pathkeys, 1);
        }
    }
}

/// Access-method callback: cost estimates of a path.
#[pgrx::pg_guard]
#[allow(clippy::too_many_arguments)] // the server's signature
pub unsafe extern "C-unwind" fn amcostestimate(
    root: *mut pg_sys::PlannerInfo,
    path: *mut pg_sys::IndexPath,
    loop_count: f64,
    startup_cost: *mut pg_sys::Cost,
    total_cost: *mut pg_sys::Cost,
    selectivity: *mut pg_sys::Selectivity,
    correlation: *mut f64,
    pages: *mut f64,
) {
    // SAFETY: the server's contract for amcostestimate; the index is locked by the planner.
    unsafe {
        *selectivity = 1.0;
        *correlation = 0.0;
        let information = &*(*path).indexinfo;
        *pages = f64::from(information.pages);
        if (*path).indexorderbys.is_null() {
            *startup_cost = f64::INFINITY;
            *total_cost = f64::INFINITY;
            #[cfg(feature = "pg18")]
            {
                (*path).path.disabled_nodes = 2;
            }
            return;
        }
        order_by_first(path);
        let mut costs = pg_sys::GenericCosts::default();
        pg_sys::genericcostestimate(root, path, loop_count, &raw mut costs);

        let index = pg_sys::index_open(information.indexoid, pg_sys::NoLock as pg_sys::LOCKMODE);
        let is_text = kind::column_kind(index, 1) == KeyKind::Text;
        let recall = settings::recall_target(kind::column_kind(index, 1));
        let share = match Meta::open(&RelationStore::new(index)) {
            Ok(meta) if meta.lists > 0 => f64::from(meta.probes_for(recall)) / f64::from(meta.lists),
            // What is wrong with the meta page is said by the scan.
            _ => 1.0,
        };
        pg_sys::index_close(index, pg_sys::NoLock as pg_sys::LOCKMODE);

        let share = share.clamp(0.0, 1.0);
        let entries = information.tuples.max(1.0);
        let first_pages = (f64::from(information.pages) * share).max(1.0);
        let codes = pg_sys::cpu_operator_cost * CODE_OPERATORS * entries;
        let question = if is_text {
            pg_sys::cpu_operator_cost * QUESTION_OPERATORS
        } else {
            0.0
        };
        // The pages of a list lie together, and a first round reads few of its vectors: sequential cost.
        *startup_cost = question + codes * share + first_pages * pg_sys::seq_page_cost * 0.1;
        let rest =
            codes + entries * pg_sys::cpu_index_tuple_cost + f64::from(information.pages) * pg_sys::seq_page_cost;
        *total_cost = *startup_cost + rest;
        *selectivity = costs.indexSelectivity;
        *correlation = costs.indexCorrelation;
    }
}
