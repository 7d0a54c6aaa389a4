//! Names, parts and owners of relations.

use super::owner::current_user;
use super::read;
use crate::pg::ereport::{fail, fail_with_hint};
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;
use std::ffi::CStr;

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

/// The error where an index is expected.
pub fn not_an_index(oid: pg_sys::Oid) -> ! {
    // SAFETY: a catalogue look-up.
    if unsafe { pg_sys::get_rel_relkind(oid) } == 0 {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            format!("index with OID {} does not exist", oid.to_u32()),
            "REINDEX CONCURRENTLY gives an index another OID: name the table in views and functions, as in \
             situ.search('docs', ...).",
        )
    }
    fail_with_hint(
        PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
        format!("\"{}\" is not a situ index", name_of(oid)),
        "Name a table, or its index made with CREATE INDEX ... USING situ over a text or a vector column.",
    )
}

/// The leaf indexes below `oid`: itself, or those of all partitions.
pub fn leaves(oid: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    // SAFETY: a catalog look-up in a transaction.
    if unsafe { pg_sys::get_rel_relkind(oid) } as u8 != pg_sys::RELKIND_PARTITIONED_INDEX {
        return vec![oid];
    }
    let statement = "SELECT relid::pg_catalog.oid FROM pg_catalog.pg_partition_tree($1) WHERE isleaf";
    read::column(statement, &[oid.into()])
}

/// The table of the index `oid`, which may be partitioned.
pub fn table_of(oid: pg_sys::Oid) -> pg_sys::Oid {
    // SAFETY: a catalogue look-up; gives InvalidOid for what is no index.
    let table = unsafe { pg_sys::IndexGetRelation(oid, true) };
    if table == pg_sys::InvalidOid {
        not_an_index(oid)
    }
    table
}

/// The schema-qualified, quoted name of a relation.
pub fn qualified(relation: pg_sys::Oid) -> String {
    // SAFETY: catalog look-ups that give null for an OID that is gone; the server quotes the names.
    unsafe {
        let schema = pg_sys::get_namespace_name(pg_sys::get_rel_namespace(relation));
        let name = pg_sys::get_rel_name(relation);
        if schema.is_null() || name.is_null() {
            fail(
                PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
                format!("relation with OID {} does not exist", relation.to_u32()),
            );
        }
        let quoted = pg_sys::quote_qualified_identifier(schema, name);
        std::ffi::CStr::from_ptr(quoted).to_string_lossy().into_owned()
    }
}

/// Fails unless the current user owns the index (as the owner of its table does) or is a superuser.
pub fn check_owner(index: pg_sys::Oid) {
    // SAFETY: a catalog look-up.
    let owns = unsafe { pg_sys::object_ownercheck(pg_sys::RelationRelationId, index, current_user()) };
    if !owns {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("must be owner of index {}", name_of(index)),
            "A profile changes what everybody's queries find: the owner of the table stores it.",
        );
    }
}
