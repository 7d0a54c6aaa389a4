//! The tensors of safetensors files.
//!
//! Files are read with plain reads, never mapped: a file that is cut short while it is read gives an error, where a
//! mapping would end the process. Headers are checked against the files' lengths before anything is used.

use super::ModelError;
use super::files::io;
use crate::compute::memory::{collected, room_for, spare, zeros};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Largest header that is read.
const MAX_HEADER: u64 = 100 << 20;
/// Bytes of memory that a byte of a header takes at most while it is parsed.
const PARSED: usize = 4;

/// One safetensors file.
struct Shard {
    path: PathBuf,
    file: File,
    /// Where the tensors' bytes begin.
    data: u64,
}

/// The tensors of some files: where they are, not their content.
#[derive(Default)]
pub struct Tensors {
    shards: Vec<Shard>,
    tensors: BTreeMap<String, (usize, TensorInfo)>,
}

impl Tensors {
    /// Opens safetensors files and checks their headers.
    pub fn open(paths: impl IntoIterator<Item = PathBuf>) -> Result<Tensors, ModelError> {
        let mut tensors = Tensors::default();
        for path in paths {
            tensors.add(path)?;
        }
        Ok(tensors)
    }

    fn add(&mut self, path: PathBuf) -> Result<(), ModelError> {
        let corrupt = |what: String| ModelError::Corrupt {
            path: path.clone(),
            what,
        };
        let file = File::open(&path).map_err(|source| io(&path, source))?;
        let length = file.metadata().map_err(|source| io(&path, source))?.len();
        let mut size = [0u8; 8];
        if length < 8 {
            return Err(corrupt(format!("{length} bytes are too few for a header")));
        }
        file.read_exact_at(&mut size, 0).map_err(|source| io(&path, source))?;
        let header = u64::from_le_bytes(size);
        if header > MAX_HEADER || header > length - 8 {
            return Err(corrupt(format!(
                "the header says {header} bytes, the file has {length}"
            )));
        }
        room_for(header as usize * PARSED)?;
        let mut text = zeros::<u8>(header as usize)?;
        file.read_exact_at(&mut text, 8).map_err(|source| io(&path, source))?;
        let metadata: Metadata = serde_json::from_slice(&text).map_err(|error| corrupt(error.to_string()))?;
        let data = 8 + header;
        let shard = self.shards.len();
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let numbers = info.shape.iter().try_fold(1usize, |a, b| a.checked_mul(*b));
            let bytes = numbers
                .and_then(|numbers| numbers.checked_mul(info.dtype.bitsize()))
                .map(|bits| bits / 8);
            if end < start || Some(end - start) != bytes {
                return Err(corrupt(format!(
                    "tensor \"{name}\" has {} bytes for its shape",
                    end as i64 - start as i64
                )));
            }
            if end as u64 > length - data {
                let missing = end as u64 - (length - data);
                return Err(corrupt(format!(
                    "tensor \"{name}\" ends {missing} bytes behind the end of the file"
                )));
            }
            self.tensors.insert(name, (shard, info.clone()));
        }
        self.shards.push(Shard { path, file, data });
        Ok(())
    }

    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of a tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|(_, info)| info.shape.as_slice())
    }

    /// Checks that a tensor is there with this shape and a type that can be read.
    pub fn check(&self, name: &str, shape: &[usize]) -> Result<(), ModelError> {
        let Some((_, info)) = self.tensors.get(name) else {
            return Err(ModelError::MissingTensor(name.to_string()));
        };
        if info.shape != shape {
            let (expected, found) = (shape.to_vec(), info.shape.clone());
            return Err(ModelError::TensorShape {
                name: name.to_string(),
                expected,
                found,
            });
        }
        if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(ModelError::TensorType {
                name: name.to_string(),
                dtype: format!("{:?}", info.dtype),
            });
        }
        Ok(())
    }

    /// The numbers of a tensor as f32, row-major; fails where one is NaN or infinite, and with
    /// [`ModelError::Stopped`] where [`stop`](super::stop) says so.
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        super::stop::check()?;
        spare()?;
        self.check(name, shape)?;
        let Some((shard, info)) = self.tensors.get(name) else {
            return Err(ModelError::MissingTensor(name.to_string()));
        };
        let Some(shard) = self.shards.get(*shard) else {
            return Err(ModelError::MissingTensor(name.to_string()));
        };
        let (start, end) = info.data_offsets;
        let mut bytes = zeros::<u8>(end - start)?;
        shard
            .file
            .read_exact_at(&mut bytes, shard.data + start as u64)
            .map_err(|source| io(&shard.path, source))?;
        let halves = |convert: fn(u16) -> f32| {
            let pairs = bytes.as_chunks::<2>().0.iter();
            collected(pairs.map(|pair| convert(u16::from_le_bytes(*pair))))
        };
        let numbers: Vec<f32> = match info.dtype {
            Dtype::F16 => halves(|bits| half::f16::from_bits(bits).to_f32())?,
            Dtype::BF16 => halves(|bits| half::bf16::from_bits(bits).to_f32())?,
            _ => {
                let fours = bytes.as_chunks::<4>().0.iter();
                collected(fours.map(|four| f32::from_le_bytes(*four)))?
            }
        };
        if numbers.iter().any(|number| !number.is_finite()) {
            return Err(ModelError::NotFinite(name.to_string()));
        }
        Ok(numbers)
    }
}
