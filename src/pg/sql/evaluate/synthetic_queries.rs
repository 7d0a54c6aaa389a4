//! `situ.make_queries`: questions made from the documents of a text index.
//!
//! The table is read twice as the caller: once for the keys and, where the task weighs words, the words of every
//! document; then the documents that were drawn. Memory holds the keys, the vocabulary and one batch of documents.

use super::relations::{key_column, needed_index};
use crate::eval::tasks::{Cut, Frequencies, Task, make, white_space_words};
use crate::pg::am::kind::KeyKind;
use crate::pg::catalog::names::qualified;
use crate::pg::catalog::names::table_of;
use crate::pg::catalog::names::{leaves, name_of};
use crate::pg::catalog::read;
use crate::pg::ereport::fail_with_hint;
use crate::pg::error::OrRaise;
use crate::pg::search::index_search::kind_of;
use crate::pg::search::rows::Bodies;
use crate::pg::sql::search::positive;
use crate::random::Random;
use crate::text::sentences;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ops::Range;

/// Documents read in one statement.
const BATCH: i64 = 500;

/// How the documents of an index are read.
struct Source {
    index: pg_sys::Oid,
    /// Column that names them.
    key: String,
    /// `SELECT key, place FROM table ...` without its conditions.
    select: String,
}

impl Source {
    fn of(index: pg_sys::Oid, key: Option<&str>) -> Source {
        let text = leaves(index).first().map(|leaf| kind_of(*leaf));
        if text.is_some_and(|kind| kind != KeyKind::Text) {
            fail_with_hint(
                PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
                format!(
                    "index \"{}\" holds vectors: there is no text to make queries of",
                    name_of(index)
                ),
                "Name an index made with CREATE INDEX ... USING situ over a text column.",
            );
        }
        let key = pgrx::spi::quote_identifier(key_column(index, key));
        let select = format!(
            "SELECT ({key})::pg_catalog.text, {} FROM {}",
            Bodies::PLACE,
            qualified(table_of(index))
        );
        Source { index, key, select }
    }

    /// Reads the documents that `condition` chooses with the keys of its parameter, batch by batch.
    fn each(&self, condition: &str, keys: Option<Vec<String>>, mut take: impl FnMut(String, Option<String>)) {
        let statement = format!("{} {condition}", self.select);
        let arguments = keys.map(|keys| vec![keys.into()]).unwrap_or_default();
        let mut bodies = Bodies::of(self.index);
        read::batches(&statement, &arguments, BATCH, |row| {
            if let Some(key) = row.get::<String>(1) {
                take(key, bodies.read(row, 2).and_then(|[body, _]| body));
            }
        });
        bodies.close();
    }
}

fn sentence_ranges(text: &str) -> Vec<Range<usize>> {
    let spans = sentences(text).into_iter();
    spans.map(|span| span.start as usize..span.end as usize).collect()
}

type Made = TableIterator<'static, (name!(id, String), name!(text, String), name!(document_id, String))>;

/// The part of each document that questions are taken from.
fn part_of(from: Option<f64>, to: Option<f64>) -> Range<f64> {
    let part = from.unwrap_or(0.0)..to.unwrap_or(1.0);
    if !(0.0 <= part.start && part.start < part.end && part.end <= 1.0) {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!(
                "part_from = {} and part_to = {} are no part of a text",
                part.start, part.end
            ),
            "They are shares of each document's words, 0 <= part_from < part_to <= 1.",
        );
    }
    part
}

/// The keys of all documents with a body, in an order of their own, and what a task has to know of all bodies.
fn corpus(source: &Source, task: Task) -> (Vec<String>, Frequencies) {
    let mut frequencies = Frequencies::default();
    let mut keys = Vec::new();
    source.each("", None, |key, body| {
        if let Some(body) = body {
            if task == Task::Keyword {
                frequencies.add(&body);
            }
            keys.push(key);
        }
    });
    // The order in which rows lie must not matter.
    keys.sort_unstable();
    keys.dedup();
    (keys, frequencies)
}

/// `situ.make_queries(index, kind, n, seed, key, part_from, part_to)`.
#[pg_extern(sql = false)]
pub fn make_queries(
    index: Option<pg_sys::Oid>,
    kind: Option<&str>,
    n: Option<i64>,
    seed: Option<i64>,
    key: Option<&str>,
    part_from: Option<f64>,
    part_to: Option<f64>,
) -> Made {
    let kind = kind.unwrap_or("span16");
    let task: Task = kind.parse().or_raise();
    let wanted = positive("n", n.unwrap_or(200));
    let part = part_of(part_from, part_to);
    let source = Source::of(needed_index(index), key);
    let (mut keys, frequencies) = corpus(&source, task);
    let mut random = Random::new(seed.unwrap_or_default() as u64);
    random.shuffle(&mut keys);
    let cut = Cut {
        words: &white_space_words,
        sentences: &sentence_ranges,
    };
    let mut questions: Vec<(String, String)> = Vec::new();
    let condition = format!("WHERE ({})::pg_catalog.text = ANY ($1)", source.key);
    for batch in keys.chunks(BATCH as usize) {
        pgrx::check_for_interrupts!();
        if questions.len() >= wanted {
            break;
        }
        let mut documents = std::collections::HashMap::new();
        source.each(&condition, Some(batch.to_vec()), |key, body| {
            if let Some(body) = body {
                documents.entry(key).or_insert(body);
            }
        });
        for key in batch {
            let body = documents.get(key).map_or("", String::as_str);
            // A sequence of its own for each document: others do not change its question.
            let question = make(
                task,
                body,
                part.clone(),
                &cut,
                &frequencies,
                &mut Random::new(random.bits()),
            );
            questions.extend(question.map(|question| (key.clone(), question)));
        }
    }
    questions.truncate(wanted);
    let rows = questions.into_iter().enumerate();
    let rows: Vec<_> = rows
        .map(|(place, (document, text))| (format!("{kind}-{}", place + 1), text, document))
        .collect();
    TableIterator::new(rows)
}
