//! What the LLM worker does: behind the view `situ.stat_llm`.

use super::stat_service::{time, visible};
use crate::pg::catalog::owner::sees_all;
use crate::pg::service::shared::{FREE, Shared};
use crate::serve::ipc::statistics::get;
use pgrx::JsonB;
use pgrx::prelude::*;
use std::sync::atomic::{AtomicU64, Ordering};

type Statistics = TableIterator<
    'static,
    (
        name!(state, &'static str),
        name!(pid, Option<i32>),
        name!(started_at, Option<TimestampWithTimeZone>),
        name!(restarts, i64),
        name!(models, i32),
        name!(model_bytes, i64),
        name!(resident_bytes, i64),
        name!(slots, i32),
        name!(slots_used, i32),
        name!(answering, i64),
        name!(requests, i64),
        name!(cancelled, i64),
        name!(errors, i64),
        name!(prompt_tokens, i64),
        name!(tokens, i64),
        name!(tokens_per_second, i64),
        name!(loaded, JsonB),
        name!(last_error, Option<String>),
        name!(last_error_at, Option<TimestampWithTimeZone>),
    ),
>;

/// `situ_internal.llm_statistics()`: one row.
#[pg_extern(sql = false)]
fn llm_statistics() -> Statistics {
    let none = JsonB(serde_json::Value::Array(Vec::new()));
    let queue = Shared::llm();
    let Some((shared, state)) = queue.and_then(|shared| Some((shared, shared.devices().first()?))) else {
        #[rustfmt::skip]
        let nothing = (
            "not preloaded", None, None, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, none, None, None,
        );
        return TableIterator::new(vec![nothing]);
    };
    let counters = &state.account.counters;
    let count = |counter: &AtomicU64| get(counter) as i64;
    let pid = state.worker_pid.load(Ordering::SeqCst);
    let used = (0..shared.slots()).filter(|slot| shared.slot(*slot).state.load(Ordering::Relaxed) != FREE);
    let phase = match get(&counters.started_at) {
        0 if shared.wanted.load(Ordering::Relaxed) == 0 => "standby",
        0 => "starting",
        _ => "running",
    };
    let (last_error, seen) = (state.last_error.get(), sees_all());
    TableIterator::new(vec![(
        phase,
        (pid != 0).then_some(pid),
        time(&counters.started_at),
        count(&counters.restarts),
        count(&counters.models) as i32,
        count(&counters.model_bytes),
        count(&counters.resident_bytes),
        shared.slots() as i32,
        used.count() as i32,
        count(&counters.queued_queries),
        count(&counters.requests),
        count(&counters.cancelled),
        count(&counters.errors),
        count(&counters.filled),
        count(&counters.tokens),
        count(&counters.tokens_per_second),
        JsonB(visible(&state.models.get()).into()),
        Some(last_error).filter(|text| seen && !text.is_empty()),
        time(&counters.last_error_at).filter(|_| seen),
    )])
}
