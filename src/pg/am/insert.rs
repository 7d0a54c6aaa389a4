//! Inserts. A vector goes straight to its list. A document has to be encoded first, and one text a request would leave
//! the encoder idle most of the time; so the documents of one statement are gathered and encoded together.
//!
//! Rules for gathered documents (servers from 17 on, which say when a statement's inserts are over; before, each row
//! is encoded at once), see `waiting.rs`:
//! - they are flushed when the statement ends, when enough have gathered, and before any scan of the same index in
//!   this backend, so that no command can tell that they waited; nobody else can see rows of an open transaction;
//! - those of a subtransaction that aborts are dropped with it, those of one that commits go to its parent; a flush
//!   that fails leaves what it did not put in to the next one;
//! - the end of the transaction finds none left; the commit callback flushes all the same, and abort drops them.

use super::entries::{DocumentEncoder, Encoded, Row, vector_entry};
use super::kind;
use super::text_index::{self, TextIndex};
use super::waiting::{self, Flight, Full, Waiting};
use crate::index::{self, Entry, Meta};
use crate::pg::catalog::model_registry;
use crate::pg::error::OrRaise;
use crate::pg::store::RelationStore;
use crate::pg::version;
use pgrx::pg_sys;
use std::ffi::c_void;

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
    info: *mut pg_sys::IndexInfo,
) -> bool {
    version::check();
    // SAFETY: the server's contract for aminsert.
    unsafe {
        let tid = kind::pack_tid(heap_tid);
        match Row::read(kind::read_key(index), values, isnull) {
            None => {}
            Some(Row::Vector { vector }) => {
                index::insert(&RelationStore::new(index), &[vector_entry(tid, &vector)]).or_raise();
            }
            Some(Row::Document { title, body }) => {
                // CREATE INDEX CONCURRENTLY adds rows of others, which its snapshot keeps.
                let others = !info.is_null() && (*info).ii_Concurrent;
                let writer = (!others).then(|| pg_sys::GetCurrentTransactionIdIfAny());
                match waiting::add((*index).rd_id, Waiting::new(tid, title, body, writer)) {
                    Full::All => flush_all(),
                    Full::Nothing if !cfg!(feature = "pg16") => {}
                    _ => flush_index(index),
                }
            }
        }
    }
    false
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
    let mut flight = waiting::take(unsafe { (*index).rd_id });
    if flight.is_empty() {
        return;
    }
    // SAFETY: the caller's promise: the rows are those of this index.
    let (store, text) = unsafe {
        flight.drop_dead(index);
        if flight.is_empty() {
            return;
        }
        let store = RelationStore::new(index);
        let mut meta = Meta::open(&store).or_raise();
        if !meta.is_decided() {
            model_registry::hold();
            index::decide(&store, text_index::plan(index).options).or_raise();
            meta = Meta::open(&store).or_raise();
        }
        (store, TextIndex::open(index, &meta))
    };
    let mut encoder = DocumentEncoder::open(&text.model, &text.record.situate, text.bridge.clone());
    for at in 0..flight.len() {
        let Some(row) = flight.get(at) else { continue };
        let done = encoder.push(at as u64, row.title.as_deref(), &row.body);
        insert_documents(&store, &mut flight, &done);
    }
    insert_documents(&store, &mut flight, &encoder.finish());
}

/// Puts documents of a flight into the index; their keys are their places in it.
fn insert_documents(store: &RelationStore, flight: &mut Flight, done: &[Encoded]) {
    for document in done {
        let at = document.key as usize;
        let Some(row) = flight.get(at) else { continue };
        let placed = row.placed;
        let entries: Vec<Entry> = document.entries(row.tid).collect();
        index::insert_from(store, &entries, placed, &mut || flight.placed(at)).or_raise();
        flight.done(at);
    }
}

/// Flushes whatever waits, of all indexes.
unsafe fn flush_all() {
    while let Some(oid) = waiting::any() {
        // SAFETY: inside a transaction; an index that is gone takes its documents with it.
        unsafe {
            let index = pg_sys::try_index_open(oid, pg_sys::RowExclusiveLock as pg_sys::LOCKMODE);
            if index.is_null() {
                waiting::forget(oid);
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
            waiting::forget_all();
            super::returned_distances::forget();
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
    match event {
        SUBXACT_EVENT_ABORT_SUB => waiting::abort(own),
        SUBXACT_EVENT_COMMIT_SUB => waiting::commit(own, parent),
        _ => {}
    }
}

/// Registers the transaction callbacks, once a process.
pub fn define() {
    // SAFETY: called from the library's initialisation; the callbacks live as long as the process.
    unsafe {
        pg_sys::RegisterXactCallback(Some(transaction_event), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(subtransaction_event), std::ptr::null_mut());
    }
}
