//! SQL-callable functions, by topic.
pub mod models;
