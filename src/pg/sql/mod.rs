//! SQL-callable functions, by topic.
pub mod control_service;
pub mod encode;
pub mod models;
pub mod query;
pub mod search;
pub mod stat_index;
pub mod stat_service;
