//! The distances of rows that an index scan over text has just returned.
//!
//! The executor evaluates `body <=> 'question'` again for every row that the scan gives it (the sort key is part of
//! the target list). The operator sees only the two values, so without help it would cut and encode the whole document
//! once more, and without the title that the index read beside it. The scan therefore leaves each returned row's
//! distance here, under the question and the body's hash, and the operator takes it from here where it can; the
//! distance that is printed is then the one that the rows are ordered by.
//!
//! The memory belongs to one backend, holds at most [`CAPACITY`] rows and is emptied at the end of each transaction.

use std::cell::RefCell;
use std::collections::HashMap;

const CAPACITY: usize = 100_000;

thread_local! {
    // A backend has one thread that calls Postgres; this is its memory.
    static RETURNED: RefCell<HashMap<(u64, u64), f64>> = RefCell::new(HashMap::new());
}

/// Leaves the distance of a row that a scan returns. `question` identifies the operand, `body` the document.
pub fn remember(question: u64, body: u64, distance: f64) {
    RETURNED.with_borrow_mut(|returned| {
        if returned.len() >= CAPACITY {
            returned.clear();
        }
        returned.insert((question, body), distance);
    });
}

/// The distance that a scan of this transaction returned for the body, if one did.
pub fn recall(question: u64, body: u64) -> Option<f64> {
    RETURNED.with_borrow(|returned| returned.get(&(question, body)).copied())
}

/// Whether anything is remembered: if not, the operator need not hash the body.
pub fn any() -> bool {
    RETURNED.with_borrow(|returned| !returned.is_empty())
}

/// Forgets everything.
pub fn forget() {
    RETURNED.with_borrow_mut(|returned| {
        if returned.capacity() > 4096 {
            *returned = HashMap::new();
        } else {
            returned.clear();
        }
    });
}
