//! The encoder service: a launcher, an encoder worker for each device, and a queue in shared memory between the
//! backends of all databases and the worker.
//!
//! | file | owns |
//! |---|---|
//! | `shared` | the layout of the shared memory, slots and their ownership rules |
//! | `channel` | a backend's slot: send, wait, resend, release |
//! | `slot_alloc` | which slot a call gets |
//! | `call` | a call: its slots, one a device where it has much to send, and what goes to which |
//! | `client` | lists of items and texts |
//! | `documents` | streams of documents |
//! | `model_ref` | a registered model, as calls name it |
//! | `sent` | texts as they are sent |
//! | `token_features` | tokens, token states and vocabulary weights |
//! | `error` | why a call failed |
//! | `launcher` | keeps the worker alive |
//! | `worker_loop` | the main thread of a worker, encoder's and LLM's: rings in, rings out |
//! | `worker` | the encoder worker: its threads, what it does with requests |
//! | `process` | what a worker's main thread waits with |
//!
//! What the worker does between its rings is [`crate::serve`].

mod call;
pub mod channel;
pub mod client;
pub mod documents;
mod error;
pub mod launcher;
pub mod model_ref;
pub mod process;
mod sent;
pub mod shared;
mod slot_alloc;
pub mod token_features;
pub mod worker;
pub mod worker_loop;

pub use crate::serve::ipc::failure::{Failure, Kind};
pub use crate::serve::ipc::wire::{Item, Lane, Passage, Reply, Report};
pub use error::ServiceError;

pub use client::{ask, ask_each, chunk_document, embed, embed_query, encode, situate_chunks, situate_document};
pub use documents::{Documents, SituatedPassage};
pub use model_ref::{ModelKind, ModelRef};
