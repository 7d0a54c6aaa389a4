//! What a training reads: passages and pairs of relations, as the caller, in one snapshot.
//!
//! Relations are read some rows at a time, and what does not fit `situ.training_memory` is left out while they are
//! read.

use super::service::Service;
use crate::bridge::train::data::{Pair, Passage};
use crate::bridge::train::passages::{Named, key_twice, nearest};
use crate::bridge::train::sample::{Bounds, COPIES, Sampler, passage_bytes};
use crate::compute::memory::spare;
use crate::pg::catalog::columns::has_column;
use crate::pg::catalog::names::qualified;
use crate::pg::ereport::{fail, fail_with_hint};
use crate::pg::error::OrRaise;
use pgrx::pg_sys;
use pgrx::prelude::*;
use pgrx::spi::{SpiError, SpiHeapTupleData};
use std::collections::HashMap;

fn spi<T>(result: Result<T, SpiError>) -> T {
    result.unwrap_or_else(|error| fail(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, error.to_string()))
}

pub fn bad(message: String, hint: &str) -> ! {
    fail_with_hint(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message, hint)
}

/// How many rows are read at a time. Their texts are in memory twice for a moment.
const ROWS: std::ffi::c_long = 64;

/// Rows of a statement, some at a time, each batch in a session of its own so that the server frees the one before.
pub(super) fn each_row(statement: &str, mut take: impl FnMut(&SpiHeapTupleData<'_>) -> Result<(), SpiError>) {
    let name = spi(Spi::connect(|client| {
        Ok(client.try_open_cursor(statement, &[])?.detach_into_name())
    }));
    let mut batch = || {
        Spi::connect(|client| {
            let mut cursor = client.find_cursor(&name)?;
            let table = cursor.fetch(ROWS)?;
            let more = !table.is_empty();
            for row in table {
                spare().or_raise();
                take(&row)?;
            }
            match more {
                // Otherwise it is closed here.
                true => drop(cursor.detach_into_name()),
                false => drop(cursor),
            }
            Ok::<bool, SpiError>(more)
        })
    };
    while spi(batch()) {
        pgrx::check_for_interrupts!();
    }
}

/// Rows of (key, document, ordinal, text), in the order of documents and ordinals, with the vectors of a column
/// `embedding` where there is one; and how many there are that were left out. Vectors of other than `dimensions`
/// numbers raise an error.
pub fn relation_passages(relation: pg_sys::Oid, dimensions: usize, bounds: Bounds) -> (Vec<Passage>, usize) {
    let vector = match has_column(relation, "embedding") {
        true => "embedding::pg_catalog.float4[]",
        false => "NULL::pg_catalog.float4[]",
    };
    let statement = format!(
        "SELECT id::pg_catalog.text, document::pg_catalog.text, body::pg_catalog.text, {vector} \
           FROM {} WHERE id IS NOT NULL AND document IS NOT NULL AND body IS NOT NULL ORDER BY document, ordinal, id",
        qualified(relation)
    );
    let mut sampler = Sampler::new(bounds);
    let (mut documents, mut last, mut next_ordinal) = (0, None, 0);
    let (mut rows, mut without) = (0, 0);
    each_row(&statement, |row| {
        let (key, document, text) = (row.get::<String>(1)?, row.get::<String>(2)?, row.get::<String>(3)?);
        let (Some(key), Some(document), Some(text)) = (key, document, text) else {
            return Ok(());
        };
        let vector = row.get::<Vec<f32>>(4)?;
        if let Some(found) = vector.as_ref().map(Vec::len)
            && found != dimensions
        {
            bad(
                format!("the embedding of passage \"{key}\" has {found} dimensions, the model's have {dimensions}"),
                "The column embedding holds vectors of the model, situ.situate's for instance.",
            )
        }
        rows += 1;
        without += usize::from(vector.is_none());
        if last.as_ref() != Some(&document) {
            (documents, next_ordinal, last) = (documents + 1, 0, Some(document));
        }
        let passage = Passage {
            key,
            document: documents - 1,
            ordinal: next_ordinal,
            text,
            vector,
        };
        next_ordinal += 1;
        let bytes = passage_bytes(&passage, dimensions);
        sampler.add(u64::from(passage.document), passage, bytes);
        Ok(())
    });
    if (1..rows).contains(&without) {
        bad(
            format!("{without} of {rows} passages have no embedding"),
            "Fill the column embedding of all rows, or leave it out: bodies are then encoded.",
        )
    }
    sampler.finish()
}

/// An error where two passages have one key, so that a pair would not say which is meant.
pub fn each_key_once(passages: &[Passage]) {
    if let Some(key) = key_twice(passages) {
        bad(
            format!("several passages have the key \"{key}\""),
            "A pair names one passage by its id.",
        )
    }
}

/// Rows of (query, passage), and of a column `answer` where there is one. A pair whose passage the caller cannot see is
/// left out. Where a row has several passages (`chunked`: an index's rows, and passages that were cut), the one nearest
/// to the query is meant. Of more pairs than fit, some are drawn; how many were left out for that comes second.
pub fn read_pairs(
    relation: pg_sys::Oid,
    passages: &[Passage],
    chunked: bool,
    service: &mut Service,
    bounds: Bounds,
) -> (Vec<Pair>, usize) {
    if !chunked {
        each_key_once(passages);
    }
    let mut places: HashMap<&str, Vec<u32>> = HashMap::new();
    for (place, passage) in passages.iter().enumerate() {
        places.entry(&passage.key).or_default().push(place as u32);
    }
    let answer = match has_column(relation, "answer") {
        true => "answer::pg_catalog.text",
        false => "NULL::pg_catalog.text",
    };
    let statement = format!(
        "SELECT query::pg_catalog.text, passage::pg_catalog.text, {answer} FROM {} ORDER BY 1, 2, 3",
        qualified(relation)
    );
    let vectors = COPIES * service.model.dimensions * size_of::<f32>();
    let (mut sampler, mut number) = (Sampler::new(bounds), 0);
    each_row(&statement, |row| {
        if let (Some(query), Some(key)) = (row.get::<String>(1)?, row.get::<String>(2)?)
            && let Some(passages) = places.get(key.as_str())
        {
            let pair = Named {
                query,
                passages: passages.clone(),
                answer: row.get::<String>(3)?,
            };
            let answer = pair.answer.as_ref().map_or(0, String::len);
            let bytes = size_of::<Named>() + pair.query.len() + 4 * pair.passages.len() + answer + vectors;
            sampler.add(number, pair, bytes);
            number += 1;
        }
        Ok(())
    });
    let (named, out) = sampler.finish();
    (nearest(named, passages, service).or_raise(), out)
}
