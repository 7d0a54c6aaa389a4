//! A bridge as bytes: a safetensors file whose metadata entry `situ` is a JSON object with `kind`, `scheme`, `fusion`,
//! `dimensions`, `strength` (1 where there is none) and what the trainer adds. `rows` is row-major by token, so that
//! one token's row is one slice of the file ([`Layout`]) and a query reads only those that it uses.
//!
//! | tensor | type | shape | |
//! |---|---|---|---|
//! | `tokens` | U32 | rows | ids that have a row, ascending |
//! | `rarity` | F32 | rows | see `Scheme::Bag` |
//! | `rows` | F32 | rows x dimensions | `W` |
//! | `bias` | F32 | dimensions | `b` |
//! | `metric` | F32 | dimensions x dimensions | absent without one |
//! | `map` | F32 | dimensions x dimensions, a row an input | absent without one |
//! | `scale`, `projection`, `shift` | F32 | | parameters of the scheme |

use super::{Fusion, Gate, LexSem, Scheme};
use crate::bridge::file::little_endian;
use crate::bridge::train::whiten;
use crate::bridge::{BridgeError, BridgeKind};
use crate::compute::memory::{collected, copied, room_for};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorView};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::ops::Range;

/// The entry of the file's metadata that is ours.
pub const METADATA: &str = "situ";
/// This kind of bridge.
const KIND: BridgeKind = BridgeKind::LexSem;
/// Longest header that is read.
const MOST_HEADER: usize = 1 << 20;

fn corrupt(what: impl Into<String>) -> BridgeError {
    BridgeError::File(what.into())
}

fn numbers_of(bytes: &[u8]) -> Result<Vec<f32>, BridgeError> {
    let fours = bytes.as_chunks::<4>().0.iter();
    Ok(collected(fours.map(|four| f32::from_le_bytes(*four)))?)
}

/// The bytes of a bridge. `more` is added to the metadata's JSON object.
///
/// # Errors
/// [`BridgeError::File`] where the parts do not fit each other.
pub fn write(bridge: &LexSem, more: Map<String, Value>) -> Result<Vec<u8>, BridgeError> {
    let mut metadata = more;
    for (name, value) in [
        ("kind", json!(KIND.name())),
        ("scheme", json!(bridge.scheme)),
        ("fusion", json!(bridge.fusion)),
        ("dimensions", json!(bridge.dimensions)),
        ("strength", json!(bridge.strength)),
    ] {
        metadata.insert(name.to_owned(), value);
    }
    let (rows, d) = (bridge.tokens.len(), bridge.dimensions);
    let mut parts = vec![
        ("tokens", Dtype::U32, vec![rows], {
            collected(bridge.tokens.iter().map(|token| token.to_le_bytes()))?.into_flattened()
        }),
        ("rarity", Dtype::F32, vec![rows], little_endian(&bridge.rarity)?),
        ("rows", Dtype::F32, vec![rows, d], little_endian(&bridge.rows)?),
        ("bias", Dtype::F32, vec![d], little_endian(&bridge.bias)?),
        ("scale", Dtype::F32, vec![1], little_endian(&[bridge.gate.scale])?),
    ];
    for (name, matrix) in [("metric", &bridge.metric), ("map", &bridge.map)] {
        if let Some(matrix) = matrix {
            parts.push((name, Dtype::F32, vec![d, d], little_endian(matrix)?));
        }
    }
    for (name, numbers) in [("projection", &bridge.gate.projection), ("shift", &bridge.gate.shift)] {
        if !numbers.is_empty() {
            parts.push((name, Dtype::F32, vec![numbers.len()], little_endian(numbers)?));
        }
    }
    room_for(parts.iter().map(|(.., bytes)| bytes.len()).sum())?;
    let mut views = Vec::with_capacity(parts.len());
    for (name, dtype, shape, bytes) in &parts {
        let view = TensorView::new(*dtype, shape.clone(), bytes).map_err(|error| corrupt(error.to_string()))?;
        views.push((*name, view));
    }
    let entry = HashMap::from([(METADATA.to_owned(), Value::Object(metadata).to_string())]);
    safetensors::serialize(views, Some(entry)).map_err(|error| corrupt(error.to_string()))
}

/// Where the parts of a file lie: enough to read one row without the others.
#[derive(Clone, Debug)]
pub struct Layout {
    pub scheme: Scheme,
    pub fusion: Fusion,
    pub dimensions: usize,
    pub strength: f32,
    /// The metadata's JSON object.
    pub metadata: Map<String, Value>,
    /// Bytes of the file that each tensor has, and its shape.
    tensors: HashMap<String, (Range<usize>, Vec<usize>)>,
}

impl Layout {
    /// Bytes that [`Layout::parse`] needs, from the file's first 8.
    ///
    /// # Errors
    /// [`BridgeError::File`] for fewer bytes or an impossible length.
    pub fn header_bytes(first: &[u8]) -> Result<usize, BridgeError> {
        let length = first
            .first_chunk::<8>()
            .map(|eight| u64::from_le_bytes(*eight))
            .and_then(|length| usize::try_from(length).ok())
            .filter(|length| *length <= MOST_HEADER);
        length
            .map(|length| length + 8)
            .ok_or_else(|| corrupt("it has no header"))
    }

    /// The layout from the file's beginning, at least [`Layout::header_bytes`] bytes of it.
    ///
    /// # Errors
    /// [`BridgeError::File`] where it is no bridge of this kind, or tensors are missing or of other shapes.
    pub fn parse(beginning: &[u8]) -> Result<Layout, BridgeError> {
        let start = Layout::header_bytes(beginning)?;
        let header = beginning
            .get(8..start)
            .ok_or_else(|| corrupt("its header is cut short"))?;
        let header: Metadata = serde_json::from_slice(header).map_err(|error| corrupt(error.to_string()))?;
        let entry = header.metadata().as_ref().and_then(|entries| entries.get(METADATA));
        let metadata: Map<String, Value> = entry
            .and_then(|text| serde_json::from_str(text).ok())
            .ok_or_else(|| corrupt("it has no metadata of situ"))?;
        let text = |name: &str| metadata.get(name).and_then(Value::as_str).unwrap_or_default();
        if BridgeKind::parse(text("kind")) != Some(KIND) {
            return Err(corrupt(format!("it is of kind \"{}\", not {KIND}", text("kind"))));
        }
        let unknown = |what: &str| corrupt(format!("its {what} is not known"));
        let scheme = Scheme::from_name(text("scheme")).ok_or_else(|| unknown("scheme"))?;
        let fusion = Fusion::from_name(text("fusion")).ok_or_else(|| unknown("fusion"))?;
        let dimensions = metadata.get("dimensions").and_then(Value::as_u64).unwrap_or(0) as usize;
        let strength = metadata.get("strength").map_or(Some(1.0), Value::as_f64);
        let strength = strength
            .map(|strength| strength as f32)
            .filter(|strength| *strength > 0.0 && *strength <= 1.0)
            .ok_or_else(|| unknown("strength"))?;
        let mut tensors = HashMap::new();
        for (name, info) in header.tensors() {
            let (from, to) = info.data_offsets;
            let wanted = if name == "tokens" { Dtype::U32 } else { Dtype::F32 };
            let bytes = info.shape.iter().try_fold(4usize, |product, n| product.checked_mul(*n));
            if info.dtype != wanted || from > to || bytes != Some(to - from) {
                return Err(corrupt(format!("tensor \"{name}\" has another type or size")));
            }
            tensors.insert(name, (start + from..start + to, info.shape.clone()));
        }
        let layout = Layout {
            scheme,
            fusion,
            dimensions,
            strength,
            metadata,
            tensors,
        };
        layout.check()?;
        Ok(layout)
    }

    fn check(&self) -> Result<(), BridgeError> {
        let d = self.dimensions;
        let rows = match self.tensors.get("tokens") {
            Some((_, shape)) if shape.len() == 1 => shape[0],
            _ => return Err(corrupt("tensor \"tokens\" is missing")),
        };
        let wanted: [(&str, &[usize]); 4] = [
            ("rarity", &[rows]),
            ("rows", &[rows, d]),
            ("bias", &[d]),
            ("scale", &[1]),
        ];
        let fits = |(name, shape): &(&str, &[usize])| self.tensors.get(*name).is_some_and(|(_, found)| found == shape);
        if let Some((name, _)) = wanted.iter().find(|wanted| !fits(wanted)) {
            return Err(corrupt(format!("tensor \"{name}\" is missing or of another shape")));
        }
        let gates: [(&str, usize); 2] = match self.scheme {
            Scheme::Llr => [("projection", d), ("shift", 1)],
            Scheme::LlrPaper => [("projection", d * rows), ("shift", rows)],
            _ => [("projection", 0), ("shift", 0)],
        };
        for (name, numbers) in gates {
            let found = self.tensors.get(name).map_or(0, |(_, shape)| shape.iter().product());
            if found != numbers {
                return Err(corrupt(format!("tensor \"{name}\" is missing or of another shape")));
            }
        }
        for name in ["metric", "map"] {
            if self.tensors.get(name).is_some_and(|(_, shape)| shape != &[d, d]) {
                return Err(corrupt(format!("tensor \"{name}\" has another shape")));
            }
        }
        if self.tensors.contains_key("map") && self.fusion != Fusion::Sum {
            return Err(corrupt("it has a map, which goes with the fusion sum alone"));
        }
        match d {
            0 => Err(corrupt("it has no dimensions")),
            _ => Ok(()),
        }
    }

    /// Bytes of the file that hold a tensor; `None` where it has none of that name.
    pub fn tensor(&self, name: &str) -> Option<Range<usize>> {
        self.tensors.get(name).map(|(range, _)| range.clone())
    }

    /// Bytes of the file that hold the row at a place.
    pub fn row(&self, place: usize) -> Option<Range<usize>> {
        let rows = self.tensor("rows")?;
        let width = self.dimensions * 4;
        let start = rows.start.checked_add(place.checked_mul(width)?)?;
        let end = start.checked_add(width)?;
        (end <= rows.end).then_some(start..end)
    }

    /// Numbers of a row from its bytes.
    ///
    /// # Errors
    /// [`BridgeError::Compute`] where there is no memory for them.
    pub fn numbers(bytes: &[u8]) -> Result<Vec<f32>, BridgeError> {
        numbers_of(bytes)
    }

    /// The bridge without its rows; `bytes` gives parts of the file.
    ///
    /// # Errors
    /// [`BridgeError::File`] where bytes are missing, numbers are not finite, or tokens are not ascending; what `bytes`
    /// fails with.
    pub fn fixed(
        &self,
        bytes: &mut dyn FnMut(Range<usize>) -> Result<Vec<u8>, BridgeError>,
    ) -> Result<LexSem, BridgeError> {
        let mut read = |name: &str| -> Result<Option<Vec<u8>>, BridgeError> {
            let Some(range) = self.tensor(name) else {
                return Ok(None);
            };
            let length = range.len();
            let found = bytes(range)?;
            match found.len() == length {
                true => Ok(Some(found)),
                false => Err(corrupt(format!("tensor \"{name}\" is cut short"))),
            }
        };
        let tokens: Vec<u32> = read("tokens")?
            .unwrap_or_default()
            .as_chunks::<4>()
            .0
            .iter()
            .map(|four| u32::from_le_bytes(*four))
            .collect();
        if !tokens.is_sorted_by(|a, b| a < b) {
            return Err(corrupt("its tokens are not ascending"));
        }
        let mut numbers = |name: &str| -> Result<Option<Vec<f32>>, BridgeError> {
            let Some(found) = read(name)? else { return Ok(None) };
            let found = numbers_of(&found)?;
            match found.iter().all(|number| number.is_finite()) {
                true => Ok(Some(found)),
                false => Err(corrupt(format!("tensor \"{name}\" holds NaN or infinity"))),
            }
        };
        let metric = numbers("metric")?;
        if let Some(metric) = &metric {
            whiten::check(metric, self.dimensions)?;
        }
        Ok(LexSem {
            scheme: self.scheme,
            fusion: self.fusion,
            dimensions: self.dimensions,
            metric,
            map: numbers("map")?,
            bias: numbers("bias")?.unwrap_or_default(),
            rarity: numbers("rarity")?.unwrap_or_default(),
            rows: Vec::new(),
            tokens,
            strength: self.strength,
            gate: Gate {
                scale: numbers("scale")?
                    .and_then(|scale| scale.first().copied())
                    .unwrap_or(1.0),
                projection: numbers("projection")?.unwrap_or_default(),
                shift: numbers("shift")?.unwrap_or_default(),
            },
        })
    }
}

/// A whole bridge with its rows.
///
/// # Errors
/// [`BridgeError::File`] as for [`Layout::parse`] and [`Layout::fixed`].
pub fn read(file: &[u8]) -> Result<LexSem, BridgeError> {
    let layout = Layout::parse(file)?;
    let part = |range: Range<usize>| {
        let found = file.get(range).ok_or_else(|| corrupt("it is cut short"))?;
        Ok(copied(found)?)
    };
    let mut bridge = layout.fixed(&mut |range| part(range))?;
    let rows = layout.tensor("rows").map(part).transpose()?.unwrap_or_default();
    bridge.rows = numbers_of(&rows)?;
    match bridge.rows.iter().all(|number| number.is_finite()) {
        true => Ok(bridge),
        false => Err(corrupt("tensor \"rows\" holds NaN or infinity")),
    }
}
