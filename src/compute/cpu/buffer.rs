//! Memory aligned to a cache line, and pointers that tasks of one loop share.

use crate::compute::ComputeError;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Bytes of a cache line, and of the widest vector.
const ALIGNMENT: usize = 64;

/// A fixed number of `T`, zero at first, aligned to a cache line. `T` is one of this crate's plain number types.
pub struct Buffer<T: Number> {
    memory: NonNull<T>,
    length: usize,
}

/// Plain elements: every bit pattern is a value, zero bits are 0, nothing to drop.
pub trait Number: Copy + Send + Sync + 'static {}
impl Number for f32 {}
impl Number for f64 {}
impl Number for u8 {}
impl Number for u32 {}
impl Number for u64 {}

impl<T: Number> Buffer<T> {
    /// `length` zeros. Fails where the memory is refused, instead of ending the process.
    pub fn zeroed(length: usize) -> Result<Buffer<T>, ComputeError> {
        if length == 0 {
            return Ok(Buffer {
                memory: NonNull::dangling(),
                length,
            });
        }
        let refused = || ComputeError::Memory {
            bytes: length.saturating_mul(size_of::<T>()),
        };
        let layout = Layout::array::<T>(length)
            .and_then(|layout| layout.align_to(ALIGNMENT))
            .map_err(|_| refused())?;
        // SAFETY: the layout is not empty (`length` > 0 and elements have a size).
        let memory = unsafe { alloc_zeroed(layout) }.cast::<T>();
        #[cfg(test)]
        count::allocated(layout.size());
        Ok(Buffer {
            memory: NonNull::new(memory).ok_or_else(refused)?,
            length,
        })
    }
}

impl<T: Number> Drop for Buffer<T> {
    fn drop(&mut self) {
        if self.length == 0 {
            return;
        }
        if let Ok(layout) = Layout::array::<T>(self.length).and_then(|layout| layout.align_to(ALIGNMENT)) {
            #[cfg(test)]
            count::freed(layout.size());
            // SAFETY: allocated in `zeroed` with the same layout.
            unsafe { dealloc(self.memory.as_ptr().cast(), layout) }
        }
    }
}

impl<T: Number> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `length` initialised elements, or none at a dangling aligned pointer.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.length) }
    }
}

impl<T: Number> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.length) }
    }
}

// SAFETY: the buffer owns its elements, like a `Vec`.
unsafe impl<T: Number> Send for Buffer<T> {}
// SAFETY: shared access only reads.
unsafe impl<T: Number> Sync for Buffer<T> {}

impl Buffer<f32> {
    /// The memory as words.
    pub fn words(&self) -> &[u32] {
        // SAFETY: u32 and f32 have the same size and alignment, and every bit pattern is a u32.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), self.len()) }
    }
}

/// A pointer that the tasks of one loop share. Each use says which part is whose.
#[derive(Clone, Copy)]
pub struct Shared<T: Number> {
    pointer: *mut T,
    length: usize,
}

impl<T: Number> Shared<T> {
    pub fn new(elements: &mut [T]) -> Shared<T> {
        Shared {
            pointer: elements.as_mut_ptr(),
            length: elements.len(),
        }
    }

    /// The address of the elements `start..start + length`, which lie inside.
    pub fn address(&self, start: usize, length: usize) -> *mut T {
        assert!(
            start <= self.length && length <= self.length - start,
            "a part outside the shared numbers"
        );
        self.pointer.wrapping_add(start)
    }

    /// The elements `start..start + length`.
    ///
    /// # Safety
    /// The slice given to `new` is still borrowed for this use, and no other task uses these elements meanwhile.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part<'a>(&self, start: usize, length: usize) -> &'a mut [T] {
        assert!(
            start <= self.length && length <= self.length - start,
            "a part outside the shared numbers"
        );
        // SAFETY: inside the slice (just checked), exclusively this task's (promised).
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(start), length) }
    }
}

// SAFETY: `part` has the caller promise disjoint use.
unsafe impl<T: Number> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Number> Sync for Shared<T> {}

/// Bytes of the buffers that a thread holds, for tests that bound memory.
#[cfg(test)]
pub mod count {
    use std::cell::Cell;

    thread_local! {
        static NOW: Cell<isize> = const { Cell::new(0) };
        static PEAK: Cell<isize> = const { Cell::new(0) };
    }

    pub(super) fn allocated(bytes: usize) {
        NOW.set(NOW.get() + bytes as isize);
        PEAK.set(PEAK.get().max(NOW.get()));
    }

    pub(super) fn freed(bytes: usize) {
        NOW.set(NOW.get() - bytes as isize);
    }

    /// Most bytes that this thread's buffers held at once during `run`, beyond those that it held before.
    pub fn peak<R>(run: impl FnOnce() -> R) -> (R, usize) {
        let before = NOW.get();
        PEAK.set(before);
        let result = run();
        (result, (PEAK.get() - before) as usize)
    }
}
