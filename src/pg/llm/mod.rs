//! The LLM worker: one process that holds LLMs and answers for the backends of all databases, several at a time.
//!
//! It is built like the encoder service, from the same rings, slots, channel and launcher (`pg/service`), with a queue
//! of its own, so that a long answer never delays an embedding.
//!
//! | file | owns |
//! |---|---|
//! | `client` | a backend's end: ask, take tokens |
//! | `worker` | the worker's main thread: rings in, rings out |
//! | `target` | who answers a prompt: an LLM of this server, or of the endpoint |
//!
//! What the worker does between its rings is `serve/llm`.

pub mod client;
pub mod target;
pub mod worker;
