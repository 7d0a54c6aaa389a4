//! What lexsem bridges read out of texts: `situ.tokens`, `situ.vocabulary`.

use crate::pg::catalog::model_registry::model_by_name;
use crate::pg::ereport::fail_with_hint;
use crate::pg::error::OrRaise;
use crate::pg::service::{Lane, token_features};
use pgrx::prelude::*;

/// `situ.tokens(text, model)`.
#[pg_extern(sql = false)]
fn text_tokens(text: Option<&str>, model: Option<&str>) -> Option<Vec<i32>> {
    let model = model_by_name(model).or_raise();
    let tokens = token_features::tokens(&model, Lane::Query, &[text?]).or_raise();
    // An id is a row of a table in memory, far below 2^31.
    tokens
        .into_iter()
        .next()
        .map(|ids| ids.into_iter().map(|id| id as i32).collect())
}

/// `situ.vocabulary(text, model, most)`.
#[pg_extern(sql = false)]
fn text_vocabulary(
    text: Option<&str>,
    model: Option<&str>,
    most: Option<i64>,
) -> TableIterator<'static, (name!(token, i32), name!(weight, f32))> {
    let most = most.unwrap_or(64);
    let Ok(most) = u32::try_from(most) else {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("most = {most} is out of range"),
            "It may be 0, which is for all entries above zero, to 4294967295.",
        )
    };
    let Some(text) = text else {
        return TableIterator::new(Vec::new());
    };
    let model = model_by_name(model).or_raise();
    let weights = token_features::vocabulary(&model, Lane::Query, &[text], most).or_raise();
    let rows: Vec<_> = weights
        .into_iter()
        .flatten()
        .map(|(id, weight)| (id as i32, weight))
        .collect();
    TableIterator::new(rows)
}
