//! Scratch files of an index build: the server's own temporary files, which count against `temp_file_limit` and are
//! removed when the statement ends in any way.

use crate::index::{IndexError, Spool};
use pgrx::pg_sys;

/// A temporary file that is written once and read from its start.
pub struct TemporaryFile {
    file: *mut pg_sys::BufFile,
}

impl TemporaryFile {
    /// Creates an empty file in the temporary tablespaces. `context` holds the file's buffers: it must live as long as
    /// the file, whatever context is current when the file is needed first.
    pub fn create(context: pg_sys::MemoryContext) -> TemporaryFile {
        // SAFETY: runs in a backend inside a transaction; the file belongs to the current resource owner.
        unsafe {
            let previous = pg_sys::MemoryContextSwitchTo(context);
            let file = pg_sys::BufFileCreateTemp(false);
            pg_sys::MemoryContextSwitchTo(previous);
            TemporaryFile { file }
        }
    }
}

impl Spool for TemporaryFile {
    fn append(&mut self, bytes: &[u8]) -> Result<(), IndexError> {
        // SAFETY: the file is open; the server copies the bytes.
        unsafe { pg_sys::BufFileWrite(self.file, bytes.as_ptr().cast_mut().cast(), bytes.len()) };
        Ok(())
    }

    fn rewind(&mut self) -> Result<(), IndexError> {
        const SEEK_SET: i32 = 0;
        // SAFETY: the file is open.
        if unsafe { pg_sys::BufFileSeek(self.file, 0, 0, SEEK_SET) } != 0 {
            return Err(IndexError::Store(
                "could not rewind a temporary file of the index build".into(),
            ));
        }
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, IndexError> {
        // SAFETY: the file is open and the buffer has that many bytes.
        Ok(unsafe { pg_sys::BufFileRead(self.file, buffer.as_mut_ptr().cast(), buffer.len()) })
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        // While unwinding from a server error the file belongs to the transaction's abort.
        if !std::thread::panicking() {
            // SAFETY: open until now, and never used again.
            unsafe { pg_sys::BufFileClose(self.file) }
        }
    }
}
