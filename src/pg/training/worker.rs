//! The process that trains one job.

use super::jobs::{self, Report};
use super::run::{self, Over};
use super::start::{Order, step_back};
use super::watch::transaction;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::{CaughtError, ErrorReportWithLevel};
use pgrx::prelude::*;
use std::panic::AssertUnwindSafe;

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
    // SAFETY: once, at the beginning of a worker's process.
    unsafe {
        pg_sys::BackgroundWorkerUnblockSignals();
        pg_sys::BackgroundWorkerInitializeConnectionByOid(order.database, order.role, flags);
    }
    step_back();
    let job = order.job;
    let ended = guarded(|| run::run(job));
    let kept = guarded(|| {
        transaction(|| match &ended {
            Ok(Over::Accepted) => jobs::finish(job, "done"),
            Ok(Over::Rejected) => jobs::finish(job, "rejected"),
            Ok(Over::Cancelled) => jobs::finish(job, "cancelled"),
            Ok(Over::Nothing) => {}
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
