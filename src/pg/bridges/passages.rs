//! Bridges that change passages when they are encoded: those of kind situate, and adapters of the passage's side.
//!
//! The registry's row is read as it is committed now, whoever asks: an index's own rows must not depend on the
//! privileges of whoever inserts.

use super::registry::{check_usable, missing, open as opened};
use super::rows::{Row, Snapshot, look};
use crate::bridge::adapter::{Adapter, Side};
use crate::bridge::situate::bridge::Bridge as SituateBridge;
use crate::bridge::{Bridge, BridgeError};
use crate::pg::ereport::fail_full;
use crate::pg::error::OrRaise;
use crate::pg::service::SituatedPassage;
use crate::pg::service::model_ref::ModelRef;
use pgrx::PgSqlErrorCode;
use std::rc::Rc;

/// A bridge for passages.
pub struct PassageBridge {
    /// Hash of its weights.
    pub hash: String,
    change: Change,
}

/// What it does to vectors.
enum Change {
    Situate(Rc<SituateBridge>),
    Adapter(Rc<Adapter>),
}

/// Whether the registry has a bridge of that name.
pub fn is_known(name: &str) -> bool {
    look(name, Snapshot::Latest, |_| ()).is_some()
}

/// Finds a bridge that changes passages of that model; anything else is an error.
pub fn open(name: &str, model: &ModelRef) -> Rc<PassageBridge> {
    let found = look(name, Snapshot::Latest, |row: &Row| {
        let bridge = row.registered().or_raise();
        check_usable(&bridge, model);
        let change = match opened(&bridge, || row.weights()) {
            Bridge::Situate(bridge) => Change::Situate(bridge),
            Bridge::Adapter(adapter) if adapter.side == Side::Passage => Change::Adapter(adapter),
            Bridge::Adapter(_) => fail_full(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("bridge \"{name}\" changes questions, not passages"),
                "It is an adapter of the query's side.".into(),
                "Give it to situ.query, or train one with side => 'passage'.".into(),
            ),
            Bridge::LexSem(_) | Bridge::TextFeedback(_) | Bridge::Xrag(_) => Err(BridgeError::File(format!(
                "bridges of kind \"{}\" do not change passages",
                bridge.kind
            )))
            .or_raise(),
        };
        PassageBridge {
            hash: bridge.hash,
            change,
        }
    });
    Rc::new(found.unwrap_or_else(|| missing(name)))
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
