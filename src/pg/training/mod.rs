//! Training of bridges in a background worker of its own.
//!
//! `situ.train` files a job ([`jobs`]), commits, claims a place ([`places`]) and starts a worker ([`start`]). The
//! worker ([`worker`]) connects as the role that filed it, so privileges, row security and search path are the
//! caller's; it reads its rows in one transaction ([`material`], [`stored`]), trains outside of any, and writes
//! progress and checkpoints in short transactions ([`monitor`]). Requests to pause and to cancel are fields of the
//! job's row, which the worker looks at between steps; the statement that waits sends its own cancel as a signal,
//! because what it writes would be rolled back.

pub mod jobs;
pub mod material;
pub mod monitor;
pub mod places;
pub mod run;
mod service;
pub mod start;
mod stored;
mod worker;
