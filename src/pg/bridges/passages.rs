//! Bridges that change passages when they are encoded: those of kind situate, and adapters of the passage's side.
//!
//! The registry's row is read under the statement's snapshot, whoever asks: an index's own rows must not depend on the
//! privileges of whoever inserts. What was read is kept by the backend under the hash of the weights.

use super::registry::kind_of;
use crate::bridge::adapter::{Adapter, Side};
use crate::bridge::situate::bridge::Bridge as SituateBridge;
use crate::bridge::train::acceptance::Verdict;
use crate::bridge::{Bridge, BridgeError};
use crate::pg::catalog::read::room_for_copy;
use crate::pg::ereport::fail_full;
use crate::pg::error::OrRaise;
use crate::pg::service::SituatedPassage;
use crate::pg::service::model_ref::ModelRef;
use pgrx::{FromDatum, PgSqlErrorCode, pg_sys};
use std::cell::RefCell;
use std::rc::Rc;

/// Bridges that a backend keeps.
const KEPT: usize = 4;

/// A bridge for passages.
pub struct PassageBridge {
    /// Hash of its weights.
    pub hash: String,
    change: Change,
}

/// What it does to vectors.
enum Change {
    Situate(SituateBridge),
    Adapter(Adapter),
}

thread_local! {
    static RECENT: RefCell<Vec<Rc<PassageBridge>>> = const { RefCell::new(Vec::new()) };
}

/// A row of the registry.
struct Row {
    texts: [String; 4],
    /// In the current memory context.
    weights: pg_sys::Datum,
}

/// The columns of a bridge: kind, state, fingerprint and hash, and its weights.
fn find(name: &str) -> Option<Row> {
    // SAFETY: catalog look-ups with constant names; a scan of an open, locked table under a live snapshot; the tuple is
    // copied before the scan ends.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"situ".as_ptr(), true);
        if schema == pg_sys::InvalidOid {
            return None;
        }
        let relation = pg_sys::get_relname_relid(c"bridges".as_ptr(), schema);
        if relation == pg_sys::InvalidOid {
            return None;
        }
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let table = pg_sys::table_open(relation, lock);
        let names = [c"name", c"kind", c"state", c"fingerprint", c"hash", c"weights"];
        let columns = names.map(|name| usize::try_from(pg_sys::get_attnum(relation, name.as_ptr()) - 1).ok());
        let count = (*(*table).rd_att).natts as usize;
        let (mut values, mut nulls) = (vec![pg_sys::Datum::null(); count], vec![true; count]);
        let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
        let scan = pg_sys::systable_beginscan(table, pg_sys::InvalidOid, false, snapshot, 0, std::ptr::null_mut());
        let mut found = None;
        while found.is_none() {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            let copy = pg_sys::heap_copytuple(tuple);
            pg_sys::heap_deform_tuple(copy, (*table).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
            let value = |at: usize| {
                let column = columns[at].filter(|column| nulls.get(*column) == Some(&false))?;
                values.get(column).copied()
            };
            let text = |at: usize| {
                value(at)
                    .and_then(|datum| String::from_datum(datum, false))
                    .unwrap_or_default()
            };
            match value(5) {
                Some(weights) if text(0) == name => {
                    // Fetched while the snapshot keeps the parts that lie out of line.
                    let weights = pg_sys::Datum::from(pg_sys::pg_detoast_datum_copy(weights.cast_mut_ptr()));
                    let texts = [1, 2, 3, 4].map(text);
                    found = Some(Row { texts, weights });
                }
                _ => pg_sys::heap_freetuple(copy),
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::UnregisterSnapshot(snapshot);
        pg_sys::table_close(table, lock);
        found
    }
}

/// Whether the registry has a bridge of that name.
pub fn is_known(name: &str) -> bool {
    find(name).is_some()
}

/// Finds a bridge that changes passages of that model; anything else is an error.
pub fn open(name: &str, model: &ModelRef) -> Rc<PassageBridge> {
    let Some(row) = find(name) else {
        fail_full(
            PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            format!("bridge \"{name}\" does not exist"),
            "The table situ.bridges has no row of that name.".into(),
            "Train one with situ.train, or import it with situ.import_bridge.".into(),
        )
    };
    let [kind, state, fingerprint, hash] = row.texts;
    if !Verdict::from_name(&state).is_some_and(Verdict::accepts) {
        fail_full(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("bridge \"{name}\" was rejected"),
            "It did not beat the plain vectors on held-out data; situ.bridges has its figures.".into(),
            "Train it again with other pairs or options.".into(),
        )
    }
    if fingerprint != model.fingerprint {
        fail_full(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("bridge \"{name}\" was not trained for model \"{}\"", model.name),
            format!(
                "It is for the fingerprint {fingerprint}, the model has {}.",
                model.fingerprint
            ),
            "Train it again with this model.".into(),
        )
    }
    let known = RECENT.with_borrow(|recent| recent.iter().find(|bridge| bridge.hash == hash).cloned());
    if let Some(bridge) = known {
        return bridge;
    }
    // SAFETY: a detoasted bytea of this memory context.
    let bytes = unsafe {
        room_for_copy(row.weights);
        Vec::<u8>::from_datum(row.weights, false)
    };
    let bytes = bytes.unwrap_or_default();
    let read = kind_of(&kind).and_then(|kind| kind.read(&bytes)).or_raise();
    let change = match read {
        Bridge::Situate(bridge) => Change::Situate(bridge),
        Bridge::Adapter(adapter) if adapter.side == Side::Passage => Change::Adapter(adapter),
        Bridge::Adapter(_) => fail_full(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("bridge \"{name}\" changes questions, not passages"),
            "It is an adapter of the query's side.".into(),
            "Give it to situ.query, or train one with side => 'passage'.".into(),
        ),
        Bridge::LexSem(_) | Bridge::TextFeedback(_) | Bridge::Xrag(_) => Err(BridgeError::File(format!(
            "bridges of kind \"{kind}\" do not change passages"
        )))
        .or_raise(),
    };
    let bridge = Rc::new(PassageBridge { hash, change });
    RECENT.with_borrow_mut(|recent| {
        if recent.len() >= KEPT {
            recent.remove(0);
        }
        recent.push(bridge.clone());
    });
    bridge
}

impl PassageBridge {
    /// What the encoder mixes into a chunk's vector beforehand.
    pub fn share(&self) -> f32 {
        match &self.change {
            Change::Situate(bridge) => bridge.share,
            Change::Adapter(_) => 0.0,
        }
    }

    /// Changes the vectors of all passages of a document, in order.
    pub fn apply(&self, passages: &mut [SituatedPassage]) {
        match &self.change {
            Change::Situate(bridge) => {
                let vectors: Vec<&[f32]> = passages.iter().map(|passage| passage.vector.as_slice()).collect();
                let vectors = bridge.apply(&vectors).or_raise();
                for (passage, vector) in passages.iter_mut().zip(vectors) {
                    passage.vector = vector;
                }
            }
            Change::Adapter(adapter) => {
                for passage in passages {
                    adapter.apply(&mut passage.vector).or_raise();
                }
            }
        }
    }
}
