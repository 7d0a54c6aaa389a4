//! The type `situ.query`: a question with options.

use crate::bridge::feedback::{Method, Options};
use crate::pg::am::kind::body_hash;
use crate::pg::am::text::embed_question;
use crate::pg::bridges;
use crate::pg::error::OrRaise;
use crate::pg::fail::{fail_full, fail_with_hint};
use crate::pg::service::client::ModelRef;
use crate::pg::sql::feedback;
use crate::pg::sql::leaf::name_of;
use crate::pg::vector::read_vector;
use pgrx::PgSqlErrorCode;
use pgrx::datum::AnyElement;
use pgrx::pg_sys;
use pgrx::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::Digest;
use std::ffi::CStr;

/// A question: its text or its vector, and how to search for it. In SQL it prints as JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, PostgresType)]
#[inoutfuncs]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// The question in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The question as a vector of the index's model, used instead of encoding the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding: Option<Vec<f32>>,
    /// The model, where no index says which (the operator outside an index).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Lists to read in the first round; none = as calibrated at the build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probes: Option<u32>,
    /// Options that `situ.tune` stored for the index, used where the query itself says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Whether and how the nearest passages move the question before a second round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feedback: Option<Options>,
    /// The bridge that changes the question's vector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// Several bridges instead, applied one after another in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bridges: Vec<String>,
    /// The index whose distance an operator means, as the planner found it: an OID of this database. It prints as its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
}

impl Query {
    /// A plain question.
    pub fn from_text(text: String) -> Query {
        Query {
            text: Some(text),
            ..Query::default()
        }
    }

    /// A question that is a vector already.
    pub fn from_vector(vector: Vec<f32>) -> Query {
        Query {
            embedding: Some(vector),
            ..Query::default()
        }
    }

    /// Reads an argument of type `situ.query`.
    ///
    /// # Safety
    /// `datum` is a non-null `situ.query`.
    pub unsafe fn from_argument(datum: pg_sys::Datum) -> Query {
        // SAFETY: the caller's promise.
        let query: Option<Query> = unsafe { pgrx::FromDatum::from_datum(datum, false) };
        query.unwrap_or_default()
    }

    /// Identifies the question among those of a transaction.
    pub fn identity(&self) -> u64 {
        let mut digest = sha2::Sha256::new();
        digest.update(self.text.as_deref().unwrap_or_default().as_bytes());
        digest.update([u8::from(self.text.is_some())]);
        for value in self.embedding.iter().flatten() {
            digest.update(value.to_le_bytes());
        }
        digest.update(self.model.as_deref().unwrap_or_default().as_bytes());
        digest.update(self.profile.as_deref().unwrap_or_default().as_bytes());
        digest.update([0]);
        for bridge in self.bridge.iter().chain(&self.bridges) {
            digest.update(bridge.as_bytes());
            digest.update([0]);
        }
        // The same question with and without feedback has other distances.
        digest.update(serde_json::to_vec(&self.feedback).unwrap_or_default());
        let mut first = [0u8; 8];
        first.copy_from_slice(&digest.finalize()[..8]);
        u64::from_le_bytes(first)
    }

    /// The question in words. Options alone are a template for others ([`Query::asking`]), and cannot be searched.
    pub fn words(&self) -> &str {
        match &self.text {
            Some(text) => text,
            None => no_question(),
        }
    }

    /// These options with another question.
    pub fn asking(&self, text: String, embedding: Option<Vec<f32>>) -> Query {
        Query {
            text: Some(text),
            embedding,
            ..self.clone()
        }
    }

    /// The question's vector by that model, changed by the bridge where one is named.
    pub fn vector(&self, model: &ModelRef) -> Vec<f32> {
        let plain = match &self.embedding {
            Some(vector) => vector.clone(),
            None => embed_question(model, self.words()),
        };
        self.bridged(Some(model), plain)
    }

    /// What the query's bridges make of its vector, each of what the one before it gave; without one the vector itself.
    /// `model` is the encoder of the vector, none where only the bridge says which it was.
    pub fn bridged(&self, model: Option<&ModelRef>, vector: Vec<f32>) -> Vec<f32> {
        let bridges = self.bridge.iter().chain(&self.bridges);
        bridges.fold(vector, |vector, bridge| {
            bridges::apply_query(bridge, model, self.text.as_deref(), &vector)
        })
    }
}

impl InOutFuncs for Query {
    /// A JSON object with the options; any other text is the question itself. (`situ.query('a question')` with one
    /// plain literal is a cast to the type for the server, and comes here.)
    fn input(input: &CStr) -> Query {
        let text = input.to_string_lossy();
        if !text.trim_start().starts_with('{') {
            return Query::from_text(text.into_owned());
        }
        let query: Query = serde_json::from_str(&text).unwrap_or_else(|error| {
            fail_full(
                PgSqlErrorCode::ERRCODE_INVALID_TEXT_REPRESENTATION,
                "invalid input for type situ.query".into(),
                error.to_string(),
                "Use situ.query(text => '...') for a question that begins with a brace.".into(),
            )
        });
        if query.index.is_some() {
            fail_with_hint(
                PgSqlErrorCode::ERRCODE_INVALID_TEXT_REPRESENTATION,
                "a query cannot name the index of an operator".into(),
                "Leave \"index\" out: the planner finds the index of the column.",
            )
        }
        if query == Query::default() {
            no_question();
        }
        query
    }

    fn output(&self, buffer: &mut pgrx::StringInfo) {
        // Serialising strings and numbers into memory does not fail.
        let Some(index) = self.index else {
            buffer.push_str(&serde_json::to_string(self).unwrap_or_default());
            return;
        };
        let mut printed = serde_json::to_value(self).unwrap_or_default();
        printed["index"] = name_of(index.into()).into();
        buffer.push_str(&printed.to_string());
    }
}

fn no_question() -> ! {
    fail_with_hint(
        PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
        "a query needs a text or an embedding".into(),
        "Use situ.query('the question') or situ.query(embedding => '[...]').",
    )
}

/// `situ.query(...)`.
#[pg_extern(immutable, parallel_safe, sql = false)]
#[allow(clippy::too_many_arguments)] // the arguments of the SQL function
fn make_query(
    text: Option<&str>,
    embedding: Option<AnyElement>,
    model: Option<&str>,
    probes: Option<i64>,
    profile: Option<&str>,
    feedback: Option<&str>,
    feedback_depth: Option<i64>,
    alpha: Option<f32>,
    beta: Option<f32>,
    gamma: Option<f32>,
    bottom: Option<i64>,
    rounds: Option<i64>,
    feedback_mode: Option<&str>,
    feedback_keep: Option<i64>,
    feedback_list: Option<i64>,
    bridge: Option<&str>,
    feedback_model: Option<&str>,
    bridges: Option<Vec<Option<String>>>,
) -> Query {
    let probes = probes.map(|probes| {
        u32::try_from(probes)
            .ok()
            .filter(|&probes| probes > 0)
            .unwrap_or_else(|| {
                fail_with_hint(
                    PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                    format!("probes = {probes} is out of range"),
                    "It may be 1 to 4294967295; leave it out for the number that was calibrated when the index was built.",
                )
            })
    });
    let bridges = bridges.unwrap_or_default();
    if bridges.iter().any(Option::is_none) || (bridge.is_some() && !bridges.is_empty()) {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            "bridges are names, and stand instead of bridge".into(),
            "Use bridge => 'one', or bridges => ARRAY['first', 'second'].",
        )
    }
    let query = Query {
        text: text.map(str::to_owned),
        // SAFETY: the function is declared with a vector here.
        embedding: embedding.map(|vector| unsafe { read_vector(vector.datum()) }.or_raise()),
        model: model.map(str::to_owned),
        probes,
        profile: profile.map(str::to_owned),
        feedback: feedback_options(
            feedback,
            Options {
                method: Method::None,
                depth: feedback_depth.map(|value| narrow("feedback_depth", value)),
                alpha,
                beta,
                gamma,
                bottom: bottom.map(|value| narrow("bottom", value)),
                list: feedback_list.map(|value| narrow("feedback_list", value)),
                rounds: rounds.map(|value| narrow("rounds", value)),
                mode: feedback_mode.map(feedback::mode),
                keep: feedback_keep.map(|value| narrow("feedback_keep", value)),
                model: feedback_model.map(str::to_owned),
            },
        ),
        bridge: bridge.map(str::to_owned),
        bridges: bridges.into_iter().flatten().collect(),
        index: None,
    };
    // Options without a question are a template, for situ.evaluate and the like.
    if query == Query::default() {
        no_question();
    }
    query
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

/// What a question is compared and hashed by: what it prints, so that equal questions print alike.
fn printed(query: &Query) -> String {
    serde_json::to_string(query).unwrap_or_default()
}

/// `situ.query = situ.query`.
#[pg_extern(immutable, strict, parallel_safe, sql = false)]
fn query_eq(left: Query, right: Query) -> bool {
    printed(&left) == printed(&right)
}

/// `situ.query <> situ.query`.
#[pg_extern(immutable, strict, parallel_safe, sql = false)]
fn query_ne(left: Query, right: Query) -> bool {
    printed(&left) != printed(&right)
}

/// `situ.query < situ.query`: an order for sorting, without a meaning.
#[pg_extern(immutable, strict, parallel_safe, sql = false)]
fn query_lt(left: Query, right: Query) -> bool {
    printed(&left) < printed(&right)
}

/// `situ.query <= situ.query`.
#[pg_extern(immutable, strict, parallel_safe, sql = false)]
fn query_le(left: Query, right: Query) -> bool {
    printed(&left) <= printed(&right)
}

/// `situ.query > situ.query`.
#[pg_extern(immutable, strict, parallel_safe, sql = false)]
fn query_gt(left: Query, right: Query) -> bool {
    printed(&left) > printed(&right)
}

/// `situ.query >= situ.query`.
#[pg_extern(immutable, strict, parallel_safe, sql = false)]
fn query_ge(left: Query, right: Query) -> bool {
    printed(&left) >= printed(&right)
}

/// Support function of the B-tree operator class.
#[pg_extern(immutable, strict, parallel_safe, sql = false)]
fn query_cmp(left: Query, right: Query) -> i32 {
    printed(&left).cmp(&printed(&right)) as i32
}

/// Support function of the hash operator class.
#[pg_extern(immutable, strict, parallel_safe, sql = false)]
fn query_hash(query: Query) -> i32 {
    body_hash(&printed(&query)) as i32
}
