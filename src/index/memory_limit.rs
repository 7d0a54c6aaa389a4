//! Allocations whose size follows from data (`compute/cpu/memory.rs`), with this module's error.

use super::IndexError;
use crate::compute::ComputeError;
use crate::compute::memory::{self, Grows};

/// What `compute` says of memory.
pub fn full(error: ComputeError) -> IndexError {
    match error {
        ComputeError::Memory { bytes } => IndexError::OutOfMemory { bytes },
        other => IndexError::Store(other.to_string()),
    }
}

/// Makes room for `more` elements.
pub fn reserve<C: Grows>(collection: &mut C, more: usize) -> Result<(), IndexError> {
    memory::reserve(collection, more).map_err(full)
}

/// Makes room for exactly `more` elements.
pub fn reserve_exact<T>(vector: &mut Vec<T>, more: usize) -> Result<(), IndexError> {
    memory::reserve_exact(vector, more).map_err(full)
}

/// An empty vector with room for exactly `count` elements.
pub fn with_room<T>(count: usize) -> Result<Vec<T>, IndexError> {
    memory::with_room(count).map_err(full)
}

/// A vector of `count` times the same.
pub fn filled<T: Clone>(value: T, count: usize) -> Result<Vec<T>, IndexError> {
    memory::filled(value, count).map_err(full)
}

/// A vector of as many items as there are.
pub fn collected<T>(items: impl ExactSizeIterator<Item = T>) -> Result<Vec<T>, IndexError> {
    memory::collected(items).map_err(full)
}

/// A vector of these rows one behind the other.
pub fn joined<'a>(rows: impl ExactSizeIterator<Item = &'a [f32]>, width: usize) -> Result<Vec<f32>, IndexError> {
    let mut vector = with_room(rows.len() * width)?;
    rows.for_each(|row| vector.extend_from_slice(row));
    Ok(vector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_this_rooms_error() {
        let mut vector: Vec<u64> = Vec::new();
        for more in [usize::MAX / 2, isize::MAX as usize / 8] {
            assert!(matches!(
                reserve(&mut vector, more),
                Err(IndexError::OutOfMemory { .. })
            ));
            assert!(matches!(filled(0u64, more), Err(IndexError::OutOfMemory { .. })));
        }
        let rows = [[1.0f32, 2.0], [3.0, 4.0]];
        assert_eq!(
            joined(rows.iter().map(|row| &row[..]), 2).unwrap(),
            [1.0, 2.0, 3.0, 4.0]
        );
    }
}
