//! What a scheme needs of the encoder beside a query's vector, read out in this process.

use crate::bridge::BridgeError;
use crate::bridge::train::data::TokenStates;
use crate::compute::Pool;
use crate::model::{Encoder, Read, Role, Sequence};

/// The sequence of a query with one read-out a token of the text, and the ids of those tokens.
///
/// # Errors
/// [`BridgeError::Model`] where the tokenizer fails.
pub fn sequence(encoder: &Encoder, text: &str) -> Result<(Sequence, Vec<u32>), BridgeError> {
    let room = encoder.room(Role::Query);
    let whole = encoder.tokenize_up_to(text, room)?.ids;
    let (mut sequence, start) = encoder.assemble(Role::Query, &whole)?;
    let ids = whole.get(..whole.len().min(room)).unwrap_or_default().to_vec();
    let start = start as u32;
    let tokens = start..start + ids.len() as u32;
    sequence.read = Read::States(tokens.map(|place| place..place + 1).collect());
    Ok((sequence, ids))
}

/// Tokens and states of texts, read as queries.
///
/// # Errors
/// [`BridgeError::Model`] where the encoder fails.
pub fn states(
    encoder: &Encoder,
    pool: &Pool,
    texts: &[&str],
    stop: &dyn Fn() -> bool,
) -> Result<Vec<TokenStates>, BridgeError> {
    let (mut sequences, mut all) = (Vec::new(), Vec::new());
    for text in texts {
        let (sequence, ids) = sequence(encoder, text)?;
        sequences.push(sequence);
        all.push(ids);
    }
    let mut vectors = encoder.encode_until(pool, &sequences, stop)?.into_iter();
    let states = |ids: Vec<u32>| TokenStates {
        values: vectors.by_ref().take(ids.len()).flatten().collect(),
        ids,
    };
    Ok(all.into_iter().map(states).collect())
}
