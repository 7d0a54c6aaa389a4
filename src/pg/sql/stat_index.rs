//! What an index holds, for the view `situ.stat_index`.

use crate::index::Meta;
use crate::index::store::{PAGE_SIZE, PageStore};
use crate::pg::am::build::ambuild;
use crate::pg::am::kind::{self, KeyKind};
use crate::pg::am::text::TextRecord;
use crate::pg::error::OrRaise;
use crate::pg::fail::fail_with_hint;
use crate::pg::sql::leaf::name_of;
use crate::pg::store::RelationStore;
use pgrx::pg_sys;
use pgrx::prelude::*;

type Statistics = TableIterator<
    'static,
    (
        name!(documents, i64),
        name!(chunks, i64),
        name!(tokens, Option<i64>),
        name!(dimensions, i32),
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

/// `situ.index_statistics(index)`: one row.
#[pg_extern(stable, strict, sql = false)]
fn index_statistics(index: pg_sys::Oid) -> Statistics {
    // SAFETY: opened and locked for this call.
    let row = unsafe {
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let relation = pg_sys::try_index_open(index, lock);
        if relation.is_null() {
            return TableIterator::new(Vec::new());
        }
        check_ours(relation);
        let store = RelationStore::new(relation);
        let meta = Meta::open(&store).or_raise();
        let bytes = i64::from(store.blocks().or_raise()) * PAGE_SIZE as i64;
        let text = (kind::column_kind(relation, 1) == KeyKind::Text).then(|| TextRecord::read(&meta).or_raise());
        pg_sys::index_close(relation, lock);
        let options = meta.options;
        (
            meta.rows as i64,
            meta.entries as i64,
            text.as_ref().map(|text| text.tokens as i64),
            options.dimensions as i32,
            meta.lists as i32,
            meta.probes as i32,
            bytes,
            format!("{:?}", options.metric).to_lowercase(),
            text.as_ref().map(|text| text.model.clone()),
            options.model.clone(),
            text.as_ref()
                .map(|text| format!("{:?}", text.situate.mode).to_lowercase()),
            text.as_ref().map(|text| text.situate.chunk_tokens as i32),
            text.as_ref().map(|text| text.encode_milliseconds as f64 / 1000.0),
        )
    };
    TableIterator::new(vec![row])
}
