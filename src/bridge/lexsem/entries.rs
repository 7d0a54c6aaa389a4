//! From what the encoder read out of a query to the rows of `W` that it uses.

use super::weigh::{self, Sparse};
use super::{LexSem, Scheme};
use crate::bridge::BridgeError;

/// What a scheme needs of a query beside its vector.
#[derive(Clone, Copy, Debug, Default)]
pub struct Readings<'a> {
    /// Token ids of the text, without special tokens.
    pub ids: &'a [u32],
    /// For [`Scheme::Llr`]: the last layer's state of each of `ids`, a row of the model's dimensions each. For
    /// [`Scheme::LlrPaper`]: that of the first token of the sequence.
    pub states: &'a [f32],
    /// For [`Scheme::Clr`]: vocabulary weights ([`weigh::clr`]).
    pub vocabulary: &'a [(u32, f32)],
}

/// Places of rows and their weights; tokens without a row are left out.
///
/// # Errors
/// [`BridgeError::Vectors`] where the states do not fit the ids.
pub fn entries(bridge: &LexSem, readings: Readings<'_>) -> Result<Vec<(usize, f32)>, BridgeError> {
    let wanted = match bridge.scheme {
        Scheme::Llr => readings.ids.len() * bridge.dimensions,
        Scheme::LlrPaper => bridge.dimensions,
        _ => 0,
    };
    if readings.states.len() != wanted && wanted > 0 {
        return Err(BridgeError::Vectors {
            expected: wanted,
            found: readings.states.len(),
        });
    }
    let gate = &bridge.gate;
    let sparse: Sparse = match bridge.scheme {
        Scheme::Bag => weigh::bag(readings.ids, |id| {
            bridge.place(id).and_then(|place| bridge.rarity.get(place)).copied()
        }),
        Scheme::Slr => weigh::slr(readings.ids, gate.scale),
        Scheme::SlrPaper => weigh::slr_paper(readings.ids),
        Scheme::Llr => {
            let shift = gate.shift.first().copied().unwrap_or_default();
            weigh::llr(readings.ids, readings.states, &gate.projection, shift)
        }
        Scheme::LlrPaper => {
            let weights = weigh::llr_paper(readings.states, &gate.projection, &gate.shift);
            return Ok(weights
                .into_iter()
                .enumerate()
                .filter(|(_, weight)| *weight > 0.0)
                .collect());
        }
        Scheme::Clr => readings.vocabulary.to_vec(),
    };
    let placed = sparse
        .into_iter()
        .filter_map(|(id, weight)| Some((bridge.place(id)?, weight)));
    Ok(placed.filter(|(_, weight)| *weight != 0.0).collect())
}
