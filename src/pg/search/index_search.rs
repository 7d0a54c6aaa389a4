//! One leaf index searched: the scan, and the rows that the caller may see.
//!
//! The index is scanned through the server's own index scan, so that each entry is resolved to the row version that the
//! snapshot sees (HOT chains included). Privileges and policies of the table, or of the partitioned table that was
//! searched, decide which of these rows come out (`rows.rs`), and the scan goes on until k rows have passed. All is read
//! under the snapshot that is active when the search begins.

use crate::compute::memory::{reserve, spare};
use crate::index::{Meta, Metric};
use crate::pg::am::is_ours;
use crate::pg::am::kind::{self, KeyKind};
use crate::pg::am::scan_state::ScanState;
use crate::pg::am::text_index::TextIndex;
use crate::pg::catalog::model_registry::model_by_name;
use crate::pg::catalog::names::{leaves, name_of, not_an_index};
use crate::pg::ereport::{fail_full, fail_with_hint};
use crate::pg::error::OrRaise;
use crate::pg::search::query::Query;
use crate::pg::search::question::embed_question;
use crate::pg::search::row_key::RowKey;
use crate::pg::search::rows::{IndexedText, Rights};
use crate::pg::service::model_ref::ModelRef;
use crate::pg::store::RelationStore;
use crate::text::Span;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;
use pgrx::prelude::*;

/// Most rows that are looked at in one statement.
const MOST_BATCH: usize = 10_000;

/// What is read of the rows that are found.
#[derive(Clone, Debug)]
pub struct Want {
    pub text: WantText,
    /// The primary key.
    pub key: bool,
}

/// The text that is read of a row.
#[derive(Clone, Debug)]
pub enum WantText {
    /// The indexed text, of which the passage is cut; nothing over vectors.
    Passage,
    /// A column as text.
    Column(String),
}

impl Want {
    /// The passage alone.
    pub const PASSAGE: Want = Want {
        text: WantText::Passage,
        key: false,
    };
    /// What shows a user where an answer comes from.
    pub const EVIDENCE: Want = Want {
        text: WantText::Passage,
        key: true,
    };

    /// A column alone.
    pub fn column(name: &str) -> Want {
        Want {
            text: WantText::Column(name.to_owned()),
            key: false,
        }
    }
}

/// A row that was found.
pub struct Found {
    pub relation: pg_sys::Oid,
    pub tid: u64,
    /// The primary key as text, where it was wanted and the table has one.
    pub key: Option<String>,
    /// Number and bytes of the passage; `None` over vectors.
    pub place: Option<(u32, Span)>,
    /// The passage in characters of the text; `None` over vectors, and where a column was wanted.
    pub characters: Option<Span>,
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

/// Whether `snapshot` sees every row version that the index was built over. An index built after rows were updated in place
/// holds the text of their last versions, under the address that older versions share; the server's planner does not use
/// such an index in older transactions.
///
/// Writers were locked out while it was built, so whoever sees the transaction that built it sees theirs too. What this
/// transaction built itself is seen from the next command on, unless its snapshot is older than other writers.
///
/// # Safety
/// `index` is open, `snapshot` is active.
unsafe fn is_seen(index: pg_sys::Relation, snapshot: pg_sys::Snapshot) -> bool {
    // SAFETY: the caller's promise; the tuple of pg_index belongs to the relcache entry.
    unsafe {
        if !(*(*index).rd_index).indcheckxmin {
            return true;
        }
        let header = (*(*index).rd_indextuple).t_data;
        let frozen = pg_sys::HEAP_XMIN_FROZEN as u16;
        if (*header).t_infomask & frozen == frozen {
            return true;
        }
        let builder = (*header).t_choice.t_heap.t_xmin;
        match pg_sys::TransactionIdIsCurrentTransactionId(builder) {
            true => {
                pg_sys::XactIsoLevel < pg_sys::XACT_REPEATABLE_READ as i32
                    && pg_sys::HeapTupleHeaderGetCmin(header) < (*snapshot).curcid
            }
            false => !pg_sys::XidInMVCCSnapshot(builder, snapshot),
        }
    }
}

/// One leaf index and its table, open for reading.
struct OpenIndex {
    heap: pg_sys::Relation,
    index: pg_sys::Relation,
    kind: KeyKind,
    /// How the index compares; text with models that do not normalise is not under its operator class's metric.
    metric: Metric,
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
            if !is_ours(index) {
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
            let metric = Meta::open(&RelationStore::new(index)).or_raise().options.metric;
            OpenIndex {
                heap,
                index,
                kind,
                metric,
            }
        }
    }

    fn close(self) {
        // SAFETY: opened by `open`; the locks stay until the transaction ends.
        unsafe {
            pg_sys::index_close(self.index, pg_sys::NoLock as pg_sys::LOCKMODE);
            pg_sys::table_close(self.heap, pg_sys::NoLock as pg_sys::LOCKMODE);
        }
    }

    /// Fails unless the index can answer under `snapshot`.
    ///
    /// # Safety
    /// `snapshot` is active.
    unsafe fn check_seen(&self, snapshot: pg_sys::Snapshot) {
        // SAFETY: the index is open.
        let (seen, oid) = unsafe { (is_seen(self.index, snapshot), (*self.index).rd_id) };
        if !seen {
            fail_full(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("index {} cannot answer under this snapshot", name_of(oid)),
                "It was built after rows had been updated that the snapshot still sees as they were.".into(),
                "Search in a transaction that begins after the index was built.".into(),
            );
        }
    }
}

/// What the first column of the leaf index `oid` holds; an error where it is not a situ index.
pub fn kind_of(oid: pg_sys::Oid) -> KeyKind {
    // SAFETY: in a transaction with a snapshot, as every function of SQL.
    let open = unsafe { OpenIndex::open(oid) };
    let kind = open.kind;
    open.close();
    kind
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

/// The scan of a search.
struct Running {
    scan: pg_sys::IndexScanDesc,
    slot: *mut pg_sys::TupleTableSlot,
}

impl Running {
    /// Begins the scan of `query` under `snapshot`.
    ///
    /// # Safety
    /// `snapshot` is active and stays so until [`Running::end`].
    unsafe fn begin(
        open: &OpenIndex,
        query: Query,
        snapshot: pg_sys::Snapshot,
        relation: Option<pg_sys::Oid>,
    ) -> Running {
        // SAFETY: both relations are open; the key's argument has the type that the strategy declares.
        unsafe {
            #[cfg(feature = "pg18")]
            let scan = pg_sys::index_beginscan(open.heap, open.index, snapshot, std::ptr::null_mut(), 0, 1);
            #[cfg(not(feature = "pg18"))]
            let scan = pg_sys::index_beginscan(open.heap, open.index, snapshot, 0, 1);
            let slot = pg_sys::table_slot_create(open.heap, std::ptr::null_mut());
            let mut key = pg_sys::ScanKeyData {
                sk_attno: 1,
                sk_strategy: crate::pg::am::scan_state::QUERY_STRATEGY,
                sk_argument: query.into_datum().unwrap_or(pg_sys::Datum::null()),
                ..Default::default()
            };
            (*(*scan).opaque.cast::<ScanState>()).search_of(relation);
            pg_sys::index_rescan(scan, std::ptr::null_mut(), 0, &raw mut key, 1);
            Running { scan, slot }
        }
    }

    /// Up to `count` further row versions, nearest first; less at the end of the index.
    fn next(&mut self, count: usize) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        // SAFETY: the scan runs; its state is this access method's.
        unsafe {
            while candidates.len() < count
                && pg_sys::index_getnext_slot(self.scan, pg_sys::ScanDirection::ForwardScanDirection, self.slot)
            {
                let state = &*(*self.scan).opaque.cast::<ScanState>();
                if let Some(hit) = &state.hit {
                    reserve(&mut candidates, 1).or_raise();
                    candidates.push(Candidate {
                        tid: kind::pack_tid(&raw mut (*self.slot).tts_tid),
                        ordinal: hit.ordinal,
                        span: hit.span,
                        distance: hit.distance,
                    });
                }
            }
        }
        candidates
    }

    fn end(self) {
        // SAFETY: begun by `begin`.
        unsafe {
            pg_sys::ExecDropSingleTupleTableSlot(self.slot);
            pg_sys::index_endscan(self.scan);
        }
    }
}

/// The k nearest rows of one leaf index that the caller may see, nearest first. `relation` is the table whose privileges and
/// policies decide: the leaf's, or a partitioned one above it; `None` chooses as for a table that the caller's own
/// statement scans.
pub fn search_leaf(
    oid: pg_sys::Oid,
    relation: Option<pg_sys::Oid>,
    query: &Query,
    k: usize,
    want: &Want,
) -> Vec<Found> {
    // SAFETY: a scan as the executor makes it: begun, keyed, read to a slot and ended in this call, under the active
    // snapshot; after an error the transaction's abort cleans up.
    unsafe {
        let open = OpenIndex::open(oid);
        let snapshot = pg_sys::GetActiveSnapshot();
        open.check_seen(snapshot);
        let mut rows = RowReader::open(&open, relation, want);
        let mut running = Running::begin(&open, operand(query, open.kind, oid), snapshot, relation);
        let mut found: Vec<Found> = Vec::with_capacity(k.min(1024));
        let mut batch = k.min(MOST_BATCH);
        loop {
            spare().or_raise();
            let candidates = running.next(batch);
            let last = candidates.len() < batch;
            rows.take(&open, candidates, snapshot, k, &mut found);
            if last || found.len() == k {
                break;
            }
            batch = (batch * 2).min(MOST_BATCH);
        }
        running.end();
        rows.close();
        open.close();
        found
    }
}

/// Reads what is wanted of the rows that the caller may see.
struct RowReader<'a> {
    want: &'a Want,
    rights: Rights,
    text: Option<IndexedText>,
    key: Option<RowKey>,
}

impl<'a> RowReader<'a> {
    /// A reader of the rows of an index's table; `relation` as in [`search_leaf`].
    ///
    /// # Safety
    /// The relations of `open` stay open while the reader is used.
    unsafe fn open(open: &OpenIndex, relation: Option<pg_sys::Oid>, want: &'a Want) -> RowReader<'a> {
        // SAFETY: the caller's promise.
        unsafe {
            let table = (*open.heap).rd_id;
            let passages = open.kind == KeyKind::Text && matches!(want.text, WantText::Passage);
            RowReader {
                want,
                rights: relation.map_or_else(|| Rights::of_scanned(table), |relation| Rights::new(relation, table)),
                text: passages.then(|| IndexedText::open(open.heap, open.index)),
                key: want.key.then(|| RowKey::open(open.heap)).flatten(),
            }
        }
    }

    /// Adds those of the candidates that may be seen to `found`, up to `k` in all.
    ///
    /// # Safety
    /// `snapshot` is active.
    unsafe fn take(
        &mut self,
        open: &OpenIndex,
        candidates: Vec<Candidate>,
        snapshot: pg_sys::Snapshot,
        k: usize,
        found: &mut Vec<Found>,
    ) {
        let column = match &self.want.text {
            WantText::Column(column) => Some(column.as_str()),
            WantText::Passage => None,
        };
        let tids: Vec<u64> = candidates.iter().map(|candidate| candidate.tid).collect();
        let mut visible = self.rights.visible(&tids, column);
        for candidate in candidates {
            if found.len() == k {
                break;
            }
            let Some(read) = visible.remove(&candidate.tid) else {
                continue;
            };
            // SAFETY: the caller's promise.
            let (read, key) = unsafe {
                let read = match &mut self.text {
                    Some(text) => text.read(candidate.tid, snapshot),
                    None => read,
                };
                let key = self.key.as_mut().and_then(|key| key.read(candidate.tid, snapshot));
                (read, key)
            };
            reserve(found, 1).or_raise();
            found.extend(open.found(candidate, read, self.want).map(|row| Found { key, ..row }));
        }
    }

    fn close(self) {
        if let Some(text) = self.text {
            text.close();
        }
        if let Some(key) = self.key {
            key.close();
        }
    }
}

impl OpenIndex {
    /// A candidate with what was read of its row; `None` for a text that became NULL after it was indexed.
    fn found(&self, candidate: Candidate, read: Option<String>, want: &Want) -> Option<Found> {
        let text = self.kind == KeyKind::Text;
        let mut characters = None;
        let read = match want.text {
            WantText::Column(_) => read,
            WantText::Passage if text => {
                let body = read?;
                characters = candidate.span.characters(&body);
                Some(candidate.span.of(&body).unwrap_or_default().to_owned())
            }
            WantText::Passage => None,
        };
        let score = match self.metric {
            Metric::Cosine => 1.0 - candidate.distance,
            Metric::L2 | Metric::InnerProduct => -candidate.distance,
        };
        Some(Found {
            // SAFETY: the table is open.
            relation: unsafe { (*self.heap).rd_id },
            tid: candidate.tid,
            key: None,
            characters,
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
