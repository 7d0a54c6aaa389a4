//! LLMs elsewhere, behind OpenAI-compatible endpoints.

pub mod completions;
pub mod http;
pub mod key;
