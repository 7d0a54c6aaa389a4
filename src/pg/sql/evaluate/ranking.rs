//! Running many queries against an index, and the documents that each one finds.

use super::relations::{Asked, Judgements, judge};
use crate::eval::report::Ranked;
use crate::model::Role;
use crate::pg::error::OrRaise;
use crate::pg::search::index_search::{Want, model_of};
use crate::pg::search::query::Query;
use crate::pg::service;
use crate::pg::sql::search::nearest;
use pgrx::pg_sys;
use std::collections::HashSet;
use std::time::Instant;

/// Questions encoded in one request.
const BATCH: usize = 256;
/// Most rows that are read to find enough documents, where several rows are one document.
const MOST_ROWS: usize = 20_000;

/// What one query found.
pub struct Answer {
    /// Documents, best first, each once.
    pub documents: Vec<(String, f64)>,
    /// Milliseconds of the search, without encoding the question.
    pub milliseconds: f64,
}

/// The answers to `asked` in their order, `depth` documents each, named by the column `key`. Questions without a
/// vector are encoded together before the first search, which changes no bit of their vectors.
pub fn answers(index: pg_sys::Oid, asked: &[Asked], options: &Query, depth: usize, key: &str) -> Vec<Answer> {
    let want = Want::column(key);
    let model = model_of(index, options);
    let mut answers = Vec::with_capacity(asked.len());
    for batch in asked.chunks(BATCH) {
        let missing: Vec<String> = batch
            .iter()
            .filter(|asked| asked.embedding.is_none())
            .map(|asked| asked.text.clone())
            .collect();
        let mut encoded = match &model {
            Some(model) if !missing.is_empty() => service::embed(model, Role::Query, &missing).or_raise(),
            _ => Vec::new(),
        }
        .into_iter();
        for asked in batch {
            pgrx::check_for_interrupts!();
            let embedding = asked.embedding.clone().or_else(|| encoded.next());
            let query = options.asking(asked.text.clone(), embedding);
            let started = Instant::now();
            let documents = documents(index, &query, depth, &want);
            answers.push(Answer {
                documents,
                milliseconds: started.elapsed().as_secs_f64() * 1e3,
            });
        }
    }
    answers
}

/// The `depth` nearest documents: rows with the same key are one, at the place of the nearest.
fn documents(index: pg_sys::Oid, query: &Query, depth: usize, want: &Want) -> Vec<(String, f64)> {
    let mut rows = depth;
    loop {
        let found = nearest(index, query, rows, want);
        let all = found.len() < rows;
        let mut seen = HashSet::new();
        let mut documents: Vec<(String, f64)> = Vec::with_capacity(depth.min(1024));
        for row in found {
            if let Some(key) = row.text.filter(|key| seen.insert(key.clone())) {
                documents.push((key, row.score));
            }
        }
        if all || documents.len() >= depth || rows >= MOST_ROWS {
            documents.truncate(depth);
            return documents;
        }
        rows = (rows * 4).min(MOST_ROWS);
    }
}

/// The answers as lists of grades.
pub fn judged(asked: &[Asked], answers: &[Answer], judgements: &Judgements) -> Vec<Ranked> {
    let lists = asked.iter().zip(answers).map(|(asked, answer)| {
        let judged = judgements.get(&asked.id);
        judged.map_or_else(Ranked::default, |judged| {
            judge(answer.documents.iter().map(|(document, _)| document), judged)
        })
    });
    lists.collect()
}
