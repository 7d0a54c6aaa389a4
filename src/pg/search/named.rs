//! What names an index: itself, or its table.
//!
//! An index's OID does not survive REINDEX CONCURRENTLY, and a stored query (a view, a function with BEGIN ATOMIC) holds
//! OIDs. A table's does, so every function that takes an index also takes the table of the only index that can be meant.

use crate::pg::am::is_ours;
use crate::pg::am::kind::{self, KeyKind};
use crate::pg::catalog::names::name_of;
use crate::pg::ereport::{fail_full, fail_with_hint};
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;
use std::ffi::CString;

/// What an index has to be over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    Text,
    Vectors,
    /// Either, text where there are both.
    Any,
}

/// The valid situ indexes of a table, or of those whose first key is that column, each with whether it is over text.
fn indexes_of(table: pg_sys::Oid, column: Option<i16>) -> Vec<(pg_sys::Oid, bool)> {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    let mut found = Vec::new();
    // SAFETY: relations are opened table first, under locks kept to the end of the transaction.
    unsafe {
        let relation = pg_sys::table_open(table, lock);
        let list = pg_sys::RelationGetIndexList(relation);
        let count = list.as_ref().map_or(0, |list| list.length.unsigned_abs() as usize);
        for place in 0..count {
            let oid = (*(*list).elements.add(place)).oid_value;
            let index = pg_sys::index_open(oid, lock);
            let key = (*(*index).rd_index).indkey.values.as_slice(1)[0];
            if is_ours(index) && (*(*index).rd_index).indisvalid && column.is_none_or(|column| column == key) {
                found.push((oid, kind::column_kind(index, 1) == KeyKind::Text));
            }
            pg_sys::index_close(index, pg_sys::NoLock as pg_sys::LOCKMODE);
        }
        pg_sys::table_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
    }
    found
}

/// The number of a table's column; an error where it has none of that name.
fn number_of(table: pg_sys::Oid, column: &str) -> i16 {
    let found = CString::new(column).ok().map(|name| {
        // SAFETY: a catalogue look-up; gives 0 for a column that does not exist.
        unsafe { pg_sys::get_attnum(table, name.as_ptr()) }
    });
    found.filter(|number| *number != 0).unwrap_or_else(|| {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN,
            format!("column \"{column}\" of table \"{}\" does not exist", name_of(table)),
            "Name the column as it is stored: identifiers are folded to lower case unless they were quoted.",
        )
    })
}

/// The index that `relation` names: a table names its only situ index over that, or the only one over `column`. What is no
/// table is given back as it is, and judged where it is opened.
pub fn index_of(relation: pg_sys::Oid, over: Over, column: Option<&str>) -> pg_sys::Oid {
    // SAFETY: a catalogue look-up; gives 0 for what does not exist.
    let kind = unsafe { pg_sys::get_rel_relkind(relation) } as u8;
    if ![
        pg_sys::RELKIND_RELATION,
        pg_sys::RELKIND_MATVIEW,
        pg_sys::RELKIND_PARTITIONED_TABLE,
    ]
    .contains(&kind)
    {
        if column.is_some() {
            fail_with_hint(
                PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
                format!(
                    "\"{}\" is not a table, and has no columns to choose among",
                    name_of(relation)
                ),
                "Leave column_name out, or name the table instead of its index.",
            )
        }
        return relation;
    }
    let all = indexes_of(relation, column.map(|column| number_of(relation, column)));
    let of_kind = |text: bool| -> Vec<pg_sys::Oid> {
        let same = all.iter().filter(|(_, over_text)| *over_text == text);
        same.map(|(oid, _)| *oid).collect()
    };
    let fitting = match over {
        Over::Text => of_kind(true),
        Over::Vectors => of_kind(false),
        Over::Any => Vec::new(),
    };
    let found = match (fitting.is_empty(), of_kind(true).len()) {
        (false, _) => fitting,
        (true, 1) => of_kind(true),
        _ => all.iter().map(|(oid, _)| *oid).collect(),
    };
    match found[..] {
        [index] => index,
        [] => fail_with_hint(
            PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            match column {
                Some(column) => format!(
                    "column \"{column}\" of table \"{}\" has no situ index",
                    name_of(relation)
                ),
                None => format!("table \"{}\" has no situ index", name_of(relation)),
            },
            "Make one: CREATE INDEX ON table USING situ (column).",
        ),
        _ => fail_full(
            PgSqlErrorCode::ERRCODE_AMBIGUOUS_ALIAS,
            format!("table \"{}\" has several situ indexes", name_of(relation)),
            found.iter().map(|index| name_of(*index)).collect::<Vec<_>>().join(", "),
            "Name one of them instead of the table; situ.search also takes column_name => 'column'.".into(),
        ),
    }
}
