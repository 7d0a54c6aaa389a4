//! The documents of a text index as a training reads them: cut as the index cuts them, and where the bridge will meet
//! the index's own vectors, with those: situated as the index situates, title and headings before the chunk and all.
//!
//! Rows come through a cursor. No more documents are kept than fit into the training's memory, drawn by the seed; those
//! that are left out already are not encoded.

use super::material::bad;
use crate::bridge::train::data::Passage;
use crate::bridge::train::sample::{Bounds, Sampler, passage_bytes};
use crate::index::Meta;
use crate::pg::am::kind::KeyKind;
use crate::pg::am::text_index::TextIndex;
use crate::pg::catalog::names::name_of;
use crate::pg::catalog::names::qualified;
use crate::pg::catalog::names::table_of;
use crate::pg::catalog::read;
use crate::pg::error::OrRaise;
use crate::pg::search::index_search::kind_of;
use crate::pg::search::rows::Bodies;
use crate::pg::service::client;
use crate::pg::service::model_ref::ModelRef;
use crate::pg::service::{Documents, Lane, SituatedPassage};
use crate::pg::store::RelationStore;
use pgrx::pg_sys;
use std::collections::HashMap;

/// How many rows are read at a time.
const ROWS: i64 = 64;

/// What is read of an index.
pub struct Stored {
    pub model: ModelRef,
    pub passages: Vec<Passage>,
    /// Passages that were left out for memory.
    pub out: usize,
}

/// The documents that are kept so far.
struct Kept {
    sampler: Sampler<Passage>,
    dimensions: usize,
}

impl Kept {
    fn wants(&self, document: u32) -> bool {
        self.sampler.takes(u64::from(document))
    }

    fn add(&mut self, document: u32, passages: Vec<Passage>) {
        for passage in passages {
            let bytes = passage_bytes(&passage, self.dimensions);
            self.sampler.add(u64::from(document), passage, bytes);
        }
    }
}

/// A row that was sent to the encoder and has not come back.
struct Row {
    key: String,
    body: String,
}

impl Row {
    fn passages(self, document: u32, found: Vec<SituatedPassage>) -> Vec<Passage> {
        let one = |passage: SituatedPassage| Passage {
            key: self.key.clone(),
            document,
            ordinal: passage.ordinal,
            text: passage.span.of(&self.body).unwrap_or_default().to_owned(),
            vector: Some(passage.vector).filter(|vector| !vector.is_empty()),
        };
        found.into_iter().map(one).collect()
    }
}

/// Encodes documents as an index does.
struct Encoding<'a> {
    text: &'a TextIndex,
    documents: Documents,
    rows: HashMap<u64, Row>,
}

impl Encoding<'_> {
    fn push(&mut self, document: u32, title: Option<&str>, row: Row, kept: &mut Kept) {
        let Encoding { text, documents, rows } = self;
        let body = row.body.clone();
        rows.insert(u64::from(document), row);
        let mut sink = |key, passages| {
            done(text, rows, key, passages, kept);
            Ok(())
        };
        documents.push(u64::from(document), title, &body, &mut sink).or_raise();
    }

    fn flush(mut self, kept: &mut Kept) {
        let (text, rows) = (self.text, &mut self.rows);
        let mut sink = |key, passages| {
            done(text, rows, key, passages, kept);
            Ok(())
        };
        self.documents.flush(&mut sink).or_raise();
    }
}

fn done(text: &TextIndex, rows: &mut HashMap<u64, Row>, key: u64, mut passages: Vec<SituatedPassage>, kept: &mut Kept) {
    let Some(row) = rows.remove(&key) else { return };
    if let Some(bridge) = &text.bridge {
        bridge.apply(&mut passages);
    }
    let document = key as u32;
    kept.add(document, row.passages(document, passages));
}

/// What reads key and place of the rows of an index's table; the key is the row's first column.
fn statement(index: pg_sys::Oid) -> String {
    let table = table_of(index);
    let key = "SELECT pg_catalog.quote_ident(attname) FROM pg_catalog.pg_attribute \
                WHERE attrelid OPERATOR(pg_catalog.=) $1 AND attnum OPERATOR(pg_catalog.>) 0 AND NOT attisdropped \
                ORDER BY attnum LIMIT 1";
    let key = read::one::<String>(key, &[table.into()]).unwrap_or_default();
    format!(
        "SELECT ({key})::pg_catalog.text, {} FROM {}",
        Bodies::PLACE,
        qualified(table)
    )
}

/// The documents of a text index; a passage's key is the row's first column. `stored`: each passage comes with the
/// vector that the index holds for it; else the chunks alone, without vectors.
pub fn index_passages(index: pg_sys::Oid, stored: bool, bounds: Bounds) -> Stored {
    if kind_of(index) != KeyKind::Text {
        bad(
            format!("index \"{}\" is not over text", name_of(index)),
            "Give the passages as a relation: passages => 'relation'.",
        )
    }
    // SAFETY: opened and closed here; an error's abort releases the lock.
    let text = unsafe {
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let relation = pg_sys::index_open(index, lock);
        let meta = Meta::open(&RelationStore::new(relation)).or_raise();
        let text = TextIndex::open(relation, &meta);
        pg_sys::index_close(relation, lock);
        text
    };
    let mut kept = Kept {
        sampler: Sampler::new(bounds),
        dimensions: text.model.dimensions,
    };
    let situate = &text.record.situate;
    let mut encoding = stored.then(|| Encoding {
        text: &text,
        documents: Documents::open(&text.model, Lane::Bulk, situate).or_raise(),
        rows: HashMap::new(),
    });
    let mut document = 0;
    let mut bodies = Bodies::of(index);
    read::batches(&statement(index), &[], ROWS, |row| {
        let (Some(key), Some([Some(body), title])) = (row.get::<String>(1), bodies.read(row, 2)) else {
            return;
        };
        let row = Row { key, body };
        match &mut encoding {
            Some(encoding) if kept.wants(document) => encoding.push(document, title.as_deref(), row, &mut kept),
            _ => {
                // Without vectors, or only to count what is left out.
                let chunks = client::chunk_document(&text.model, Lane::Bulk, &row.body, situate.chunk_tokens);
                kept.add(document, row.passages(document, chunks.or_raise()));
            }
        }
        document += 1;
    });
    bodies.close();
    if let Some(encoding) = encoding {
        encoding.flush(&mut kept);
    }
    let (passages, out) = kept.sampler.finish();
    Stored {
        out,
        passages,
        model: text.model.clone(),
    }
}
