//! The trained and untrained parts beside the frozen encoder.
