//! Runs as rows and as text in TREC's format: `situ.search_batch`, `situ.read_run`, `situ.write_run` and the same for
//! judgements.

use super::ranking::answers;
use super::relations::{self, key_column, needed, needed_index};
use crate::eval::EvalError;
use crate::eval::trec::{self, Judgement, RunLine};
use crate::pg::error::{Describe, OrRaise};
use crate::pg::search::query::Query;
use crate::pg::sql::search::positive;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;
use pgrx::prelude::*;

impl Describe for EvalError {
    fn code(&self) -> PgSqlErrorCode {
        match self {
            EvalError::Task(_) => PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            EvalError::Twice { .. } => PgSqlErrorCode::ERRCODE_UNIQUE_VIOLATION,
            EvalError::Fields { .. } | EvalError::Number { .. } | EvalError::Blank(_) => {
                PgSqlErrorCode::ERRCODE_INVALID_TEXT_REPRESENTATION
            }
        }
    }
    fn hint(&self) -> Option<String> {
        Some(match self {
            EvalError::Task(_) => {
                "Use span16, span8 (or another length, span2 to span256), keyword or sentence.".into()
            }
            EvalError::Blank(_) => "Name documents and queries without white space in what is written.".into(),
            _ => "Fields are separated by white space, one document a line.".into(),
        })
    }
}

type Run = TableIterator<
    'static,
    (
        name!(query_id, String),
        name!(document_id, String),
        name!(rank, i64),
        name!(score, f64),
    ),
>;

/// `situ.search_batch(index, queries, options, k, key)`.
#[pg_extern(sql = false)]
fn search_batch(
    index: Option<pg_sys::Oid>,
    queries: Option<pg_sys::Oid>,
    query: Option<Query>,
    k: Option<i64>,
    key: Option<&str>,
) -> Run {
    let index = needed_index(index);
    let depth = positive("k", k.unwrap_or(100));
    let key = key_column(index, key);
    let asked = relations::queries(needed("queries", queries));
    let answers = answers(index, &asked, &query.unwrap_or_default(), depth, &key);
    let mut rows = Vec::new();
    for (asked, answer) in asked.iter().zip(answers) {
        for (place, (document, score)) in answer.documents.into_iter().enumerate() {
            rows.push((asked.id.clone(), document, place as i64 + 1, score));
        }
    }
    TableIterator::new(rows)
}

type RunLines = TableIterator<
    'static,
    (
        name!(query_id, String),
        name!(document_id, String),
        name!(rank, i64),
        name!(score, f64),
        name!(tag, String),
    ),
>;

/// `situ.read_run(text)`.
#[pg_extern(sql = false)]
fn read_run(text: &str) -> RunLines {
    let lines = trec::read_run(text).or_raise().into_iter();
    let rows: Vec<_> = lines
        .map(|line| (line.query, line.document, line.rank, line.score, line.tag))
        .collect();
    TableIterator::new(rows)
}

type Judgements = TableIterator<'static, (name!(query_id, String), name!(document_id, String), name!(grade, f64))>;

/// `situ.read_qrels(text)`.
#[pg_extern(sql = false)]
fn read_qrels(text: &str) -> Judgements {
    let lines = trec::read_qrels(text).or_raise().into_iter();
    let rows: Vec<_> = lines.map(|line| (line.query, line.document, line.grade)).collect();
    TableIterator::new(rows)
}

/// `situ.write_run(query_id, document_id, rank, score, tag)`: one line.
#[pg_extern(sql = false)]
fn write_run(query_id: &str, document_id: &str, rank: i64, score: f64, tag: &str) -> String {
    let line = RunLine {
        query: query_id.to_owned(),
        document: document_id.to_owned(),
        rank,
        score,
        tag: tag.to_owned(),
    };
    trec::write_run_line(&line).or_raise()
}

/// `situ.write_qrels(query_id, document_id, grade)`: one line.
#[pg_extern(sql = false)]
fn write_qrels(query_id: &str, document_id: &str, grade: f64) -> String {
    let line = Judgement {
        query: query_id.to_owned(),
        document: document_id.to_owned(),
        grade,
    };
    trec::write_qrels_line(&line).or_raise()
}
