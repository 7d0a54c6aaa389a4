//! Training of bridges: what trainers are given, and what they share.
pub mod acceptance;
pub mod adam;
pub mod data;
pub mod early_stopping;
pub(in crate::bridge) mod eigen;
pub mod encode;
pub mod loss;
pub mod matrix;
pub mod passages;
pub mod run;
pub mod sample;
pub mod split;
pub mod synthetic;
pub mod whiten;
