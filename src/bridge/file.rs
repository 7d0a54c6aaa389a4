//! A bridge as bytes: a safetensors file whose metadata entry `situ` is a JSON object with at least `kind` and
//! `dimensions`. This file owns that frame; what tensors a kind has is said where the kind is.

use super::BridgeError;
use super::kind::BridgeKind;
use crate::compute::memory::{collected, room_for, with_room};
use safetensors::tensor::{Metadata, TensorView};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// The entry of the file's metadata that is ours.
pub const METADATA: &str = "situ";
/// Most numbers of a vector that a bridge can be for.
const MOST_DIMENSIONS: u64 = 1 << 16;

/// What a file says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    pub kind: BridgeKind,
    /// Numbers of the vectors that it works on.
    pub dimensions: usize,
    /// The metadata's whole JSON object.
    pub metadata: Map<String, Value>,
}

fn corrupt(what: impl Into<String>) -> BridgeError {
    BridgeError::File(what.into())
}

/// SHA-256 of a bridge's bytes, in hexadecimal digits.
pub fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn describe_metadata(header: &Metadata) -> Result<Description, BridgeError> {
    let entry = header.metadata().as_ref().and_then(|entries| entries.get(METADATA));
    let metadata: Map<String, Value> = entry
        .and_then(|text| serde_json::from_str(text).ok())
        .ok_or_else(|| corrupt("it has no metadata of situ"))?;
    let kind = metadata.get("kind").and_then(Value::as_str).unwrap_or_default();
    let dimensions = metadata.get("dimensions").and_then(Value::as_u64);
    match dimensions.filter(|dimensions| (1..=MOST_DIMENSIONS).contains(dimensions)) {
        Some(dimensions) if !kind.is_empty() => Ok(Description {
            kind: BridgeKind::parse(kind).ok_or_else(|| corrupt(format!("kind \"{kind}\" is not known")))?,
            dimensions: dimensions as usize,
            metadata,
        }),
        _ => Err(corrupt("its metadata lacks kind or dimensions")),
    }
}

/// Reads what a file says of itself.
///
/// # Errors
/// [`BridgeError::File`] for bytes that are no safetensors file of ours.
pub fn describe(bytes: &[u8]) -> Result<Description, BridgeError> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| corrupt(error.to_string()))?;
    describe_metadata(&header)
}

/// Tensors in f32, by name, with their shapes.
#[derive(Debug)]
pub struct Tensors {
    pub description: Description,
    tensors: HashMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Tensors {
    /// Reads a file of f32 tensors. The kind must be `kind`.
    ///
    /// # Errors
    /// [`BridgeError::File`] for other kinds, cut files, other types, and numbers that are not finite.
    pub fn read(bytes: &[u8], kind: BridgeKind) -> Result<Tensors, BridgeError> {
        let description = describe(bytes)?;
        if description.kind != kind {
            return Err(corrupt(format!("it is of kind \"{}\", not {kind}", description.kind)));
        }
        let file = SafeTensors::deserialize(bytes).map_err(|error| corrupt(error.to_string()))?;
        let mut tensors = HashMap::new();
        for (name, view) in file.tensors() {
            if view.dtype() != Dtype::F32 {
                return Err(corrupt(format!("tensor \"{name}\" is not of type F32")));
            }
            let (fours, _) = view.data().as_chunks::<4>();
            let numbers: Vec<f32> = collected(fours.iter().map(|four| f32::from_le_bytes(*four)))?;
            if !numbers.iter().all(|number| number.is_finite()) {
                return Err(corrupt(format!("tensor \"{name}\" holds NaN or infinity")));
            }
            tensors.insert(name, (view.shape().to_vec(), numbers));
        }
        Ok(Tensors { description, tensors })
    }

    /// Takes out a tensor of exactly that shape.
    ///
    /// # Errors
    /// [`BridgeError::File`] where there is none.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, BridgeError> {
        match self.tensors.remove(name) {
            Some((found, numbers)) if found == shape => Ok(numbers),
            Some((found, _)) => Err(corrupt(format!("tensor \"{name}\" has shape {found:?}, not {shape:?}"))),
            None => Err(corrupt(format!("it has no tensor \"{name}\""))),
        }
    }

    /// All tensors that were not taken out: name, shape and numbers.
    pub fn into_all(self) -> impl Iterator<Item = (String, (Vec<usize>, Vec<f32>))> {
        self.tensors.into_iter()
    }

    /// Takes out a tensor of any shape, where there is one of that name.
    pub fn take_any(&mut self, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        self.tensors.remove(name)
    }
}

/// The bytes of a bridge of f32 tensors: (name, shape, numbers). `more` is added to the metadata's JSON object.
///
/// # Errors
/// [`BridgeError::File`] where a shape does not fit its numbers.
pub fn write(
    kind: BridgeKind,
    dimensions: usize,
    more: Map<String, Value>,
    tensors: &[(&str, Vec<usize>, &[f32])],
) -> Result<Vec<u8>, BridgeError> {
    let mut metadata = more;
    metadata.insert("kind".to_owned(), json!(kind.name()));
    metadata.insert("dimensions".to_owned(), json!(dimensions));
    let mut bytes = Vec::with_capacity(tensors.len());
    for (_, _, numbers) in tensors {
        bytes.push(little_endian(numbers)?);
    }
    // What the file's writer puts together.
    room_for(bytes.iter().map(Vec::len).sum())?;
    let mut views = Vec::with_capacity(tensors.len());
    for ((name, shape, _), bytes) in tensors.iter().zip(&bytes) {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(|error| corrupt(error.to_string()))?;
        views.push((*name, view));
    }
    let entry = HashMap::from([(METADATA.to_owned(), Value::Object(metadata).to_string())]);
    safetensors::serialize(views, Some(entry)).map_err(|error| corrupt(error.to_string()))
}

/// Numbers as their bytes.
pub fn little_endian(numbers: &[f32]) -> Result<Vec<u8>, BridgeError> {
    let mut bytes = with_room(size_of_val(numbers))?;
    numbers
        .iter()
        .for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
    Ok(bytes)
}

/// The same file with more entries in its metadata's JSON object.
///
/// # Errors
/// [`BridgeError::File`] for bytes that are no safetensors file of ours.
pub fn stamp(bytes: &[u8], more: Map<String, Value>) -> Result<Vec<u8>, BridgeError> {
    let mut metadata = describe(bytes)?.metadata;
    metadata.extend(more);
    room_for(bytes.len())?;
    let tensors = SafeTensors::deserialize(bytes).map_err(|error| corrupt(error.to_string()))?;
    let entry = HashMap::from([(METADATA.to_owned(), Value::Object(metadata).to_string())]);
    safetensors::serialize(tensors.tensors(), Some(entry)).map_err(|error| corrupt(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Vec<u8> {
        let more = Map::from_iter([("side".to_owned(), json!("query"))]);
        write(
            BridgeKind::Adapter,
            2,
            more,
            &[("map", vec![2, 2], &[1.0, 2.0, 3.0, 4.0])],
        )
        .unwrap()
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = example();
        let mut tensors = Tensors::read(&bytes, BridgeKind::Adapter).unwrap();
        assert_eq!(tensors.description.dimensions, 2);
        assert_eq!(tensors.description.metadata["side"], "query");
        assert!(matches!(tensors.take("other", &[1]), Err(BridgeError::File(_))));
        assert_eq!(tensors.take("map", &[2, 2]).unwrap(), [1.0, 2.0, 3.0, 4.0]);
        assert_ne!(hash(&bytes), hash(&bytes[1..]));
    }

    #[test]
    fn a_stamp_adds_to_the_metadata_and_keeps_the_tensors() {
        let stamped = stamp(&example(), Map::from_iter([("fingerprint".to_owned(), json!("f"))])).unwrap();
        let mut tensors = Tensors::read(&stamped, BridgeKind::Adapter).unwrap();
        assert_eq!(tensors.description.metadata["fingerprint"], "f");
        assert_eq!(tensors.description.metadata["side"], "query");
        assert_eq!(tensors.take("map", &[2, 2]).unwrap(), [1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn other_bytes_are_refused() {
        let bytes = example();
        for cut in 0..bytes.len() {
            assert!(
                matches!(
                    Tensors::read(&bytes[..cut], BridgeKind::Adapter),
                    Err(BridgeError::File(_))
                ),
                "{cut}"
            );
        }
        assert!(matches!(
            Tensors::read(&bytes, BridgeKind::LexSem),
            Err(BridgeError::File(_))
        ));
        let infinite = write(
            BridgeKind::Adapter,
            1,
            Map::new(),
            &[("map", vec![1], &[f32::INFINITY])],
        )
        .unwrap();
        assert!(matches!(
            Tensors::read(&infinite, BridgeKind::Adapter),
            Err(BridgeError::File(_))
        ));
        let none = safetensors::serialize(Vec::<(&str, TensorView)>::new(), None).unwrap();
        assert!(matches!(describe(&none), Err(BridgeError::File(_))));
    }
}
