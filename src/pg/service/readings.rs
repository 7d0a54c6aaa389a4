//! What bridges read out of texts beside their vectors: token ids, token states, vocabulary weights.

use super::client::{ModelRef, encode};
use super::{Item, Lane, Reply, ServiceError};
use crate::bridge::train::data::TokenStates;

/// Texts whose tokens are asked for in one item.
const TEXTS_OF_AN_ITEM: usize = 64;
/// Most bytes of a passage of feedback; no model reads as far.
const MOST_TEXT: usize = 16 << 10;

fn unexpected() -> ServiceError {
    ServiceError::Protocol("a text was answered with something else".to_owned())
}

/// One reply an item, in the order of the items.
fn ordered<T: Clone>(
    model: &ModelRef,
    lane: Lane,
    items: &mut dyn Iterator<Item = Item>,
    take: fn(Reply) -> Option<T>,
) -> Result<Vec<T>, ServiceError> {
    let mut found: Vec<Option<T>> = Vec::new();
    encode(model, lane, items, &mut |number, reply| {
        if found.len() <= number {
            found.resize(number + 1, None);
        }
        if let Some(place) = found.get_mut(number) {
            *place = Some(take(reply).ok_or_else(unexpected)?);
        }
        Ok(())
    })?;
    found.into_iter().map(|one| one.ok_or_else(unexpected)).collect()
}

/// Token ids of each text, without special tokens, whole texts.
pub fn tokens(model: &ModelRef, lane: Lane, texts: &[&str]) -> Result<Vec<Vec<u32>>, ServiceError> {
    let mut items = texts.chunks(TEXTS_OF_AN_ITEM).map(|texts| Item::Tokens {
        texts: texts.iter().map(|text| (*text).to_owned()).collect(),
    });
    let take = |reply| match reply {
        Reply::Tokens(tokens) => Some(tokens),
        _ => None,
    };
    Ok(ordered(model, lane, &mut items, take)?.into_iter().flatten().collect())
}

/// Tokens and the last layer's states of each text, read as a query.
pub fn states(model: &ModelRef, lane: Lane, texts: &[&str]) -> Result<Vec<TokenStates>, ServiceError> {
    let mut items = texts.iter().map(|text| Item::States {
        text: (*text).to_owned(),
    });
    let take = |reply| match reply {
        Reply::States { ids, values } => Some(TokenStates { ids, values }),
        _ => None,
    };
    ordered(model, lane, &mut items, take)
}

/// The last layer's state of the first token of a query's sequence.
pub fn first_state(model: &ModelRef, lane: Lane, text: &str) -> Result<Vec<f32>, ServiceError> {
    let mut items = std::iter::once(Item::FirstState { text: text.to_owned() });
    let take = |reply| match reply {
        Reply::States { values, .. } => Some(values),
        _ => None,
    };
    let found = ordered(model, lane, &mut items, take)?;
    found.into_iter().next().ok_or_else(unexpected)
}

/// The vector of each query read together with its passages, of each `passage_tokens` (0 for all).
pub fn feedback(
    model: &ModelRef,
    lane: Lane,
    asked: &[(&str, Vec<&str>)],
    passage_tokens: u32,
) -> Result<Vec<Vec<f32>>, ServiceError> {
    let part = |text: &str| text[..text.floor_char_boundary(MOST_TEXT)].to_owned();
    let mut items = asked.iter().map(|(query, passages)| Item::Feedback {
        query: part(query),
        passages: passages.iter().map(|passage| part(passage)).collect(),
        passage_tokens,
    });
    let take = |reply| match reply {
        Reply::Vector(vector) => Some(vector),
        _ => None,
    };
    ordered(model, lane, &mut items, take)
}

/// The vocabulary weights that a masked language model gives each text, the `most` largest (0 for all).
pub fn vocabulary(
    model: &ModelRef,
    lane: Lane,
    texts: &[&str],
    most: u32,
) -> Result<Vec<Vec<(u32, f32)>>, ServiceError> {
    let mut items = texts.iter().map(|text| Item::Vocabulary {
        text: (*text).to_owned(),
        most,
    });
    let take = |reply| match reply {
        Reply::Vocabulary(weights) => Some(weights),
        _ => None,
    };
    ordered(model, lane, &mut items, take)
}
