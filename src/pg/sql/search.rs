//! `situ.search`: the nearest passages with their evidence.
//!
//! The index is scanned through the server's own index scan, so that each entry is resolved to the row version that the
//! snapshot sees (HOT chains included). The rows themselves are then read through SPI by their ctid, as the caller:
//! privileges on the table and row security decide what comes out, and the scan goes on until k rows have passed.

use crate::pg::am::build::ambuild;
use crate::pg::am::kind::{self, KeyKind};
use crate::pg::am::scan::ScanState;
use crate::pg::fail::{fail, fail_with_hint};
use crate::pg::sql::query::Query;
use crate::text::Span;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::collections::HashMap;
use std::ffi::CStr;

/// A passage that was found.
struct Passage {
    relation: pg_sys::Oid,
    tid: u64,
    ordinal: u32,
    span: Span,
    text: String,
    distance: f64,
}

/// An entry that the scan returned, with the address of the visible row version.
struct Candidate {
    tid: u64,
    ordinal: u32,
    span: Span,
    distance: f64,
}

/// One leaf index and its table, open for reading.
struct OpenIndex {
    heap: pg_sys::Relation,
    index: pg_sys::Relation,
}

impl OpenIndex {
    /// Opens an index and checks that it can answer.
    ///
    /// # Safety
    /// Runs in a transaction with a snapshot.
    unsafe fn open(oid: pg_sys::Oid) -> OpenIndex {
        // SAFETY: relations are opened table first, as the executor does, under locks kept to the end of the
        // transaction.
        unsafe {
            let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
            let table = pg_sys::IndexGetRelation(oid, true);
            if table == pg_sys::InvalidOid {
                not_an_index(oid);
            }
            let heap = pg_sys::table_open(table, lock);
            let index = pg_sys::index_open(oid, lock);
            let methods = &*(*index).rd_indam;
            if methods.ambuild.map(|function| function as usize) != Some(ambuild as *const () as usize)
                || kind::column_kind(index, 1) != KeyKind::Text
            {
                not_an_index(oid);
            }
            if !(*(*index).rd_index).indisvalid {
                fail_with_hint(
                    PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                    format!("index {} is not valid", name_of(oid)),
                    "An index build failed or still runs: REINDEX it or wait.",
                );
            }
            OpenIndex { heap, index }
        }
    }

    fn close(self) {
        // SAFETY: opened by `open`; the locks stay until the transaction ends.
        unsafe {
            pg_sys::index_close(self.index, pg_sys::NoLock as pg_sys::LOCKMODE);
            pg_sys::table_close(self.heap, pg_sys::NoLock as pg_sys::LOCKMODE);
        }
    }

    /// The statement that reads rows by ctid: parameter 1 is a tid[] as text.
    fn row_statement(&self) -> String {
        // SAFETY: both relations are open; the server quotes the names.
        unsafe {
            let table = (*self.heap).rd_id;
            let namespace = pg_sys::get_namespace_name((*(*self.heap).rd_rel).relnamespace);
            let relation = pg_sys::get_rel_name(table);
            let qualified = pg_sys::quote_qualified_identifier(namespace, relation);
            let expression = pgrx::direct_function_call::<String>(
                pg_sys::pg_get_indexdef_ext,
                &[(*self.index).rd_id.into_datum(), 1i32.into_datum(), false.into_datum()],
            )
            .unwrap_or_default();
            format!(
                "SELECT ctid, ({expression})::pg_catalog.text FROM ONLY {} WHERE ctid = ANY ($1::pg_catalog.tid[])",
                CStr::from_ptr(qualified).to_string_lossy()
            )
        }
    }
}

fn name_of(oid: pg_sys::Oid) -> String {
    // SAFETY: gives null for an unknown OID.
    unsafe {
        let name = pg_sys::get_rel_name(oid);
        if name.is_null() {
            oid.to_u32().to_string()
        } else {
            CStr::from_ptr(name).to_string_lossy().into_owned()
        }
    }
}

fn not_an_index(oid: pg_sys::Oid) -> ! {
    fail_with_hint(
        PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
        format!("\"{}\" is not a situ index over text", name_of(oid)),
        "Name an index made with CREATE INDEX ... USING situ over a text column.",
    )
}

/// The leaf indexes below `oid`: itself, or those of all partitions.
fn leaves(oid: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    // SAFETY: a catalog look-up in a transaction.
    if unsafe { pg_sys::get_rel_relkind(oid) } as u8 != pg_sys::RELKIND_PARTITIONED_INDEX {
        return vec![oid];
    }
    Spi::connect(|client| {
        let statement = "SELECT relid::pg_catalog.oid FROM pg_catalog.pg_partition_tree($1) WHERE isleaf";
        let table = client.select(statement, None, &[oid.into()])?;
        table
            .map(|row| row.get::<pg_sys::Oid>(1))
            .filter_map(Result::transpose)
            .collect::<Result<Vec<_>, _>>()
    })
    .unwrap_or_else(|error: pgrx::spi::SpiError| fail(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, error.to_string()))
}

/// Rows of `candidates` that the caller may see, by packed tid, with their text.
fn visible_rows(statement: &str, candidates: &[Candidate]) -> HashMap<u64, String> {
    let list: Vec<String> = candidates
        .iter()
        .map(|row| format!("\"({},{})\"", row.tid >> 16, row.tid & 0xffff))
        .collect();
    let array = format!("{{{}}}", list.join(","));
    Spi::connect(|client| {
        let mut rows = HashMap::new();
        let table = client.select(statement, None, &[array.into()])?;
        for row in table {
            let ctid = row.get::<pg_sys::ItemPointerData>(1)?;
            let text = row.get::<String>(2)?;
            if let (Some(mut ctid), Some(text)) = (ctid, text) {
                // SAFETY: a valid item pointer on the stack.
                rows.insert(unsafe { kind::pack_tid(&raw mut ctid) }, text);
            }
        }
        Ok::<_, pgrx::spi::SpiError>(rows)
    })
    .unwrap_or_else(|error| fail(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, error.to_string()))
}

/// The k nearest passages of one leaf index that the caller may see.
fn search_leaf(oid: pg_sys::Oid, query: &Query, k: usize) -> Vec<Passage> {
    // SAFETY: a scan as the executor makes it: begun, keyed, read to a slot and ended in this call, under the active
    // snapshot; after an error the transaction's abort cleans up.
    unsafe {
        let open = OpenIndex::open(oid);
        let statement = open.row_statement();
        let snapshot = pg_sys::GetActiveSnapshot();
        #[cfg(feature = "pg18")]
        let scan = pg_sys::index_beginscan(open.heap, open.index, snapshot, std::ptr::null_mut(), 0, 1);
        #[cfg(not(feature = "pg18"))]
        let scan = pg_sys::index_beginscan(open.heap, open.index, snapshot, 0, 1);
        let slot = pg_sys::table_slot_create(open.heap, std::ptr::null_mut());

        let mut key = pg_sys::ScanKeyData {
            sk_attno: 1,
            sk_strategy: 2,
            sk_argument: query.clone().into_datum().unwrap_or(pg_sys::Datum::null()),
            ..Default::default()
        };
        pg_sys::index_rescan(scan, std::ptr::null_mut(), 0, &raw mut key, 1);

        let mut found: Vec<Passage> = Vec::with_capacity(k.min(1024));
        let mut batch = k;
        let mut asked = false;
        loop {
            let mut candidates = Vec::new();
            while candidates.len() < batch
                && pg_sys::index_getnext_slot(scan, pg_sys::ScanDirection::ForwardScanDirection, slot)
            {
                let state = &*(*scan).opaque.cast::<ScanState>();
                if let Some(hit) = &state.hit {
                    candidates.push(Candidate {
                        tid: kind::pack_tid(&raw mut (*slot).tts_tid),
                        ordinal: hit.ordinal,
                        span: hit.span,
                        distance: hit.distance,
                    });
                }
            }
            let last = candidates.len() < batch;
            if !candidates.is_empty() || !asked {
                // Asked at least once, so that missing privileges are an error even over an empty table.
                asked = true;
                let mut rows = visible_rows(&statement, &candidates);
                for candidate in candidates {
                    if found.len() == k {
                        break;
                    }
                    if let Some(body) = rows.remove(&candidate.tid) {
                        let range = candidate.span.start as usize..candidate.span.end as usize;
                        found.push(Passage {
                            relation: (*open.heap).rd_id,
                            tid: candidate.tid,
                            ordinal: candidate.ordinal,
                            span: candidate.span,
                            text: body.get(range).unwrap_or_default().to_owned(),
                            distance: candidate.distance,
                        });
                    }
                }
            }
            if last || found.len() == k {
                break;
            }
            batch = (batch * 2).min(10_000);
        }
        pg_sys::ExecDropSingleTupleTableSlot(slot);
        pg_sys::index_endscan(scan);
        open.close();
        found
    }
}

type Row = (pg_sys::Oid, pg_sys::ItemPointerData, i32, i32, i32, String, f64, f64);

fn search_index(index: pg_sys::Oid, query: &Query, k: i32) -> std::vec::IntoIter<Row> {
    let Some(k) = usize::try_from(k).ok().filter(|&k| k > 0) else {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("k must be positive, not {k}"),
            "k is the number of documents that come back, 10 unless given.",
        )
    };
    let mut found: Vec<Passage> = leaves(index)
        .into_iter()
        .flat_map(|leaf| search_leaf(leaf, query, k))
        .collect();
    found.sort_by(|a, b| a.distance.total_cmp(&b.distance));
    found.truncate(k);
    let rows: Vec<Row> = found
        .into_iter()
        .map(|passage| {
            (
                passage.relation,
                kind::unpack_tid(passage.tid),
                passage.ordinal as i32,
                passage.span.start as i32,
                passage.span.end as i32,
                passage.text,
                passage.distance,
                1.0 - passage.distance,
            )
        })
        .collect();
    rows.into_iter()
}

type Passages = TableIterator<
    'static,
    (
        name!(relation, pg_sys::Oid),
        name!(ctid, pg_sys::ItemPointerData),
        name!(ordinal, i32),
        name!(start, i32),
        name!(end, i32),
        name!(passage, String),
        name!(distance, f64),
        name!(score, f64),
    ),
>;

/// `situ.search(index, text, k)`.
#[pg_extern(stable, strict, sql = false)]
fn search_text(index: pg_sys::Oid, query: &str, k: i32) -> Passages {
    TableIterator::new(search_index(index, &Query::from_text(query.to_owned()), k))
}

/// `situ.search(index, situ.query, k)`.
#[pg_extern(stable, strict, sql = false)]
fn search_query(index: pg_sys::Oid, query: Query, k: i32) -> Passages {
    TableIterator::new(search_index(index, &query, k))
}
