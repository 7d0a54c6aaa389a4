//! The primary key of a row as text: what `situ.search` names a row by.

use crate::pg::am::kind;
use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use std::ffi::CStr;

/// Reads the primary keys of a table's rows.
pub struct RowKey {
    table: pg_sys::Relation,
    slot: *mut pg_sys::TupleTableSlot,
    form: Form,
}

/// How a key is written.
enum Form {
    /// One column: what its type prints.
    Column { attribute: usize, output: pg_sys::Oid },
    /// Several: as a row of them, `(a,b)`.
    Row {
        attributes: Vec<usize>,
        description: pg_sys::TupleDesc,
    },
}

/// The numbers of the columns of the primary key, in its order; none without one.
///
/// # Safety
/// `table` is open.
unsafe fn key_columns(table: pg_sys::Relation) -> Vec<usize> {
    // SAFETY: the index of a primary key is there while its table is locked; `indkey` has as many columns as it says.
    unsafe {
        #[cfg(feature = "pg18")]
        let index = pg_sys::RelationGetPrimaryKeyIndex(table, true);
        #[cfg(not(feature = "pg18"))]
        let index = pg_sys::RelationGetPrimaryKeyIndex(table);
        if index == pg_sys::InvalidOid {
            return Vec::new();
        }
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let relation = pg_sys::index_open(index, lock);
        let row = &*(*relation).rd_index;
        let columns = row.indkey.values.as_slice(row.indnkeyatts.unsigned_abs() as usize);
        let columns = columns
            .iter()
            .map(|column| usize::from(column.unsigned_abs()))
            .collect();
        pg_sys::index_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
        columns
    }
}

impl RowKey {
    /// A reader of the keys of `table`; `None` where it has no primary key.
    ///
    /// # Safety
    /// `table` is open, and stays so while the reader is used.
    pub unsafe fn open(table: pg_sys::Relation) -> Option<RowKey> {
        // SAFETY: the caller's promise; the columns of a key are columns of the table.
        unsafe {
            let columns = key_columns(table);
            let of_table = (*table).rd_att;
            let form = match columns[..] {
                [] => return None,
                [attribute] => {
                    let kind = pg_sys::get_atttype((*table).rd_id, attribute as i16);
                    let (mut output, mut varlena) = (pg_sys::InvalidOid, false);
                    pg_sys::getTypeOutputInfo(kind, &raw mut output, &raw mut varlena);
                    Form::Column { attribute, output }
                }
                _ => {
                    let description = pg_sys::CreateTemplateTupleDesc(columns.len() as i32);
                    for (place, attribute) in (1..).zip(&columns) {
                        pg_sys::TupleDescCopyEntry(description, place, of_table, *attribute as i16);
                    }
                    Form::Row {
                        attributes: columns,
                        description: pg_sys::BlessTupleDesc(description),
                    }
                }
            };
            let slot = pg_sys::table_slot_create(table, std::ptr::null_mut());
            Some(RowKey { table, slot, form })
        }
    }

    /// The key of the row version at `tid`; `None` where `snapshot` does not see it.
    ///
    /// # Safety
    /// `snapshot` is registered or active.
    pub unsafe fn read(&mut self, tid: u64, snapshot: pg_sys::Snapshot) -> Option<String> {
        // SAFETY: relation and slot live as long as the reader. The table's method is called behind a guard, because an
        // error inside must not jump over Rust's frames; what prints the key is called through the server's own guards.
        unsafe {
            let mut place = kind::unpack_tid(tid);
            let fetch = (*(*self.table).rd_tableam).tuple_fetch_row_version?;
            if !pg_guard_ffi_boundary(|| fetch(self.table, &raw mut place, snapshot, self.slot)) {
                return None;
            }
            pg_sys::slot_getsomeattrs_int(self.slot, self.last_column());
            let printed = match &self.form {
                Form::Column { attribute, output } => pg_sys::OidOutputFunctionCall(*output, self.value(*attribute)),
                Form::Row {
                    attributes,
                    description,
                } => {
                    let mut values: Vec<pg_sys::Datum> = attributes.iter().map(|at| self.value(*at)).collect();
                    // The columns of a primary key are never NULL.
                    let mut nulls = vec![false; values.len()];
                    let tuple = pg_sys::heap_form_tuple(*description, values.as_mut_ptr(), nulls.as_mut_ptr());
                    let row = pg_sys::heap_copy_tuple_as_datum(tuple, *description);
                    let printed = pg_sys::OidOutputFunctionCall(pg_sys::F_RECORD_OUT.into(), row);
                    // A search can read many rows before its memory context goes.
                    pg_sys::pfree(row.cast_mut_ptr());
                    pg_sys::heap_freetuple(tuple);
                    printed
                }
            };
            let key = CStr::from_ptr(printed).to_string_lossy().into_owned();
            pg_sys::pfree(printed.cast());
            Some(key)
        }
    }

    fn last_column(&self) -> i32 {
        match &self.form {
            Form::Column { attribute, .. } => *attribute as i32,
            Form::Row { attributes, .. } => attributes.iter().max().map_or(1, |last| *last as i32),
        }
    }

    /// The value of a column of the row in the slot.
    ///
    /// # Safety
    /// The slot holds a row of which that column was read.
    unsafe fn value(&self, attribute: usize) -> pg_sys::Datum {
        // SAFETY: the caller's promise; columns are counted from 1.
        unsafe { *(*self.slot).tts_values.add(attribute - 1) }
    }

    /// Frees what it holds.
    pub fn close(self) {
        // SAFETY: made by `open`.
        unsafe { pg_sys::ExecDropSingleTupleTableSlot(self.slot) };
    }
}
