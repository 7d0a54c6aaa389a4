//! LexSemBridge: a query's vector corrected by the words that stand in the query (arXiv 2508.17858).
//!
//! The passages and their index stay as they are. A query's tokens give a sparse vector of vocabulary weights `w`
//! ([`weigh`]), a table `W` (a row of `dimensions` numbers a token) turns it into `z = sum_t w_t W_t + b`, and [`fuse`]
//! joins `z` with the query's vector. `docs/LEXSEM.md` has the formulas and what was measured.

mod entries;
mod file;
pub mod fuse;
mod held_out;
mod options;
pub mod queries;
pub mod readings;
mod steps;
mod topics;
mod train;
pub mod weigh;

pub use entries::{Readings, entries};
pub use file::{Layout, read, write};
pub use fuse::Fusion;
pub use options::Options;
pub use train::train;

use super::BridgeError;
use super::train::whiten;
use crate::compute::rowwise::pooling::normalize;
use serde::{Deserialize, Serialize};

/// How a query's tokens become vocabulary weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    /// Ours: tokens weighted by their rarity ([`weigh::bag`]).
    Bag,
    /// Statistical, as the published code has it ([`weigh::slr`]).
    Slr,
    /// Statistical, as the paper has it ([`weigh::slr_paper`]).
    SlrPaper,
    /// Learned, as the published code has it ([`weigh::llr`]).
    Llr,
    /// Learned, as the paper has it ([`weigh::llr_paper`]).
    LlrPaper,
    /// Contextual: the vocabulary logits of a masked language model at its first token ([`weigh::clr`]).
    Clr,
}

impl Scheme {
    /// The names that users write.
    pub const NAMES: &'static str = "bag, slr, slr_paper, llr, llr_paper or clr";

    /// The scheme of that name.
    pub fn from_name(name: &str) -> Option<Scheme> {
        Some(match name {
            "bag" => Scheme::Bag,
            "slr" => Scheme::Slr,
            "slr_paper" => Scheme::SlrPaper,
            "llr" => Scheme::Llr,
            "llr_paper" => Scheme::LlrPaper,
            "clr" => Scheme::Clr,
            _ => return None,
        })
    }
}

/// A trained bridge, or one with nothing learned yet.
#[derive(Clone, Debug, PartialEq)]
pub struct LexSem {
    pub scheme: Scheme,
    pub fusion: Fusion,
    /// Numbers of a vector.
    pub dimensions: usize,
    /// `dimensions` x `dimensions`, row-major and symmetric: applied to the query's vector first ([`whiten`]).
    pub metric: Option<Vec<f32>>,
    /// `M`, `dimensions` x `dimensions`, row-major by input: `e + e M` is what the words' part is added to. With
    /// [`Fusion::Sum`] alone.
    pub map: Option<Vec<f32>>,
    /// `b`.
    pub bias: Vec<f32>,
    /// The tokens that have a row, ascending.
    pub tokens: Vec<u32>,
    /// Rarity of each of those tokens, 0 to 1; used by [`Scheme::Bag`].
    pub rarity: Vec<f32>,
    /// `W`: a row of `dimensions` numbers for each of `tokens`, in their order.
    pub rows: Vec<f32>,
    /// Parameters of the scheme.
    pub gate: Gate,
    /// How far a query's vector goes from what it is to what the bridge makes of it, above 0 to 1.
    pub strength: f32,
}

/// Parameters of a scheme's weights, beside `W` and `b`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gate {
    /// `s` of [`weigh::slr`].
    pub scale: f32,
    /// `u` of [`weigh::llr`], or `U` of [`weigh::llr_paper`]: a row of `dimensions` numbers for each of the bridge's
    /// tokens. Empty for the others.
    pub projection: Vec<f32>,
    /// `c` of [`weigh::llr`], or `b` of [`weigh::llr_paper`]: a number for each of the bridge's tokens.
    pub shift: Vec<f32>,
}

impl LexSem {
    /// A bridge that changes nothing: `W` and `b` are zero. `tokens` ascending, with the rarity of each.
    pub fn identity(scheme: Scheme, fusion: Fusion, dimensions: usize, tokens: Vec<u32>, rarity: Vec<f32>) -> LexSem {
        let gate = match scheme {
            Scheme::Slr => Gate {
                scale: 1.0,
                ..Gate::default()
            },
            Scheme::Llr => Gate {
                scale: 1.0,
                projection: vec![0.0; dimensions],
                shift: vec![1.0],
            },
            Scheme::LlrPaper => Gate {
                scale: 1.0,
                projection: vec![0.0; dimensions * tokens.len()],
                shift: vec![0.0; tokens.len()],
            },
            Scheme::Bag | Scheme::SlrPaper | Scheme::Clr => Gate {
                scale: 1.0,
                ..Gate::default()
            },
        };
        LexSem {
            scheme,
            fusion,
            dimensions,
            metric: None,
            map: None,
            bias: vec![0.0; dimensions],
            rows: vec![0.0; tokens.len() * dimensions],
            tokens,
            rarity,
            gate,
            strength: 1.0,
        }
    }

    /// Place of a token's row in `rows`, counted in rows.
    pub fn place(&self, token: u32) -> Option<usize> {
        self.tokens.binary_search(&token).ok()
    }

    /// The row at a place.
    pub fn row(&self, place: usize) -> &[f32] {
        let start = place.saturating_mul(self.dimensions);
        self.rows
            .get(start..start.saturating_add(self.dimensions))
            .unwrap_or_default()
    }

    /// The query's vector with the metric applied, of unit length; the vector itself without a metric.
    ///
    /// # Errors
    /// [`BridgeError::Vectors`] for a vector of another length.
    pub fn start(&self, vector: &[f32]) -> Result<Vec<f32>, BridgeError> {
        if vector.len() != self.dimensions {
            return Err(BridgeError::Vectors {
                expected: self.dimensions,
                found: vector.len(),
            });
        }
        Ok(match &self.metric {
            Some(metric) => whiten::apply(metric, vector),
            None => vector.to_vec(),
        })
    }

    /// `e + e M` of what [`LexSem::start`] gave; that itself without a map.
    fn mapped(&self, start: Vec<f32>) -> Vec<f32> {
        let Some(map) = &self.map else { return start };
        let mut mapped = start.clone();
        for (x, row) in start.iter().zip(map.chunks_exact(self.dimensions.max(1))) {
            mapped.iter_mut().zip(row).for_each(|(sum, m)| *sum += x * m);
        }
        mapped
    }

    /// The corrected vector, of unit length. `parts` are the rows in use, each with its weight: places and weights as
    /// [`entries`] gives them, rows as [`LexSem::row`] does (a caller may hold only those). Without anything learned
    /// this is `vector` to the last bit.
    ///
    /// # Errors
    /// [`BridgeError::Vectors`] for a vector or a row of another length; [`BridgeError::NotFinite`] where numbers
    /// overflow.
    pub fn apply<'a>(
        &self,
        vector: &[f32],
        parts: impl Iterator<Item = (&'a [f32], f32)>,
    ) -> Result<Vec<f32>, BridgeError> {
        let start = self.mapped(self.start(vector)?);
        let mut z = self.bias.clone();
        for (row, weight) in parts {
            if row.len() != self.dimensions {
                return Err(BridgeError::Vectors {
                    expected: self.dimensions,
                    found: row.len(),
                });
            }
            z.iter_mut().zip(row).for_each(|(sum, number)| *sum += weight * number);
        }
        let mut output = fuse::forward(self.fusion, &start, &z).output;
        if self.strength < 1.0 {
            let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
            let kept = (1.0 - self.strength) / length;
            let mixed = output.iter_mut().zip(vector);
            mixed.for_each(|(x, own)| *x = kept * own + self.strength * *x);
            normalize(&mut output);
        }
        match output.iter().all(|number| number.is_finite()) {
            true => Ok(output),
            false => Err(BridgeError::NotFinite { what: "lexsem vector" }),
        }
    }
}

/// `vector` with unit length.
#[cfg(test)]
pub(crate) fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    crate::compute::rowwise::pooling::normalize(&mut vector);
    vector
}

#[cfg(test)]
mod tests;
