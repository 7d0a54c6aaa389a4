//! From an item to the sequences that have to be run for it, and from their vectors to its reply.

use super::models::Model;
use crate::bridge::lexsem::{readings, weigh};
use crate::bridge::situate::{self, Plan};
use crate::compute::Pool;
use crate::compute::memory::{spare, with_room};
use crate::model::{Encoder, ModelError, Read, Role, Sequence, calibrate};
use crate::serve::ipc::failure::{Failure, Kind};
use crate::serve::ipc::wire::{Item, Passage, Reply, Report};
use crate::text::{self, Place};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// Texts of the calibration set that a warm-up runs.
const WARM_TEXTS: usize = 16;

/// What has to be encoded for an item.
pub enum Planned {
    One(Sequence),
    Document(Plan),
    /// A sequence with the ids of those tokens whose states are read.
    States(Sequence, Vec<u32>),
    /// A sequence whose first token's state is read, and the weights that are wanted.
    Vocabulary(Sequence, usize),
    /// Sequences whose vectors nobody wants.
    Warm(Vec<Sequence>),
}

impl Planned {
    pub fn sequences(&self) -> &[Sequence] {
        match self {
            Planned::One(sequence) | Planned::States(sequence, _) | Planned::Vocabulary(sequence, _) => {
                std::slice::from_ref(sequence)
            }
            Planned::Document(plan) => &plan.sequences,
            Planned::Warm(sequences) => sequences,
        }
    }

    /// Tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.sequences().iter().map(cost).sum()
    }
}

/// What a sequence costs: its tokens.
pub fn cost(sequence: &Sequence) -> usize {
    sequence.ids.len().max(1)
}

/// What has to be encoded for an item, or its answer where nothing has to be.
pub fn plan(encoder: &Encoder, item: &Item) -> Result<Planned, Reply> {
    if let Err(error) = spare() {
        return Err(Reply::Failed(error.into()));
    }
    let planned = guarded(|| match item {
        Item::Embed { role, text } => Ok(Ok(Planned::One(encoder.text(*role, text)?))),
        Item::Situate { .. } => plan_document(encoder, item),
        Item::Chunks {
            place,
            text,
            chunk_tokens,
        } => Ok(Err(chunks(encoder, place, text, *chunk_tokens as usize)?)),
        Item::Tokens { texts, continues } => Ok(Err(tokens(encoder, texts, *continues)?)),
        Item::States { text } => plan_states(encoder, text),
        Item::FirstState { text } => {
            let sequence = first_state(encoder, text)?;
            let first = sequence.ids.first().copied();
            Ok(Ok(Planned::States(sequence, first.into_iter().collect())))
        }
        Item::Vocabulary { text, most } => {
            let sequence = first_state(encoder, text)?;
            Ok(Ok(Planned::Vocabulary(sequence, *most as usize)))
        }
        Item::Feedback {
            query,
            passages,
            passage_tokens,
        } => {
            let passages: Vec<&str> = passages.iter().map(String::as_str).collect();
            let sequence = encoder.feedback(query, &passages, *passage_tokens as usize)?;
            Ok(Ok(Planned::One(sequence)))
        }
        Item::Warm => Ok(Ok(Planned::Warm(calibrate::sequences(encoder, WARM_TEXTS)?))),
        Item::Calibrate { .. } | Item::Unload => Err(Failure::new(Kind::Internal, "an item that has no plan")),
    });
    match planned {
        Ok(Ok(planned)) if planned.sequences().is_empty() => Err(Reply::Failed(Failure::new(
            Kind::Internal,
            "an item without a sequence",
        ))),
        Ok(planned) => planned,
        Err(failure) => Err(Reply::Failed(failure)),
    }
}

/// What has to be encoded, or the answer where nothing has to be.
type PlannedOrReply = Result<Result<Planned, Reply>, Failure>;

/// Passages of a document in their place.
fn plan_document(encoder: &Encoder, item: &Item) -> PlannedOrReply {
    let Item::Situate {
        title,
        place,
        text,
        options,
        chunks,
    } = item
    else {
        return Err(Failure::new(Kind::Internal, "an item that is no document"));
    };
    let title = title.as_deref();
    let plan = match chunks.is_empty() {
        true => situate::plan(encoder, title, place, text, options),
        false => situate::plan_chunks(encoder, title, text, chunks, options),
    };
    let plan = plan.map_err(|error| Failure::from(&error))?;
    Ok(match plan.sequences.is_empty() {
        true => Err(Reply::Passages(Vec::new())),
        false => Ok(Planned::Document(plan)),
    })
}

/// Passages without vectors.
fn chunks(encoder: &Encoder, place: &Place, text: &str, chunk_tokens: usize) -> Result<Reply, Failure> {
    let tokens = encoder.tokenize(text)?;
    let chunks = text::chunks(text, place, chunk_tokens, &tokens.spans);
    let passages = chunks.into_iter().map(|chunk| Passage {
        span: chunk.span,
        tokens: chunk.tokens,
        vector: Vec::new(),
    });
    Ok(Reply::Passages(passages.collect()))
}

/// The ids of texts, of which the first may continue what is before it.
fn tokens(encoder: &Encoder, texts: &[String], continues: bool) -> Result<Reply, Failure> {
    let ids = texts.iter().enumerate().map(|(number, text)| {
        let behind = continues && number == 0;
        let tokens = if behind {
            encoder.tokenize_behind(text)
        } else {
            encoder.tokenize(text)
        };
        Ok(tokens?.ids)
    });
    let ids: Result<Vec<_>, ModelError> = ids.collect();
    Ok(Reply::Tokens(ids?))
}

/// The states of a text's tokens.
fn plan_states(encoder: &Encoder, text: &str) -> PlannedOrReply {
    let planned = readings::sequence(encoder, text);
    let (sequence, ids) = planned.map_err(|error| Failure::from(&error))?;
    Ok(match ids.is_empty() {
        true => Err(Reply::States {
            ids,
            values: Vec::new(),
        }),
        false => Ok(Planned::States(sequence, ids)),
    })
}

/// The sequence of a query of which the first token's state is read.
fn first_state(encoder: &Encoder, text: &str) -> Result<Sequence, ModelError> {
    let mut sequence = encoder.text(Role::Query, text)?;
    sequence.read = Read::States(std::iter::once(0..1).collect());
    Ok(sequence)
}

/// The reply to an item, from the vectors of its sequences in order. `since` its arrival and its first batch.
pub fn finish(planned: Planned, model: &Model, vectors: Vec<Vec<Vec<f32>>>, since: [Duration; 2]) -> Reply {
    let mut flat = vectors.into_iter().flatten();
    match planned {
        Planned::One(_) => match flat.next() {
            Some(vector) => Reply::Vector(vector),
            None => Reply::Failed(Failure::new(Kind::Internal, "the model gave no vector")),
        },
        Planned::States(_, ids) => {
            let states: Vec<Vec<f32>> = flat.collect();
            match with_room(states.iter().map(Vec::len).sum()) {
                Ok(mut values) => {
                    states.iter().for_each(|state| values.extend_from_slice(state));
                    Reply::States { ids, values }
                }
                Err(error) => Reply::Failed(error.into()),
            }
        }
        Planned::Vocabulary(_, most) => {
            let state = flat.next().unwrap_or_default();
            let weights = guarded(|| match model.encoder.vocabulary_logits(&Pool::new(1)?, &state)? {
                Some(logits) => Ok(weigh::clr(&logits, most)),
                None => Err(
                    Failure::new(Kind::Argument, "the model has no masked-language-model head")
                        .hint("Register a BertForMaskedLM whose weights hold cls.predictions.*."),
                ),
            });
            weights.map_or_else(Reply::Failed, Reply::Vocabulary)
        }
        Planned::Document(plan) => {
            let vectors: Vec<Vec<f32>> = flat.collect();
            match guarded(|| situate::finish(plan, &vectors).map_err(|error| Failure::from(&error))) {
                Ok(chunks) => {
                    let passages = chunks.into_iter().map(|chunk| Passage {
                        span: chunk.span,
                        tokens: chunk.tokens,
                        vector: chunk.vector,
                    });
                    Reply::Passages(passages.collect())
                }
                Err(failure) => Reply::Failed(failure),
            }
        }
        Planned::Warm(sequences) => {
            let tokens: usize = sequences.iter().map(cost).sum();
            Reply::Report(Report::Warmed {
                seconds: since[0].as_secs_f64(),
                bytes: model.bytes as u64,
                precision: model.key.precision,
                tokens_per_second: tokens as f64 / since[1].as_secs_f64().max(1e-9),
            })
        }
    }
}

impl From<crate::compute::ComputeError> for Failure {
    fn from(error: crate::compute::ComputeError) -> Failure {
        Failure::from(ModelError::from(error))
    }
}

impl From<ModelError> for Failure {
    fn from(error: ModelError) -> Failure {
        Failure::from(&error)
    }
}

/// Runs `body`; a panic in it becomes an error.
pub fn guarded<T>(body: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("unknown");
        Err(Failure::new(Kind::Internal, format!("the encoder panicked: {text}")))
    })
}
