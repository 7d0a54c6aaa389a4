//! Training of bridges: what trainers are given, and what they share.
pub mod adam;
pub mod data;
pub mod drawn;
pub mod judged;
pub mod loss;
pub mod matrix;
pub mod parts;
