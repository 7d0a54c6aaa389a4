//! situ: retrieval inside PostgreSQL.
//!
//! The rooms and the walls between them are described in `docs/ARCHITECTURE.md`. Only `pg` knows that there is
//! a server around; everything else builds and is tested without one (`--no-default-features`).

// What a user, a file or a page can influence never panics, and every unsafe block says why it holds.
#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::undocumented_unsafe_blocks)
)]

pub mod bridge;
pub mod compute;
pub mod eval;
pub mod index;
pub mod model;
pub mod random;
pub mod serve;
pub mod text;

#[cfg(test)]
#[path = "../tests/support/fixtures.rs"]
mod fixtures;

#[cfg(feature = "pg")]
pub mod pg;

#[cfg(feature = "pg")]
pgrx::pg_module_magic!(name, version);

/// Called by the server when it loads the library.
#[cfg(feature = "pg")]
#[pgrx::pg_guard]
pub extern "C-unwind" fn _PG_init() {
    pg::init();
}
