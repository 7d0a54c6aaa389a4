//! The part that knows Postgres: the only room that may import pgrx.
//!
//! Without the feature `pg` only the parts of the service that need no server are compiled, for their tests.

pub mod service;

#[cfg(feature = "pg")]
pub mod am;
#[cfg(feature = "pg")]
pub mod error;
#[cfg(feature = "pg")]
pub mod fail;
#[cfg(feature = "pg")]
pub mod sql;
#[cfg(feature = "pg")]
pub mod store;
#[cfg(feature = "pg")]
pub mod vector;
