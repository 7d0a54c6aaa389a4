//! Gates of feedback: what `situ.tune_feedback` found for an index, in the table `situ.feedback_gates`.
//!
//! A gate is found under the qualified name of its index, or of the partitioned index it belongs to, because a dump
//! restores tables before indexes exist. Each backend keeps the gates it read until the table or the index changes.

use super::profiles::write;
use crate::bridge::feedback::{Gate, Method, Options, Plan};
use crate::pg::catalog::names::{check_owner, qualified};
use crate::pg::catalog::owner::{self, current_user};
use crate::pg::catalog::read;
use crate::pg::error::OrRaise;
use pgrx::prelude::*;
use pgrx::{pg_guard, pg_sys};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Once;

/// Gates kept by one backend; beyond, all are read again.
const CAPACITY: usize = 1024;

struct Known {
    /// The table `situ.feedback_gates`.
    relation: pg_sys::Oid,
    gates: HashMap<pg_sys::Oid, Option<Gate>>,
}

thread_local! {
    static KNOWN: RefCell<Option<Known>> = const { RefCell::new(None) };
}

#[pg_guard]
unsafe extern "C-unwind" fn on_invalidation(_argument: pg_sys::Datum, relation: pg_sys::Oid) {
    KNOWN.with_borrow_mut(|known| {
        let concerned = |known: &Known| {
            relation == pg_sys::InvalidOid || relation == known.relation || known.gates.contains_key(&relation)
        };
        if known.as_ref().is_some_and(concerned) {
            *known = None;
        }
    });
}

fn table() -> Option<pg_sys::Oid> {
    owner::table(owner::PUBLIC, c"feedback_gates")
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
    static WATCHED: Once = Once::new();
    // SAFETY: the callback lives as long as the library.
    WATCHED.call_once(|| unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(on_invalidation), pg_sys::Datum::from(0));
    });
    let known = KNOWN.with_borrow(|known| known.as_ref().and_then(|known| known.gates.get(&index).copied()));
    if let Some(gate) = known {
        return gate;
    }
    // Read outside of the borrow: reading can run the invalidation callback.
    let relation = table()?;
    let gate = stored(index);
    KNOWN.with_borrow_mut(|known| {
        let known = known.get_or_insert_with(|| Known {
            relation,
            gates: HashMap::new(),
        });
        if known.gates.len() >= CAPACITY {
            known.gates.clear();
        }
        known.gates.insert(index, gate);
    });
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
    if let Some(relation) = table() {
        // SAFETY: a relation that exists.
        unsafe { pg_sys::CacheInvalidateRelcacheByRelid(relation) };
    }
    pg_sys::Datum::from(0)
}
