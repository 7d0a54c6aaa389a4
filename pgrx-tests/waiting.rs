//! Documents that wait for the encoder: bounds, flights that fail, subtransactions.

use crate::pg::am::waiting::{self, Full, GATHER_ROWS, MOST_BYTES, MOST_ROWS, Waiting};
use pgrx::pg_sys;
use pgrx::prelude::*;

fn row(tid: u64, bytes: usize) -> Waiting {
    Waiting::new(tid, None, "x".repeat(bytes), None)
}

fn index(number: usize) -> pg_sys::Oid {
    pg_sys::Oid::from(number as u32)
}

/// The addresses that wait for an index, which are in afterwards.
fn tids(index: pg_sys::Oid) -> Vec<u64> {
    let mut flight = waiting::take(index);
    let tids = (0..flight.len()).filter_map(|at| Some(flight.get(at)?.tid)).collect();
    (0..flight.len()).for_each(|at| flight.done(at));
    tids
}

#[pg_extern(sql = false)]
fn test_what_a_flight_did_not_put_in_waits_again() {
    for tid in [1, 2, 3, 2] {
        assert_eq!(waiting::add(index(1), row(tid, 10)), Full::Nothing);
    }
    waiting::add(index(2), row(9, 10));
    let mut flight = waiting::take(index(1));
    assert_eq!(flight.len(), 3, "an address that comes again is the later row's");
    flight.done(0);
    flight.placed(1);
    drop(flight);
    let flight = waiting::take(index(1));
    let placed: Vec<usize> = (0..flight.len())
        .filter_map(|at| Some(flight.get(at)?.placed))
        .collect();
    assert_eq!(placed, [1, 0]);
    drop(flight);
    assert_eq!(
        (tids(index(1)), tids(index(2)), waiting::any()),
        (vec![3, 2], vec![9], None)
    );
}

#[pg_extern(sql = false)]
fn test_subtransactions_take_their_rows_with_them() {
    for (tid, subtransaction) in [(1, 1), (2, 2), (3, 3)] {
        let row = Waiting {
            subtransaction,
            ..row(tid, 10)
        };
        waiting::add(index(1), row);
    }
    waiting::commit(3, 2);
    waiting::abort(3);
    drop(waiting::take(index(1)));
    waiting::abort(2);
    assert_eq!(tids(index(1)), [1]);
    waiting::forget_all();
}

#[pg_extern(sql = false)]
fn test_the_bound_is_one_for_all_indexes_of_a_backend() {
    for number in 1..MOST_ROWS {
        assert_eq!(waiting::add(index(number), row(1, 10)), Full::Nothing);
    }
    assert_eq!(waiting::add(index(1), row(2, 10)), Full::All);
    waiting::forget_all();
    for tid in 1..GATHER_ROWS as u64 {
        assert_eq!(waiting::add(index(1), row(tid, 10)), Full::Nothing);
    }
    assert_eq!(waiting::add(index(1), row(999, 10)), Full::Index);
    assert_eq!(waiting::add(index(2), row(1, MOST_BYTES)), Full::All);
    waiting::forget(index(2));
    waiting::abort(1);
    assert_eq!(waiting::any(), None);
}
