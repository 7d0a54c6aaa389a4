//! Tests that run inside a server: compiled into the library with the feature `pg_test`, called one by one by
//! `tests/in_server.rs`, each in a transaction of its own that is rolled back.
//!
//! A test is a function `test_...` below `#[pg_extern(sql = false)]`, without arguments and result. It is for what
//! cannot be seen through SQL: pages, datums, memory. What a client can see is tested in `tests/cluster/`.

mod cache;
mod datums;
mod lexsem;
mod pages;
mod scans;
mod service;
mod waiting;
