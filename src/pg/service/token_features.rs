//! What bridges read out of texts beside their vectors: token ids, token states, vocabulary weights.

use super::client::encode;
use super::model_ref::ModelRef;
use super::sent::{MOST_TEXT, cut};
use super::{Item, Lane, Reply, ServiceError};
use crate::bridge::train::data::TokenStates;
use crate::model::PIECE_BYTES;
use crate::model::cut::piece_end;

/// Texts whose tokens are asked for in one item, and about how many bytes.
const TEXTS_OF_AN_ITEM: usize = 64;
const BYTES_OF_AN_ITEM: usize = 64 << 10;
/// Most bytes of a passage of feedback; no model reads as far.
const MOST_PASSAGE: usize = 16 << 10;

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

/// The next texts to ask for, from `place` on (a text and a byte of it): long texts go in parts.
fn next_texts(texts: &[&str], place: &mut (usize, usize)) -> Option<(Vec<String>, bool)> {
    let continues = place.1 > 0;
    let (mut own, mut bytes) = (Vec::new(), 0);
    while let Some(text) = texts.get(place.0) {
        if own.len() == TEXTS_OF_AN_ITEM || bytes >= BYTES_OF_AN_ITEM {
            break;
        }
        let (start, mut end) = (place.1, place.1);
        while end < text.len() && bytes + (end - start) < BYTES_OF_AN_ITEM {
            end = piece_end(text, end, PIECE_BYTES);
        }
        own.push(text.get(start..end).unwrap_or_default().to_owned());
        bytes += end - start;
        if end < text.len() {
            place.1 = end;
            break;
        }
        *place = (place.0 + 1, 0);
    }
    (!own.is_empty()).then_some((own, continues))
}

/// Token ids of each text, without special tokens, whole texts. Texts of more than one item go on the bulk lane.
pub fn tokens(model: &ModelRef, lane: Lane, texts: &[&str]) -> Result<Vec<Vec<u32>>, ServiceError> {
    let lane = match texts.iter().map(|text| text.len()).sum::<usize>() > BYTES_OF_AN_ITEM {
        true => Lane::Bulk,
        false => lane,
    };
    let (mut place, mut marks) = ((0, 0), Vec::new());
    let mut items = std::iter::from_fn(|| {
        let (texts, continues) = next_texts(texts, &mut place)?;
        marks.push(continues);
        Some(Item::Tokens { texts, continues })
    });
    let take = |reply| match reply {
        Reply::Tokens(tokens) => Some(tokens),
        _ => None,
    };
    let replies = ordered(model, lane, &mut items, take)?;
    let mut found: Vec<Vec<u32>> = Vec::with_capacity(texts.len());
    for (reply, continues) in replies.into_iter().zip(marks) {
        for (number, ids) in reply.into_iter().enumerate() {
            match found.last_mut() {
                Some(last) if continues && number == 0 => last.extend(ids),
                _ => found.push(ids),
            }
        }
    }
    match found.len() == texts.len() {
        true => Ok(found),
        false => Err(unexpected()),
    }
}

/// Tokens and the last layer's states of each text, read as a query.
pub fn states(model: &ModelRef, lane: Lane, texts: &[&str]) -> Result<Vec<TokenStates>, ServiceError> {
    let mut items = texts.iter().map(|text| Item::States {
        text: cut(text, MOST_TEXT).to_owned(),
    });
    let take = |reply| match reply {
        Reply::States { ids, values } => Some(TokenStates { ids, values }),
        _ => None,
    };
    ordered(model, lane, &mut items, take)
}

/// The last layer's state of the first token of a query's sequence.
pub fn first_state(model: &ModelRef, lane: Lane, text: &str) -> Result<Vec<f32>, ServiceError> {
    let mut items = std::iter::once(Item::FirstState {
        text: cut(text, MOST_TEXT).to_owned(),
    });
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
    let part = |text: &str| cut(text, MOST_PASSAGE).to_owned();
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
        text: cut(text, MOST_TEXT).to_owned(),
        most,
    });
    let take = |reply| match reply {
        Reply::Vocabulary(weights) => Some(weights),
        _ => None,
    };
    ordered(model, lane, &mut items, take)
}
