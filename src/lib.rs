//! situ: retrieval inside PostgreSQL.
//!
//! The rooms and the walls between them are described in `docs/ARCHITECTURE.md`. Only `pg` knows that there is
//! a server around; everything else builds and is tested without one (`--no-default-features`).

pub mod bridge;
pub mod compute;
pub mod eval;
pub mod index;
pub mod model;
pub mod text;

pub mod pg;
