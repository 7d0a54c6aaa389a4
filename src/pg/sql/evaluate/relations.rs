//! What the caller's relations hold: queries, judgements, runs, and the key that names a document.
//!
//! Everything is read as the caller, under the statement's snapshot. Identifiers of any type are compared as text.

use crate::eval::report::Ranked;
use crate::eval::trec::{RunLine, rankings};
use crate::pg::catalog::columns::has_column;
use crate::pg::catalog::names::name_of;
use crate::pg::catalog::names::qualified;
pub use crate::pg::catalog::names::table_of;
use crate::pg::catalog::read;
use crate::pg::ereport::{fail, fail_full, fail_with_hint};
use crate::pg::search::named::{Over, index_of};
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;
use std::collections::{HashMap, HashSet};

/// One question of a relation of queries.
pub struct Asked {
    pub id: String,
    pub text: String,
    /// Its vector, where the relation has a column `embedding`.
    pub embedding: Option<Vec<f32>>,
}

/// Grades of the judged documents of each query.
pub type Judgements = HashMap<String, HashMap<String, f64>>;

/// The value of an argument that must not be NULL.
pub fn needed<T>(name: &str, value: Option<T>) -> T {
    match value {
        Some(value) => value,
        None => fail(
            PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
            format!("{name} must not be NULL"),
        ),
    }
}

/// Fails unless a relation has the columns that its use needs.
fn need_columns(relation: pg_sys::Oid, columns: &[&str], layout: &'static str) {
    if let Some(missing) = columns.iter().find(|column| !has_column(relation, column)) {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN,
            format!("relation \"{}\" has no column \"{missing}\"", name_of(relation)),
            layout,
        );
    }
}

/// The queries of a relation with columns `id`, `text` and perhaps `embedding`, in the order of their ids.
pub fn queries(relation: pg_sys::Oid) -> Vec<Asked> {
    let layout = "Queries are a table or view with the columns (id, text), and embedding where the vectors are there.";
    need_columns(relation, &["id", "text"], layout);
    let embedding = match has_column(relation, "embedding") {
        true => "embedding::pg_catalog.float4[]",
        false => "NULL::pg_catalog.float4[]",
    };
    let statement = format!(
        "SELECT id::pg_catalog.text, text::pg_catalog.text, {embedding} FROM {}",
        qualified(relation)
    );
    let mut found: Vec<Asked> = Vec::new();
    read::each(&statement, &[], |row| {
        if let (Some(id), Some(text)) = (row.get(1), row.get(2)) {
            let embedding = row.get::<Vec<f32>>(3);
            found.push(Asked { id, text, embedding });
        }
    });
    found.sort_by(|a, b| a.id.cmp(&b.id));
    let mut seen = HashSet::new();
    if let Some(twice) = found.iter().find(|asked| !seen.insert(asked.id.as_str())) {
        fail(
            PgSqlErrorCode::ERRCODE_UNIQUE_VIOLATION,
            format!("query \"{}\" stands twice in \"{}\"", twice.id, name_of(relation)),
        );
    }
    found
}

/// The judgements of a relation with columns `query_id`, `document_id` and perhaps `grade` (1 without).
pub fn qrels(relation: pg_sys::Oid) -> Judgements {
    let layout = "Judgements are a table or view with the columns (query_id, document_id, grade).";
    need_columns(relation, &["query_id", "document_id"], layout);
    let grade = match has_column(relation, "grade") {
        true => "grade::pg_catalog.float8",
        false => "1::pg_catalog.float8",
    };
    let statement = format!(
        "SELECT query_id::pg_catalog.text, document_id::pg_catalog.text, {grade} FROM {}",
        qualified(relation)
    );
    let mut found = Judgements::new();
    read::each(&statement, &[], |row| {
        if let (Some(query), Some(document), Some(grade)) = (row.get(1), row.get(2), row.get::<f64>(3)) {
            let judged = found.entry(query).or_default();
            let kept = judged.entry(document).or_insert(grade);
            *kept = kept.max(grade);
        }
    });
    found
}

/// The ranked documents of each query of a relation with columns `query_id`, `document_id` and `score`.
pub fn run(relation: pg_sys::Oid) -> HashMap<String, Vec<String>> {
    let layout =
        "A run is a table or view with the columns (query_id, document_id, score), as situ.search_batch returns it.";
    need_columns(relation, &["query_id", "document_id", "score"], layout);
    let statement = format!(
        "SELECT query_id::pg_catalog.text, document_id::pg_catalog.text, score::pg_catalog.float8 FROM {}",
        qualified(relation)
    );
    let mut lines: Vec<RunLine> = Vec::new();
    read::each(&statement, &[], |row| {
        if let (Some(query), Some(document), Some(score)) = (row.get(1), row.get(2), row.get::<f64>(3)) {
            lines.push(RunLine {
                query,
                document,
                rank: 0,
                score,
                tag: String::new(),
            });
        }
    });
    let ranked = rankings(lines).into_iter();
    ranked
        .map(|(query, documents)| (query, once(documents.into_iter().map(|(document, _)| document))))
        .collect()
}

/// Documents at their best place only.
pub fn once(documents: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = HashSet::new();
    documents.filter(|document| seen.insert(document.clone())).collect()
}

/// What a ranking of documents got.
pub fn judge<'a>(documents: impl Iterator<Item = &'a String>, judged: &HashMap<String, f64>) -> Ranked {
    Ranked {
        grades: documents
            .map(|document| judged.get(document).copied().unwrap_or_default())
            .collect(),
        judged: judged.values().copied().collect(),
    }
}

/// The queries that have a relevant document.
pub fn with_relevant(mut asked: Vec<Asked>, judgements: &Judgements) -> Vec<Asked> {
    let relevant = |judged: &HashMap<String, f64>| judged.values().any(|grade| *grade > 0.0);
    asked.retain(|asked| judgements.get(&asked.id).is_some_and(relevant));
    if asked.is_empty() {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_NO_DATA,
            "no query has a relevant document".into(),
            "Judgements name queries by query_id and documents by the key of the indexed table, with a grade above 0.",
        );
    }
    asked
}

/// The index that an argument names: itself, or by its table.
pub fn needed_index(index: Option<pg_sys::Oid>) -> pg_sys::Oid {
    index_of(needed("index", index), Over::Any, None)
}

/// The column that names the documents of an index: the one that was given, or the table's primary key.
pub fn key_column(index: pg_sys::Oid, named: Option<&str>) -> String {
    let table = table_of(index);
    if let Some(named) = named {
        need_columns(
            table,
            &[named],
            "key is the column whose values the judgements name as document_id.",
        );
        return named.to_owned();
    }
    let statement = "SELECT a.attname::pg_catalog.text FROM pg_catalog.pg_index i \
                     JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) i.indrelid \
                          AND a.attnum OPERATOR(pg_catalog.=) ANY (i.indkey) \
                     WHERE i.indrelid OPERATOR(pg_catalog.=) $1 AND i.indisprimary";
    let columns: Vec<String> = read::column(statement, &[table.into()]);
    match <[String; 1]>::try_from(columns) {
        Ok([column]) => column,
        Err(columns) => fail_full(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("which column names the documents of \"{}\"?", name_of(table)),
            match columns.len() {
                0 => "The table has no primary key.".into(),
                _ => "The primary key of the table has several columns.".into(),
            },
            "Name the column: key => 'id'.".into(),
        ),
    }
}
