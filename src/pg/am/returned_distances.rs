//! The distance of the row that an index scan over text has returned last.
//!
//! The executor evaluates `body <=> 'question'` again for every row that the scan gives it, because the sort key is part of
//! the target list. The operator sees only the two values, so without help it would cut and encode the whole document once
//! more. Each scan therefore leaves the distance of the row that it returned last, and the operator takes it where its
//! body is that row's: the distance that is printed is then the one that the rows are ordered by.
//!
//! What is left belongs to one scan and one row. It is replaced by the next row and goes with the scan, so no other
//! statement sees it. A body is the row's if it is the very value in the row's page ([`super::rows`]): a guess of the same
//! words is not. Only an index over an expression, whose values lie in no page, is asked by the body's hash, and then only
//! by an expression over that index's own table (the planner says so in the question, `pg/am/planner.rs`).

use super::rows;
use crate::index::Hit;
use crate::pg::catalog::names::leaves;
use pgrx::pg_sys;
use std::cell::{Cell, RefCell};

/// What one scan has left.
struct Row {
    scan: pg_sys::IndexScanDesc,
    question: u64,
    hash: u64,
    distance: f64,
}

thread_local! {
    // A backend has one thread that calls Postgres; these are its scans in progress, with their numbers.
    static RETURNED: RefCell<Vec<(u64, Row)>> = const { RefCell::new(Vec::new()) };
    static NEXT: Cell<u64> = const { Cell::new(1) };
}

/// The place where one scan leaves its last row: emptied when it is dropped.
pub struct Returned(u64);

impl Default for Returned {
    fn default() -> Returned {
        Returned::new()
    }
}

impl Returned {
    /// A place that is empty.
    pub fn new() -> Returned {
        Returned(NEXT.replace(NEXT.get() + 1))
    }

    /// Leaves the row that `scan` returns. `question` identifies the operand.
    ///
    /// The scan lives until this place is cleared or dropped.
    pub fn set(&self, scan: pg_sys::IndexScanDesc, question: u64, hit: &Hit) {
        let row = Row {
            scan,
            question,
            hash: hit.hash,
            distance: hit.distance,
        };
        RETURNED.with_borrow_mut(
            |returned| match returned.iter_mut().find(|(number, _)| *number == self.0) {
                Some((_, before)) => *before = row,
                None => returned.push((self.0, row)),
            },
        );
    }

    /// Takes back what was left.
    pub fn clear(&self) {
        RETURNED.with_borrow_mut(|returned| returned.retain(|(number, _)| *number != self.0));
    }
}

impl Drop for Returned {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The column that an index is over; `None` for an expression.
///
/// # Safety
/// `index` is open.
pub unsafe fn key_column(index: pg_sys::Relation, position: usize) -> Option<i16> {
    // SAFETY: the caller's promise; the vector has as many numbers as the index has columns.
    unsafe {
        let description = &*(*index).rd_index;
        let columns = description.indkey.values.as_slice(description.indnatts as usize);
        columns.get(position).copied().filter(|number| *number > 0)
    }
}

impl Row {
    /// Whether `body` is the indexed value of this row. `hash` gives the body's; `index` is the one that the question is for.
    ///
    /// # Safety
    /// The scan is live, and `body` is an argument of a call in progress.
    unsafe fn is_of(&self, body: pg_sys::Datum, hash: &mut dyn FnMut() -> u64, index: Option<pg_sys::Oid>) -> bool {
        // SAFETY: the caller's promise: table and index of a live scan are open.
        unsafe {
            let scan = &*self.scan;
            match key_column(scan.indexRelation, 0) {
                // A scan of a bitmap has no table; this access method has no such scans.
                Some(_) if scan.heapRelation.is_null() => false,
                Some(number) => rows::is_of(scan.heapRelation, number, scan.xs_heaptid, body),
                None => index.is_some_and(|index| belongs((*scan.indexRelation).rd_id, index)) && hash() == self.hash,
            }
        }
    }
}

/// Whether `leaf` is `index` or a part of it.
fn belongs(leaf: pg_sys::Oid, index: pg_sys::Oid) -> bool {
    leaf == index || leaves(index).contains(&leaf)
}

/// The distance that a scan in progress has found for this very row, if one has returned it last.
///
/// # Safety
/// `body` is an argument of a call in progress.
pub unsafe fn recall(
    question: u64,
    body: pg_sys::Datum,
    mut hash: impl FnMut() -> u64,
    index: Option<pg_sys::Oid>,
) -> Option<f64> {
    RETURNED.with_borrow(|returned| {
        let asked = returned.iter().filter(|(_, row)| row.question == question);
        // SAFETY: what is here belongs to scans in progress ([`Returned`]).
        let row = asked
            .map(|(_, row)| row)
            .find(|row| unsafe { row.is_of(body, &mut hash, index) });
        row.map(|row| row.distance)
    })
}

/// Forgets everything: at the end of a transaction no scan is left.
pub fn forget() {
    RETURNED.with_borrow_mut(Vec::clear);
}
