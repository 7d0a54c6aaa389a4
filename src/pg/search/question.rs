//! The vectors of questions that a backend asked last.

use crate::pg::error::OrRaise;
use crate::pg::service::client;
use crate::pg::service::model_ref::ModelRef;
use std::cell::RefCell;

/// Questions that one backend keeps the vectors of.
const QUESTIONS: usize = 32;

thread_local! {
    static RECENT: RefCell<Vec<(String, String, Vec<f32>)>> = const { RefCell::new(Vec::new()) };
}

/// Encodes a question, or takes it from the few that this backend asked last: rescans, partitions and the operator
/// ask the same one again and again.
pub fn embed_question(model: &ModelRef, text: &str) -> Vec<f32> {
    let known = RECENT.with_borrow_mut(|recent| {
        let at = recent
            .iter()
            .position(|(print, known, _)| *print == model.fingerprint && known == text)?;
        let entry = recent.remove(at);
        let vector = entry.2.clone();
        recent.push(entry);
        Some(vector)
    });
    if let Some(vector) = known {
        return vector;
    }
    let vector = client::embed_query(model, text).or_raise();
    RECENT.with_borrow_mut(|recent| {
        if recent.len() >= QUESTIONS {
            recent.remove(0);
        }
        recent.push((model.fingerprint.clone(), text.to_owned(), vector.clone()));
    });
    vector
}
