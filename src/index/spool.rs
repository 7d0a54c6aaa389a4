//! Sequential scratch files of a build.

use super::IndexError;
use super::memory_limit::{reserve, reserve_exact, with_room};

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

/// Bytes that are gathered before they go to a scratch file.
const BUFFER: usize = 64 * 1024;

/// Records of one size, in memory up to a budget and in a scratch file beyond.
pub struct Records {
    size: usize,
    budget: usize,
    count: u64,
    memory: Vec<u8>,
    spool: Option<Box<dyn Spool>>,
    at: usize,
    reading: bool,
}

impl Records {
    /// An empty store of records of `size` bytes that keeps up to `budget` bytes in memory.
    pub fn new(size: usize, budget: usize) -> Records {
        Records {
            size,
            budget,
            count: 0,
            memory: Vec::new(),
            spool: None,
            at: 0,
            reading: false,
        }
    }

    /// Number of records.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// All records, if they lie in memory.
    pub fn in_memory(&self) -> Option<&[u8]> {
        self.spool.is_none().then_some(&self.memory)
    }

    /// Adds one record, or several at once.
    pub fn push(&mut self, bytes: &[u8], spools: &mut SpoolFactory) -> Result<(), IndexError> {
        self.count += (bytes.len() / self.size.max(1)) as u64;
        let limit = if self.spool.is_some() { BUFFER } else { self.budget };
        if self.memory.len() + bytes.len() > limit {
            if self.spool.is_none() {
                self.spool = Some(spools()?);
            }
            if let Some(spool) = &mut self.spool {
                for part in self.memory.chunks(1 << 20) {
                    spool.append(part)?;
                }
                self.memory = with_room(BUFFER.max(bytes.len()))?;
            }
        }
        if self.memory.capacity() < self.memory.len() + bytes.len() {
            // Doubling beyond the budget would break the promise that the budget makes.
            let want = (self.memory.capacity() * 2).clamp(
                self.memory.len() + bytes.len(),
                limit.max(self.memory.len() + bytes.len()),
            );
            let more = want - self.memory.len();
            reserve_exact(&mut self.memory, more)?;
        }
        self.memory.extend_from_slice(bytes);
        Ok(())
    }

    /// Goes to the first record, for reading.
    pub fn rewind(&mut self) -> Result<(), IndexError> {
        self.at = 0;
        if let Some(spool) = &mut self.spool {
            if !self.reading && !self.memory.is_empty() {
                spool.append(&self.memory)?;
                self.memory = Vec::new();
            }
            spool.rewind()?;
        }
        self.reading = true;
        Ok(())
    }

    /// Reads up to `records` records into `out` (replaced); an empty `out` is the end.
    pub fn read(&mut self, records: usize, out: &mut Vec<u8>) -> Result<(), IndexError> {
        out.clear();
        let left = (self.count as usize).saturating_sub(self.at).min(records);
        let bytes = left * self.size;
        reserve(out, bytes)?;
        match &mut self.spool {
            None => {
                let start = self.at * self.size;
                out.extend_from_slice(self.memory.get(start..start + bytes).unwrap_or(&[]));
            }
            Some(spool) => {
                out.resize(bytes, 0);
                let mut filled = 0;
                while filled < bytes {
                    match spool.read(&mut out[filled..])? {
                        0 => return Err(IndexError::Store("a scratch file of the build ended too early".into())),
                        n => filled += n,
                    }
                }
            }
        }
        self.at += left;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_from_memory_and_from_files() {
        for budget in [0, 100, 200_000, 10_000_000] {
            let mut spools = memory_spool();
            let mut records = Records::new(12, budget);
            for i in 0..20_000u32 {
                let bytes: Vec<u8> = [i, i * 2, i * 3].iter().flat_map(|x| x.to_le_bytes()).collect();
                records.push(&bytes, &mut spools).unwrap();
            }
            assert_eq!(records.in_memory().is_some(), budget == 10_000_000);
            for _ in 0..2 {
                records.rewind().unwrap();
                let (mut i, mut out) = (0u32, Vec::new());
                loop {
                    records.read(777, &mut out).unwrap();
                    if out.is_empty() {
                        break;
                    }
                    for record in out.chunks_exact(12) {
                        assert_eq!(record[..4], i.to_le_bytes());
                        assert_eq!(record[8..], (i * 3).to_le_bytes());
                        i += 1;
                    }
                }
                assert_eq!(i, 20_000);
            }
        }
    }
}
