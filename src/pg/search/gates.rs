//! Gates of feedback: what `situ.tune_feedback` found for an index, in the table `situ.feedback_gates`.
//!
//! A gate is found under the qualified name of its index, or of the partitioned index it belongs to, because a dump
//! restores tables before indexes exist. Each backend keeps the gates it read until the table or the index changes.

use crate::bridge::feedback::{Gate, Method, Options, Plan};
use crate::pg::catalog::cache::{self, Cache, ReadOf};
use crate::pg::catalog::names::{check_owner, qualified};
use crate::pg::catalog::owner::{PUBLIC, current_user, table, write};
use crate::pg::catalog::read;
use crate::pg::error::OrRaise;
use pgrx::prelude::*;
use pgrx::{pg_guard, pg_sys};

/// Gates kept by one backend.
const CAPACITY: usize = 1024;

thread_local! {
    static GATES: Cache<pg_sys::Oid, Option<Gate>> = Cache::new(CAPACITY);
}

/// What is to be done for a scan of `index`.
pub fn plan(options: &Options, index: pg_sys::Oid) -> Option<Plan> {
    let gate = match options.method {
        Method::Gated => gate(index),
        _ => None,
    };
    options.plan(gate).or_raise()
}

/// The index's gate, if it was calibrated.
fn gate(index: pg_sys::Oid) -> Option<Gate> {
    if let Some(gate) = GATES.with(|gates| gates.get(&index)) {
        return gate;
    }
    let read_of = ReadOf::now(&[table(PUBLIC, c"feedback_gates")?, index]);
    let gate = stored(index);
    GATES.with(|gates| gates.keep(index, gate, read_of));
    gate
}

fn stored(index: pg_sys::Oid) -> Option<Gate> {
    let statement = "SELECT g.gate::pg_catalog.text FROM situ.feedback_gates g \
                     JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) $1 OR c.oid OPERATOR(pg_catalog.=) ANY \
                          (SELECT relid::pg_catalog.oid FROM pg_catalog.pg_partition_ancestors($1)) \
                     JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace \
                     WHERE g.index OPERATOR(pg_catalog.=) pg_catalog.format('%I.%I', n.nspname, c.relname) \
                     ORDER BY c.oid OPERATOR(pg_catalog.=) $1 DESC LIMIT 1";
    let stored = read::one::<String>(statement, &[index.into()]);
    // A gate that cannot be read is one of a version to come: the safe default holds.
    serde_json::from_str(&stored?).ok()
}

/// Stores the gate of an index that the current user owns; an older one is replaced.
pub fn store(index: pg_sys::Oid, gate: &Gate, figures: serde_json::Value) {
    check_owner(index);
    write(
        "INSERT INTO situ.feedback_gates AS g (index, gate, figures, tuned_by) \
         VALUES ($1, $2, $3, $4::pg_catalog.oid::situ.role) \
         ON CONFLICT (index) DO UPDATE SET (gate, figures, tuned_by, tuned_at) = \
         (excluded.gate, excluded.figures, excluded.tuned_by, pg_catalog.now())",
        &[
            qualified(index).into(),
            pgrx::JsonB(serde_json::to_value(gate).unwrap_or_default()).into(),
            pgrx::JsonB(figures).into(),
            current_user().into(),
        ],
    );
}

/// `situ.drop_feedback_gate(index)`.
#[pg_extern(sql = false)]
fn drop_feedback_gate(index: pg_sys::Oid) {
    check_owner(index);
    write(
        "DELETE FROM situ.feedback_gates WHERE index OPERATOR(pg_catalog.=) $1",
        &[qualified(index).into()],
    );
}

/// Tells the server that [`situ_feedback_gates_changed`] uses the version-1 calling convention.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_finfo_situ_feedback_gates_changed() -> *const pg_sys::Pg_finfo_record {
    static RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &raw const RECORD
}

/// The statement trigger on the table: every backend reads its gates again.
///
/// # Safety
/// Called by the server.
#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn situ_feedback_gates_changed(_call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    cache::tell(table(PUBLIC, c"feedback_gates"));
    pg_sys::Datum::from(0)
}
