//! Black-box tests: whole servers with the extension installed, seen as their clients see them.
//!
//! One program, so that tests without special needs share one cluster ([`support::shared`]), each in a database of
//! its own. Tests that kill, fill or reconfigure a server take a cluster of their own.

#[path = "../support/mod.rs"]
mod support;

// Small random models, made as the unit tests make theirs.
#[allow(dead_code)]
#[path = "../../src/model/tests/families.rs"]
mod families;
#[allow(dead_code)]
#[path = "../../src/model/tests/maker.rs"]
mod maker;

mod bad_input;
mod bad_models;
mod bridges;
mod case_models;
mod case_scripts;
mod cases;
mod clients;
mod concurrency;
mod counts;
mod crash;
mod data;
mod devices;
mod docs;
mod drop_model;
mod dump;
mod endpoint;
mod evaluate;
mod failed_builds;
mod feedback;
mod full_disk;
mod generate;
mod harness;
mod install;
mod lexsem;
mod library;
mod lifecycle;
mod limits;
mod load;
mod memory_caps;
mod operator;
mod order;
mod ownership;
mod precision;
mod privileges;
mod profiles;
mod reference;
mod residual;
mod rows_of_search;
mod service;
mod service_cancel;
mod service_control;
mod service_share;
mod similarity;
mod situate;
mod statistics;
mod surface;
mod text;
mod text_changes;
mod text_feedback;
mod train;
mod train_control;
mod undecided;
mod vectors;
mod waiting;
mod xrag;
