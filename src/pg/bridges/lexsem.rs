//! Bridges of kind lexsem at query time: the query's tokens, the few rows of the stored weights that they need, the
//! corrected vector.
//!
//! The weights lie out of line and uncompressed (STORAGE EXTERNAL), so a row is one slice of the toast table. What
//! every query needs (all but the rows) is kept by the backend under the hash of the weights; the registry's row is
//! looked up each time, under the statement's snapshot.

use super::rows::{Row, Snapshot, look};
use crate::bridge::BridgeError;
use crate::bridge::lexsem::{Layout, LexSem, Options, Readings, Scheme, entries};
use crate::pg::catalog::cache::Cache;
use crate::pg::catalog::model_registry::model_by_name;
use crate::pg::error::OrRaise;
use crate::pg::service::model_ref::ModelRef;
use crate::pg::service::{Lane, token_features};
use std::rc::Rc;

/// Bridges that a backend keeps the fixed part of.
const KEPT: usize = 4;
/// Bytes that are read to find a file's layout; a longer header is read again.
const BEGINNING: usize = 4096;

/// All of a bridge but its rows.
struct Fixed {
    layout: Layout,
    bridge: LexSem,
}

thread_local! {
    /// By the hash of their weights.
    static FIXED: Cache<String, Rc<Fixed>> = Cache::new(KEPT);
}

fn file(what: &str) -> BridgeError {
    BridgeError::File(what.to_owned())
}

fn fixed(row: &Row) -> Result<Rc<Fixed>, BridgeError> {
    let read = || {
        let mut beginning = row.part(0..BEGINNING)?;
        let wanted = Layout::header_bytes(&beginning)?;
        if wanted > beginning.len() {
            beginning = row.part(0..wanted)?;
        }
        let layout = Layout::parse(&beginning)?;
        let bridge = layout.fixed(&mut |range| row.part(range))?;
        Ok(Rc::new(Fixed { layout, bridge }))
    };
    FIXED.with(|kept| kept.get_or(&row.hash().to_owned(), read))
}

/// What the encoder reads out of a text for a scheme.
#[derive(Default)]
struct Read {
    ids: Vec<u32>,
    states: Vec<f32>,
    vocabulary: Vec<(u32, f32)>,
}

/// Asks the encoder service for what the bridge's scheme needs of the text.
fn read(fixed: &Fixed, model: &ModelRef, text: &str) -> Result<Read, BridgeError> {
    let one = [text];
    let mut found = Read::default();
    match fixed.bridge.scheme {
        Scheme::Clr => {
            let options = fixed.layout.metadata.get("options").cloned().unwrap_or_default();
            let options = Options::from_json(&options)?;
            let mlm = model_by_name(options.mlm.as_deref()).or_raise();
            if options.mlm_fingerprint.is_some_and(|print| print != mlm.fingerprint) {
                return Err(file(
                    "its masked language model is not the one that it was trained over",
                ));
            }
            let weights = token_features::vocabulary(&mlm, Lane::Query, &one, options.vocabulary_top).or_raise();
            found.vocabulary = weights.into_iter().next().unwrap_or_default();
        }
        Scheme::Llr => {
            let states = token_features::states(model, Lane::Query, &one).or_raise();
            let states = states.into_iter().next().unwrap_or_default();
            (found.ids, found.states) = (states.ids, states.values);
        }
        Scheme::LlrPaper => {
            found.states = token_features::first_state(model, Lane::Query, text).or_raise();
        }
        Scheme::Bag | Scheme::Slr | Scheme::SlrPaper => {
            let tokens = token_features::tokens(model, Lane::Query, &one).or_raise();
            found.ids = tokens.into_iter().next().unwrap_or_default();
        }
    }
    Ok(found)
}

/// The vector of a query as the bridge `name` corrects it. `vector` is the query's, `text` its words, `model` the
/// encoder of both.
///
/// # Errors
/// [`BridgeError::File`] for weights that are no lexsem bridge; [`BridgeError::Vectors`] for a vector of other
/// dimensions. Errors of the encoder service are raised.
pub fn apply(name: &str, model: &ModelRef, text: &str, vector: &[f32]) -> Result<Vec<f32>, BridgeError> {
    let found = look(name, Snapshot::Statement, |row| apply_row(row, model, text, vector));
    found.unwrap_or_else(|| Err(file("the bridge is not there any more")))
}

fn apply_row(row: &Row, model: &ModelRef, text: &str, vector: &[f32]) -> Result<Vec<f32>, BridgeError> {
    let fixed = fixed(row)?;
    let found = read(&fixed, model, text)?;
    let token_features = Readings {
        ids: &found.ids,
        states: &found.states,
        vocabulary: &found.vocabulary,
    };
    let mut rows = Vec::new();
    for (place, weight) in entries(&fixed.bridge, token_features)? {
        let range = fixed.layout.row(place).ok_or_else(|| file("a row is missing"))?;
        rows.push((Layout::numbers(&row.part(range)?)?, weight));
    }
    let parts = rows.iter().map(|(row, weight)| (row.as_slice(), *weight));
    fixed.bridge.apply(vector, parts)
}
