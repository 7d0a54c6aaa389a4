//! `situ.query(...)` and the comparison of its values.

use super::{binary, feedback};
use crate::bridge::feedback::Method;
use crate::bridge::feedback::Options;
use crate::pg::am::kind::body_hash;
use crate::pg::ereport::fail_with_hint;
use crate::pg::error::OrRaise;
use crate::pg::search::query::Query;
use crate::pg::search::query::no_question;
use crate::pg::vector::read_vector;
use pgrx::datum::{AnyElement, Internal};
use pgrx::prelude::*;

/// `situ.query(...)`.
#[pg_extern(sql = false)]
#[allow(clippy::too_many_arguments)] // the arguments of the SQL function
fn make_query(
    text: Option<&str>,
    embedding: Option<AnyElement>,
    model: Option<&str>,
    probes: Option<i64>,
    recall: Option<f32>,
    profile: Option<&str>,
    bridge: Option<&str>,
    bridges: Option<Vec<Option<String>>>,
    feedback: Option<&str>,
    feedback_depth: Option<i64>,
    feedback_alpha: Option<f32>,
    feedback_beta: Option<f32>,
    feedback_gamma: Option<f32>,
    feedback_bottom: Option<i64>,
    feedback_rounds: Option<i64>,
    feedback_mode: Option<&str>,
    feedback_keep: Option<i64>,
    feedback_list: Option<i64>,
    feedback_model: Option<&str>,
) -> Query {
    let query = Query {
        text: text.map(str::to_owned),
        // SAFETY: the function is declared with a vector here.
        embedding: embedding.map(|vector| unsafe { read_vector(vector.datum()) }.or_raise()),
        model: model.map(str::to_owned),
        probes: probes.map(checked_probes),
        recall: recall.map(checked_recall),
        profile: profile.map(str::to_owned),
        feedback: feedback_options(
            feedback,
            Options {
                method: Method::None,
                depth: feedback_depth.map(|value| narrow("feedback_depth", value)),
                alpha: feedback_alpha,
                beta: feedback_beta,
                gamma: feedback_gamma,
                bottom: feedback_bottom.map(|value| narrow("feedback_bottom", value)),
                list: feedback_list.map(|value| narrow("feedback_list", value)),
                rounds: feedback_rounds.map(|value| narrow("feedback_rounds", value)),
                mode: feedback_mode.map(feedback::mode),
                keep: feedback_keep.map(|value| narrow("feedback_keep", value)),
                model: feedback_model.map(str::to_owned),
            },
        ),
        bridge: bridge.map(str::to_owned),
        bridges: checked_bridges(bridge, bridges.unwrap_or_default()),
        index: None,
    };
    // Options without a question are a template, for situ.evaluate and the like.
    if query == Query::default() {
        no_question();
    }
    query
}

/// A number of lists that can be read.
fn checked_probes(probes: i64) -> u32 {
    let fits = u32::try_from(probes).ok().filter(|&probes| probes > 0);
    fits.unwrap_or_else(|| {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("probes = {probes} is out of range"),
            "It may be 1 to 4294967295; leave it out for the number that was calibrated when the index was built.",
        )
    })
}

/// The names of several bridges, which stand instead of one.
fn checked_bridges(bridge: Option<&str>, bridges: Vec<Option<String>>) -> Vec<String> {
    if bridges.iter().any(Option::is_none) || (bridge.is_some() && !bridges.is_empty()) {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            "bridges are names, and stand instead of bridge".into(),
            "Use bridge => 'one', or bridges => ARRAY['first', 'second'].",
        )
    }
    bridges.into_iter().flatten().collect()
}

/// A recall that can be aimed at.
fn checked_recall(value: f32) -> f32 {
    match value > 0.0 && value <= 1.0 {
        true => value,
        false => fail_with_hint(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("recall = {value} is out of range"),
            "It is the share of the nearest rows to find: above 0 and up to 1, where 1 proves every row.",
        ),
    }
}

/// A count that SQL gives as bigint; its own range is checked with the other options.
fn narrow(name: &str, value: i64) -> i32 {
    i32::try_from(value).unwrap_or_else(|_| {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("{name} = {value} is out of range"),
            "It is a number of rows, or of rounds of feedback: 1000 and less.",
        )
    })
}

/// The options of a method; options without a method are those of `gated`.
fn feedback_options(method: Option<&str>, given: Options) -> Option<Options> {
    let method = match method {
        Some(name) => feedback::method(name),
        None if given == Options::default() => return None,
        None if given.model.is_some() => Method::Text,
        None => Method::Gated,
    };
    let options = Options { method, ..given };
    // What is out of range is said here, not at the scan.
    options.plan(None).or_raise();
    Some(options)
}

/// Binary input of `situ.query`.
#[pg_extern(sql = false)]
fn query_recv(message: Internal) -> Query {
    Query::read(&binary::received(message, "situ.query"))
}

/// Binary output of `situ.query`.
#[pg_extern(sql = false)]
fn query_send(query: Query) -> Vec<u8> {
    binary::sent(&query.printed())
}

/// What a question is compared and hashed by: what it prints, so that equal questions print alike.
fn printed(query: &Query) -> String {
    serde_json::to_string(query).unwrap_or_default()
}

/// `situ.query = situ.query`.
#[pg_extern(sql = false)]
fn query_eq(left: Query, right: Query) -> bool {
    printed(&left) == printed(&right)
}

/// `situ.query <> situ.query`.
#[pg_extern(sql = false)]
fn query_ne(left: Query, right: Query) -> bool {
    printed(&left) != printed(&right)
}

/// `situ.query < situ.query`: an order for sorting, without a meaning.
#[pg_extern(sql = false)]
fn query_lt(left: Query, right: Query) -> bool {
    printed(&left) < printed(&right)
}

/// `situ.query <= situ.query`.
#[pg_extern(sql = false)]
fn query_le(left: Query, right: Query) -> bool {
    printed(&left) <= printed(&right)
}

/// `situ.query > situ.query`.
#[pg_extern(sql = false)]
fn query_gt(left: Query, right: Query) -> bool {
    printed(&left) > printed(&right)
}

/// `situ.query >= situ.query`.
#[pg_extern(sql = false)]
fn query_ge(left: Query, right: Query) -> bool {
    printed(&left) >= printed(&right)
}

/// Support function of the B-tree operator class.
#[pg_extern(sql = false)]
fn query_cmp(left: Query, right: Query) -> i32 {
    printed(&left).cmp(&printed(&right)) as i32
}

/// Support function of the hash operator class.
#[pg_extern(sql = false)]
fn query_hash(query: Query) -> i32 {
    body_hash(&printed(&query)) as i32
}
