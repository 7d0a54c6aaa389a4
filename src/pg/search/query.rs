//! The type `situ.query`: a question with options.

use crate::bridge::feedback::Options;
use crate::pg::bridges::registry;
use crate::pg::catalog::names::name_of;
use crate::pg::ereport::{fail_full, fail_with_hint};
use crate::pg::search::question::embed_question;
use crate::pg::service::model_ref::ModelRef;
use pgrx::PgSqlErrorCode;
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
    /// Share of the ten nearest rows to aim at; none = as the setting says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recall: Option<f32>,
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
            registry::apply_query(bridge, model, self.text.as_deref(), &vector)
        })
    }
}

impl InOutFuncs for Query {
    /// A JSON object with the options; any other text is the question itself. (`situ.query('a question')` with one
    /// plain literal is a cast to the type for the server, and comes here.)
    fn input(input: &CStr) -> Query {
        Query::read(&input.to_string_lossy())
    }

    fn output(&self, buffer: &mut pgrx::StringInfo) {
        buffer.push_str(&self.printed());
    }
}

impl Query {
    /// The query that a text stands for; see [`InOutFuncs::input`].
    pub fn read(text: &str) -> Query {
        if !text.trim_start().starts_with('{') {
            return Query::from_text(text.to_owned());
        }
        let query: Query = serde_json::from_str(text).unwrap_or_else(|error| {
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

    /// The query as JSON, an index by its name.
    pub fn printed(&self) -> String {
        // Serialising strings and numbers into memory does not fail.
        let Some(index) = self.index else {
            return serde_json::to_string(self).unwrap_or_default();
        };
        let mut printed = serde_json::to_value(self).unwrap_or_default();
        printed["index"] = name_of(index.into()).into();
        printed.to_string()
    }
}

/// The error of a query with nothing to search for.
pub fn no_question() -> ! {
    fail_with_hint(
        PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
        "a query needs a text or an embedding".into(),
        "Use situ.query('the question') or situ.query(embedding => '[...]').",
    )
}
