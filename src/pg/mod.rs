//! The part that knows Postgres: the only room that may import pgrx.
//!
//! Without the feature `pg` only the parts of the service that need no server are compiled, for their tests.

pub mod llm;
pub mod service;

#[cfg(feature = "pg")]
pub mod am;
#[cfg(feature = "pg")]
pub mod bridges;
#[cfg(feature = "pg")]
mod copies;
#[cfg(feature = "pg")]
pub mod error;
#[cfg(feature = "pg")]
pub mod fail;
#[cfg(feature = "pg")]
pub mod lexsem;
#[cfg(feature = "pg")]
pub mod owner;
#[cfg(feature = "pg")]
pub mod read;
#[cfg(feature = "pg")]
pub mod settings;
#[cfg(feature = "pg")]
pub mod situated;
#[cfg(feature = "pg")]
pub mod sql;
#[cfg(feature = "pg")]
pub mod store;
#[cfg(feature = "pg")]
pub mod text_feedback;
#[cfg(feature = "pg")]
pub mod training;
#[cfg(feature = "pg")]
pub mod vector;
#[cfg(feature = "pg")]
pub mod version;
#[cfg(feature = "pg")]
pub mod xrag;

#[cfg(all(feature = "pg", feature = "pg_test"))]
#[path = "../../pgrx-tests/mod.rs"]
mod in_server;

/// Called when the library is loaded: by the postmaster (preload) or by a backend on first use.
#[cfg(feature = "pg")]
pub fn init() {
    forget_backtraces();
    // SAFETY: a flag of the server, read in the only thread.
    let preload = unsafe { pgrx::pg_sys::process_shared_preload_libraries_in_progress };
    settings::define(preload);
    am::define();
    if preload {
        service::shared::request();
        training::places::request();
        service::launcher::register();
    }
    settings::reserve();
}

/// Takes the variables that ask for backtraces out of the environment. With one of them in the environment of the server, every
/// error would carry the addresses and names of the library's functions to the client, in DETAIL.
#[cfg(feature = "pg")]
fn forget_backtraces() {
    for variable in ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"] {
        // SAFETY: while the library is loaded its process has one thread.
        unsafe { std::env::remove_var(variable) };
    }
}
