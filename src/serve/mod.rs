//! Encoder and LLM service without a server: queues and messages, scheduling, models in memory, endpoints elsewhere. The workers
//! of `pg/service` and `pg/llm` run it; nothing here names Postgres.

pub mod encoder;
pub mod endpoint;
pub mod fair_queue;
pub mod ipc;
pub mod llm;
