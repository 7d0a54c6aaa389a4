//! The LLM worker: one process that holds LLMs and answers for the backends of all databases, several at a time.
//!
//! It is built like the encoder service, from the same rings, slots, channel and launcher (`pg/service`), with a queue
//! of its own, so that a long answer never delays an embedding.
//!
//! | file | owns |
//! |---|---|
//! | `wire` | messages and their bytes |
//! | `client` | a backend's end: ask, take tokens |
//! | `worker` | the worker's main thread: rings in, rings out |
//! | `desk` | what goes between the worker's threads |
//! | `engine` | the thread that decodes, model by model |
//! | `planner` | the thread that makes prompts of what was asked |
//! | `pending` | which answer begins next |
//! | `runtime` | what runs an LLM |
//! | `target` | who answers a prompt: an LLM of this server, or of the endpoint |
//! | `endpoint` | answers of an OpenAI-compatible endpoint |
//! | `http` | a plain HTTP client |
//! | `key` | the key of the endpoint, from a file or the environment |
//! | `torch` | prompts as files of `torch.save` |
//! | `loaded` | one LLM in memory and the answers it works on |

pub mod desk;
pub mod endpoint;
pub mod engine;
pub mod http;
pub mod key;
pub mod loaded;
pub mod pending;
pub mod planner;
pub use crate::bridge::xrag::projector;
pub mod runtime;
pub mod torch;
pub mod wire;

#[cfg(feature = "pg")]
pub mod client;
#[cfg(feature = "pg")]
pub mod target;
#[cfg(feature = "pg")]
pub mod worker;
