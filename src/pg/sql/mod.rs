//! SQL-callable functions, by topic.
pub mod bridges;
pub mod control_service;
pub mod encode;
pub mod evaluate;
pub mod feedback;
pub mod gates;
pub mod leaf;
pub mod lexsem;
pub mod models;
pub mod profiles;
pub mod query;
pub mod search;
pub mod stat_index;
pub mod stat_service;
pub mod train;
