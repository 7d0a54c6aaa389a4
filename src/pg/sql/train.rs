//! The SQL entries of training: jobs are filed, started, awaited, paused and cancelled. What a job does is
//! `pg/training`'s business.

use crate::bridge::BridgeError;
use crate::pg::bridges::registry;
use crate::pg::catalog::model_registry::model_by_name;
use crate::pg::catalog::read;
use crate::pg::ereport::{fail, fail_with_hint};
use crate::pg::error::{OrRaise, raise};
use crate::pg::training::jobs::{self, Report, is_over};
use crate::pg::training::material::bad;
use crate::pg::training::{places, run, start};
use pgrx::prelude::*;
use pgrx::{JsonB, pg_sys};
use serde_json::{Map, Value, json};
use std::panic::AssertUnwindSafe;
use std::time::Duration;

/// How long a waiting statement sleeps before it looks again.
const LOOK: Duration = Duration::from_millis(50);

/// The options of the kind, as JSON, with the named arguments among them.
fn options_of(options: Option<JsonB>, named: [(&str, Option<Value>); 3]) -> Map<String, Value> {
    let mut options = match options {
        None => Map::new(),
        Some(JsonB(Value::Object(options))) => options,
        Some(JsonB(other)) => bad(
            format!("options is not a JSON object but {other}"),
            "Use '{\"epochs\": 3}'.",
        ),
    };
    for (name, value) in named {
        if let Some(value) = value {
            options.insert(name.to_owned(), value);
        }
    }
    options
}

/// Raises an error where the current user may not execute `situ.train`. The procedure commits, so it runs as its caller, and
/// what it calls is open to all and looks here.
fn check_may_train() {
    let statement = "SELECT pg_catalog.bool_or(pg_catalog.has_function_privilege(p.oid, 'EXECUTE')) \
                       FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace \
                      WHERE n.nspname OPERATOR(pg_catalog.=) 'situ' AND p.proname OPERATOR(pg_catalog.=) 'train'";
    if read::one::<bool>(statement, &[]) != Some(true) {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            "permission denied for procedure situ.train".into(),
            "GRANT EXECUTE ON PROCEDURE situ.train TO the role.",
        )
    }
}

/// Raises an error inside a transaction block.
fn check_no_block() {
    // SAFETY: a flag of this backend's transaction.
    if unsafe { pg_sys::IsTransactionBlock() } {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION,
            "situ.train cannot run inside a transaction block".into(),
            "Its worker sees what is committed: call it by itself.",
        )
    }
}

/// `situ_internal.file_training(kind, name, index, model, passages, pairs, side, scheme, options, seed, replace)`.
#[pg_extern(sql = false)]
#[allow(clippy::too_many_arguments)] // the arguments of the SQL procedure
fn file_training(
    kind: Option<&str>,
    name: Option<&str>,
    index: Option<pg_sys::Oid>,
    model: Option<&str>,
    passages: Option<pg_sys::Oid>,
    pairs: Option<pg_sys::Oid>,
    side: Option<&str>,
    scheme: Option<&str>,
    options: Option<JsonB>,
    seed: Option<i64>,
    replace: Option<bool>,
) -> i64 {
    check_no_block();
    let (Some(kind), Some(name)) = (kind, name) else {
        bad(
            "kind and name must not be null".into(),
            "CALL situ.train('adapter', 'a name', ...).",
        )
    };
    check_may_train();
    run::kind_of(kind);
    // SAFETY: the current user of a running statement.
    start::check_role(unsafe { pg_sys::GetUserId() });
    start::check_place();
    let replace = replace.unwrap_or(false);
    if !replace && registry::exists(name) {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
            format!("bridge \"{name}\" already exists"),
            "Choose another name, drop it with situ.drop_bridge, or pass replace => true.",
        )
    }
    let model = match index {
        Some(_) => model.map(str::to_owned),
        // The worker's session has not this one's situ.default_model.
        None => Some(model_by_name(model).or_raise().name),
    };
    let named = [
        ("side", side.map(Value::from)),
        ("scheme", scheme.map(Value::from)),
        ("seed", seed.map(Value::from)),
    ];
    let arguments = json!({
        "index": index.map(|index| index.to_u32()),
        "model": model,
        "passages": passages.map(|relation| relation.to_u32()),
        "pairs": pairs.map(|relation| relation.to_u32()),
        "options": options_of(options, named),
        "replace": replace,
    });
    let path = Spi::get_one::<String>("SELECT pg_catalog.current_setting('search_path')");
    let path = path.ok().flatten().unwrap_or_default();
    jobs::file(kind, name, arguments, &path)
}

/// The error for a job that is over.
fn is_already(id: i64, state: &str) -> ! {
    fail_with_hint(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("training {id} is {state}"),
        "CALL situ.train(...) files another.",
    )
}

/// `situ.resume_training(id)`.
#[pg_extern(sql = false)]
fn resume_training(id: i64) -> i32 {
    let job = jobs::own(id);
    let state = jobs::ask(id, "run");
    match &*state {
        // What wrote that is on its way out, and must not be taken for a trainer that goes on.
        "paused" | "failed" => {
            start::await_exit(id);
            jobs::requeue(id);
        }
        state if is_over(state) => is_already(id, state),
        _ => {}
    }
    start::start(id, job.owner)
}

/// `situ.pause_training(id)`.
#[pg_extern(sql = false)]
fn pause_training(id: i64) {
    jobs::own(id);
    let state = jobs::ask(id, "pause");
    if is_over(&state) {
        is_already(id, &state)
    }
}

/// `situ.cancel_training(id)`.
#[pg_extern(sql = false)]
fn cancel_training(id: i64) {
    jobs::own(id);
    let state = jobs::ask(id, "cancel");
    // A trainer that has written `paused` does not look again.
    if !is_over(&state) && (state == "paused" || places::trainer(id).is_none()) {
        jobs::finish(id, "cancelled");
    }
}

/// `situ.drop_training(id)`.
#[pg_extern(sql = false)]
fn drop_training(id: i64) {
    jobs::own(id);
    let state = jobs::ask(id, "cancel");
    if !is_over(&state) && state != "paused" && places::trainer(id).is_some() {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
            format!("training {id} runs"),
            "SELECT situ.cancel_training(id) ends it.",
        )
    }
    jobs::remove(id);
}

/// `situ_internal.training_worker(id)`: the process that trains a job of this database, 0 while it starts.
#[pg_extern(sql = false)]
fn training_worker(id: i64) -> Option<i32> {
    places::trainer(id)
}

/// `situ_internal.await_training(id)`: whether the training goes on, after a moment.
#[pg_extern(sql = false)]
fn await_training(id: i64) -> bool {
    // Looked at before the row: a worker that is gone has said before what it had to say.
    let trained = places::trainer(id).is_some();
    let job = jobs::own_latest(id);
    match (&*job.state, job.error) {
        ("done", _) => return false,
        ("rejected", _) => {
            let name = &job.name;
            pgrx::notice!(
                "bridge \"{name}\" did not beat the plain vectors on held-out data: it is stored as rejected"
            );
            return false;
        }
        ("cancelled", _) => fail(
            PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
            format!("training {id} was cancelled"),
        ),
        (
            "failed",
            Some(Report {
                code,
                message,
                detail,
                hint,
            }),
        ) => raise(code.into(), message, detail, hint),
        ("failed", None) => Err(BridgeError::Outside(format!("training {id} failed"))).or_raise(),
        _ => {}
    }
    if !trained && job.state != "paused" {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_ADMIN_SHUTDOWN,
            format!("the worker of training {id} has ended"),
            "The server's log may say why. SELECT situ.resume_training(id) goes on from the last checkpoint.",
        )
    }
    PgTryBuilder::new(AssertUnwindSafe(|| start::doze(LOOK)))
        .catch_others(|error| {
            // The job was found to be the caller's above.
            places::interrupt(id);
            error.rethrow()
        })
        .execute();
    true
}
