//! Allocations whose size follows from data or files: one that fails is an error, where the language's own would end the
//! process, and with it every session of the server.
//!
//! Names, rows and messages are many small allocations that cannot be asked for one by one. Before a piece of such work
//! [`spare`] asks for more than the piece takes, so that it is this that fails.

use super::buffer::Number;
use crate::compute::ComputeError;
use parking_lot::Mutex;
use std::alloc::{Layout, alloc_zeroed};
use std::collections::{BinaryHeap, HashSet, VecDeque};
use std::hash::Hash;

/// Bytes from which on [`room_for`] tries: what is smaller is what [`spare`] is for.
const TRIED: usize = 64 << 10;
/// Bytes that small allocations may take until somebody asks again. Tests limit what one allocation gets: they ask for less,
/// so as to come by it.
const SPARE: usize = if cfg!(test) { 0 } else { 2 << 20 };
/// Bytes that are held for reports. Nobody touches them: they are addresses, not pages.
const RESERVED: usize = 2 * SPARE;

static RESERVE: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// The error of a refused `count` of `T`.
pub fn refused<T>(count: usize) -> ComputeError {
    ComputeError::Memory {
        bytes: count.saturating_mul(size_of::<T>()),
    }
}

/// What grows.
pub trait Grows {
    type Item;
    /// Makes room for `more` elements.
    ///
    /// # Errors
    /// [`ComputeError::Memory`] where it is refused.
    fn reserve_or(&mut self, more: usize) -> Result<(), ComputeError>;
}

macro_rules! grows {
    ($($collection:ident: $($bound:path),*;)*) => {$(
        impl<T: $($bound +)*> Grows for $collection<T> {
            type Item = T;
            fn reserve_or(&mut self, more: usize) -> Result<(), ComputeError> {
                self.try_reserve(more).map_err(|_| refused::<T>(more))
            }
        }
    )*};
}

grows! {
    Vec: ;
    VecDeque: ;
    BinaryHeap: Ord;
    HashSet: Eq, Hash;
}

/// Makes room for `more` elements, and for some more where it has to grow.
pub fn reserve<C: Grows>(collection: &mut C, more: usize) -> Result<(), ComputeError> {
    collection.reserve_or(more)
}

/// Makes room for exactly `more` elements.
pub fn reserve_exact<T>(vector: &mut Vec<T>, more: usize) -> Result<(), ComputeError> {
    vector.try_reserve_exact(more).map_err(|_| refused::<T>(more))
}

/// An empty vector with room for exactly `count` elements.
pub fn with_room<T>(count: usize) -> Result<Vec<T>, ComputeError> {
    let mut vector = Vec::new();
    reserve_exact(&mut vector, count)?;
    Ok(vector)
}

/// A vector of `count` times the same. Of zeros, [`zeros`] writes no page.
pub fn filled<T: Clone>(value: T, count: usize) -> Result<Vec<T>, ComputeError> {
    let mut vector = with_room(count)?;
    vector.resize(count, value);
    Ok(vector)
}

/// `count` zeros, which the system brings when they are touched.
pub fn zeros<T: Number>(count: usize) -> Result<Vec<T>, ComputeError> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let layout = Layout::array::<T>(count).map_err(|_| refused::<T>(count))?;
    // SAFETY: the layout is not empty: `count` > 0, and elements have a size.
    let memory = unsafe { alloc_zeroed(layout) }.cast::<T>();
    if memory.is_null() {
        return Err(refused::<T>(count));
    }
    // SAFETY: allocated by the global allocator with the layout of `count` elements, all of them zero, which is a number.
    Ok(unsafe { Vec::from_raw_parts(memory, count, count) })
}

/// A vector of as many items as there are.
pub fn collected<T>(items: impl ExactSizeIterator<Item = T>) -> Result<Vec<T>, ComputeError> {
    let mut vector = with_room(items.len())?;
    vector.extend(items);
    Ok(vector)
}

/// A copy of the elements.
pub fn copied<T: Copy>(elements: &[T]) -> Result<Vec<T>, ComputeError> {
    let mut vector = with_room(elements.len())?;
    vector.extend_from_slice(elements);
    Ok(vector)
}

/// A copy of a text.
pub fn text(text: &str) -> Result<String, ComputeError> {
    let mut copy = String::new();
    copy.try_reserve_exact(text.len())
        .map_err(|_| refused::<u8>(text.len()))?;
    copy.push_str(text);
    Ok(copy)
}

/// Puts `more` behind the elements of a vector; an empty one becomes it.
pub fn append<T>(vector: &mut Vec<T>, mut more: Vec<T>) -> Result<(), ComputeError> {
    if vector.is_empty() {
        *vector = more;
        return Ok(());
    }
    reserve_exact(vector, more.len())?;
    vector.append(&mut more);
    Ok(())
}

/// Fails where `bytes` could not be had now: for what other libraries allocate themselves, in many pieces, and end the process
/// where one of them is refused. Another thread may still take the memory before they do.
pub fn room_for(bytes: usize) -> Result<(), ComputeError> {
    match bytes < TRIED {
        true => Ok(()),
        false => tried(bytes.saturating_add(SPARE)),
    }
}

/// Fails where there is no memory left for a piece of work in small allocations. Takes a microsecond or two.
pub fn spare() -> Result<(), ComputeError> {
    tried(SPARE)
}

/// Gives back what was held for the moment at which memory is short: to report that takes memory, in the server's case blocks of
/// a megabyte. The next piece of work holds it again.
pub fn give_up_reserve() {
    *RESERVE.lock() = Vec::new();
}

fn tried(bytes: usize) -> Result<(), ComputeError> {
    let mut reserve = RESERVE.lock();
    if reserve.capacity() == 0 {
        *reserve = with_room(RESERVED)?;
    }
    drop(reserve);
    // Looked at, so that the compiler does not leave out an allocation that nobody uses.
    std::hint::black_box(with_room::<u8>(bytes)).map(drop)
}

/// An allocator for tests, which refuses a thread what is larger than was said.
#[cfg(test)]
pub mod scarce {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::cell::Cell;

    thread_local! {
        static MOST: Cell<usize> = const { Cell::new(usize::MAX) };
    }

    struct Scarce;

    #[global_allocator]
    static SCARCE: Scarce = Scarce;

    fn grants(bytes: usize) -> bool {
        // A thread on its way out has no number any more, and no limit.
        MOST.try_with(Cell::get).map_or(true, |most| bytes <= most)
    }

    // SAFETY: everything is the system's allocator, or refused as an allocator may.
    unsafe impl GlobalAlloc for Scarce {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            match grants(layout.size()) {
                // SAFETY: the caller's promise.
                true => unsafe { System.alloc(layout) },
                false => std::ptr::null_mut(),
            }
        }

        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            match grants(layout.size()) {
                // SAFETY: the caller's promise.
                true => unsafe { System.alloc_zeroed(layout) },
                false => std::ptr::null_mut(),
            }
        }

        unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            match grants(size) {
                // SAFETY: the caller's promise.
                true => unsafe { System.realloc(memory, layout, size) },
                false => std::ptr::null_mut(),
            }
        }

        unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
            // SAFETY: the caller's promise.
            unsafe { System.dealloc(memory, layout) }
        }
    }

    /// Runs something while no allocation of this thread gets more than `most` bytes. One that cannot fail ends the tests.
    pub fn at_most<R>(most: usize, run: impl FnOnce() -> R) -> R {
        struct Back(usize);
        impl Drop for Back {
            fn drop(&mut self) {
                MOST.set(self.0);
            }
        }
        let _back = Back(MOST.replace(most));
        run()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABSURD: usize = isize::MAX as usize / 16;

    #[test]
    fn what_does_not_fit_is_an_error() {
        fn memory<T>(result: Result<T, ComputeError>) -> bool {
            matches!(result, Err(ComputeError::Memory { .. }))
        }
        for count in [ABSURD, usize::MAX] {
            assert!(memory(reserve(&mut Vec::<u64>::new(), count)));
            assert!(memory(reserve(&mut BinaryHeap::<u64>::new(), count)));
            assert!(memory(reserve(&mut VecDeque::<u64>::new(), count)));
            assert!(memory(reserve(&mut HashSet::<u64>::new(), count)));
            assert!(memory(reserve_exact(&mut Vec::<u64>::new(), count)));
            assert!(memory(with_room::<f32>(count)));
            assert!(memory(filled(0u64, count)));
            assert!(memory(zeros::<u8>(count)));
            assert!(memory(room_for(count)));
        }
        assert!(memory(collected((0..ABSURD).map(|at| at as u64))));
        assert!(scarce::at_most(1000, || memory(filled(0u64, 126))));
        assert!(scarce::at_most(1000, || filled(0u64, 125)).is_ok());
    }

    #[test]
    fn what_fits_is_what_was_asked_for() {
        assert_eq!(filled(7u8, 3).unwrap(), [7, 7, 7]);
        let mut elements = zeros::<f32>(1000).unwrap();
        assert!(elements.iter().all(|number| *number == 0.0));
        elements.extend([1.0; 1000]);
        assert_eq!(elements.len(), 2000);
        assert!(zeros::<u64>(0).unwrap().is_empty());
        assert_eq!(collected([1u32, 2].iter().map(|x| x * 2)).unwrap(), [2, 4]);
        assert_eq!(copied(&[3u32, 4]).unwrap(), [3, 4]);
        assert_eq!(text("aé").unwrap(), "aé");
        let mut both = Vec::new();
        append(&mut both, vec![1, 2]).unwrap();
        append(&mut both, vec![3]).unwrap();
        assert_eq!(both, [1, 2, 3]);
        assert!(room_for(1 << 20).is_ok());
    }
}
