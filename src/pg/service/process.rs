//! What a worker's process waits with: its latch, a pipe that its threads write to; and what it takes of memory.

use pgrx::pg_sys;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A non-blocking pipe: read end, write end.
pub fn pipe() -> Result<(OwnedFd, OwnedFd), String> {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors; on success both are open and ours.
    unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) != 0 {
            return Err(format!("cannot create a pipe: {}", std::io::Error::last_os_error()));
        }
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

/// What the main thread waits for: its latch, the pipe's read end, the postmaster's death (which ends the process).
pub fn wait_set(read_end: &OwnedFd) -> *mut pg_sys::WaitEventSet {
    // SAFETY: the set lives as long as the process; latch and descriptor do too. Postmaster death ends the process.
    unsafe {
        #[cfg(feature = "pg16")]
        let set = pg_sys::CreateWaitEventSet(pg_sys::TopMemoryContext, 3);
        #[cfg(not(feature = "pg16"))]
        let set = pg_sys::CreateWaitEventSet(std::ptr::null_mut(), 3);
        let none = std::ptr::null_mut();
        pg_sys::AddWaitEventToSet(set, pg_sys::WL_LATCH_SET, -1, pg_sys::MyLatch, none);
        pg_sys::AddWaitEventToSet(set, pg_sys::WL_EXIT_ON_PM_DEATH, -1, std::ptr::null_mut(), none);
        let pipe = read_end.as_raw_fd();
        pg_sys::AddWaitEventToSet(set, pg_sys::WL_SOCKET_READABLE, pipe, std::ptr::null_mut(), none);
        set
    }
}

/// Reads a pipe empty.
pub fn drain(pipe: &OwnedFd) {
    let mut bytes = [0u8; 256];
    // SAFETY: an open, non-blocking descriptor and a buffer of that size.
    while unsafe { libc::read(pipe.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) } > 0 {}
}

/// Bytes of this process that are in memory.
pub fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = pages
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    // SAFETY: no preconditions.
    pages.unwrap_or_default() * unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(0) as u64
}

/// Bytes that processes can still take without swapping, as the system estimates; `None` where it does not say.
pub fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?;
    kilobytes.checked_mul(1024)
}
