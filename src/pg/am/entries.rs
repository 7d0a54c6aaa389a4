//! From a row of the table to the entries of an index, for builds and inserts alike.
//!
//! A vector is one entry. A document goes through the encoder and comes back, in any order, as one entry a passage.

use super::kind::{self, Key, KeyKind};
use crate::bridge::situate::SituateOptions;
use crate::index::Entry;
use crate::pg::bridges::passages::PassageBridge;
use crate::pg::error::OrRaise;
use crate::pg::service::{Documents, Lane, ModelRef, SituatedPassage};
use crate::text::Span;
use pgrx::pg_sys;
use std::collections::HashMap;
use std::rc::Rc;

/// One row's keys.
pub enum Row {
    Vector { vector: Vec<f32> },
    Document { title: Option<String>, body: String },
}

impl Row {
    /// Reads a row's index columns; none if its first key is NULL.
    ///
    /// # Safety
    /// `values` and `isnull` are the index columns of a row of an index with this key.
    pub unsafe fn read(key: Key, values: *mut pg_sys::Datum, isnull: *mut bool) -> Option<Row> {
        // SAFETY: the caller's promise.
        unsafe {
            if *isnull {
                return None;
            }
            if key.kind != KeyKind::Text {
                return Some(Row::Vector {
                    vector: kind::read_vector(key.kind, *values),
                });
            }
            let title = (key.title && !*isnull.add(1)).then(|| kind::read_text(*values.add(1)));
            Some(Row::Document {
                title,
                body: kind::read_text(*values),
            })
        }
    }
}

/// The entry of a row over vectors.
pub fn vector_entry(tid: u64, vector: &[f32]) -> Entry<'_> {
    Entry {
        tid,
        ordinal: 0,
        span: Span { start: 0, end: 0 },
        hash: 0,
        vector,
    }
}

/// A document whose passages have come back.
pub struct Encoded {
    /// What it was pushed as.
    pub key: u64,
    hash: u64,
    pub passages: Vec<SituatedPassage>,
}

impl Encoded {
    /// The entries of the document as the row at `tid`.
    pub fn entries(&self, tid: u64) -> impl Iterator<Item = Entry<'_>> {
        self.passages.iter().map(move |passage| Entry {
            tid,
            ordinal: passage.ordinal,
            span: passage.span,
            hash: self.hash,
            vector: &passage.vector,
        })
    }
}

/// Many documents on their way through the encoder.
pub struct DocumentEncoder {
    documents: Documents,
    /// What changes the passages.
    bridge: Option<Rc<PassageBridge>>,
    /// Body hashes of the documents on their way, by key.
    hashes: HashMap<u64, u64>,
}

impl DocumentEncoder {
    /// Waits for a slot of the service (cancellable) and holds it until drop.
    pub fn open(model: &ModelRef, options: &SituateOptions, bridge: Option<Rc<PassageBridge>>) -> DocumentEncoder {
        DocumentEncoder {
            documents: Documents::open(model, Lane::Bulk, options).or_raise(),
            bridge,
            hashes: HashMap::new(),
        }
    }

    /// Sends a document, whose key no other on its way has; gives back those that are complete.
    pub fn push(&mut self, key: u64, title: Option<&str>, body: &str) -> Vec<Encoded> {
        self.hashes.insert(key, kind::body_hash(body));
        let mut done = Vec::new();
        self.documents
            .push(key, title, body, &mut |key, passages| {
                done.push((key, passages));
                Ok(())
            })
            .or_raise();
        self.encoded(done)
    }

    /// Waits for all that are on their way.
    pub fn finish(&mut self) -> Vec<Encoded> {
        let mut done = Vec::new();
        self.documents
            .flush(&mut |key, passages| {
                done.push((key, passages));
                Ok(())
            })
            .or_raise();
        self.encoded(done)
    }

    fn encoded(&mut self, done: Vec<(u64, Vec<SituatedPassage>)>) -> Vec<Encoded> {
        let done = done.into_iter().map(|(key, mut passages)| {
            if let Some(bridge) = &self.bridge {
                bridge.apply(&mut passages);
            }
            Encoded {
                key,
                hash: self.hashes.remove(&key).unwrap_or_default(),
                passages,
            }
        });
        done.collect()
    }
}
