//! Allocations whose size follows from data: one that fails is an error of the statement, where the language's own would
//! end the process, and with it every session of the server.

use super::IndexError;

fn failed<T>(more: usize) -> IndexError {
    IndexError::OutOfMemory {
        bytes: more.saturating_mul(size_of::<T>()),
    }
}

/// Makes room for `more` elements.
pub fn reserve<T>(vector: &mut Vec<T>, more: usize) -> Result<(), IndexError> {
    vector.try_reserve(more).map_err(|_| failed::<T>(more))
}

/// Makes room for exactly `more` elements.
pub fn reserve_exact<T>(vector: &mut Vec<T>, more: usize) -> Result<(), IndexError> {
    vector.try_reserve_exact(more).map_err(|_| failed::<T>(more))
}

/// A vector of `count` times the same.
pub fn filled<T: Clone>(value: T, count: usize) -> Result<Vec<T>, IndexError> {
    let mut vector = Vec::new();
    reserve_exact(&mut vector, count)?;
    vector.resize(count, value);
    Ok(vector)
}

/// A vector of these rows one behind the other.
pub fn joined<'a>(rows: impl ExactSizeIterator<Item = &'a [f32]>, width: usize) -> Result<Vec<f32>, IndexError> {
    let mut vector = Vec::new();
    reserve_exact(&mut vector, rows.len() * width)?;
    rows.for_each(|row| vector.extend_from_slice(row));
    Ok(vector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_an_error() {
        let mut vector: Vec<u64> = Vec::new();
        for more in [usize::MAX / 2, isize::MAX as usize / 8] {
            assert!(matches!(
                reserve(&mut vector, more),
                Err(IndexError::OutOfMemory { .. })
            ));
            assert!(matches!(filled(0u64, more), Err(IndexError::OutOfMemory { .. })));
        }
        assert_eq!(filled(7u8, 3).unwrap(), [7, 7, 7]);
        let rows = [[1.0f32, 2.0], [3.0, 4.0]];
        assert_eq!(
            joined(rows.iter().map(|row| &row[..]), 2).unwrap(),
            [1.0, 2.0, 3.0, 4.0]
        );
    }
}
