//! The backend's end of the encoder service.
use super::{Item, Lane, Reply, ServiceError};
use crate::bridge::situate::SituateOptions;
use crate::model::Role;
use crate::text::Span;

/// A registered model, as the registry has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelRef {
    pub name: String,
    /// Directory, relative to `situ.model_dir`.
    pub path: String,
    /// Content hash of the model's files; the worker serves nothing else under this name.
    pub fingerprint: String,
    /// Numbers in a vector.
    pub dimensions: usize,
}

/// A passage of a document and its vector.
#[derive(Clone, Debug, PartialEq)]
pub struct SituatedPassage {
    /// Position in the document, from 0.
    pub ordinal: u32,
    /// Bytes of the whole body.
    pub span: Span,
    pub tokens: u32,
    pub vector: Vec<f32>,
}

/// Takes the replies of [`encode`]: item number (from 0, in the order of the items) and reply.
pub type ReplySink<'a> = &'a mut dyn FnMut(usize, Reply) -> Result<(), ServiceError>;

/// Sends a list of items and takes the replies, in any order. Keeps a bounded number of items in flight.
/// Reacts to a cancel within milliseconds: the server's error is raised, the slot is freed.
pub fn encode(
    _model: &ModelRef,
    _lane: Lane,
    _items: &mut dyn Iterator<Item = Item>,
    _sink: ReplySink<'_>,
) -> Result<(), ServiceError> {
    todo!()
}

/// The vector of a query, on the query lane.
pub fn embed_query(_model: &ModelRef, _text: &str) -> Result<Vec<f32>, ServiceError> {
    todo!()
}

/// One vector a text, in order; on the query lane where there is one text, else on the bulk lane.
pub fn embed(_model: &ModelRef, _role: Role, _texts: &[String]) -> Result<Vec<Vec<f32>>, ServiceError> {
    todo!()
}

/// The passages of one document, in order.
pub fn situate_document(
    _model: &ModelRef,
    _lane: Lane,
    _title: Option<&str>,
    _body: &str,
    _options: &SituateOptions,
) -> Result<Vec<SituatedPassage>, ServiceError> {
    todo!()
}

/// Takes the documents of [`Documents`] as they complete: the key they were pushed with, and their passages in order.
pub type PassageSink<'a> = &'a mut dyn FnMut(u64, Vec<SituatedPassage>) -> Result<(), ServiceError>;

/// Many documents through the service at once, a bounded number in flight (256 items, 4 MB of text). Documents
/// complete in any order. Dropped early, what is in flight is forgotten.
pub struct Documents {}

impl Documents {
    /// Waits for a slot of the queue (cancellable) and holds it until drop.
    pub fn open(_model: &ModelRef, _lane: Lane, _options: &SituateOptions) -> Result<Documents, ServiceError> {
        todo!()
    }

    /// Sends a document; waits, and gives completed documents to the sink, while too much is in flight.
    pub fn push(
        &mut self,
        _key: u64,
        _title: Option<&str>,
        _body: &str,
        _sink: PassageSink<'_>,
    ) -> Result<(), ServiceError> {
        todo!()
    }

    /// Waits until everything pushed so far has gone to the sink.
    pub fn flush(&mut self, _sink: PassageSink<'_>) -> Result<(), ServiceError> {
        todo!()
    }
}
