//! The access method without Postgres: inverted lists over 1-bit codes with exact re-rank, on 8 kB pages.
//!
//! [`Build`] makes an index, [`insert`] adds a row, [`Scan`] answers a query, [`bulk_delete`] and [`cleanup`] serve
//! vacuum, [`Meta`] says what an index is. All reach their pages through [`store::PageStore`] alone.
#![forbid(unsafe_code)]

mod build;
mod calibrate;
mod candidates;
mod decide;
mod exhaustive;
mod feedback_round;
mod insert;
mod kmeans;
mod lists;
mod memory_limit;
mod memory_store;
mod meta;
mod ordered;
mod page;
mod rabitq;
mod recall;
mod scan;
mod spool;
pub mod store;
mod types;
mod vacuum;
mod vector;
mod write;

pub use build::Build;
pub use decide::decide;
pub use feedback_round::RankedRow;
pub use insert::{insert, insert_from};
pub use memory_store::MemoryStore;
pub use meta::{Meta, write_undecided};
pub use ordered::{Ordered, Rounding};
pub use page::{init_page, new_page};
pub use recall::{Effort, TARGETS};
pub use scan::Scan;
pub use spool::{Spool, SpoolFactory, memory_spool};
pub use types::{BuildStats, Element, Entry, Hit, IndexOptions, Metric, Phase, Progress, ScanParams, Tid, VacuumStats};
pub use vacuum::{bulk_delete, cleanup, count};

/// What can go wrong inside the index.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The statement was cancelled: the server's own error is raised at the wall.
    #[error("cancelled")]
    Cancelled,
    /// A page does not hold what its place in the index promises.
    #[error("index page {block} is corrupted: {what}")]
    Corrupted { block: store::Block, what: String },
    /// The index was written by a version whose format this version cannot read.
    #[error("index format {found} is not supported (this version reads {supported})")]
    Format { found: u32, supported: u32 },
    /// A vector of the wrong number of dimensions.
    #[error("expected {expected} dimensions, not {found}")]
    Dimensions { expected: usize, found: usize },
    /// NaN or infinity in a vector.
    #[error("vector holds NaN or infinity")]
    NotFinite,
    /// More memory would be needed than the caller allowed.
    #[error("needs {needed} kB of memory, {allowed} kB allowed: {what}")]
    Memory {
        needed: usize,
        allowed: usize,
        what: String,
    },
    /// The system has no more memory for this process.
    #[error("out of memory: {bytes} more bytes were asked for")]
    OutOfMemory { bytes: usize },
    /// The store failed.
    #[error("{0}")]
    Store(String),
}

#[cfg(test)]
mod tests;
