//! Acting on the encoder service and the LLM worker: `situ.cancel_request`, `situ.load_model`, `situ.unload_model`.

use crate::pg::catalog::model_registry::{any_by_name, check_owner, model_by_name};
use crate::pg::ereport::fail_with_hint;
use crate::pg::error::OrRaise;
use crate::pg::llm::client as llm;
use crate::pg::service::shared::{self, ACTIVE, Shared};
use crate::pg::service::{Item, ModelKind, ModelRef, Report, ServiceError, ask_each};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ffi::CStr;
use std::sync::atomic::Ordering;

/// Fails where the current role must not end what another has asked for: the rules of `pg_cancel_backend`.
fn check_may_cancel(owner: pg_sys::Oid) {
    // SAFETY: in a transaction.
    let (may, needs) = unsafe {
        let me = pg_sys::GetUserId();
        match pg_sys::superuser_arg(owner) {
            true => (
                pg_sys::superuser(),
                "Only superusers may cancel requests of superusers.",
            ),
            false => (
                pg_sys::has_privs_of_role(me, owner)
                    || pg_sys::has_privs_of_role(me, pg_sys::ROLE_PG_SIGNAL_BACKEND.into()),
                "Only the role whose request it is, its members and members of pg_signal_backend may cancel it.",
            ),
        }
    };
    if !may {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            "permission denied to cancel the request".to_owned(),
            needs,
        )
    }
}

/// `role "name" (process 1)` of the caller.
fn caller() -> String {
    // SAFETY: in a transaction; the name is a string of the server's in the current memory context.
    unsafe {
        let name = pg_sys::GetUserNameFromId(pg_sys::GetUserId(), true);
        let name = match name.is_null() {
            true => "?".into(),
            false => CStr::from_ptr(name).to_string_lossy(),
        };
        let pid = pg_sys::MyProcPid;
        format!("role \"{name}\" (process {pid})")
    }
}

/// `situ.cancel_request(id)`.
#[pg_extern(sql = false)]
fn cancel_request(id: i64) -> bool {
    let encoder = Shared::get().ok_or(ServiceError::NotPreloaded).or_raise();
    let generation = u64::try_from(id).unwrap_or(0);
    let queues = [Some(encoder), Shared::llm()].into_iter().flatten();
    let mut slots = queues.flat_map(|shared| (0..shared.slots()).map(move |number| shared.slot(number)));
    let active = slots.find(|slot| {
        slot.generation.load(Ordering::SeqCst) == generation && slot.state.load(Ordering::SeqCst) == ACTIVE
    });
    let Some(slot) = active else {
        pgrx::warning!("there is no request {id}: it has ended, or never was");
        return false;
    };
    check_may_cancel(slot.user.load(Ordering::Relaxed).into());
    slot.canceller.set(&caller());
    // Where the slot has another owner by now, its generation is another: nobody is concerned.
    slot.cancelled.store(generation, Ordering::SeqCst);
    shared::wake(&slot.latch);
    true
}

/// A report of another sort than the one that was asked for: a fault of ours.
fn unexpected(report: &Report) -> ServiceError {
    ServiceError::Protocol(format!("unexpected report {report:?}"))
}

/// The model of that name, of either kind; without a name the encoder that is the default.
fn encoder_or_llm(name: Option<&str>) -> ModelRef {
    match name {
        Some(name) => any_by_name(name).or_raise(),
        None => model_by_name(None).or_raise(),
    }
}

type Warmed = TableIterator<
    'static,
    (
        name!(device, String),
        name!(seconds, f64),
        name!(bytes, i64),
        name!(precision, &'static str),
        name!(tokens_per_second, Option<f64>),
    ),
>;

/// `situ.load_model(model)`: one row a device.
#[pg_extern(sql = false)]
fn load_model(model: Option<&str>) -> Warmed {
    let model = encoder_or_llm(model);
    check_owner(&model).or_raise();
    if model.kind == ModelKind::Llm {
        let (seconds, bytes) = llm::warm(&model).or_raise();
        return TableIterator::new(vec![("cpu".to_owned(), seconds, bytes as i64, "stored", None)]);
    }
    let mut rows = Vec::new();
    for (device, report) in ask_each(&model, Item::Warm).or_raise() {
        match report {
            Report::Warmed {
                seconds,
                bytes,
                precision,
                tokens_per_second,
            } => rows.push((device, seconds, bytes as i64, precision.name(), Some(tokens_per_second))),
            other => Err(unexpected(&other)).or_raise(),
        }
    }
    TableIterator::new(rows)
}

/// `situ.unload_model(model)`.
#[pg_extern(sql = false)]
fn unload_model(model: Option<&str>) -> i64 {
    let model = encoder_or_llm(model);
    check_owner(&model).or_raise();
    if model.kind == ModelKind::Llm {
        return llm::unload(&model).or_raise() as i64;
    }
    let mut all = 0;
    for (_, report) in ask_each(&model, Item::Unload).or_raise() {
        match report {
            Report::Unloaded { bytes, .. } => all += bytes as i64,
            other => Err(unexpected(&other)).or_raise(),
        }
    }
    all
}
