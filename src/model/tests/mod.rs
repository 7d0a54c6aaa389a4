//! Tests of the module `model`: the real model against candle's forward pass, and small made-up models for the rest.

mod accuracy;
mod adapters;
mod charsmap;
pub(crate) mod families;
mod forward;
mod gpu;
mod long;
mod made_up;
pub(crate) mod maker;
mod memory;
mod mlm;
mod newer_files;
mod reference;
mod similarity;
mod text_feedback;
mod tokens;

use crate::fixtures::minilm;
