//! Inserts. A vector goes straight to its list. A document has to be encoded first, and one text a request would leave
//! the encoder idle most of the time; so the documents of one statement are gathered and encoded together.
//!
//! Rules for gathered documents (servers from 17 on, which say when a statement's inserts are over; before, each row
//! is encoded at once):
//! - they are flushed when the statement ends, when enough have gathered, and before any scan of the same index in
//!   this backend, so that no command can tell that they waited; nobody else can see rows of an open transaction;
//! - those of a subtransaction that aborts are dropped with it, those of one that commits go to its parent;
//! - the end of the transaction finds none left; the commit callback flushes all the same, and abort drops them.

use super::kind::{self, Key, KeyKind};
use super::text::TextIndex;
use crate::index::{self, Entry, Meta};
use crate::pg::error::OrRaise;
use crate::pg::service::Lane;
use crate::pg::service::{Documents, SituatedPassage};
use crate::pg::store::RelationStore;
use crate::pg::version;
use crate::text::Span;
use pgrx::pg_sys;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;

/// Documents of one index that gather before they are encoded.
const GATHER_ROWS: usize = 256;
/// Bytes of text that gather before they are encoded.
const GATHER_BYTES: usize = 4 << 20;

/// One row's keys.
pub enum Row {
    Vector { vector: Vec<f32> },
    Document { title: Option<String>, body: String },
}

impl Row {
    /// Reads a row's index columns; none if its first key is NULL.
    ///
    /// # Safety
    /// `values` and `isnull` are the index columns of a row of an index with this key.
    pub unsafe fn read(key: Key, _tid: u64, values: *mut pg_sys::Datum, isnull: *mut bool) -> Option<Row> {
        // SAFETY: the caller's promise.
        unsafe {
            if *isnull {
                return None;
            }
            if key.kind != KeyKind::Text {
                return Some(Row::Vector {
                    vector: kind::read_vector(key.kind, *values),
                });
            }
            let title = (key.title && !*isnull.add(1)).then(|| kind::read_text(*values.add(1)));
            Some(Row::Document {
                title,
                body: kind::read_text(*values),
            })
        }
    }
}

struct Waiting {
    index: pg_sys::Oid,
    subtransaction: pg_sys::SubTransactionId,
    tid: u64,
    title: Option<String>,
    body: String,
}

thread_local! {
    // A backend has one thread that calls Postgres; these are its documents.
    static WAITING: RefCell<Vec<Waiting>> = const { RefCell::new(Vec::new()) };
}

/// Access-method callback: one row.
#[pgrx::pg_guard]
#[allow(clippy::too_many_arguments)] // the server's signature
pub unsafe extern "C-unwind" fn aminsert(
    index: pg_sys::Relation,
    values: *mut pg_sys::Datum,
    isnull: *mut bool,
    heap_tid: pg_sys::ItemPointer,
    _heap: pg_sys::Relation,
    _unique: pg_sys::IndexUniqueCheck::Type,
    _unchanged: bool,
    _info: *mut pg_sys::IndexInfo,
) -> bool {
    version::check();
    // SAFETY: the server's contract for aminsert.
    unsafe {
        let tid = kind::pack_tid(heap_tid);
        match Row::read(kind::read_key(index), tid, values, isnull) {
            None => {}
            Some(Row::Vector { vector }) => {
                let entry = Entry {
                    tid,
                    ordinal: 0,
                    span: Span { start: 0, end: 0 },
                    hash: 0,
                    vector: &vector,
                };
                index::insert(&RelationStore::new(index), &[entry]).or_raise();
            }
            Some(Row::Document { title, body }) => {
                let full = gather((*index).rd_id, tid, title, body);
                if full || cfg!(feature = "pg16") {
                    flush_index(index);
                }
            }
        }
    }
    false
}

/// Adds a document to those that wait; says whether enough wait now.
fn gather(index: pg_sys::Oid, tid: u64, title: Option<String>, body: String) -> bool {
    // SAFETY: reads a variable of this backend.
    let subtransaction = unsafe { pg_sys::GetCurrentSubTransactionId() };
    WAITING.with_borrow_mut(|waiting| {
        waiting.push(Waiting {
            index,
            subtransaction,
            tid,
            title,
            body,
        });
        let mine = waiting.iter().filter(|row| row.index == index);
        let (rows, bytes) = mine.fold((0, 0), |(rows, bytes), row| (rows + 1, bytes + row.body.len()));
        rows >= GATHER_ROWS || bytes >= GATHER_BYTES
    })
}

/// Access-method callback: the statement's inserts are over.
#[cfg(not(feature = "pg16"))]
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn aminsertcleanup(index: pg_sys::Relation, _info: *mut pg_sys::IndexInfo) {
    // SAFETY: the server's contract: the index is open.
    unsafe { flush_index(index) }
}

/// Encodes and inserts the documents that wait for `index`.
///
/// # Safety
/// `index` is an open index relation of this access method.
pub unsafe fn flush_index(index: pg_sys::Relation) {
    // SAFETY: the caller's promise.
    let oid = unsafe { (*index).rd_id };
    let rows: Vec<Waiting> = WAITING.with_borrow_mut(|waiting| {
        if waiting.iter().any(|row| row.index == oid) {
            waiting.extract_if(.., |row| row.index == oid).collect()
        } else {
            Vec::new()
        }
    });
    if rows.is_empty() {
        return;
    }
    // SAFETY: the caller's promise.
    let store = unsafe { RelationStore::new(index) };
    let meta = Meta::open(&store).or_raise();
    // SAFETY: as above.
    let text = unsafe { TextIndex::open(index, &meta) };
    let mut documents = Documents::open(&text.model, Lane::Bulk, &text.record.situate).or_raise();
    let hashes: HashMap<u64, u64> = rows.iter().map(|row| (row.tid, kind::body_hash(&row.body))).collect();
    let mut done = Vec::new();
    for row in &rows {
        let mut sink = |key, passages| {
            done.push((key, passages));
            Ok(())
        };
        documents
            .push(row.tid, row.title.as_deref(), &row.body, &mut sink)
            .or_raise();
        insert_documents(&store, &text, &hashes, std::mem::take(&mut done));
    }
    documents
        .flush(&mut |key, passages| {
            done.push((key, passages));
            Ok(())
        })
        .or_raise();
    insert_documents(&store, &text, &hashes, done);
}

fn insert_documents(
    store: &RelationStore,
    text: &TextIndex,
    hashes: &HashMap<u64, u64>,
    done: Vec<(u64, Vec<SituatedPassage>)>,
) {
    for (tid, mut passages) in done {
        if let Some(bridge) = &text.bridge {
            bridge.apply(&mut passages);
        }
        let hash = hashes.get(&tid).copied().unwrap_or_default();
        let entries: Vec<Entry> = passages
            .iter()
            .map(|passage| Entry {
                tid,
                ordinal: passage.ordinal,
                span: passage.span,
                hash,
                vector: &passage.vector,
            })
            .collect();
        index::insert(store, &entries).or_raise();
    }
}

/// Flushes whatever still waits, for a server that did not say that a statement was over.
unsafe fn flush_all() {
    loop {
        let Some(oid) = WAITING.with_borrow(|waiting| waiting.first().map(|row| row.index)) else {
            return;
        };
        // SAFETY: inside a transaction; an index that is gone takes its documents with it.
        unsafe {
            let index = pg_sys::try_index_open(oid, pg_sys::RowExclusiveLock as pg_sys::LOCKMODE);
            if index.is_null() {
                WAITING.with_borrow_mut(|waiting| waiting.retain(|row| row.index != oid));
                continue;
            }
            flush_index(index);
            pg_sys::index_close(index, pg_sys::NoLock as pg_sys::LOCKMODE);
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn transaction_event(event: pg_sys::XactEvent::Type, _argument: *mut c_void) {
    use pg_sys::XactEvent::*;
    match event {
        // SAFETY: before commit the transaction still runs.
        XACT_EVENT_PRE_COMMIT | XACT_EVENT_PRE_PREPARE => unsafe { flush_all() },
        XACT_EVENT_COMMIT | XACT_EVENT_ABORT | XACT_EVENT_PREPARE => {
            WAITING.with_borrow_mut(Vec::clear);
            super::distances::forget();
        }
        _ => {}
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn subtransaction_event(
    event: pg_sys::SubXactEvent::Type,
    own: pg_sys::SubTransactionId,
    parent: pg_sys::SubTransactionId,
    _argument: *mut c_void,
) {
    use pg_sys::SubXactEvent::*;
    // Numbers of subtransactions grow: those inside the one that ends have larger ones.
    WAITING.with_borrow_mut(|waiting| match event {
        SUBXACT_EVENT_ABORT_SUB => waiting.retain(|row| row.subtransaction < own),
        SUBXACT_EVENT_COMMIT_SUB => {
            for row in waiting.iter_mut().filter(|row| row.subtransaction >= own) {
                row.subtransaction = parent;
            }
        }
        _ => {}
    });
}

/// Registers the transaction callbacks, once a process.
pub fn define() {
    // SAFETY: called from the library's initialisation; the callbacks live as long as the process.
    unsafe {
        pg_sys::RegisterXactCallback(Some(transaction_event), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(subtransaction_event), std::ptr::null_mut());
    }
}
