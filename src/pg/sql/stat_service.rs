//! What the encoder service does, for the views `situ.stat_service`, `situ.stat_models` and `situ.stat_requests`.

use crate::pg::catalog::model_registry::registered;
use crate::pg::catalog::owner::sees_all;
use crate::pg::service::shared::{ACTIVE, FREE, Shared};
use crate::serve::ipc::statistics::{Histogram, get};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;
use pgrx::{JsonB, pg_sys};
use std::sync::atomic::{AtomicU64, Ordering};

type Statistics = TableIterator<
    'static,
    (
        name!(worker, i32),
        name!(device, String),
        name!(state, &'static str),
        name!(pid, Option<i32>),
        name!(started_at, Option<TimestampWithTimeZone>),
        name!(restarts, i64),
        name!(models, i32),
        name!(model_bytes, i64),
        name!(resident_bytes, i64),
        name!(slots, i32),
        name!(slots_used, i32),
        name!(queued_queries, i64),
        name!(queued_bulk, i64),
        name!(requests, i64),
        name!(shared, Option<i64>),
        name!(cancelled, i64),
        name!(errors, i64),
        name!(vectors, i64),
        name!(tokens, i64),
        name!(batches, i64),
        name!(tokens_per_second, i64),
        name!(batch_fill, Option<f64>),
        name!(busy_seconds, f64),
        name!(query_wait, Option<Vec<f64>>),
        name!(query_run, Option<Vec<f64>>),
        name!(bulk_wait, Option<Vec<f64>>),
        name!(bulk_run, Option<Vec<f64>>),
        name!(last_error, Option<String>),
        name!(last_error_at, Option<TimestampWithTimeZone>),
    ),
>;

/// A moment that a counter holds; `None` for 0.
pub fn time(counter: &AtomicU64) -> Option<TimestampWithTimeZone> {
    match get(counter) {
        0 => None,
        microseconds => TimestampWithTimeZone::try_from(microseconds as i64).ok(),
    }
}

fn quantiles(histogram: &Histogram) -> Option<Vec<f64>> {
    histogram.quantiles([0.5, 0.95, 0.99]).map(Vec::from)
}

/// Of models in memory (with `path` and `fingerprint`) those that the current role may see: all, or those that are registered
/// in its database.
pub fn visible(models: &str) -> Vec<serde_json::Value> {
    let mut models: Vec<serde_json::Value> = serde_json::from_str(models).unwrap_or_default();
    if !sees_all() {
        let own = registered();
        let text = |model: &serde_json::Value, field: &str| model[field].as_str().map(str::to_owned);
        models.retain(|model| {
            let (path, fingerprint) = (text(model, "path"), text(model, "fingerprint"));
            path.zip(fingerprint).is_some_and(|model| own.contains(&model))
        });
    }
    models
}

/// What a device's worker does.
fn phase(shared: &Shared, device: usize) -> &'static str {
    let state = &shared.devices()[device];
    let counters = &state.account.counters;
    match get(&counters.started_at) {
        0 if state.is_lost() => "lost",
        0 if device >= shared.listed() && get(&counters.restarts) == 0 => "standby",
        0 => "starting",
        _ => "running",
    }
}

/// `situ_internal.service_statistics()`: one row a device.
#[pg_extern(sql = false)]
fn service_statistics() -> Statistics {
    let Some(shared) = Shared::get() else {
        #[rustfmt::skip]
        let nothing = (
            0, "cpu".to_owned(), "not preloaded", None, None, 0, 0, 0, 0, 0, 0, 0, 0, 0, None, 0, 0, 0, 0, 0, 0,
            None, 0.0, None, None, None, None, None, None,
        );
        return TableIterator::new(vec![nothing]);
    };
    let (mut rows, seen) = (Vec::new(), sees_all());
    for (number, state) in shared.devices().iter().enumerate() {
        let counters = &state.account.counters;
        let latencies = &state.account.latencies;
        let count = |counter: &AtomicU64| get(counter) as i64;
        let pid = state.worker_pid.load(Ordering::SeqCst);
        let slots = shared.slots_of(number);
        let used = shared
            .slots_of(number)
            .filter(|slot| shared.slot(*slot).state.load(Ordering::Relaxed) != FREE);
        let last_error = state.last_error.get();
        let phase = phase(shared, number);
        let budget = get(&counters.budget);
        rows.push((
            number as i32,
            state.name.get(),
            phase,
            (pid != 0).then_some(pid),
            time(&counters.started_at),
            count(&counters.restarts),
            count(&counters.models) as i32,
            count(&counters.model_bytes),
            count(&counters.resident_bytes),
            slots.len() as i32,
            used.count() as i32,
            count(&counters.queued_queries),
            count(&counters.queued_bulk),
            count(&counters.requests),
            seen.then(|| count(&counters.shared)),
            count(&counters.cancelled),
            count(&counters.errors),
            count(&counters.vectors),
            count(&counters.tokens),
            count(&counters.batches),
            count(&counters.tokens_per_second),
            (budget > 0).then(|| get(&counters.filled) as f64 / budget as f64),
            get(&counters.busy) as f64 / 1e6,
            quantiles(&latencies.wait[0]),
            quantiles(&latencies.run[0]),
            quantiles(&latencies.wait[1]),
            quantiles(&latencies.run[1]),
            Some(last_error).filter(|text| seen && !text.is_empty()),
            time(&counters.last_error_at).filter(|_| seen),
        ));
    }
    TableIterator::new(rows)
}

/// `situ_internal.service_models()`: an array of what is loaded.
#[pg_extern(sql = false)]
fn service_models() -> JsonB {
    let mut all = Vec::new();
    for (number, state) in Shared::get()
        .map(Shared::devices)
        .unwrap_or_default()
        .iter()
        .enumerate()
    {
        for mut model in visible(&state.models.get()) {
            model["worker"] = number.into();
            model["device"] = state.name.get().into();
            all.push(model);
        }
    }
    JsonB(all.into())
}

type Requests = TableIterator<
    'static,
    (
        name!(id, i64),
        name!(worker, i32),
        name!(pid, i32),
        name!(datid, pg_sys::Oid),
        name!(usesysid, pg_sys::Oid),
        name!(lane, Option<&'static str>),
        name!(model, Option<String>),
        name!(state, Option<&'static str>),
        name!(items, Option<i64>),
        name!(done, Option<i64>),
        name!(tokens, Option<i64>),
        name!(since, Option<TimestampWithTimeZone>),
    ),
>;

/// Whether the current role may see what another's requests are about.
fn may_see(owner: pg_sys::Oid) -> bool {
    // SAFETY: in a transaction.
    sees_all() || unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), owner) }
}

/// `situ_internal.service_requests()`: one row a slot that is taken.
#[pg_extern(sql = false)]
fn service_requests() -> Requests {
    let mut rows = Vec::new();
    let queues = [Shared::get(), Shared::llm()].into_iter().flatten();
    for (shared, number) in queues.flat_map(|shared| (0..shared.slots()).map(move |number| (shared, number))) {
        let slot = shared.slot(number);
        let llm = Shared::llm().is_some_and(|queue| std::ptr::eq(queue, shared));
        if slot.state.load(Ordering::SeqCst) != ACTIVE {
            continue;
        }
        let id = slot.generation.load(Ordering::SeqCst) as i64;
        let user = pg_sys::Oid::from(slot.user.load(Ordering::Relaxed));
        let seen = may_see(user);
        let (items, done) = (get(&slot.items) as i64, get(&slot.done) as i64);
        let state = match slot.progress.running.load(Ordering::Relaxed) {
            _ if items <= done => "idle",
            0 => "waiting",
            _ => "running",
        };
        let lane = match slot.lane.load(Ordering::Relaxed) {
            _ if llm => "llm",
            0 => "query",
            _ => "bulk",
        };
        let row = (
            id,
            (number % shared.devices().len()) as i32,
            slot.pid.load(Ordering::Relaxed),
            pg_sys::Oid::from(slot.database.load(Ordering::Relaxed)),
            user,
            seen.then_some(lane),
            seen.then(|| slot.model.get()),
            seen.then_some(state),
            seen.then_some(items),
            seen.then_some(done),
            seen.then_some(get(&slot.progress.tokens) as i64),
            time(&slot.since).filter(|_| seen),
        );
        // Another owner came while this was read: its row would be a mixture.
        if slot.generation.load(Ordering::SeqCst) as i64 == id {
            rows.push(row);
        }
    }
    TableIterator::new(rows)
}
