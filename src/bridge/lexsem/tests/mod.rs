//! Formulas against hand-computed numbers, gradients against finite differences, training on made-up languages.
mod formulas;
mod gradients;
mod training;
