//! The encoder service: a launcher, an encoder worker for each device, and a queue in shared memory between the
//! backends of all databases and the worker.
//!
//! | file | owns |
//! |---|---|
//! | `ring` | a byte ring with one producer and one consumer |
//! | `wire` | messages and their bytes |
//! | `failure` | errors that cross the process border |
//! | `statistics` | counters and texts in shared memory |
//! | `shared` | the layout of the shared memory, slots and their ownership rules |
//! | `channel` | a backend's slot: send, wait, resend, release |
//! | `claim` | which slot a call gets |
//! | `line` | a call: its slots, one a device where it has much to send, and what goes to which |
//! | `client` | lists of items and texts |
//! | `documents` | streams of documents |
//! | `readings` | tokens, token states and vocabulary weights |
//! | `launcher` | keeps the worker alive |
//! | `worker` | the worker's main thread: rings in, rings out |
//! | `process` | what a worker's main thread waits with |
//! | `intake` | requests out of a ring, and streams that do not parse |
//! | `exchange` | items and answers between the main thread and the others |
//! | `device` | what workers run on |
//! | `desk` | where items wait in the worker, and their ways between its threads |
//! | `jobs` | their stages and queues |
//! | `schedule` | whose work goes next |
//! | `plan` | from an item to its sequences, and from vectors to its reply |
//! | `engine` | the compute thread, which runs batches, and the planner thread |
//! | `memory` | what is freed goes back to the system |
//! | `loader` | loading and calibrating beside the batches |
//! | `models` | the models that a worker has in memory |
//! | `threads` | threads that receive no signals |

pub mod desk;
pub mod device;
pub mod engine;
pub mod exchange;
pub mod failure;
pub mod intake;
pub mod jobs;
pub mod loader;
pub mod memory;
pub mod models;
pub mod plan;
pub mod ring;
pub mod schedule;
pub mod statistics;
pub mod threads;
pub mod wire;

#[cfg(test)]
mod tests;

#[cfg(feature = "pg")]
pub mod channel;
#[cfg(feature = "pg")]
mod claim;
#[cfg(feature = "pg")]
pub mod client;
#[cfg(feature = "pg")]
pub mod documents;
#[cfg(feature = "pg")]
pub mod launcher;
#[cfg(feature = "pg")]
mod line;
#[cfg(feature = "pg")]
pub mod process;
#[cfg(feature = "pg")]
pub mod readings;
#[cfg(feature = "pg")]
pub mod shared;
#[cfg(feature = "pg")]
pub mod worker;

pub use failure::{Failure, Kind};
pub use wire::{Item, Lane, Passage, Reply, Report};

#[cfg(feature = "pg")]
pub use client::{
    Documents, ModelKind, ModelRef, SituatedPassage, ask, ask_each, chunk_document, embed, embed_query, encode,
    situate_chunks, situate_document,
};

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The library was not in `shared_preload_libraries`: there is no queue.
    #[error("the situ encoder is not running: the library was not preloaded")]
    NotPreloaded,
    /// No worker could be started.
    #[error("the situ encoder worker does not start")]
    NoWorker { last_error: String },
    /// The worker ended twice while it had this request.
    #[error("the situ encoder worker ended twice while it had this request")]
    WorkerLost { last_error: String },
    /// The device does not work, and nothing may step in.
    #[error("the encoder's device {device} is lost")]
    DeviceLost { device: String, last_error: String },
    /// `situ.cancel_request` was called.
    #[error("the request to the encoder was cancelled by {by}")]
    Cancelled { by: String },
    /// `situ.request_timeout` ran out.
    #[error("the encoder did not answer within {milliseconds} ms")]
    Timeout { milliseconds: i32 },
    /// The model gives vectors of another size than its registration says.
    #[error("model \"{model}\" was registered with {expected} dimensions, its vectors have {found}")]
    Dimensions {
        model: String,
        expected: usize,
        found: usize,
    },
    /// The session has as many answers in progress as one may have.
    #[error("the session has {most} answers in progress, as many as one may have")]
    TooMany { most: usize },
    /// A text that cannot be sent.
    #[error("a text of {bytes} bytes cannot be encoded")]
    TooLarge { bytes: usize },
    /// A message that does not parse: a fault of ours.
    #[error("encoder protocol: {0}")]
    Protocol(String),
    /// The worker answered with an error.
    #[error(transparent)]
    Failed(#[from] Failure),
}
