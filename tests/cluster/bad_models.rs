//! Bad models.
