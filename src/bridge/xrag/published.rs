//! A projector out of a safetensors file, of which it may be a small part: published weights hold it among those of a
//! whole LLM. The header and the projector's tensors are read, the rest is not.

use super::projector::TENSORS;
use crate::bridge::BridgeError;
use crate::bridge::file::METADATA;
use crate::compute::memory::{reserve_exact, room_for, zeros};
use safetensors::tensor::{Metadata, TensorView};
use std::io::{Read, Seek, SeekFrom};

/// Longest header of a file; the format's own limit.
const MOST_HEADER: u64 = 100_000_000;
/// Most bytes of a projector, or of a bridge's file.
const MOST_BYTES: u64 = 1 << 30;

/// What a file holds.
#[derive(Debug, PartialEq)]
pub enum Found {
    /// A bridge that says itself what it is for: the file's bytes.
    Bridge(Vec<u8>),
    /// A projector as it is published: a file of its tensors alone.
    Projector(Vec<u8>),
}

/// Reads a file's bridge or projector.
///
/// # Errors
/// [`BridgeError::File`] for a file that cannot be read, is cut, is too large, or has no projector in it.
pub fn read(file: &mut (impl Read + Seek)) -> Result<Found, BridgeError> {
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(failed)?;
    let header = u64::from_le_bytes(length);
    if header > MOST_HEADER {
        return Err(bad("it is no safetensors file"));
    }
    // As bytes, and parsed.
    room_for(header as usize * 5)?;
    let mut start = length.to_vec();
    file.by_ref().take(header).read_to_end(&mut start).map_err(failed)?;
    // What the format's own reader asks for beyond this is the rest of the file.
    let json = start.get(8..).unwrap_or_default();
    let metadata: Metadata = serde_json::from_slice(json).map_err(|error| bad(error.to_string()))?;
    let entries = metadata.metadata().as_ref();
    match entries.is_some_and(|entries| entries.contains_key(METADATA)) {
        true => bridge(file, start, 8 + header),
        false => projector(file, &metadata, 8 + header),
    }
}

fn bad(what: impl Into<String>) -> BridgeError {
    BridgeError::File(what.into())
}

fn failed(error: std::io::Error) -> BridgeError {
    BridgeError::File(error.to_string())
}

/// The whole file, of which `start` is the beginning; tensors lie behind `header` bytes.
fn bridge(file: &mut (impl Read + Seek), start: Vec<u8>, header: u64) -> Result<Found, BridgeError> {
    let mut whole = start;
    let end = file.seek(SeekFrom::End(0)).map_err(failed)?;
    file.seek(SeekFrom::Start(header)).map_err(failed)?;
    let more = end.saturating_sub(header).min(MOST_BYTES + 1);
    reserve_exact(&mut whole, more as usize)?;
    let rest = file
        .by_ref()
        .take(MOST_BYTES + 1)
        .read_to_end(&mut whole)
        .map_err(failed)?;
    match rest as u64 > MOST_BYTES {
        true => Err(bad("it is larger than 1 GB")),
        false => Ok(Found::Bridge(whole)),
    }
}

/// The projector's tensors alone, as a file.
fn projector(file: &mut (impl Read + Seek), metadata: &Metadata, header: u64) -> Result<Found, BridgeError> {
    let mut parts = Vec::new();
    for name in TENSORS {
        let info = metadata
            .info(name)
            .ok_or_else(|| bad(format!("it has no tensor \"{name}\"")))?;
        let (from, until) = info.data_offsets;
        let size = until.saturating_sub(from);
        if size as u64 > MOST_BYTES {
            return Err(bad(format!("tensor \"{name}\" is larger than 1 GB")));
        }
        let at = header.saturating_add(from as u64);
        file.seek(SeekFrom::Start(at)).map_err(failed)?;
        let mut bytes = zeros::<u8>(size)?;
        file.read_exact(&mut bytes).map_err(failed)?;
        parts.push((name, info, bytes));
    }
    let mut views = Vec::with_capacity(parts.len());
    for (name, info, bytes) in &parts {
        let view = TensorView::new(info.dtype, info.shape.clone(), bytes).map_err(|error| bad(error.to_string()))?;
        views.push((*name, view));
    }
    room_for(parts.iter().map(|(.., bytes)| bytes.len()).sum())?;
    let alone = safetensors::serialize(views, None).map_err(|error| bad(error.to_string()))?;
    Ok(Found::Projector(alone))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::file;
    use crate::bridge::xrag::projector::{KIND, Projector, import};
    use safetensors::Dtype;
    use serde_json::Map;
    use std::io::Cursor;

    const NUMBERS: [f32; 6] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];

    fn shapes() -> [Vec<usize>; 4] {
        [vec![2, 3], vec![2], vec![1, 2], vec![1]]
    }

    /// A projector between other tensors.
    fn among_others() -> Vec<u8> {
        let bytes: Vec<u8> = NUMBERS.iter().flat_map(|number| number.to_le_bytes()).collect();
        let mut names = vec![("lm_head.weight".to_owned(), vec![6])];
        names.extend(TENSORS.iter().map(|name| (*name).to_owned()).zip(shapes()));
        names.push(("z.weight".to_owned(), vec![3]));
        let views = names.into_iter().map(|(name, shape)| {
            let size = 4 * shape.iter().product::<usize>();
            (name, TensorView::new(Dtype::F32, shape, &bytes[..size]).unwrap())
        });
        safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap()
    }

    #[test]
    fn a_projector_is_taken_out_of_a_larger_file() {
        let whole = among_others();
        let Found::Projector(alone) = read(&mut Cursor::new(&whole)).unwrap() else {
            panic!("a file without our metadata");
        };
        assert!(alone.len() < whole.len());
        let projector = Projector::read(&import(&alone, Map::new()).unwrap()).unwrap();
        assert_eq!((projector.inputs(), projector.outputs()), (3, 1));
        // For zeros it is W2 gelu(b1) + b2 with W2 = b1 = (1, 2) and b2 = 1: gelu(1) = 0.8413447, gelu(2) = 1.9544997.
        let found = projector.project(&[0.0; 3]).unwrap()[0];
        assert!(
            (found - (0.841_344_7 + 2.0 * 1.954_499_7 + 1.0)).abs() < 1e-5,
            "{found}"
        );
        for cut in [0, 7, 40, whole.len() - 20] {
            assert!(
                matches!(read(&mut Cursor::new(&whole[..cut])), Err(BridgeError::File(_))),
                "{cut}"
            );
        }
    }

    #[test]
    fn a_bridge_of_ours_stays_whole_and_others_are_refused() {
        let tensors = TENSORS.iter().zip(shapes());
        let tensors: Vec<(&str, Vec<usize>, &[f32])> = tensors
            .map(|(name, shape)| {
                let count = shape.iter().product();
                (*name, shape, &NUMBERS[..count])
            })
            .collect();
        let ours = file::write(KIND, 3, Map::new(), &tensors).unwrap();
        assert_eq!(read(&mut Cursor::new(&ours)).unwrap(), Found::Bridge(ours));
        let numbers = [0; 4];
        let view = TensorView::new(Dtype::F32, vec![1], &numbers).unwrap();
        let other = safetensors::serialize(vec![("map", view)], None).unwrap();
        let error = read(&mut Cursor::new(&other)).unwrap_err();
        assert!(error.to_string().contains("projector.projector.0.weight"), "{error}");
        assert!(read(&mut Cursor::new(&[0xff; 64])).is_err());
    }
}
