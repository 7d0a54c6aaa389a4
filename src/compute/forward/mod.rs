//! Whole forward passes on the processor.

pub mod bert;
pub mod calibrate;
pub mod pre_norm;
