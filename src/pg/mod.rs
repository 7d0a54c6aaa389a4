//! The part that knows Postgres: the only room that may import pgrx.

pub mod am;
pub mod bridges;
pub mod catalog;
pub mod ereport;
pub mod error;
pub mod llm;
pub mod raw;
pub mod search;
pub mod service;
pub mod settings;
pub mod sql;
pub mod store;
pub mod training;
pub mod vector;
pub mod version;

#[cfg(feature = "pg_test")]
#[allow(clippy::unwrap_used, clippy::expect_used)]
#[path = "../../pgrx-tests/mod.rs"]
mod in_server;

/// Called when the library is loaded: by the postmaster (preload) or by a backend on first use.
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
fn forget_backtraces() {
    for variable in ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"] {
        // SAFETY: while the library is loaded its process has one thread.
        unsafe { std::env::remove_var(variable) };
    }
}
