//! Made models (see `real.rs` for the published one).
