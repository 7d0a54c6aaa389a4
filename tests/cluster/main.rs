//! Black-box tests: whole servers with the extension installed, seen as their clients see them.
//!
//! One program, so that tests without special needs share one cluster ([`support::shared`]), each in a database of
//! its own. Tests that kill, fill or reconfigure a server take a cluster of their own.

#[path = "../support/mod.rs"]
mod support;

mod harness;
