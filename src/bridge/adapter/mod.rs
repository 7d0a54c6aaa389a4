//! The adapter: `q' = normalize(q + q M)`, a square matrix trained from zero on pairs of query and passage.
//!
//! The simplest trained bridge, and the control of every other. On the query side the index stays as it is; on the
//! passage side the same map is applied to every passage's vector when it is encoded, and queries stay as they are.
//! The file has one tensor: `map` (F32, dimensions x dimensions, a row an input); the metadata says the `side`.

mod fit;
mod options;
mod train;

pub use options::AdapterOptions;
pub use train::train;

use super::BridgeError;
use super::file::{self, Tensors};
use super::kind::BridgeKind;
use crate::compute::rowwise::pooling::normalize;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// This kind of bridge.
pub const KIND: BridgeKind = BridgeKind::Adapter;

/// Whose vectors are mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    #[default]
    Query,
    Passage,
}

impl Side {
    /// As options and files write it.
    pub const fn name(self) -> &'static str {
        match self {
            Side::Query => "query",
            Side::Passage => "passage",
        }
    }
}

/// A trained map.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    pub side: Side,
    /// Numbers of a vector.
    pub dimensions: usize,
    /// `M`, `dimensions` x `dimensions`, row-major by input.
    pub map: Vec<f32>,
}

impl Adapter {
    /// A map that changes nothing.
    pub fn identity(side: Side, dimensions: usize) -> Adapter {
        Adapter {
            side,
            dimensions,
            map: vec![0.0; dimensions * dimensions],
        }
    }

    /// The map that goes `strength` of the way: `x + strength x M`.
    pub fn weakened(mut self, strength: f32) -> Adapter {
        self.map.iter_mut().for_each(|m| *m *= strength);
        self
    }

    /// Reads a bridge's bytes.
    ///
    /// # Errors
    /// [`BridgeError::File`] for bytes that are no adapter.
    pub fn read(bytes: &[u8]) -> Result<Adapter, BridgeError> {
        let mut tensors = Tensors::read(bytes, KIND)?;
        let side = match tensors.description.metadata.get("side") {
            None => Side::default(),
            Some(side) => Side::deserialize(side).map_err(|error| BridgeError::File(format!("its side: {error}")))?,
        };
        let dimensions = tensors.description.dimensions;
        Ok(Adapter {
            side,
            dimensions,
            map: tensors.take("map", &[dimensions, dimensions])?,
        })
    }

    /// The bridge's bytes. `more` is added to the metadata.
    ///
    /// # Errors
    /// [`BridgeError::File`] where the map is not square.
    pub fn write(&self, more: Map<String, Value>) -> Result<Vec<u8>, BridgeError> {
        let mut more = more;
        more.insert("side".to_owned(), json!(self.side));
        let shape = vec![self.dimensions, self.dimensions];
        file::write(KIND, self.dimensions, more, &[("map", shape, &self.map)])
    }

    /// `normalize(x + x M)`, in place.
    ///
    /// # Errors
    /// [`BridgeError::Vectors`] for a vector of another length, [`BridgeError::NotFinite`] where it overflows.
    pub fn apply(&self, vector: &mut [f32]) -> Result<(), BridgeError> {
        if vector.len() != self.dimensions {
            return Err(BridgeError::Vectors {
                expected: self.dimensions,
                found: vector.len(),
            });
        }
        let mut mapped = vector.to_vec();
        for (x, row) in vector.iter().zip(self.map.chunks_exact(self.dimensions)) {
            mapped.iter_mut().zip(row).for_each(|(sum, m)| *sum += x * m);
        }
        normalize(&mut mapped);
        if !mapped.iter().all(|number| number.is_finite()) {
            return Err(BridgeError::NotFinite { what: "mapped vector" });
        }
        vector.copy_from_slice(&mapped);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
