//! GGUF files, versions 2 and 3: metadata and a table of tensors, read with plain positioned reads, never mapped.
//!
//! Layout, little-endian: "GGUF", version u32, tensors u64, values u64; each value a key (length u64, UTF-8), a type u32
//! and its content; each tensor a name, dimensions u32, their lengths u64 (fastest first), a type u32 and an offset u64
//! from the data, which begins at the next multiple of `general.alignment` (32 where it is not given) behind the table.
//!
//! `open` checks everything that is not the tensors' content: counts and lengths against the file's, offsets against
//! alignment and the file's end. What memory it asks for is bounded by the header's bytes, and those by a limit.
//!
//! A model may lie in several files (`parts`), whose headers are all checked before a tensor of any is read.

mod parts;
mod value;

use super::ModelError;
use super::files::{State, io, state};
pub use crate::compute::BlockKind;
use crate::compute::memory;
pub use parts::PartName;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use value::Reader;
pub use value::Value;

/// Largest alignment of the data that is believed.
const MAX_ALIGNMENT: u64 = 1 << 20;

/// How the numbers of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorKind {
    F32,
    F16,
    Bf16,
    Blocks(BlockKind),
    /// A type that cannot be read, by its number.
    Other(u32),
}

impl TensorKind {
    fn of(number: u32) -> TensorKind {
        match number {
            0 => TensorKind::F32,
            1 => TensorKind::F16,
            30 => TensorKind::Bf16,
            2 => TensorKind::Blocks(BlockKind::Q4_0),
            3 => TensorKind::Blocks(BlockKind::Q4_1),
            6 => TensorKind::Blocks(BlockKind::Q5_0),
            7 => TensorKind::Blocks(BlockKind::Q5_1),
            8 => TensorKind::Blocks(BlockKind::Q8_0),
            12 => TensorKind::Blocks(BlockKind::Q4_K),
            13 => TensorKind::Blocks(BlockKind::Q5_K),
            14 => TensorKind::Blocks(BlockKind::Q6_K),
            other => TensorKind::Other(other),
        }
    }

    /// Bytes of a row; `None` where the columns do not fill whole blocks or the product overflows.
    fn row_bytes(self, columns: usize) -> Option<usize> {
        match self {
            TensorKind::F32 => columns.checked_mul(4),
            TensorKind::F16 | TensorKind::Bf16 => columns.checked_mul(2),
            TensorKind::Blocks(kind) => kind.row_bytes(columns),
            TensorKind::Other(_) => None,
        }
    }

    /// Its name, for errors.
    pub fn name(self) -> String {
        match self {
            TensorKind::F32 => "F32".to_string(),
            TensorKind::F16 => "F16".to_string(),
            TensorKind::Bf16 => "BF16".to_string(),
            TensorKind::Blocks(kind) => kind.name().to_string(),
            TensorKind::Other(number) => match number {
                9 => "Q8_1".to_string(),
                10 => "Q2_K".to_string(),
                11 => "Q3_K".to_string(),
                15 => "Q8_K".to_string(),
                16..=23 | 29 => format!("IQ ({number})"),
                _ => format!("{number}"),
            },
        }
    }
}

/// Where a tensor lies and what it is.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    pub kind: TensorKind,
    /// Lengths of the dimensions, the fastest last: `[rows, columns]` of a matrix.
    pub shape: Vec<usize>,
    /// First byte in its file, and how many there are; both 0 where the type is unknown.
    start: u64,
    bytes: usize,
    /// The number of the file among the model's.
    part: usize,
}

/// An open file of a model.
struct Part {
    path: PathBuf,
    file: File,
    state: State,
}

/// What a file's header says.
struct Header {
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
}

/// An open GGUF file, or the files of a model in parts: its metadata, and where its tensors are.
pub struct Gguf {
    /// In their order, one at least.
    parts: Vec<Part>,
    /// The first file's.
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Part {
    /// Opens one file and checks its header.
    fn open(path: &Path) -> Result<(Part, Header), ModelError> {
        let file = File::open(path).map_err(|source| io(path, source))?;
        let found = file.metadata().map_err(|source| io(path, source))?;
        let (length, state) = (found.len(), state(&found));
        let mut reader = Reader::new(path, &file, length);
        check_version(&mut reader)?;
        let (tensor_count, value_count) = (reader.u64()?, reader.u64()?);
        // A tensor takes 24 bytes at least, a value 13.
        let least = tensor_count.checked_mul(24).zip(value_count.checked_mul(13));
        if least
            .and_then(|(a, b)| a.checked_add(b))
            .is_none_or(|bytes| bytes > reader.left())
        {
            return Err(reader.corrupt(format!(
                "{tensor_count} tensors and {value_count} values do not fit its {length} bytes"
            )));
        }
        let metadata = read_metadata(&mut reader, value_count)?;
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(Value::Integer(alignment)) if u64::try_from(*alignment).is_ok_and(valid_alignment) => {
                *alignment as u64
            }
            Some(_) => return Err(reader.corrupt("general.alignment is not a power of two from 8")),
        };
        let tensors = read_tensors(&mut reader, tensor_count, alignment, length)?;
        let path = path.to_path_buf();
        Ok((Part { path, file, state }, Header { metadata, tensors }))
    }
}

/// Reads what a file begins with.
fn check_version(reader: &mut Reader) -> Result<(), ModelError> {
    if reader.array::<4>()? != *b"GGUF" {
        return Err(reader.corrupt("it does not begin with \"GGUF\""));
    }
    let version = reader.u32()?;
    if (2..=3).contains(&version) {
        return Ok(());
    }
    let big = (2..=3).contains(&version.swap_bytes());
    let found = if big {
        "big-endian".to_string()
    } else {
        version.to_string()
    };
    Err(ModelError::unsupported("GGUF version", found, "2 and 3, little-endian"))
}

/// Reads the values, of which each has a key of its own.
fn read_metadata(reader: &mut Reader, count: u64) -> Result<BTreeMap<String, Value>, ModelError> {
    let mut metadata = BTreeMap::new();
    for _ in 0..count {
        let key = reader.text()?;
        let value = reader.value()?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(reader.corrupt(format!("key \"{key}\" comes twice")));
        }
    }
    Ok(metadata)
}

/// Reads the table of tensors, which all lie inside the file.
fn read_tensors(
    reader: &mut Reader,
    count: u64,
    alignment: u64,
    length: u64,
) -> Result<BTreeMap<String, TensorInfo>, ModelError> {
    let mut tensors = BTreeMap::new();
    for _ in 0..count {
        let (name, info) = tensor(reader, alignment)?;
        if tensors.insert(name.clone(), info).is_some() {
            return Err(reader.corrupt(format!("tensor \"{name}\" comes twice")));
        }
    }
    let data = reader.position().next_multiple_of(alignment);
    for (name, info) in &mut tensors {
        let start = info.start.checked_add(data);
        let end = start.and_then(|start| start.checked_add(info.bytes as u64));
        match (start, end) {
            (Some(start), Some(end)) if end <= length => info.start = start,
            _ => {
                return Err(reader.corrupt(format!(
                    "tensor \"{name}\" of {} bytes ends behind the file's end",
                    info.bytes
                )));
            }
        }
    }
    Ok(tensors)
}

impl Gguf {
    /// The first file, or the only one.
    pub fn path(&self) -> &Path {
        self.parts.first().map_or(Path::new(""), |part| &part.path)
    }

    /// All files in their order, and their states when they were opened.
    pub fn files(&self) -> impl Iterator<Item = (&Path, State)> {
        self.parts.iter().map(|part| (part.path.as_path(), part.state))
    }

    /// A value of the metadata; of a model in parts, the first file's.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// What is known of a tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// Names of all tensors, and what is known of them.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.tensors.iter().map(|(name, info)| (name.as_str(), info))
    }

    /// The bytes of a tensor as they are stored.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, ModelError> {
        let info = self.tensors.get(name);
        let info = info.ok_or_else(|| ModelError::MissingTensor(name.to_string()))?;
        if let TensorKind::Other(_) = info.kind {
            return Err(ModelError::Unsupported {
                what: "tensor type",
                found: info.kind.name(),
                supported: "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K",
            });
        }
        let part = self.parts.get(info.part);
        let part = part.ok_or_else(|| ModelError::MissingTensor(name.to_string()))?;
        let mut bytes = memory::zeros::<u8>(info.bytes)?;
        let read = part.file.read_exact_at(&mut bytes, info.start);
        read.map_err(|source| io(&part.path, source))?;
        Ok(bytes)
    }

    /// The elements of a tensor, whatever they are stored as.
    ///
    /// # Errors
    /// Those of [`Gguf::read`].
    pub fn elements(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let bytes = self.read(name)?;
        let kind = self.tensors.get(name).map(|info| info.kind);
        let halves = || bytes.as_chunks::<2>().0.iter();
        Ok(match kind {
            Some(TensorKind::F16) => memory::collected(halves().map(|pair| half::f16::from_le_bytes(*pair).to_f32()))?,
            Some(TensorKind::Bf16) => {
                memory::collected(halves().map(|pair| half::bf16::from_le_bytes(*pair).to_f32()))?
            }
            Some(TensorKind::Blocks(kind)) => {
                let mut elements = memory::zeros(bytes.len() / kind.bytes() * kind.length())?;
                kind.dequantise(&bytes, &mut elements);
                elements
            }
            _ => {
                let fours = bytes.as_chunks::<4>().0.iter();
                memory::collected(fours.map(|four| f32::from_le_bytes(*four)))?
            }
        })
    }
}

fn valid_alignment(alignment: u64) -> bool {
    alignment.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(&alignment)
}

/// One entry of the tensor table; its start still counts from the data.
fn tensor(reader: &mut Reader, alignment: u64) -> Result<(String, TensorInfo), ModelError> {
    let name = reader.text()?;
    let dimensions = reader.u32()?;
    if !(1..=4).contains(&dimensions) {
        return Err(reader.corrupt(format!("tensor \"{name}\" has {dimensions} dimensions")));
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        let length = reader.u64()?;
        shape.push(length);
    }
    let kind = TensorKind::of(reader.u32()?);
    let offset = reader.u64()?;
    if !offset.is_multiple_of(alignment) {
        return Err(reader.corrupt(format!(
            "tensor \"{name}\" begins at {offset}, not aligned to {alignment}"
        )));
    }
    shape.reverse();
    let sizes: Option<Vec<usize>> = shape
        .iter()
        .map(|length| usize::try_from(*length).ok().filter(|length| *length > 0))
        .collect();
    let numbers = sizes
        .as_ref()
        .and_then(|sizes| sizes.iter().try_fold(1usize, |a, b| a.checked_mul(*b)));
    let (Some(sizes), Some(numbers)) = (sizes, numbers) else {
        return Err(reader.corrupt(format!("tensor \"{name}\" has the shape {shape:?}")));
    };
    let columns = sizes.last().copied().unwrap_or(1);
    let bytes = kind
        .row_bytes(columns)
        .and_then(|row| row.checked_mul(numbers / columns));
    let (start, bytes) = match (kind, bytes) {
        (TensorKind::Other(_), _) => (0, 0),
        (_, Some(bytes)) => (offset, bytes),
        _ => {
            let kind = kind.name();
            return Err(reader.corrupt(format!("tensor \"{name}\" of type {kind} has the shape {shape:?}")));
        }
    };
    let info = TensorInfo {
        kind,
        shape: sizes,
        start,
        bytes,
        part: 0,
    };
    Ok((name, info))
}

#[cfg(test)]
mod tests;
