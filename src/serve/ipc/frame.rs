//! The bytes of a message: `u32 length` (of what follows), `u32 header length`, the header in postcard, and then numbers as
//! little-endian f32. All integers are little-endian.
//!
//! A message may be long, and either side may be short of memory when it comes: that is an error of its item, so what
//! grows with the message is tried first.

use crate::compute::ComputeError;
use crate::compute::memory::{collected, reserve, reserve_exact, room_for};
use crate::serve::ipc::failure::{Failure, Kind};
use crate::serve::ipc::wire::MAX_MESSAGE;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::cell::Cell;

/// Bytes of memory that a byte of a header takes at most in what it is read into.
const DECODED: usize = 8;

/// Bytes that are not a message, or one that there is no memory for.
#[derive(Debug, thiserror::Error)]
pub enum BadMessage {
    #[error("{0}")]
    Malformed(String),
    #[error("cannot allocate {bytes} bytes for a message")]
    Memory { bytes: usize },
}

impl BadMessage {
    /// The error that the other side gets.
    pub fn failure(&self, message: String) -> Failure {
        match self {
            BadMessage::Malformed(_) => Failure::new(Kind::Internal, message),
            BadMessage::Memory { .. } => {
                Failure::new(Kind::Memory, message).hint("Ask for less at once, or leave the server more memory.")
            }
        }
    }
}

impl From<ComputeError> for BadMessage {
    fn from(error: ComputeError) -> BadMessage {
        match error {
            ComputeError::Memory { bytes } => BadMessage::Memory { bytes },
            other => BadMessage::Malformed(other.to_string()),
        }
    }
}

/// Takes what is serialised into a vector that grows where there is memory.
struct Growing<'a> {
    bytes: Vec<u8>,
    /// How long it was to be when that was refused.
    refused: &'a Cell<usize>,
}

impl postcard::ser_flavors::Flavor for Growing<'_> {
    type Output = Vec<u8>;

    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        if reserve(&mut self.bytes, data.len()).is_err() {
            self.refused.set(self.bytes.len() + data.len());
            return Err(postcard::Error::SerializeBufferFull);
        }
        self.bytes.extend_from_slice(data);
        Ok(())
    }

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.try_extend(&[byte])
    }

    fn finalize(self) -> postcard::Result<Vec<u8>> {
        Ok(self.bytes)
    }
}

/// The bytes of a message: its length, its header and the numbers behind it.
pub fn frame<H: Serialize>(header: &H, numbers: &[&[f32]]) -> Result<Vec<u8>, BadMessage> {
    let refused = Cell::new(0);
    let start = Growing {
        bytes: vec![0u8; 8],
        refused: &refused,
    };
    let mut message = postcard::serialize_with_flavor(header, start).map_err(|error| match refused.get() {
        0 => BadMessage::Malformed(error.to_string()),
        bytes => BadMessage::Memory { bytes },
    })?;
    let header_bytes = message.len() - 8;
    let length = message.len() - 4 + numbers.iter().map(|vector| vector.len() * 4).sum::<usize>();
    if length > MAX_MESSAGE {
        return Err(BadMessage::Malformed(format!(
            "a message of {length} bytes is too long"
        )));
    }
    let more = length + 4 - message.len();
    reserve_exact(&mut message, more)?;
    for vector in numbers {
        vector.iter().for_each(|x| message.extend_from_slice(&x.to_le_bytes()));
    }
    message[..4].copy_from_slice(&(length as u32).to_le_bytes());
    message[4..8].copy_from_slice(&(header_bytes as u32).to_le_bytes());
    Ok(message)
}

/// Header and numbers of a message without its length word.
pub fn unframe<H: DeserializeOwned>(message: &[u8]) -> Result<(H, Vec<f32>), BadMessage> {
    let short = || BadMessage::Malformed("a message is cut short".to_owned());
    let (length, rest) = message.split_first_chunk::<4>().ok_or_else(short)?;
    let (header, numbers) = rest
        .split_at_checked(u32::from_le_bytes(*length) as usize)
        .ok_or_else(short)?;
    room_for(header.len() * DECODED)?;
    let header = postcard::from_bytes(header).map_err(|error| BadMessage::Malformed(error.to_string()))?;
    let numbers = collected(numbers.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)))?;
    Ok((header, numbers))
}

/// A message that is no longer than that.
pub fn within(message: Vec<u8>, most: usize) -> Result<Vec<u8>, BadMessage> {
    match message.len() <= most {
        true => Ok(message),
        false => Err(BadMessage::Malformed(format!(
            "a request of {} bytes is too long",
            message.len()
        ))),
    }
}
