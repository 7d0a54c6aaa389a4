//! The trained bridge and the residual models: formulas, gradients, training, and the exact layout of sequences.
mod bridge;
mod fairytales;
mod residual;
mod training;
