//! Many documents through the service at once, and the passages that come back.

use super::call::Call;
use super::model_ref::ModelRef;
use super::sent::{place_of, title_of};
use super::{Item, Lane, Reply, ServiceError};
use crate::bridge::situate::SituateOptions;
use crate::compute::memory::reserve;
use crate::serve::ipc::wire::Passage;
use crate::text::{self, Segment, Span};
use std::collections::HashMap;

/// Most bytes of a piece that is sent as one item.
const SEGMENT: usize = 32 << 10;
/// Documents that may be incomplete at a time.
const MOST_DOCUMENTS: usize = 4096;

/// Takes the documents of [`Documents`] as they complete: the key they were pushed with, and their passages in order.
pub type PassageSink<'a> = &'a mut dyn FnMut(u64, Vec<SituatedPassage>) -> Result<(), ServiceError>;

struct Document {
    key: u64,
    /// Start of each piece in the body, and its passages once they came.
    parts: Vec<(u32, Option<Vec<Passage>>)>,
    missing: usize,
}

/// Many documents through the service, a bounded number of items in flight (256 items, 4 MB). Documents complete in any
/// order. Dropped early, what is in flight is forgotten.
pub struct Documents {
    call: Call,
    model: ModelRef,
    options: SituateOptions,
    next: u64,
    /// Document and part of each item in flight.
    items: HashMap<u64, (u64, usize)>,
    documents: HashMap<u64, Document>,
    next_document: u64,
}

/// The pieces of a body.
pub(super) fn segments(body: &str) -> Result<Vec<Segment>, ServiceError> {
    if u32::try_from(body.len()).is_err() {
        return Err(ServiceError::TooLarge { bytes: body.len() });
    }
    Ok(text::segments(body, SEGMENT))
}

/// Passages of consecutive pieces as passages of the body. Gets the start of each piece and its passages.
pub(super) fn number(parts: impl Iterator<Item = (u32, Vec<Passage>)>) -> Result<Vec<SituatedPassage>, ServiceError> {
    let mut numbered: Vec<SituatedPassage> = Vec::new();
    for (start, passages) in parts {
        reserve(&mut numbered, passages.len())?;
        for passage in passages {
            numbered.push(SituatedPassage {
                ordinal: numbered.len() as u32,
                span: Span {
                    start: start + passage.span.start,
                    end: start + passage.span.end,
                },
                tokens: passage.tokens,
                vector: passage.vector,
            });
        }
    }
    Ok(numbered)
}

impl Documents {
    /// Waits for a slot of the queue (cancellable) and holds it until drop.
    pub fn open(model: &ModelRef, lane: Lane, options: &SituateOptions) -> Result<Documents, ServiceError> {
        Ok(Documents {
            call: Call::open(model, lane)?,
            model: model.clone(),
            options: options.clone(),
            next: 0,
            items: HashMap::new(),
            documents: HashMap::new(),
            next_document: 0,
        })
    }

    /// Sends a document; waits, and gives completed documents to the sink, while too much is in flight.
    pub fn push(
        &mut self,
        key: u64,
        title: Option<&str>,
        body: &str,
        sink: PassageSink<'_>,
    ) -> Result<(), ServiceError> {
        let segments = segments(body)?;
        if segments.is_empty() {
            return sink(key, Vec::new());
        }
        let document = self.next_document;
        self.next_document += 1;
        self.documents.insert(
            document,
            Document {
                key,
                parts: segments.iter().map(|segment| (segment.span.start, None)).collect(),
                missing: segments.len(),
            },
        );
        for (part, segment) in segments.into_iter().enumerate() {
            while !self.call.has_room() || self.documents.len() > MOST_DOCUMENTS {
                self.take_or_wait(sink)?;
            }
            self.items.insert(self.next, (document, part));
            let text = segment.span.of(body).unwrap_or_default().to_owned();
            let item = Item::Situate {
                title: title_of(title),
                place: place_of(&segment.place),
                text,
                options: self.options.clone(),
                chunks: Vec::new(),
            };
            self.call.send(self.next, item)?;
            self.next += 1;
        }
        while self.take(sink)? {}
        Ok(())
    }

    /// Waits until everything pushed so far has gone to the sink.
    pub fn flush(&mut self, sink: PassageSink<'_>) -> Result<(), ServiceError> {
        while self.call.in_flight() > 0 {
            self.take_or_wait(sink)?;
        }
        Ok(())
    }

    fn take_or_wait(&mut self, sink: PassageSink<'_>) -> Result<(), ServiceError> {
        if !self.take(sink)? {
            self.call.wait()?;
        }
        Ok(())
    }

    /// Takes one answer that is there; false without one.
    fn take(&mut self, sink: PassageSink<'_>) -> Result<bool, ServiceError> {
        let Some((number, reply)) = self.call.poll()? else {
            return Ok(false);
        };
        let lost = || ServiceError::Protocol(format!("unexpected reply to item {number}"));
        let Reply::Passages(passages) = reply else {
            return Err(lost());
        };
        passages
            .iter()
            .try_for_each(|passage| self.model.check(&passage.vector))?;
        let (at, part) = self.items.remove(&number).ok_or_else(lost)?;
        let document = self.documents.get_mut(&at).ok_or_else(lost)?;
        document.parts.get_mut(part).ok_or_else(lost)?.1 = Some(passages);
        document.missing -= 1;
        if document.missing == 0
            && let Some(document) = self.documents.remove(&at)
        {
            let parts = document.parts.into_iter();
            let passages = number_parts(parts)?;
            sink(document.key, passages)?;
        }
        Ok(true)
    }
}

fn number_parts(
    parts: impl Iterator<Item = (u32, Option<Vec<Passage>>)>,
) -> Result<Vec<SituatedPassage>, ServiceError> {
    number(parts.map(|(start, passages)| (start, passages.unwrap_or_default())))
}

/// A passage of a document and its vector.
#[derive(Clone, Debug, PartialEq)]
pub struct SituatedPassage {
    /// Position in the document, from 0.
    pub ordinal: u32,
    /// Bytes of the whole body.
    pub span: Span,
    pub tokens: u32,
    /// Empty from [`chunk_document`].
    pub vector: Vec<f32>,
}
