//! What an index asks of vectors: distances, scans of codes, the nearest centroid, random rotations.

pub mod distance;
pub mod fastscan;
pub mod nearest_centroid;
pub mod rotation;
