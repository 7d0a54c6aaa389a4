//! Bridges of kind `xrag` at work: from a passage's vector to the vector that stands for it in a prompt.

use super::registry::{self, Registered};
use crate::bridge::Bridge;
use crate::bridge::xrag::projector::{KIND, Projector};
use crate::pg::ereport::{fail_full, fail_with_hint};
use crate::pg::error::OrRaise;
use crate::pg::service::ModelRef;
use pgrx::PgSqlErrorCode;
use std::rc::Rc;

/// How far the length of a vector may be from 1 where the bridge was trained on vectors of length 1.
const SLACK: f32 = 1e-2;

/// A bridge of kind `xrag` that may be used.
pub struct XragBridge {
    registered: Registered,
    projector: Rc<Projector>,
}

/// The bridge of that name. One that does not exist, is of another kind or was rejected raises an error.
pub fn open(name: &str) -> XragBridge {
    let registered = registry::find(name);
    if registered.kind != KIND {
        other_kind(&registered)
    }
    registry::check_accepted(&registered);
    match registry::open(&registered, || registry::weights(name)) {
        Bridge::Xrag(projector) => XragBridge { registered, projector },
        _ => other_kind(&registered),
    }
}

fn other_kind(bridge: &Registered) -> ! {
    fail_with_hint(
        PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
        format!("bridge \"{}\" is of kind {}, not {KIND}", bridge.name, bridge.kind),
        "SELECT name, kind FROM situ.bridges lists them.",
    )
}

impl XragBridge {
    /// Fingerprint of the LLM that the vectors are for; none where the file does not say.
    pub fn llm(&self) -> Option<&str> {
        self.projector.llm.as_deref()
    }

    /// Fails unless the bridge leads from that encoder to that LLM.
    pub fn check(&self, encoder: &ModelRef, llm: &ModelRef) {
        registry::check_usable(&self.registered, encoder);
        if let Some(fingerprint) = self.llm()
            && fingerprint != llm.fingerprint
        {
            fail_full(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!(
                    "bridge \"{}\" was not trained for LLM \"{}\"",
                    self.registered.name, llm.name
                ),
                format!("It is for fingerprint {fingerprint}, the LLM has {}.", llm.fingerprint),
                "Use the LLM that it was trained for, or train it again.".into(),
            )
        }
    }

    /// The vector, or the vectors one after the other, that stand for the passage with that vector.
    pub fn token(&self, vector: &[f32]) -> Vec<f32> {
        let (expected, found) = (self.projector.inputs(), vector.len());
        if expected != found {
            fail_with_hint(
                PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
                format!(
                    "bridge \"{}\" is for vectors of {expected} dimensions, not {found}",
                    self.registered.name
                ),
                "Use a vector of the encoder that the bridge was trained over.",
            )
        }
        if self.projector.normalized {
            let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
            if (length - 1.0).abs() > SLACK {
                fail_full(
                    PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
                    format!(
                        "bridge \"{}\" was trained on vectors of length 1, this one has length {length}",
                        self.registered.name
                    ),
                    "A bridge works on vectors as it was trained on.".into(),
                    "Use the vectors that the model gives, or l2_normalize(embedding).".into(),
                )
            }
        }
        self.projector.project(vector).or_raise()
    }
}
