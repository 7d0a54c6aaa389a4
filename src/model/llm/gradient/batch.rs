//! What a pass is given, and what it gives.

/// What sequences begin with, read: keys, rotated already, and values of every layer.
pub struct Past {
    pub(super) rows: usize,
    /// For each layer rows of the keys, then the values, of all heads.
    pub(super) layers: Vec<Vec<f32>>,
}

impl Past {
    /// Positions that it has.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        self.layers.iter().map(|layer| layer.len() * size_of::<f32>()).sum()
    }
}

/// One of the sequences of a pass.
#[derive(Clone, Copy, Default)]
pub struct Sequence<'a> {
    /// Rows of the pass that it has.
    pub rows: usize,
    /// What it goes on from, and how many of its positions.
    pub past: Option<(&'a Past, usize)>,
}

impl Sequence<'_> {
    /// Positions that it goes on from.
    pub(super) fn before(&self) -> usize {
        self.past.map_or(0, |(_, rows)| rows)
    }
}

/// A position whose next token is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Row of the pass.
    pub row: usize,
    pub id: u32,
    /// Logarithms of the probabilities over the vocabulary that are to be met.
    pub teacher: Option<&'a [f32]>,
}

/// Sequences that run together.
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    /// Input vectors of all rows.
    pub vectors: &'a [f32],
    pub sequences: &'a [Sequence<'a>],
    pub targets: &'a [Target<'a>],
}

impl Batch<'_> {
    /// Positions of the longest sequence, with what it goes on from.
    pub(super) fn longest(&self) -> usize {
        let positions = self.sequences.iter().map(|sequence| sequence.before() + sequence.rows);
        positions.max().unwrap_or(0)
    }
}

/// What a pass gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loss {
    /// `-log p` of each target, in nats.
    pub nats: Vec<f32>,
    /// The divergence from the teacher of each target that has one, else 0.
    pub divergence: Vec<f32>,
}
