//! What the encoder service does, for the view `situ.stat_service`.

use crate::pg::service::shared::{FREE, Shared};
use crate::pg::service::statistics::get;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;
use std::sync::atomic::{AtomicU64, Ordering};

type Statistics = TableIterator<
    'static,
    (
        name!(device, &'static str),
        name!(state, &'static str),
        name!(pid, Option<i32>),
        name!(started_at, Option<TimestampWithTimeZone>),
        name!(restarts, i64),
        name!(models, i32),
        name!(model_bytes, i64),
        name!(slots, i32),
        name!(slots_used, i32),
        name!(queued_queries, i64),
        name!(queued_bulk, i64),
        name!(requests, i64),
        name!(vectors, i64),
        name!(tokens, i64),
        name!(batches, i64),
        name!(tokens_per_second, i64),
        name!(busy_seconds, f64),
        name!(errors, i64),
        name!(last_error, Option<String>),
        name!(last_error_at, Option<TimestampWithTimeZone>),
    ),
>;

fn time(counter: &AtomicU64) -> Option<TimestampWithTimeZone> {
    match get(counter) {
        0 => None,
        microseconds => TimestampWithTimeZone::try_from(microseconds as i64).ok(),
    }
}

/// `situ.service_statistics()`: one row a device.
#[pg_extern(volatile, strict, parallel_safe, sql = false)]
fn service_statistics() -> Statistics {
    let Some(shared) = Shared::get() else {
        let nothing = (
            "cpu",
            "not preloaded",
            None,
            None,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0.0,
            0,
            None,
            None,
        );
        return TableIterator::new(vec![nothing]);
    };
    let counters = &shared.counters;
    let count = |counter: &AtomicU64| get(counter) as i64;
    let pid = shared.worker_pid.load(Ordering::SeqCst);
    let used = (0..shared.slots()).filter(|slot| shared.slot(*slot).state.load(Ordering::Relaxed) != FREE);
    let last_error = shared.last_error.get();
    let row = (
        "cpu",
        if get(&counters.started_at) != 0 {
            "running"
        } else {
            "starting"
        },
        (pid != 0).then_some(pid),
        time(&counters.started_at),
        count(&counters.restarts),
        count(&counters.models) as i32,
        count(&counters.model_bytes),
        shared.slots() as i32,
        used.count() as i32,
        count(&counters.queued_queries),
        count(&counters.queued_bulk),
        count(&counters.requests),
        count(&counters.vectors),
        count(&counters.tokens),
        count(&counters.batches),
        count(&counters.tokens_per_second),
        get(&counters.busy) as f64 / 1e6,
        count(&counters.errors),
        (!last_error.is_empty()).then_some(last_error),
        time(&counters.last_error_at),
    );
    TableIterator::new(vec![row])
}
