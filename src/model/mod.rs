//! Model directories: manifest, tokenizer, weights, forward pass.
