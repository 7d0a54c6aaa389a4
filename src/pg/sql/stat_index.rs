//! What an index holds, for the view `situ.stat_index`.

use crate::index::store::{PAGE_SIZE, PageStore};
use crate::index::{self, IndexError, Meta};
use crate::pg::am::build::ambuild;
use crate::pg::am::kind::{self, KeyKind};
use crate::pg::am::settings;
use crate::pg::am::text_index::{TextRecord, relation_name};
use crate::pg::catalog::names::name_of;
use crate::pg::ereport::fail_with_hint;
use crate::pg::store::RelationStore;
use pgrx::prelude::*;
use pgrx::{PgSqlErrorCode, pg_sys};

type Statistics = TableIterator<
    'static,
    (
        name!(documents, i64),
        name!(chunks, i64),
        name!(tokens, Option<i64>),
        name!(dimensions, Option<i32>),
        name!(lists, i32),
        name!(probes, i32),
        name!(bytes, i64),
        name!(metric, String),
        name!(model, Option<String>),
        name!(fingerprint, Option<String>),
        name!(situate, Option<String>),
        name!(chunk_tokens, Option<i32>),
        name!(encode_seconds, Option<f64>),
    ),
>;

/// A row of [`Statistics`].
type Row = <Statistics as Iterator>::Item;

/// `situ_internal.index_statistics(index)`: one row; none where the index cannot be read now: it is being built by somebody else,
/// its build has failed, or it is unlogged and this is a standby.
#[pg_extern(sql = false)]
fn index_statistics(index: pg_sys::Oid) -> Statistics {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: opened and locked for this call. A view over all indexes does not wait for one that is being rebuilt.
    let row = unsafe {
        if !pg_sys::ConditionalLockRelationOid(index, lock) {
            return TableIterator::new(Vec::new());
        }
        let relation = pg_sys::try_index_open(index, pg_sys::NoLock as pg_sys::LOCKMODE);
        if relation.is_null() {
            pg_sys::UnlockRelationOid(index, lock);
            return TableIterator::new(Vec::new());
        }
        check_ours(relation);
        let row = match is_readable(relation) {
            true => read(relation),
            false => Ok(None),
        };
        let (valid, name) = ((*(*relation).rd_index).indisvalid, relation_name(relation));
        pg_sys::index_close(relation, lock);
        row.unwrap_or_else(|error| {
            // An index that is not valid need not make sense.
            if valid {
                pgrx::warning!("index \"{name}\" cannot be read: {error}");
            }
            None
        })
    };
    TableIterator::new(row)
}

/// Fails unless a relation is an index of ours: the pages of another hold other things. Anybody may call the function of the
/// view with any number.
///
/// # Safety
/// The index is open.
unsafe fn check_ours(relation: pg_sys::Relation) {
    // SAFETY: the caller's promise.
    let built_by = unsafe { (*relation).rd_indam.as_ref() }.and_then(|methods| methods.ambuild);
    let ours = built_by.map(|function| function as usize) == Some(ambuild as *const () as usize);
    // SAFETY: as above.
    let (oid, kind) = unsafe { ((*relation).rd_id, (*(*relation).rd_rel).relkind) };
    if !ours || kind as u8 != pg_sys::RELKIND_INDEX {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
            format!("\"{}\" is not a situ index that holds entries", name_of(oid)),
            "SELECT * FROM situ.stat_index lists those that do.",
        )
    }
}

/// Whether this backend can read the pages of the index.
///
/// # Safety
/// `relation` is an open index.
unsafe fn is_readable(relation: pg_sys::Relation) -> bool {
    // SAFETY: the caller's promise; the rest reads variables of this backend.
    unsafe {
        let class = &*(*relation).rd_rel;
        let unlogged = class.relpersistence as u8 == pg_sys::RELPERSISTENCE_UNLOGGED;
        let temporary = class.relpersistence as u8 == pg_sys::RELPERSISTENCE_TEMP;
        let elsewhere = temporary && !(*relation).rd_islocaltemp;
        let absent = unlogged && pg_sys::RecoveryInProgress();
        !(elsewhere || absent)
    }
}

/// # Safety
/// `relation` is an open situ index that this backend can read.
unsafe fn read(relation: pg_sys::Relation) -> Result<Option<Row>, IndexError> {
    // SAFETY: the caller's promise.
    let (store, kind) = unsafe { (RelationStore::new(relation), kind::column_kind(relation, 1)) };
    let blocks = store.blocks()?;
    if blocks == 0 {
        return Ok(None);
    }
    let meta = Meta::open(&store)?;
    let probes = meta.probes_for(settings::recall_target(kind));
    let (entries, rows) = index::count(&store)?;
    let text = match kind {
        KeyKind::Text if meta.is_decided() => Some(TextRecord::read(&meta)?),
        _ => None,
    };
    let options = meta.options;
    Ok(Some((
        rows as i64,
        entries as i64,
        text.as_ref().map(|text| text.tokens as i64),
        (options.dimensions > 0).then_some(options.dimensions as i32),
        meta.lists as i32,
        probes as i32,
        i64::from(blocks) * PAGE_SIZE as i64,
        format!("{:?}", options.metric).to_lowercase(),
        text.as_ref().map(|text| text.model.clone()),
        options.model.clone(),
        text.as_ref()
            .map(|text| format!("{:?}", text.situate.mode).to_lowercase()),
        text.as_ref().map(|text| text.situate.chunk_tokens as i32),
        text.as_ref().map(|text| text.encode_milliseconds as f64 / 1000.0),
    )))
}
