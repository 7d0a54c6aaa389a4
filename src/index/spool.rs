//! Sequential scratch files of a build.

use super::IndexError;

/// A scratch file: written from front to back, then read from front to back as often as needed.
pub trait Spool {
    /// Adds bytes at the end. Not called after the first [`Spool::rewind`].
    fn append(&mut self, bytes: &[u8]) -> Result<(), IndexError>;
    /// Goes back to the first byte, for reading.
    fn rewind(&mut self) -> Result<(), IndexError>;
    /// Fills as much of `buf` as there is; 0 at the end.
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, IndexError>;
}

/// Makes a new, empty scratch file.
pub type SpoolFactory = Box<dyn FnMut() -> Result<Box<dyn Spool>, IndexError>>;

#[derive(Default)]
struct MemorySpool {
    bytes: Vec<u8>,
    at: usize,
}

impl Spool for MemorySpool {
    fn append(&mut self, bytes: &[u8]) -> Result<(), IndexError> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn rewind(&mut self) -> Result<(), IndexError> {
        self.at = 0;
        Ok(())
    }

    fn read(&mut self, buf: &mut [u8]) -> Result<usize, IndexError> {
        let rest = self.bytes.get(self.at..).unwrap_or(&[]);
        let taken = rest.len().min(buf.len());
        buf[..taken].copy_from_slice(&rest[..taken]);
        self.at += taken;
        Ok(taken)
    }
}

/// Scratch files in memory, for tests and tools.
pub fn memory_spool() -> SpoolFactory {
    Box::new(|| Ok(Box::new(MemorySpool::default())))
}
