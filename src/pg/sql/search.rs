//! `situ.search`: the nearest rows with their evidence, by an index over text or over vectors.
//!
//! An entry over text has a passage to show; one over vectors is its row, and says nothing of ordinals and passages.
//!
//! The question is text, a `situ.query` or a `vector`. A parameter without a type is text for the server, so text is never
//! taken for a vector: over vectors it is an error, unless a `situ.query` names the model that encodes it.

use crate::compute::memory::{append, room_for};
use crate::pg::am::kind;
use crate::pg::catalog::names::{leaves, table_of};
use crate::pg::ereport::fail_with_hint;
use crate::pg::error::OrRaise;
use crate::pg::search::index_search::{Found, Want, search_leaf};
use crate::pg::search::named::{Over, index_of};
use crate::pg::search::profiles;
use crate::pg::search::query::Query;
use crate::pg::search::second_round;
use crate::pg::vector::read_vector;
use pgrx::PgSqlErrorCode;
use pgrx::datum::AnyElement;
use pgrx::pg_sys;
use pgrx::prelude::*;

/// The k nearest rows of an index, or of all partitions of a partitioned one, nearest first.
pub fn nearest(index: pg_sys::Oid, query: &Query, k: usize, want: &Want) -> Vec<Found> {
    let leaves = leaves(index);
    let table = table_of(index);
    let query = second_round::second_round(profiles::resolve(query, index), &leaves, Some(table));
    let mut found: Vec<Found> = Vec::new();
    for leaf in leaves {
        let more = search_leaf(leaf, Some(table), &query, k, want);
        append(&mut found, more).or_raise();
    }
    // What the sort takes beside them.
    room_for(found.len() * size_of::<Found>()).or_raise();
    found.sort_by(|a, b| a.distance.total_cmp(&b.distance));
    found.truncate(k);
    found
}

/// A number of results that was asked for.
pub fn positive(name: &str, value: i64) -> usize {
    match usize::try_from(value).ok().filter(|&value| value > 0) {
        Some(value) => value,
        None => fail_with_hint(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("{name} must be positive, not {value}"),
            "It is a number of documents that come back.",
        ),
    }
}

type Passages = TableIterator<
    'static,
    (
        name!(relation, pg_sys::Oid),
        name!(ctid, pg_sys::ItemPointerData),
        name!(key, Option<String>),
        name!(ordinal, Option<i32>),
        name!(start_byte, Option<i32>),
        name!(end_byte, Option<i32>),
        name!(start_char, Option<i32>),
        name!(end_char, Option<i32>),
        name!(passage, Option<String>),
        name!(distance, f64),
        name!(score, f64),
    ),
>;

fn search_index(index: pg_sys::Oid, query: &Query, k: i64, column: Option<&str>) -> Passages {
    let over = match &query.text {
        Some(_) => Over::Text,
        None => Over::Vectors,
    };
    let found = nearest(index_of(index, over, column), query, positive("k", k), &Want::EVIDENCE);
    TableIterator::new(found.into_iter().map(|row| {
        (
            row.relation,
            kind::unpack_tid(row.tid),
            row.key,
            row.place.map(|(ordinal, _)| ordinal as i32),
            row.place.map(|(_, span)| span.start as i32),
            row.place.map(|(_, span)| span.end as i32),
            row.characters.map(|span| span.start as i32),
            row.characters.map(|span| span.end as i32),
            row.text,
            row.distance,
            row.score,
        )
    }))
}

/// What a search needs; no rows where one of it is NULL.
fn search_given(
    index: Option<pg_sys::Oid>,
    query: Option<Query>,
    k: Option<i64>,
    column_name: Option<&str>,
) -> Passages {
    match (index, query, k) {
        (Some(index), Some(query), Some(k)) => search_index(index, &query, k, column_name),
        _ => TableIterator::new(Vec::new()),
    }
}

/// `situ.search(index, text, k, column_name)`.
#[pg_extern(sql = false)]
fn search_text(index: Option<pg_sys::Oid>, query: Option<&str>, k: Option<i64>, column_name: Option<&str>) -> Passages {
    let query = query.map(|text| Query::from_text(text.to_owned()));
    search_given(index, query, k, column_name)
}

/// `situ.search(index, situ.query, k, column_name)`.
#[pg_extern(sql = false)]
fn search_query(
    index: Option<pg_sys::Oid>,
    query: Option<Query>,
    k: Option<i64>,
    column_name: Option<&str>,
) -> Passages {
    search_given(index, query, k, column_name)
}

/// `situ.search(index, vector, k, column_name)`.
#[pg_extern(sql = false)]
fn search_vector(
    index: Option<pg_sys::Oid>,
    query: Option<AnyElement>,
    k: Option<i64>,
    column_name: Option<&str>,
) -> Passages {
    // SAFETY: the function is declared with a vector here.
    let vector = query.map(|query| unsafe { read_vector(query.datum()) }.or_raise());
    search_given(index, vector.map(Query::from_vector), k, column_name)
}
