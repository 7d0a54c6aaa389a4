//! One vector out of several token vectors. Sums run over the tokens in order.

/// The mean of rows of `width` elements; zero where there is no row.
pub fn mean(rows: &[f32], width: usize) -> Vec<f32> {
    let mut sum = vec![0f32; width];
    let mut count = 0usize;
    for row in rows.chunks_exact(width.max(1)) {
        sum.iter_mut().zip(row).for_each(|(sum, number)| *sum += number);
        count += 1;
    }
    let factor = 1.0 / count.max(1) as f32;
    sum.iter_mut().for_each(|number| *number *= factor);
    sum
}

/// The largest number of each column; zero where there is no row.
pub fn max(rows: &[f32], width: usize) -> Vec<f32> {
    let mut rows = rows.chunks_exact(width.max(1));
    let mut largest = rows.next().map_or_else(|| vec![0f32; width], <[f32]>::to_vec);
    for row in rows {
        largest
            .iter_mut()
            .zip(row)
            .for_each(|(largest, number)| *largest = largest.max(*number));
    }
    largest
}

/// Divides a vector by its length; a zero vector stays as it is.
pub fn normalize(vector: &mut [f32]) {
    let square: f64 = vector.iter().map(|number| (*number as f64).powi(2)).sum();
    let length = square.sqrt();
    if length > 0.0 {
        vector
            .iter_mut()
            .for_each(|number| *number = (*number as f64 / length) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_and_normalises() {
        let rows = [1.0, -2.0, 3.0, 3.0, 2.0, -1.0];
        assert_eq!(mean(&rows, 2), [2.0, 0.0]);
        assert_eq!(max(&rows, 2), [3.0, 3.0]);
        assert_eq!(mean(&[], 2), [0.0, 0.0]);
        let mut vector = [3.0, 4.0];
        normalize(&mut vector);
        assert_eq!(vector, [0.6, 0.8]);
        let mut zero = [0.0, 0.0];
        normalize(&mut zero);
        assert_eq!(zero, [0.0, 0.0]);
    }
}
