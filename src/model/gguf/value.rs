//! Values of a GGUF file's metadata, and the bounded reader of its header.
//!
//! Every length is compared with what is left of the header before memory is asked for; the header as a whole is limited.

use super::super::ModelError;
use super::super::files::io;
use crate::compute::memory::{copied, reserve, reserve_exact, text, with_room};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of metadata and tensor table that are read at most.
const MAX_HEADER: u64 = 64 << 20;
/// Bytes that are read at once.
const BUFFER: u64 = 1 << 20;

/// A value of the metadata. Integers of any width are one kind, as are the two widths of floats.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Integer(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    /// Arrays of numbers of 8 bits and of bools.
    Bytes(Vec<u8>),
    Integers(Vec<i64>),
    Floats(Vec<f32>),
    Texts(Vec<String>),
}

impl Value {
    /// What kind of value it is, for errors.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Integer(_) => "an integer",
            Value::Float(_) => "a float",
            Value::Bool(_) => "a bool",
            Value::Text(_) => "a string",
            Value::Bytes(_) | Value::Integers(_) | Value::Floats(_) => "an array of numbers",
            Value::Texts(_) => "an array of strings",
        }
    }
}

/// Reads the header of a file from its beginning, in order.
pub struct Reader<'a> {
    path: &'a Path,
    file: &'a File,
    /// Bytes that may be read: the file's, or the limit.
    length: u64,
    buffer: Vec<u8>,
    /// Where the buffer lies in the file, and what of it has been read.
    start: u64,
    used: usize,
}

impl<'a> Reader<'a> {
    pub fn new(path: &'a Path, file: &'a File, length: u64) -> Reader<'a> {
        Reader {
            path,
            file,
            length: length.min(MAX_HEADER),
            buffer: Vec::new(),
            start: 0,
            used: 0,
        }
    }

    /// The byte that is read next.
    pub fn position(&self) -> u64 {
        self.start + self.used as u64
    }

    /// Bytes that are left.
    pub fn left(&self) -> u64 {
        self.length.saturating_sub(self.position())
    }

    pub fn corrupt(&self, what: impl Into<String>) -> ModelError {
        ModelError::Corrupt {
            path: self.path.to_path_buf(),
            what: what.into(),
        }
    }

    /// The next `length` bytes.
    pub fn bytes(&mut self, length: u64) -> Result<&[u8], ModelError> {
        if length > self.left() {
            return Err(self.corrupt(format!(
                "its header wants {length} bytes at byte {}, where {} are left",
                self.position(),
                self.left()
            )));
        }
        let length = length as usize;
        if self.buffer.len() - self.used < length {
            self.start = self.position();
            self.used = 0;
            let wanted = (length as u64).max(BUFFER.min(self.left())) as usize;
            let more = wanted.saturating_sub(self.buffer.len());
            reserve_exact(&mut self.buffer, more)?;
            self.buffer.resize(wanted, 0);
            let read = self.file.read_exact_at(&mut self.buffer, self.start);
            read.map_err(|source| io(self.path, source))?;
        }
        let from = self.used;
        self.used += length;
        Ok(self.buffer.get(from..from + length).unwrap_or_default())
    }

    /// The next N bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], ModelError> {
        let mut array = [0u8; N];
        for (to, from) in array.iter_mut().zip(self.bytes(N as u64)?) {
            *to = *from;
        }
        Ok(array)
    }

    pub fn u32(&mut self) -> Result<u32, ModelError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, ModelError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A string: its length, then UTF-8.
    pub fn text(&mut self) -> Result<String, ModelError> {
        let length = self.u64()?;
        let at = self.position();
        match std::str::from_utf8(self.bytes(length)?) {
            Ok(found) => Ok(text(found)?),
            Err(_) => Err(self.corrupt(format!("the string at byte {at} is not UTF-8"))),
        }
    }

    /// A value: its type, then its content.
    pub fn value(&mut self) -> Result<Value, ModelError> {
        let kind = self.u32()?;
        match kind {
            8 => Ok(Value::Text(self.text()?)),
            9 => self.values(),
            _ => self.scalar(kind),
        }
    }

    fn scalar(&mut self, kind: u32) -> Result<Value, ModelError> {
        Ok(match kind {
            0 => Value::Integer(i64::from(u8::from_le_bytes(self.array()?))),
            1 => Value::Integer(i64::from(i8::from_le_bytes(self.array()?))),
            2 => Value::Integer(i64::from(u16::from_le_bytes(self.array()?))),
            3 => Value::Integer(i64::from(i16::from_le_bytes(self.array()?))),
            4 => Value::Integer(i64::from(self.u32()?)),
            5 => Value::Integer(i64::from(i32::from_le_bytes(self.array()?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.array()?))),
            7 => Value::Bool(self.array::<1>()? != [0]),
            10 => {
                let number = self.u64()?;
                let number = i64::try_from(number).map_err(|_| self.corrupt(format!("the number {number}")))?;
                Value::Integer(number)
            }
            11 => Value::Integer(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => return Err(self.corrupt(format!("value type {kind} at byte {} is unknown", self.position()))),
        })
    }

    fn values(&mut self) -> Result<Value, ModelError> {
        let kind = self.u32()?;
        let count = self.u64()?;
        let width: u64 = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            // A string has a length at least.
            8 | 10..=12 => 8,
            9 => return Err(self.corrupt("an array of arrays in the metadata")),
            _ => return Err(self.corrupt(format!("arrays of value type {kind} are unknown"))),
        };
        if count.checked_mul(width).is_none_or(|bytes| bytes > self.left()) {
            let left = self.left();
            return Err(self.corrupt(format!("an array of {count} values where {left} bytes are left")));
        }
        match kind {
            0 | 1 | 7 => Ok(Value::Bytes(copied(self.bytes(count)?)?)),
            6 | 12 => {
                let mut floats = with_room(count as usize)?;
                for _ in 0..count {
                    if let Value::Float(float) = self.scalar(kind)? {
                        floats.push(float as f32);
                    }
                }
                Ok(Value::Floats(floats))
            }
            8 => {
                let mut texts = Vec::new();
                for _ in 0..count {
                    reserve(&mut texts, 1)?;
                    texts.push(self.text()?);
                }
                Ok(Value::Texts(texts))
            }
            _ => {
                let mut integers = with_room(count as usize)?;
                for _ in 0..count {
                    if let Value::Integer(integer) = self.scalar(kind)? {
                        integers.push(integer);
                    }
                }
                Ok(Value::Integers(integers))
            }
        }
    }
}
