//! Statements that only read, under the snapshot that is active.
//!
//! Everything below a function that is not volatile asks its questions here. pgrx's own SPI takes a new snapshot and counts
//! commands up once the transaction has an id, and its short forms give the transaction one: a function would then see
//! what its own statement changes, and would fail on a standby.

use crate::compute::memory::{room_for, spare};
use crate::pg::ereport::fail;
use crate::pg::error::OrRaise;
use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;
use pgrx::prelude::*;
use pgrx::{PgMemoryContexts, PgSqlErrorCode};
use std::ffi::{CString, c_char};

/// Rows after which it is looked whether there is memory for more of them.
const ROWS_A_LOOK: usize = 128;

/// A row that a statement returned.
pub struct Row {
    tuple: pg_sys::HeapTuple,
    description: pg_sys::TupleDesc,
}

impl Row {
    /// The value of a column, from 1.
    pub fn get<T: FromDatum + IntoDatum>(&self, column: i32) -> Option<T> {
        // SAFETY: the row belongs to the statement's result, which lives as long as this row can be reached.
        let value = unsafe {
            let mut null = true;
            let datum = pg_sys::SPI_getbinval(self.tuple, self.description, column, &raw mut null);
            let kind = pg_sys::SPI_gettypeid(self.description, column);
            if !null && pg_sys::get_typlen(kind) == -1 {
                room_for_copy(datum);
            }
            T::try_from_datum(datum, null, kind)
        };
        value.unwrap_or_else(|error| fail(PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH, error.to_string()))
    }
}

/// Raises an error where there is no memory for a value of variable length: once for what the server unpacks, and once for a
/// copy of ours, which would end the process where it is refused.
///
/// # Safety
/// `datum` is such a value, and not NULL.
pub unsafe fn room_for_copy(datum: pg_sys::Datum) {
    // SAFETY: the caller's promise.
    let bytes = unsafe { pg_sys::toast_raw_datum_size(datum) };
    room_for(bytes.saturating_mul(2)).or_raise();
}

/// Arguments as SPI takes them.
struct Arguments {
    types: Vec<pg_sys::Oid>,
    values: Vec<pg_sys::Datum>,
    nulls: Vec<c_char>,
}

impl Arguments {
    fn of(arguments: &[DatumWithOid<'_>]) -> Arguments {
        let datum = |argument: &DatumWithOid<'_>| argument.datum().map(|datum| datum.sans_lifetime());
        Arguments {
            types: arguments.iter().map(DatumWithOid::oid).collect(),
            values: arguments
                .iter()
                .map(|argument| datum(argument).unwrap_or(pg_sys::Datum::null()))
                .collect(),
            nulls: arguments
                .iter()
                .map(|argument| if datum(argument).is_some() { b' ' } else { b'n' } as c_char)
                .collect(),
        }
    }
}

fn text_of(statement: &str) -> CString {
    CString::new(statement).unwrap_or_else(|_| {
        fail(
            PgSqlErrorCode::ERRCODE_CHARACTER_NOT_IN_REPERTOIRE,
            "a statement holds a zero byte".into(),
        )
    })
}

/// Hands the rows of SPI's last result to `take`, and frees them. What a row's values take of the server's memory is freed
/// with the row.
///
/// # Safety
/// Connected to SPI, with a result.
unsafe fn drain(take: &mut impl FnMut(&Row)) -> usize {
    // SAFETY: the caller's promise; the result is taken before `take` can make another.
    unsafe {
        let Some(table) = pg_sys::SPI_tuptable.as_mut() else {
            return 0;
        };
        let (count, description) = (table.numvals as usize, table.tupdesc);
        let mut context = PgMemoryContexts::new("situ row");
        for place in 0..count {
            if place.is_multiple_of(ROWS_A_LOOK) {
                spare().or_raise();
            }
            let tuple = *table.vals.add(place);
            context.switch_to(|_| take(&Row { tuple, description }));
            context.reset();
        }
        pg_sys::SPI_freetuptable(table);
        count
    }
}

/// Sees to it that a snapshot is active while `work` runs: a background worker may have none.
fn under_snapshot<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: in a transaction; what is pushed is popped, or goes with the abort.
    unsafe {
        let missing = !pg_sys::ActiveSnapshotSet();
        if missing {
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        }
        let result = work();
        if missing {
            pg_sys::PopActiveSnapshot();
        }
        result
    }
}

/// Runs a query and hands each row to `take`.
pub fn each(statement: &str, arguments: &[DatumWithOid<'_>], mut take: impl FnMut(&Row)) {
    let text = text_of(statement);
    let mut given = Arguments::of(arguments);
    let mut run = || {
        // SAFETY: connected; the arrays are as long as is said and outlive the call.
        unsafe {
            let status = pg_sys::SPI_execute_with_args(
                text.as_ptr(),
                given.types.len() as i32,
                given.types.as_mut_ptr(),
                given.values.as_mut_ptr(),
                given.nulls.as_ptr(),
                true,
                0,
            );
            if status != pg_sys::SPI_OK_SELECT as i32 {
                fail(
                    PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
                    format!("a query ended with SPI status {status}"),
                )
            }
            drain(&mut take);
        }
    };
    under_snapshot(|| Spi::connect(|_| run()));
}

/// Runs a query and hands its rows to `take`, `count` of them in memory at a time.
pub fn batches(statement: &str, arguments: &[DatumWithOid<'_>], count: i64, mut take: impl FnMut(&Row)) {
    let text = text_of(statement);
    let mut given = Arguments::of(arguments);
    let mut run = || {
        // SAFETY: as in `each`; the portal is closed here or by the abort of the transaction.
        unsafe {
            let portal = pg_sys::SPI_cursor_open_with_args(
                std::ptr::null(),
                text.as_ptr(),
                given.types.len() as i32,
                given.types.as_mut_ptr(),
                given.values.as_mut_ptr(),
                given.nulls.as_ptr(),
                true,
                0,
            );
            loop {
                pg_sys::SPI_cursor_fetch(portal, true, count as _);
                if drain(&mut take) == 0 {
                    break;
                }
                pgrx::check_for_interrupts!();
            }
            pg_sys::SPI_cursor_close(portal);
        }
    };
    under_snapshot(|| Spi::connect(|_| run()));
}

/// The first column of every row, NULLs left out.
pub fn column<T: FromDatum + IntoDatum>(statement: &str, arguments: &[DatumWithOid<'_>]) -> Vec<T> {
    let mut found = Vec::new();
    each(statement, arguments, |row| found.extend(row.get::<T>(1)));
    found
}

/// The first column of the first row.
pub fn one<T: FromDatum + IntoDatum>(statement: &str, arguments: &[DatumWithOid<'_>]) -> Option<T> {
    column(statement, arguments).into_iter().next()
}
