//! What is asked of a model on a GPU: a sequence, and the vectors that are read out of it.

/// Tokens of a sequence that become one vector, `start..end` (not empty).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub start: u32,
    pub end: u32,
    /// The largest number of each column instead of the mean.
    pub largest: bool,
    /// To unit length.
    pub unit: bool,
}

/// A sequence and what is read out of it.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    pub ids: &'a [u32],
    pub ranges: Vec<Range>,
}
