//! Starts the worker of a job.

use super::places::{self, Claim};
use crate::pg::ereport::fail_with_hint;
use crate::pg::error::OrRaise;
use crate::pg::service::{ServiceError, launcher, shared};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

/// How often a trainer that is on its way out is looked at, and for how long.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
const LONGEST_EXIT: Duration = Duration::from_secs(10);

/// What a worker is told when it is started: database, role and job, in the bytes that the server keeps for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    pub database: pg_sys::Oid,
    pub role: pg_sys::Oid,
    pub job: i64,
    /// Of the place that was claimed for it.
    pub token: u64,
}

impl Order {
    fn bytes(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..4].copy_from_slice(&self.database.to_u32().to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.role.to_u32().to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.job.to_ne_bytes());
        bytes[16..].copy_from_slice(&self.token.to_ne_bytes());
        bytes
    }

    fn read(bytes: [u8; 24]) -> Order {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, token @ ..] = bytes;
        Order {
            database: pg_sys::Oid::from_u32(u32::from_ne_bytes([a, b, c, d])),
            role: pg_sys::Oid::from_u32(u32::from_ne_bytes([e, f, g, h])),
            job: i64::from_ne_bytes([i, j, k, l, m, n, o, p]),
            token: u64::from_ne_bytes(token),
        }
    }

    /// This process's own.
    pub fn mine() -> Order {
        let mut bytes = [0u8; 24];
        // SAFETY: the server sets the entry of a background worker before it calls its main function.
        let extra = unsafe { (*pg_sys::MyBgworkerEntry).bgw_extra };
        bytes.iter_mut().zip(extra).for_each(|(to, from)| *to = from as u8);
        Order::read(bytes)
    }
}

/// Fails where the server starts no worker for a role: PostgreSQL 16 does for those alone that may log in.
#[cfg_attr(not(feature = "pg16"), allow(unused_variables))]
pub fn check_role(role: pg_sys::Oid) {
    #[cfg(feature = "pg16")]
    {
        let statement = "SELECT rolcanlogin FROM pg_catalog.pg_roles WHERE oid OPERATOR(pg_catalog.=) $1";
        let may = Spi::get_one_with_args::<bool>(statement, &[role.into()]);
        // A role that is gone has nothing to train for; the server says so.
        if may == Ok(Some(false)) {
            fail_with_hint(
                PgSqlErrorCode::ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
                "PostgreSQL 16 starts no training worker for a role that may not log in".into(),
                "Train as a role with LOGIN, or with PostgreSQL 17 or later.",
            )
        }
    }
}

/// Fails where no further training may run: before one is filed that could not begin.
pub fn check_place() {
    if !places::exist() {
        Err(ServiceError::NotPreloaded).or_raise()
    }
    if let Some(limit) = places::full() {
        no_place(limit, "Wait until one has ended, or raise situ.max_trainings.")
    }
}

fn no_place(limit: usize, hint: &str) -> ! {
    fail_with_hint(
        PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
        format!("no more than {limit} trainings run at a time (situ.max_trainings)"),
        hint,
    )
}

/// Starts the trainer of a job of `role` in this database, and gives its process once it runs; that of the one that
/// runs already where there is one.
pub fn start(job: i64, role: pg_sys::Oid) -> i32 {
    check_role(role);
    let token = match places::claim(job) {
        Claim::Claimed(token) => token,
        Claim::Runs(pid) => return pid,
        Claim::Full(limit) => no_place(
            limit,
            "The training stays as it is. SELECT situ.resume_training(id) once another has ended, or raise situ.max_trainings.",
        ),
        Claim::NoMemory => Err(ServiceError::NotPreloaded).or_raise(),
    };
    // SAFETY: a number of this process.
    let database = unsafe { pg_sys::MyDatabaseId };
    let order = Order {
        database,
        role,
        job,
        token,
    };
    let Some(handle) = register(order) else {
        places::release(token);
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_RESOURCES,
            "no background worker is free to train".into(),
            "Raise max_worker_processes, or wait; then SELECT situ.resume_training(id) from situ.training.",
        )
    };
    let mut pid = 0;
    let wait = AssertUnwindSafe(|| {
        // SAFETY: a handle that the server gave.
        unsafe { pg_sys::WaitForBackgroundWorkerStartup(handle, &mut pid) }
    });
    let status = PgTryBuilder::new(wait)
        .catch_others(|error| {
            // Whoever does not wait for the start does not want the training.
            places::interrupt(job);
            error.rethrow()
        })
        .execute();
    match status {
        pg_sys::BgwHandleStatus::BGWH_STARTED => pid,
        _ => {
            // It has begun and ended already, or could not be made: then the claim is left.
            places::release(token);
            0
        }
    }
}

/// Asks the server for the process; `None` where it has none free.
fn register(order: Order) -> Option<*mut pg_sys::BackgroundWorkerHandle> {
    let mut worker = launcher::worker(c"situ trainer", c"situ_trainer_main", pg_sys::BGW_NEVER_RESTART);
    worker.bgw_flags |= pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION as i32;
    // SAFETY: a number of this process.
    worker.bgw_notify_pid = unsafe { pg_sys::MyProcPid };
    let extra = worker.bgw_extra.iter_mut().zip(order.bytes());
    extra.for_each(|(to, from)| *to = from as std::ffi::c_char);
    let mut handle = std::ptr::null_mut();
    // SAFETY: the server copies the structure; the handle lives in this statement's memory.
    let registered = unsafe { pg_sys::RegisterDynamicBackgroundWorker(&mut worker, &mut handle) };
    registered.then_some(handle)
}

/// Waits until a trainer that has written its last word has left its place.
pub fn await_exit(job: i64) {
    let begin = Instant::now();
    while places::trainer(job).is_some() {
        if begin.elapsed() >= LONGEST_EXIT {
            fail_with_hint(
                PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
                format!("the last trainer of training {job} has not ended yet"),
                "Try again in a moment.",
            )
        }
        doze(LOOK_AGAIN);
    }
}

/// Sleeps on this process's latch, at most so long. Raises the server's error when the statement is cancelled.
pub fn doze(time: Duration) {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    let time = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    // SAFETY: this process's own latch.
    unsafe {
        pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, time, shared::wait_event());
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    pgrx::check_for_interrupts!();
}

/// Gives the processor to others first.
pub fn step_back() {
    // SAFETY: changes this process's own priority.
    unsafe { libc::nice(10) };
}
