//! Which text indexes of this database need a model or a bridge: neither may be dropped from under them.

use crate::index::Meta;
use crate::index::store::PageStore;
use crate::pg::am::kind::{self, KeyKind};
use crate::pg::am::options;
use crate::pg::am::text_index::TextRecord;
use crate::pg::ereport::fail;
use crate::pg::store::RelationStore;
use pgrx::prelude::*;
use pgrx::{PgSqlErrorCode, pg_sys};

/// What an index may need.
#[derive(Clone, Copy, Debug)]
pub enum Needed<'a> {
    Model(&'a str),
    Bridge(&'a str),
}

/// Names of the indexes that need it.
pub fn needed_by(needed: Needed<'_>) -> Vec<String> {
    let statement = "SELECT c.oid, pg_catalog.format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_class c \
                     JOIN pg_catalog.pg_am a ON a.oid OPERATOR(pg_catalog.=) c.relam \
                     JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace \
                     WHERE a.amname OPERATOR(pg_catalog.=) 'situ' AND c.relkind OPERATOR(pg_catalog.=) ANY ('{i,I}') \
                     ORDER BY c.oid";
    // SAFETY: popped below; after an error the abort pops it. The statement's own snapshot is older than the locks that it
    // waited for, and would not show an index that was built meanwhile.
    unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot()) };
    let indexes = Spi::connect(|client| {
        let rows = client.select(statement, None, &[])?;
        rows.map(|row| Ok((row.get::<pg_sys::Oid>(1)?, row.get::<String>(2)?)))
            .collect::<Result<Vec<_>, pgrx::spi::SpiError>>()
    })
    .unwrap_or_else(|error| fail(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, error.to_string()));
    // SAFETY: pushed above.
    unsafe { pg_sys::PopActiveSnapshot() };
    indexes
        .into_iter()
        .filter_map(|(oid, name)| Some((oid?, name?)))
        // SAFETY: an OID of a situ index, opened and locked for the call.
        .filter(|(oid, _)| unsafe { needs(*oid, needed) })
        .map(|(_, name)| name)
        .collect()
}

/// # Safety
/// `index` is the OID of a situ index, or of one that is gone.
unsafe fn needs(index: pg_sys::Oid, needed: Needed<'_>) -> bool {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: opened, and closed before the return; the lock stays, so that what was found holds until the transaction
    // ends.
    unsafe {
        let relation = pg_sys::try_index_open(index, lock);
        if relation.is_null() {
            return false;
        }
        let mut answer = false;
        if kind::column_kind(relation, 1) == KeyKind::Text {
            let settings = options::settings(relation);
            let record = record_of(relation);
            answer = match needed {
                Needed::Model(name) => {
                    let own = settings.model.or(record.map(|record| record.model));
                    own.as_deref() == Some(name)
                }
                Needed::Bridge(name) => {
                    let own = record.and_then(|record| record.bridge).or(settings.bridge);
                    own.as_deref() == Some(name)
                }
            };
        }
        pg_sys::index_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
        answer
    }
}

/// What the meta page says; none where there is none that this backend can read.
///
/// # Safety
/// `relation` is an open text index.
unsafe fn record_of(relation: pg_sys::Relation) -> Option<TextRecord> {
    // SAFETY: the caller's promise.
    unsafe {
        let class = &*(*relation).rd_rel;
        let elsewhere = class.relpersistence as u8 == pg_sys::RELPERSISTENCE_TEMP && !(*relation).rd_islocaltemp;
        if class.relkind as u8 != pg_sys::RELKIND_INDEX || elsewhere {
            return None;
        }
        let store = RelationStore::new(relation);
        if store.blocks().ok()? == 0 {
            return None;
        }
        let meta = Meta::open(&store).ok().filter(Meta::is_decided)?;
        TextRecord::read(&meta).ok()
    }
}
