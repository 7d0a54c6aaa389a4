//! The vectors of questions that a backend asked last.

use crate::pg::catalog::cache::Cache;
use crate::pg::error::OrRaise;
use crate::pg::service::client;
use crate::pg::service::model_ref::ModelRef;

/// Questions that one backend keeps the vectors of.
const QUESTIONS: usize = 32;

thread_local! {
    /// By the model's fingerprint and the text.
    static RECENT: Cache<(String, String), Vec<f32>> = Cache::new(QUESTIONS);
}

/// Encodes a question, or takes it from the few that this backend asked last: rescans, partitions and the operator
/// ask the same one again and again.
pub fn embed_question(model: &ModelRef, text: &str) -> Vec<f32> {
    let key = (model.fingerprint.clone(), text.to_owned());
    let encode = || client::embed_query(model, text);
    RECENT.with(|recent| recent.get_or(&key, encode)).or_raise()
}
