//! The rows of `situ_internal.training_jobs`. They are read and written as the owner of the extension's tables; callers
//! check whose job it is. Statements name the schema of everything, operators too: the search path is the caller's.

use crate::bridge::train::data::Progress;
use crate::pg::catalog::owner::{as_owner, write};
use crate::pg::ereport::{fail, fail_with_hint};
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::SpiError;
use pgrx::{JsonB, pg_sys};
use serde_json::Value;

/// A job as it was filed, and where it is.
#[derive(Clone, Debug)]
pub struct Job {
    pub id: i64,
    pub kind: String,
    pub name: String,
    pub owner: pg_sys::Oid,
    pub arguments: Value,
    pub search_path: String,
    /// queued, running, paused, done, rejected, failed, cancelled.
    pub state: String,
    pub checkpoint: Option<Vec<u8>>,
    pub error: Option<Report>,
}

/// An error as it is kept.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub code: i32,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

/// Whether a job of that state has nothing left to do.
pub fn is_over(state: &str) -> bool {
    matches!(state, "done" | "rejected" | "failed" | "cancelled")
}

fn spi<T>(result: Result<T, SpiError>) -> T {
    result.unwrap_or_else(|error| fail(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, error.to_string()))
}

/// Files a job as the current user's and gives its number.
pub fn file(kind: &str, name: &str, arguments: Value, search_path: &str) -> i64 {
    // SAFETY: the current user of a running statement.
    let owner = unsafe { pg_sys::GetUserId() };
    let statement = "INSERT INTO situ_internal.training_jobs (kind, name, owner, arguments, search_path) \
                     VALUES ($1, $2, $3::pg_catalog.oid::situ.role, $4, $5) RETURNING id";
    let arguments = [
        kind.into(),
        name.into(),
        owner.into(),
        JsonB(arguments).into(),
        search_path.into(),
    ];
    let id = as_owner(|| spi(Spi::get_one_with_args::<i64>(statement, &arguments)));
    id.unwrap_or_else(|| {
        fail(
            PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
            "the training was not filed".into(),
        )
    })
}

/// The job of that number; an error where there is none.
pub fn load(id: i64, with_checkpoint: bool) -> Job {
    let checkpoint = if with_checkpoint {
        "checkpoint"
    } else {
        "NULL::pg_catalog.bytea"
    };
    let statement = format!(
        "SELECT kind, name, owner::pg_catalog.oid, arguments, search_path, state, {checkpoint}, errcode, error, \
                detail, hint \
           FROM situ_internal.training_jobs WHERE id OPERATOR(pg_catalog.=) $1"
    );
    let job = as_owner(|| {
        spi(Spi::connect(|client| {
            let mut rows = client.select(&statement, Some(1), &[id.into()])?;
            let Some(row) = rows.next() else { return Ok(None) };
            let text = |place: usize| Ok::<_, SpiError>(row.get::<String>(place)?.unwrap_or_default());
            let code = row.get::<i32>(8)?;
            Ok(Some(Job {
                id,
                kind: text(1)?,
                name: text(2)?,
                owner: row.get::<pg_sys::Oid>(3)?.unwrap_or(pg_sys::InvalidOid),
                arguments: row.get::<JsonB>(4)?.map_or(Value::Null, |JsonB(value)| value),
                search_path: text(5)?,
                state: text(6)?,
                checkpoint: row.get::<Vec<u8>>(7)?,
                error: match code {
                    Some(code) => Some(Report {
                        code,
                        message: text(9)?,
                        detail: row.get::<String>(10)?,
                        hint: row.get::<String>(11)?,
                    }),
                    None => None,
                },
            }))
        }))
    });
    job.unwrap_or_else(|| gone(id))
}

/// The job, where the current user may decide over it.
pub fn own(id: i64) -> Job {
    let job = load(id, false);
    // SAFETY: a catalog look-up for the current user.
    let has = unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), job.owner) };
    if !has {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("permission denied for training {id}"),
            "Only its owner and superusers may do that.",
        )
    }
    job
}

/// [`own`], as of now instead of as of the statement's beginning.
pub fn own_latest(id: i64) -> Job {
    // SAFETY: a snapshot that is popped below; an error's abort pops it too.
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot());
        let job = own(id);
        pg_sys::PopActiveSnapshot();
        job
    }
}

/// Asks the worker for something: run, pause or cancel; gives the state that the job has now. The row stays locked
/// until the transaction ends, so the worker cannot write another meanwhile.
pub fn ask(id: i64, request: &str) -> String {
    let statement =
        "UPDATE situ_internal.training_jobs SET request = $2 WHERE id OPERATOR(pg_catalog.=) $1 RETURNING state";
    changed(statement, &[id.into(), request.into()]).unwrap_or_else(|| gone(id))
}

/// Says of a job without a trainer that it is to get one. Its row is locked ([`ask`]).
pub fn requeue(id: i64) {
    write(
        "UPDATE situ_internal.training_jobs SET state = 'queued' WHERE id OPERATOR(pg_catalog.=) $1",
        &[id.into()],
    );
}

/// What a statement that changes at most one row returns of it.
fn changed(statement: &str, arguments: &[DatumWithOid<'_>]) -> Option<String> {
    as_owner(|| {
        spi(Spi::connect_mut(|client| {
            match client.update(statement, Some(1), arguments)?.next() {
                Some(row) => row.get::<String>(1),
                None => Ok(None),
            }
        }))
    })
}

fn gone(id: i64) -> ! {
    fail_with_hint(
        PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
        format!("training {id} does not exist"),
        "SELECT id FROM situ.training lists yours.",
    )
}

/// This process has the job from now on; `false` where that is over. Waits for whoever asks something of it in a
/// transaction that is still open.
pub fn begin(id: i64) -> bool {
    let statement = "UPDATE situ_internal.training_jobs SET state = 'running', started_at = pg_catalog.clock_timestamp(), \
            updated_at = pg_catalog.clock_timestamp(), finished_at = NULL, first_step = NULL, errcode = NULL, error = NULL, \
            detail = NULL, hint = NULL \
          WHERE id OPERATOR(pg_catalog.=) $1 AND \
                state OPERATOR(pg_catalog.=) ANY ('{queued,running,paused,failed}'::pg_catalog.text[]) \
          RETURNING state";
    changed(statement, &[id.into()]).is_some()
}

/// Marks the job as paused and keeps the state to go on from, where a pause is still what is asked for; whether it is.
pub fn pause(id: i64, checkpoint: Option<&[u8]>) -> bool {
    let statement = "UPDATE situ_internal.training_jobs SET state = 'paused', checkpoint = coalesce($2, checkpoint), \
            updated_at = pg_catalog.clock_timestamp() \
          WHERE id OPERATOR(pg_catalog.=) $1 AND request OPERATOR(pg_catalog.=) 'pause' RETURNING state";
    changed(statement, &[id.into(), checkpoint.map(<[u8]>::to_vec).into()]).is_some()
}

/// Removes a job with its checkpoint.
pub fn remove(id: i64) {
    write(
        "DELETE FROM situ_internal.training_jobs WHERE id OPERATOR(pg_catalog.=) $1",
        &[id.into()],
    );
}

/// Says where the training is, and gives what is asked of it. The first word after a start says where that began.
pub fn progress(id: i64, progress: &Progress, state: &str) -> String {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let known = (progress.steps > 0).then_some(());
    let arguments = [
        id.into(),
        known.map(|()| number(progress.step)).into(),
        known.map(|()| number(progress.steps)).into(),
        known.map(|()| progress.loss).filter(|loss| loss.is_finite()).into(),
        progress.held_out.into(),
        state.into(),
    ];
    let statement = "UPDATE situ_internal.training_jobs SET step = coalesce($2, step), steps = coalesce($3, steps), \
            first_step = coalesce(first_step, $2), loss = coalesce($4, loss), held_out = coalesce($5, held_out), \
            state = $6, updated_at = pg_catalog.clock_timestamp() \
          WHERE id OPERATOR(pg_catalog.=) $1 RETURNING request";
    as_owner(|| spi(Spi::get_one_with_args::<String>(statement, &arguments))).unwrap_or_else(|| "cancel".to_owned())
}

/// What is asked of the training; a job that is gone is to be cancelled.
pub fn request(id: i64) -> String {
    let statement = "SELECT request FROM situ_internal.training_jobs WHERE id OPERATOR(pg_catalog.=) $1";
    let found = as_owner(|| {
        spi(Spi::connect(|client| {
            match client.select(statement, Some(1), &[id.into()])?.next() {
                Some(row) => row.get::<String>(1),
                None => Ok(None),
            }
        }))
    });
    found.unwrap_or_else(|| "cancel".to_owned())
}

/// Keeps a state to go on from.
pub fn keep(id: i64, checkpoint: &[u8]) {
    write(
        "UPDATE situ_internal.training_jobs SET checkpoint = $2 WHERE id OPERATOR(pg_catalog.=) $1",
        &[id.into(), checkpoint.to_vec().into()],
    );
}

/// Ends a job: done, rejected or cancelled.
pub fn finish(id: i64, state: &str) {
    write(
        "UPDATE situ_internal.training_jobs SET state = $2, finished_at = pg_catalog.clock_timestamp(), checkpoint = NULL \
          WHERE id OPERATOR(pg_catalog.=) $1",
        &[id.into(), state.into()],
    );
}

/// Ends a job with an error. Its checkpoint stays: what failed may be mended.
pub fn give_up(id: i64, report: &Report) {
    write(
        "UPDATE situ_internal.training_jobs SET state = 'failed', finished_at = pg_catalog.clock_timestamp(), errcode = $2, \
                error = $3, detail = $4, hint = $5 WHERE id OPERATOR(pg_catalog.=) $1",
        &[
            id.into(),
            report.code.into(),
            report.message.as_str().into(),
            report.detail.clone().into(),
            report.hint.clone().into(),
        ],
    );
}
