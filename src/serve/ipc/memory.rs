//! Memory that was freed and goes back to the system.
//!
//! The allocator keeps what is freed for its next use, in pools of the threads that asked for it. A model comes from a
//! thread that ends and leaves from another, so most of its memory would stay with a process that has no use for it: a
//! worker that loads and unloads models would grow by a part of one each time.

/// Hands free pages of all pools back to the system. Takes milliseconds where there is much to hand back.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: no preconditions; takes the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The last field of what holds much memory: fields are dropped in order, so that the memory of the others is free when
/// this one hands it back.
pub struct GivesBack;

impl Drop for GivesBack {
    fn drop(&mut self) {
        give_back();
    }
}
