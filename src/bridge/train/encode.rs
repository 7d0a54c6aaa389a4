//! Vectors of texts and passages, as trainers take them from the encoder.

use super::data::{Encode, Monitor, Passage, Progress};
use crate::bridge::BridgeError;
use crate::compute::memory::{reserve, with_room};
use crate::compute::rowwise::pooling::normalize;
use crate::model::Role;

/// Texts that are encoded in one request.
const ENCODED_AT_ONCE: usize = 1024;

/// Encodes texts, looking at `monitor` between requests: dimensions, and the vectors row-major with unit length.
pub fn embed(
    encode: &mut dyn Encode,
    monitor: &mut dyn Monitor,
    role: Role,
    texts: &[&str],
) -> Result<(usize, Vec<f32>), BridgeError> {
    let (dimensions, mut vectors) = embed_as_is(encode, monitor, role, texts)?;
    vectors.chunks_exact_mut(dimensions.max(1)).for_each(normalize);
    Ok((dimensions, vectors))
}

/// Like [`embed`], with the vectors as the encoder gives them.
pub fn embed_as_is(
    encode: &mut dyn Encode,
    monitor: &mut dyn Monitor,
    role: Role,
    texts: &[&str],
) -> Result<(usize, Vec<f32>), BridgeError> {
    let (mut dimensions, mut vectors) = (0, Vec::new());
    for part in texts.chunks(ENCODED_AT_ONCE) {
        let found = encode.embed(role, part)?;
        let expected = part.len() * found.dimensions;
        if found.dimensions == 0 || found.values.len() != expected || ![0, found.dimensions].contains(&dimensions) {
            return Err(BridgeError::Vectors {
                expected,
                found: found.values.len(),
            });
        }
        dimensions = found.dimensions;
        reserve(&mut vectors, found.values.len())?;
        vectors.extend(found.values);
        monitor.step(&Progress::default())?;
    }
    Ok((dimensions, vectors))
}

/// The vectors of passages as they are: those that they came with, the encoder's of those that came without.
///
/// # Errors
/// [`BridgeError::Vectors`] where they are not of one length, and what [`embed_as_is`] fails with.
pub fn passage_vectors(
    encode: &mut dyn Encode,
    monitor: &mut dyn Monitor,
    passages: &[Passage],
) -> Result<(usize, Vec<f32>), BridgeError> {
    let without = passages.iter().filter(|passage| passage.vector.is_none());
    let texts: Vec<&str> = without.map(|passage| passage.text.as_str()).collect();
    let (mut dimensions, encoded) = embed_as_is(encode, monitor, Role::Passage, &texts)?;
    if texts.len() == passages.len() {
        return Ok((dimensions, encoded));
    }
    let given = passages.iter().find_map(|passage| passage.vector.as_ref());
    if texts.is_empty() {
        dimensions = given.map_or(0, Vec::len);
    }
    let mut encoded = encoded.chunks_exact(dimensions.max(1));
    let mut vectors = with_room(passages.len() * dimensions)?;
    for passage in passages {
        let vector = passage.vector.as_deref().or_else(|| encoded.next()).unwrap_or_default();
        if vector.len() != dimensions || dimensions == 0 {
            return Err(BridgeError::Vectors {
                expected: dimensions,
                found: vector.len(),
            });
        }
        vectors.extend_from_slice(vector);
    }
    Ok((dimensions, vectors))
}

/// Like [`passage_vectors`], with unit length: an index under cosine compares directions.
pub fn passage_directions(
    encode: &mut dyn Encode,
    monitor: &mut dyn Monitor,
    passages: &[Passage],
) -> Result<(usize, Vec<f32>), BridgeError> {
    let (dimensions, mut vectors) = passage_vectors(encode, monitor, passages)?;
    vectors.chunks_exact_mut(dimensions.max(1)).for_each(normalize);
    Ok((dimensions, vectors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::train::data::Vectors;

    /// Encodes a text as its length and one.
    struct Lengths;

    impl Encode for Lengths {
        fn embed(&mut self, _role: Role, texts: &[&str]) -> Result<Vectors, BridgeError> {
            Ok(Vectors {
                dimensions: 2,
                values: texts.iter().flat_map(|text| [text.len() as f32, 1.0]).collect(),
            })
        }

        fn tokens(&mut self, _texts: &[&str]) -> Result<Vec<Vec<u32>>, BridgeError> {
            Err(BridgeError::NoReading("tokens"))
        }
    }

    struct Nobody;

    impl Monitor for Nobody {
        fn step(&mut self, _progress: &Progress) -> Result<(), BridgeError> {
            Ok(())
        }

        fn checkpoint(&mut self, _bytes: &[u8]) -> Result<(), BridgeError> {
            Ok(())
        }
    }

    #[test]
    fn a_passage_with_a_vector_is_that_vector() {
        let passage = |text: &str, vector: Option<Vec<f32>>| Passage {
            key: text.to_owned(),
            document: 0,
            ordinal: 0,
            text: text.to_owned(),
            vector,
        };
        let found = |passages: &[Passage]| passage_vectors(&mut Lengths, &mut Nobody, passages);
        let given = [
            passage("abc", None),
            passage("b", Some(vec![0.0, 7.0])),
            passage("abcd", None),
        ];
        assert_eq!(found(&given).unwrap(), (2, vec![3.0, 1.0, 0.0, 7.0, 4.0, 1.0]));
        assert_eq!(found(&given[1..2]).unwrap(), (2, vec![0.0, 7.0]));
        assert_eq!(found(&given[..1]).unwrap(), (2, vec![3.0, 1.0]));
        let directions = passage_directions(&mut Lengths, &mut Nobody, &given[1..2]).unwrap();
        assert_eq!(directions, (2, vec![0.0, 1.0]));
        for other in [vec![1.0], vec![]] {
            let odd = [passage("abc", None), passage("b", Some(other))];
            assert!(matches!(found(&odd), Err(BridgeError::Vectors { .. })));
        }
    }
}
