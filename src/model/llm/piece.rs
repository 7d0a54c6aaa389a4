//! What a prompt is made of.

/// A part of a prompt, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Text, which never becomes a special token.
    Text(String),
    /// Token ids, special ones among them.
    Tokens(Vec<u32>),
    /// Rows of hidden numbers that stand in the place of token embeddings, one position each.
    Vectors(Vec<Vec<f32>>),
}

impl Piece {
    /// Positions that it takes; 0 for a text, of which that is not known.
    pub fn positions(&self) -> usize {
        match self {
            Piece::Text(_) => 0,
            Piece::Tokens(ids) => ids.len(),
            Piece::Vectors(rows) => rows.len(),
        }
    }
}
