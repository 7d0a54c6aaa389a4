//! The process that trains one job.
//!
//! Its signals are those of a backend: SIGINT (a cancel) and SIGTERM (the server shuts down, or an administrator ends
//! the process) only note what is wanted, and the next check for interrupts acts on it. The default of background
//! workers would end the process inside the handler, wherever it happens to be.

use super::jobs::{self, Report};
use super::monitor::transaction;
use super::places::{self, Taken};
use super::run::{self, Outcome};
use super::start::{Order, step_back};
use pgrx::pg_sys;
use pgrx::pg_sys::panic::{CaughtError, ErrorReportWithLevel};
use pgrx::prelude::*;
use std::panic::AssertUnwindSafe;

mod server {
    unsafe extern "C-unwind" {
        /// The server's own handler of SIGTERM. Declared here, since a signal handler must be the function itself: the
        /// wrapper in `pg_sys` does work that belongs in no handler.
        pub fn die(signal: std::ffi::c_int);
    }
}

/// Lets SIGTERM end the process at its next check for interrupts.
fn handle_sigterm() {
    // SAFETY: at the beginning of a process, before signals are unblocked; the handler is the one of every backend.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        pg_sys::pqsignal(libc::SIGTERM, Some(server::die));
        #[cfg(feature = "pg18")]
        pg_sys::pqsignal_be(libc::SIGTERM, Some(server::die));
    }
}

/// Entry of the trainer's process.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn situ_trainer_main(_argument: pg_sys::Datum) {
    let order = Order::mine();
    #[cfg(feature = "pg16")]
    let flags = 0;
    // A role that may not log in may train: it could file the job.
    #[cfg(not(feature = "pg16"))]
    let flags = pg_sys::BGWORKER_BYPASS_ROLELOGINCHECK;
    handle_sigterm();
    // SAFETY: once, at the beginning of a worker's process.
    unsafe { pg_sys::BackgroundWorkerUnblockSignals() };
    let taken = places::take(order.token);
    if taken == Taken::Void {
        pgrx::log!(
            "situ trainer: training {} was given up before this process began",
            order.job
        );
        return;
    }
    // SAFETY: as above.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnectionByOid(order.database, order.role, flags);
    }
    step_back();
    let job = order.job;
    let ended = match taken {
        Taken::Cancelled => Ok(Outcome::Cancelled),
        _ => guarded(|| run::run(job)),
    };
    let kept = guarded(|| {
        transaction(|| match &ended {
            Ok(Outcome::Accepted) => jobs::finish(job, "done"),
            Ok(Outcome::Rejected) => jobs::finish(job, "rejected"),
            Ok(Outcome::Cancelled) => jobs::finish(job, "cancelled"),
            Ok(Outcome::Paused | Outcome::Nothing) => {}
            Err(report) if report.code == PgSqlErrorCode::ERRCODE_QUERY_CANCELED as i32 => {
                jobs::finish(job, "cancelled")
            }
            Err(report) => jobs::give_up(job, report),
        })
    });
    // The extension may be gone, and its table with it.
    if let Err(report) = kept {
        pgrx::log!(
            "situ trainer: training {job} ended and could not say so: {}",
            report.message
        );
    }
}

/// The result, or the error that was raised, with the transaction aborted.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, Report> {
    let work = AssertUnwindSafe(move || Ok(work()));
    let result = PgTryBuilder::new(work)
        .catch_others(|error| {
            Err(match &error {
                CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => described(report),
                CaughtError::RustPanic { ereport, .. } => described(ereport),
            })
        })
        .execute();
    if result.is_err() {
        // SAFETY: ends what the error left open; without a transaction it does nothing.
        unsafe { pg_sys::AbortCurrentTransaction() };
    }
    result
}

fn described(report: &ErrorReportWithLevel) -> Report {
    Report {
        code: report.sql_error_code() as i32,
        message: report.message().to_owned(),
        detail: report.detail().map(str::to_owned),
        hint: report.hint().map(str::to_owned),
    }
}
