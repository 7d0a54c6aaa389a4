//! Columns of relations that users name.

use pgrx::pg_sys;
use std::ffi::CString;

/// Whether a relation has a column of that name.
pub fn has_column(relation: pg_sys::Oid, column: &str) -> bool {
    CString::new(column).is_ok_and(|column| {
        // SAFETY: a catalog look-up with a string that ends.
        unsafe { pg_sys::get_attnum(relation, column.as_ptr()) != pg_sys::InvalidAttrNumber as i16 }
    })
}
