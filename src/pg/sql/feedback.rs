//! Feedback as plain functions over vectors, and the names that SQL has for its options.

use crate::bridge::feedback::{Method, Mode, average, rocchio};
use crate::pg::ereport::fail_with_hint;
use crate::pg::error::OrRaise;
use crate::pg::search::second_round;
use crate::pg::vector::{Vector, read_vector, read_vectors};
use pgrx::PgSqlErrorCode;
use pgrx::datum::{AnyElement, Array};
use pgrx::prelude::*;

fn unknown(what: &str, name: &str, hint: &str) -> ! {
    fail_with_hint(
        PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
        format!("{what} \"{name}\" does not exist"),
        hint,
    )
}

/// The method of that name.
pub fn method(name: &str) -> Method {
    match name {
        "none" => Method::None,
        "average" => Method::Average,
        "rocchio" => Method::Rocchio,
        "gated" => Method::Gated,
        "text" => Method::Text,
        _ => unknown("feedback", name, "Use none, average, rocchio, gated or text."),
    }
}

/// The mode of that name.
pub fn mode(name: &str) -> Mode {
    match name {
        "retrieve" => Mode::Retrieve,
        "rerank" => Mode::Rerank,
        _ => unknown("feedback_mode", name, "Use retrieve or rerank."),
    }
}

fn one(vector: &AnyElement) -> Vec<f32> {
    // SAFETY: the functions are declared with a vector here.
    unsafe { read_vector(vector.datum()) }.or_raise()
}

fn many(vectors: Option<AnyElement>) -> Vec<Vec<f32>> {
    // SAFETY: the functions are declared with a vector[] here.
    vectors.map_or_else(Vec::new, |vectors| unsafe { read_vectors(vectors.datum()) }.or_raise())
}

/// `situ.feedback_average(query, feedback)`.
#[pg_extern(sql = false)]
fn feedback_average(query: Option<AnyElement>, feedback: Option<AnyElement>) -> Option<Vector> {
    let query = one(&query?);
    Some(Vector(average(&query, &many(feedback)).or_raise()))
}

/// `situ.feedback_rocchio(query, positive, negative, alpha, beta, gamma)`.
#[pg_extern(sql = false)]
fn feedback_rocchio(
    query: Option<AnyElement>,
    positive: Option<AnyElement>,
    negative: Option<AnyElement>,
    alpha: Option<f32>,
    beta: Option<f32>,
    gamma: Option<f32>,
) -> Option<Vector> {
    let query = one(&query?);
    let (alpha, beta, gamma) = (alpha.unwrap_or(0.4), beta.unwrap_or(0.6), gamma.unwrap_or(0.1));
    Some(Vector(
        rocchio(&query, &many(positive), &many(negative), alpha, beta, gamma).or_raise(),
    ))
}

/// `situ.feedback_text(query, passages, model)`.
#[pg_extern(sql = false)]
fn feedback_text(query: Option<&str>, passages: Option<Array<'_, &str>>, model: Option<&str>) -> Option<Vector> {
    let (query, model) = (query?, model?);
    let passages: Vec<String> = passages?.iter().flatten().map(str::to_owned).collect();
    Some(Vector(second_round::vector(model, query, &passages)))
}
