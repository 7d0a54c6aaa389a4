//! One leaf index searched: the scan, and the rows that the caller may see.
//!
//! The index is scanned through the server's own index scan, so that each entry is resolved to the row version that the
//! snapshot sees (HOT chains included). The rows themselves are then read through SPI by their ctid, as the caller:
//! privileges on the table and row security decide what comes out, and the scan goes on until k rows have passed.

use crate::index::{Meta, Metric};
use crate::pg::am::build::ambuild;
use crate::pg::am::kind::{self, KeyKind};
use crate::pg::am::scan::ScanState;
use crate::pg::am::text::{TextIndex, embed_question};
use crate::pg::error::OrRaise;
use crate::pg::fail::{fail, fail_with_hint};
use crate::pg::service::client::ModelRef;
use crate::pg::sql::models::model_by_name;
use crate::pg::sql::query::Query;
use crate::pg::store::RelationStore;
use crate::text::Span;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::collections::HashMap;
use std::ffi::CStr;

/// Most rows that are read in one statement.
const MOST_BATCH: usize = 10_000;

/// What is read of the rows that are found.
#[derive(Clone, Debug)]
pub enum Want {
    /// The indexed text, of which the passage is cut; nothing over vectors.
    Passage,
    /// A column as text.
    Column(String),
}

/// A row that was found.
pub struct Found {
    pub relation: pg_sys::Oid,
    pub tid: u64,
    /// Number and bytes of the passage; `None` over vectors.
    pub place: Option<(u32, Span)>,
    /// The passage, or the column that was wanted; `None` over vectors and for NULL.
    pub text: Option<String>,
    pub distance: f64,
    /// Larger is nearer: 1 - distance under cosine, -distance otherwise.
    pub score: f64,
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
    kind: KeyKind,
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
            let methods = (*index).rd_indam.as_ref();
            let built_by = methods.and_then(|methods| methods.ambuild);
            if built_by.map(|function| function as usize) != Some(ambuild as *const () as usize) {
                not_an_index(oid);
            }
            if !(*(*index).rd_index).indisvalid {
                fail_with_hint(
                    PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                    format!("index {} is not valid", name_of(oid)),
                    "An index build failed or still runs: REINDEX it or wait.",
                );
            }
            let kind = kind::column_kind(index, 1);
            OpenIndex { heap, index, kind }
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
    fn row_statement(&self, want: &Want) -> String {
        // SAFETY: both relations are open; the server quotes the names.
        unsafe {
            let table = (*self.heap).rd_id;
            let namespace = pg_sys::get_namespace_name((*(*self.heap).rd_rel).relnamespace);
            let relation = pg_sys::get_rel_name(table);
            let qualified = pg_sys::quote_qualified_identifier(namespace, relation);
            let read = match want {
                Want::Column(column) => pgrx::spi::quote_identifier(column),
                Want::Passage if self.kind == KeyKind::Text => pgrx::direct_function_call::<String>(
                    pg_sys::pg_get_indexdef_ext,
                    &[(*self.index).rd_id.into_datum(), 1i32.into_datum(), false.into_datum()],
                )
                .unwrap_or_default(),
                Want::Passage => "NULL".to_owned(),
            };
            format!(
                "SELECT ctid, ({read})::pg_catalog.text FROM ONLY {} WHERE ctid = ANY ($1::pg_catalog.tid[])",
                CStr::from_ptr(qualified).to_string_lossy()
            )
        }
    }
}

/// The name of a relation, for messages.
pub fn name_of(oid: pg_sys::Oid) -> String {
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
        format!("\"{}\" is not a situ index", name_of(oid)),
        "Name an index made with CREATE INDEX ... USING situ over a text or a vector column.",
    )
}

/// The leaf indexes below `oid`: itself, or those of all partitions.
pub fn leaves(oid: pg_sys::Oid) -> Vec<pg_sys::Oid> {
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

/// What the first column of the leaf index `oid` holds; an error where it is not a situ index.
pub fn kind_of(oid: pg_sys::Oid) -> KeyKind {
    // SAFETY: in a transaction with a snapshot, as every function of SQL.
    let open = unsafe { OpenIndex::open(oid) };
    let kind = open.kind;
    open.close();
    kind
}

/// Rows of `candidates` that the caller may see, by packed tid, with what was wanted of them.
fn visible_rows(statement: &str, candidates: &[Candidate]) -> HashMap<u64, Option<String>> {
    let list: Vec<String> = candidates
        .iter()
        .map(|row| format!("\"({},{})\"", row.tid >> 16, row.tid & 0xffff))
        .collect();
    let array = format!("{{{}}}", list.join(","));
    Spi::connect(|client| {
        let mut rows = HashMap::new();
        let table = client.select(statement, None, &[array.into()])?;
        for row in table {
            if let Some(mut ctid) = row.get::<pg_sys::ItemPointerData>(1)? {
                // SAFETY: a valid item pointer on the stack.
                rows.insert(unsafe { kind::pack_tid(&raw mut ctid) }, row.get::<String>(2)?);
            }
        }
        Ok::<_, pgrx::spi::SpiError>(rows)
    })
    .unwrap_or_else(|error| fail(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, error.to_string()))
}

/// The query as an index of that kind takes it: over vectors it has to bring its vector, or to name the model that makes
/// one of its words.
fn operand(query: &Query, kind: KeyKind, index: pg_sys::Oid) -> Query {
    if kind == KeyKind::Text || query.embedding.is_some() {
        return query.clone();
    }
    let words = query.words();
    let Some(model) = &query.model else {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
            format!("index \"{}\" is over vectors, and the question is text", name_of(index)),
            "Give a value of type vector, as in $1::vector, or name the model that encodes the text: situ.query('...', \
             model => 'name').",
        )
    };
    let model = model_by_name(Some(model)).or_raise();
    Query {
        embedding: Some(embed_question(&model, words)),
        ..query.clone()
    }
}

/// The k nearest rows of one leaf index that the caller may see, nearest first.
pub fn search_leaf(oid: pg_sys::Oid, query: &Query, k: usize, want: &Want) -> Vec<Found> {
    // SAFETY: a scan as the executor makes it: begun, keyed, read to a slot and ended in this call, under the active
    // snapshot; after an error the transaction's abort cleans up.
    unsafe {
        let open = OpenIndex::open(oid);
        let statement = open.row_statement(want);
        let query = operand(query, open.kind, oid);
        let snapshot = pg_sys::GetActiveSnapshot();
        #[cfg(feature = "pg18")]
        let scan = pg_sys::index_beginscan(open.heap, open.index, snapshot, std::ptr::null_mut(), 0, 1);
        #[cfg(not(feature = "pg18"))]
        let scan = pg_sys::index_beginscan(open.heap, open.index, snapshot, 0, 1);
        let slot = pg_sys::table_slot_create(open.heap, std::ptr::null_mut());

        let mut key = pg_sys::ScanKeyData {
            sk_attno: 1,
            sk_strategy: crate::pg::am::scan::QUERY_STRATEGY,
            sk_argument: query.into_datum().unwrap_or(pg_sys::Datum::null()),
            ..Default::default()
        };
        pg_sys::index_rescan(scan, std::ptr::null_mut(), 0, &raw mut key, 1);

        let mut found: Vec<Found> = Vec::with_capacity(k.min(1024));
        let mut batch = k.min(MOST_BATCH);
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
                    if let Some(read) = rows.remove(&candidate.tid) {
                        found.extend(open.found(candidate, read, want));
                    }
                }
            }
            if last || found.len() == k {
                break;
            }
            batch = (batch * 2).min(MOST_BATCH);
        }
        pg_sys::ExecDropSingleTupleTableSlot(slot);
        pg_sys::index_endscan(scan);
        open.close();
        found
    }
}

impl OpenIndex {
    /// A candidate with what was read of its row; `None` for a text that became NULL after it was indexed.
    fn found(&self, candidate: Candidate, read: Option<String>, want: &Want) -> Option<Found> {
        let text = self.kind == KeyKind::Text;
        let read = match want {
            Want::Column(_) => read,
            Want::Passage if text => Some(candidate.span.of(&read?).unwrap_or_default().to_owned()),
            Want::Passage => None,
        };
        let score = match self.kind.metric() {
            Metric::Cosine => 1.0 - candidate.distance,
            Metric::L2 | Metric::InnerProduct => -candidate.distance,
        };
        Some(Found {
            // SAFETY: the table is open.
            relation: unsafe { (*self.heap).rd_id },
            tid: candidate.tid,
            place: text.then_some((candidate.ordinal, candidate.span)),
            text: read,
            distance: candidate.distance,
            score,
        })
    }
}

/// The model that encodes the questions of an index; `None` where its partitions differ, or where an index over vectors
/// is asked and the query names no model.
pub fn model_of(index: pg_sys::Oid, query: &Query) -> Option<ModelRef> {
    let mut models = leaves(index).into_iter().map(|leaf| {
        // SAFETY: opened and locked for this call.
        unsafe {
            let open = OpenIndex::open(leaf);
            let model = match open.kind {
                KeyKind::Text => {
                    let meta = Meta::open(&RelationStore::new(open.index)).or_raise();
                    Some(TextIndex::open(open.index, &meta).model)
                }
                _ => model_by_name(query.model.as_deref()).ok(),
            };
            open.close();
            model
        }
    });
    let first = models.next()??;
    models
        .all(|model| model.is_some_and(|model| model.fingerprint == first.fingerprint))
        .then_some(first)
}
