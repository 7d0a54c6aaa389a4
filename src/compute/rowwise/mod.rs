//! What works on each row by itself: norms, activations, gated units, pooling.

pub mod activation;
pub(super) mod glu;
pub(super) mod layer_norm;
pub(super) mod norm;
pub mod pooling;
pub(super) mod rms_norm;
