//! Scans: the question becomes a vector, the index walks its lists, rows come out nearest first.
//!
//! The executor believes the order. An index of few pages is compared whole; over a larger one a hit that is found late waits
//! or is raised (`index/ordered.rs`). Over vectors the executor computes each distance itself, in another order of
//! additions than the index: rows whose distances may differ by rounding alone carry `xs_recheckorderby`, so that the
//! executor puts them in the order of its own distances. `situ.search` takes hits as they are found, and sorts.

use super::insert;
use super::kind::{self, KeyKind};
use super::returned_distances::Returned;
use super::scan_state::{Order, QUERY_STRATEGY, ScanState};
use super::settings;
use super::text_index::TextIndex;
use crate::bridge::feedback::Plan;
use crate::bridge::feedback::rounds::{FeedbackError, Judge, Rounds};
use crate::index::store::PageStore;
use crate::index::{Hit, Meta, Scan, ScanParams};
use crate::pg::ereport::{fail, fail_with_hint};
use crate::pg::error::OrRaise;
use crate::pg::search::query::Query;
use crate::pg::search::rows::{self, Rights};
use crate::pg::search::second_round;
use crate::pg::search::{gates, profiles};
use crate::pg::store::RelationStore;
use crate::pg::version;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;

/// Pages up to which an index is compared whole: a scan then takes as long as reading 4 MB from memory.
const SMALL: u32 = 512;

/// Access-method callback: allocates a scan.
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn ambeginscan(
    index: pg_sys::Relation,
    keys: std::ffi::c_int,
    order_bys: std::ffi::c_int,
) -> pg_sys::IndexScanDesc {
    version::check();
    // SAFETY: the server's contract: `index` is open and locked for the scan's life. The state is leaked into the
    // current memory context, whose reset or deletion (also after an error) drops it.
    unsafe {
        let scan = pg_sys::RelationGetIndexScan(index, keys, order_bys);
        let state = ScanState {
            kind: kind::column_kind(index, 1),
            running: None,
            rounds: None,
            question: None,
            hit: None,
            returned: Returned::new(),
            search: None,
            order: Order::default(),
            counted: false,
        };
        if order_bys > 0 {
            // What the executor sorts rows by that carry xs_recheckorderby.
            let count = order_bys as usize;
            (*scan).xs_orderbyvals = pg_sys::palloc0(count * size_of::<pg_sys::Datum>()).cast();
            (*scan).xs_orderbynulls = pg_sys::palloc0(count * size_of::<bool>()).cast();
        }
        (*scan).opaque = pgrx::PgMemoryContexts::CurrentMemoryContext
            .leak_and_drop_on_delete(state)
            .cast();
        scan
    }
}

/// What is searched for, and how.
#[derive(Default)]
struct Operand {
    vector: Vec<f32>,
    /// Identifies the question for [`super::returned_distances`]; none for vectors.
    question: Option<u64>,
    /// Lists to read first; 0 if the query does not say.
    probes: u32,
    /// Recall to aim at, where the query says one.
    recall: Option<f32>,
    feedback: Option<Plan>,
}

/// The vector to search for, what identifies the operand, and the query's options.
///
/// # Safety
/// `key` is the scan's order-by key with a non-null argument.
unsafe fn read_operand(
    index: pg_sys::Relation,
    kind: KeyKind,
    meta: &Meta,
    key: &pg_sys::ScanKeyData,
    relation: Option<pg_sys::Oid>,
) -> Operand {
    // SAFETY: the argument has the type that the strategy's operator declares.
    unsafe {
        let asked = if key.sk_strategy == QUERY_STRATEGY {
            Query::from_argument(key.sk_argument)
        } else if kind == KeyKind::Text {
            Query::from_text(kind::read_text(key.sk_argument))
        } else {
            let vector = kind::read_vector(kind, key.sk_argument);
            return Operand {
                vector,
                ..Operand::default()
            };
        };
        let resolved = profiles::resolve(&asked, (*index).rd_id);
        let query = second_round::second_round(resolved, &[(*index).rd_id], relation);
        let probes = query.probes.unwrap_or(0);
        let feedback = query
            .feedback
            .as_ref()
            .and_then(|options| gates::plan(options, (*index).rd_id));
        let (vector, question) = if kind == KeyKind::Text {
            let text = TextIndex::open(index, meta);
            (text.embed_query(&query), Some(asked.identity()))
        } else {
            let vector = query.embedding.clone().unwrap_or_default();
            (query.bridged(None, vector), None)
        };
        Operand {
            vector,
            question,
            probes,
            recall: query.recall,
            feedback,
        }
    }
}

/// Access-method callback: starts the scan (again) with an operand.
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn amrescan(
    scan: pg_sys::IndexScanDesc,
    _keys: pg_sys::ScanKey,
    _key_count: std::ffi::c_int,
    order_bys: pg_sys::ScanKey,
    order_by_count: std::ffi::c_int,
) {
    // SAFETY: the server's contract for amrescan; opaque was set by ambeginscan.
    unsafe {
        let state = &mut *(*scan).opaque.cast::<ScanState>();
        state.running = None;
        state.rounds = None;
        state.hit = None;
        state.returned.clear();
        state.question = None;
        state.counted = false;
        if !order_bys.is_null() && order_by_count > 0 {
            std::ptr::copy(order_bys, (*scan).orderByData, order_by_count as usize);
        }
        (*scan).xs_recheck = false;
        (*scan).xs_recheckorderby = false;
    }
}

/// A judge of rows for feedback: which addresses lead to a row that the caller may see.
///
/// # Safety
/// `scan` lives as long as the judge.
unsafe fn judge(scan: pg_sys::IndexScanDesc, relation: Option<pg_sys::Oid>) -> Judge {
    // SAFETY: an index scan of the server has its table and snapshot.
    let table = unsafe { (*(*scan).heapRelation).rd_id };
    let mut rights = None;
    Box::new(move |tids: &[u64]| {
        let rights = rights.get_or_insert_with(|| match relation {
            Some(relation) => Rights::new(relation, table),
            None => Rights::of_scanned(table),
        });
        // SAFETY: the caller's promise.
        let seen = unsafe { rows::versions((*scan).heapRelation, tids, (*scan).xs_snapshot) };
        let versions: Vec<u64> = seen.iter().copied().flatten().collect();
        let visible = rights.visible(&versions, None);
        seen.into_iter()
            .map(|version| version.is_some_and(|version| visible.contains_key(&version)))
            .collect()
    })
}

/// Raises an error for a scan that the index cannot serve.
///
/// # Safety
/// `scan` is a live scan of this access method.
unsafe fn check_scan(scan: pg_sys::IndexScanDesc) {
    // SAFETY: the caller's promise.
    let (order_bys, snapshot) = unsafe { ((*scan).numberOfOrderBys, (*(*scan).xs_snapshot).snapshot_type) };
    if order_bys < 1 {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            "cannot scan a situ index without an order".into(),
            "Order by a distance: ORDER BY column <=> value.",
        );
    }
    let mvcc = [
        pg_sys::SnapshotType::SNAPSHOT_MVCC,
        pg_sys::SnapshotType::SNAPSHOT_HISTORIC_MVCC,
    ];
    if !mvcc.contains(&snapshot) {
        // An entry stays while its row may be seen by such a snapshot alone, and no pin holds vacuum back.
        fail(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            "a situ index cannot be scanned under a snapshot that is not MVCC".into(),
        );
    }
}

/// Starts the walk at the first row that is asked for, so that a scan that is never read costs nothing.
///
/// # Safety
/// `scan` is a live scan of this access method.
unsafe fn start(scan: pg_sys::IndexScanDesc, state: &mut ScanState) {
    // SAFETY: the caller's promise.
    unsafe {
        let index = (*scan).indexRelation;
        check_scan(scan);
        insert::flush_index(index);
        let store = RelationStore::new(index);
        let meta = Meta::open(&store).or_raise();
        if !meta.is_decided() {
            // Nothing was put in yet.
            return;
        }
        let key = *(*scan).orderByData;
        let null = key.sk_flags & pg_sys::SK_ISNULL as i32 != 0;
        let relation = state.search.flatten();
        let operand = if null {
            // Every distance to NULL is NULL: any order is right, and every row comes out.
            Operand {
                vector: vec![0.0; meta.options.dimensions as usize],
                ..Operand::default()
            }
        } else {
            read_operand(index, state.kind, &meta, &key, relation)
        };
        let probes = if operand.probes > 0 {
            operand.probes
        } else {
            settings::probes()
        };
        let small = probes == 0 && store.blocks().or_raise() <= SMALL;
        let params = ScanParams {
            probes,
            memory_bytes: usize::try_from(pg_sys::work_mem).unwrap_or(4096) * 1024,
            recall: operand.recall.unwrap_or_else(|| settings::recall_target(state.kind)),
            exact: small || settings::exact(),
        };
        let executor = state.search.is_none() && !null && key.sk_strategy != QUERY_STRATEGY;
        state.order = Order::new(state.kind, meta.options.metric, &operand.vector, executor);
        state.order.null = null;
        state.question = operand.question;
        state.running = Some(Scan::new(store, &operand.vector, params).or_raise());
        state.rounds = operand
            .feedback
            .map(|plan| Rounds::new(operand.vector, plan, judge(scan, relation)));
    }
}

/// Counts the scan where `pg_stat_user_indexes.idx_scan` and EXPLAIN look.
///
/// # Safety
/// `scan` is a live scan.
unsafe fn count_scan(scan: pg_sys::IndexScanDesc) {
    // SAFETY: what the header's pgstat_count_index_scan does.
    unsafe {
        let index = (*scan).indexRelation;
        if (*index).pgstat_info.is_null() && (*index).pgstat_enabled {
            pg_sys::pgstat_assoc_relation(index);
        }
        if let Some(statistics) = (*index).pgstat_info.as_mut() {
            statistics.counts.numscans += 1;
        }
        #[cfg(feature = "pg18")]
        if let Some(instrument) = (*scan).instrument.as_mut() {
            instrument.nsearches += 1;
        }
    }
}

/// A hit as it was found.
fn pull_only(
    mut pull: impl FnMut() -> Result<Option<Hit>, FeedbackError>,
) -> Result<Option<(Hit, bool)>, FeedbackError> {
    Ok(pull()?.map(|hit| (hit, false)))
}

/// Access-method callback: the next row, nearest first.
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn amgettuple(
    scan: pg_sys::IndexScanDesc,
    _direction: pg_sys::ScanDirection::Type,
) -> bool {
    // SAFETY: the server's contract for amgettuple; opaque was set by ambeginscan.
    unsafe {
        let state = &mut *(*scan).opaque.cast::<ScanState>();
        if state.running.is_none() {
            start(scan, state);
        }
        if !state.counted {
            count_scan(scan);
            state.counted = true;
        }
        let Some(running) = state.running.as_mut() else {
            return false;
        };
        let rounds = &mut state.rounds;
        let pull = || match rounds {
            Some(rounds) => rounds.next(running),
            None => Ok(running.next()?),
        };
        let next = match state.search {
            Some(_) => pull_only(pull),
            None => state.order.next(pull),
        };
        match next.or_raise() {
            Some((hit, near)) => {
                if !(*scan).xs_orderbyvals.is_null() {
                    // Below everything: a row beside a near tie waits in the executor for the first that is surely farther.
                    let least = if near { f64::NEG_INFINITY } else { hit.distance };
                    *(*scan).xs_orderbyvals = pgrx::IntoDatum::into_datum(least).unwrap_or(pg_sys::Datum::null());
                    *(*scan).xs_orderbynulls = state.order.null;
                }
                (*scan).xs_recheckorderby = near;
                (*scan).xs_heaptid = kind::unpack_tid(hit.tid);
                if let Some(question) = state.question {
                    state.returned.set(scan, question, &hit);
                }
                state.hit = Some(hit);
                true
            }
            None => {
                state.hit = None;
                state.returned.clear();
                false
            }
        }
    }
}

/// Access-method callback: ends the scan and frees what it holds.
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn amendscan(scan: pg_sys::IndexScanDesc) {
    // SAFETY: opaque was set by ambeginscan; the state itself goes with its memory context.
    unsafe {
        let state = &mut *(*scan).opaque.cast::<ScanState>();
        state.running = None;
        state.rounds = None;
        state.hit = None;
        state.returned.clear();
    }
}
