//! The few operations on rows that the bridge is made of. Lengths fit by construction; what is longer is left out.

/// Lanes that sums are kept in, so that the compiler uses vector registers.
const LANES: usize = 16;

/// Inner product.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, b) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0f32; LANES];
    for (a, b) in a.0.iter().zip(b.0) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a.1.iter().zip(b.1).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// `out += factor * row`.
pub fn add_scaled(out: &mut [f32], factor: f32, row: &[f32]) {
    out.iter_mut()
        .zip(row)
        .for_each(|(out, number)| *out += factor * number);
}

/// `out = W x`, `W` row-major with a row for each number of `out`.
pub fn apply(matrix: &[f32], x: &[f32], out: &mut [f32]) {
    for (row, out) in matrix.chunks_exact(x.len().max(1)).zip(out) {
        *out = dot(row, x);
    }
}

/// `out = transposed(W) y`, `W` row-major with a row for each number of `y`.
pub fn apply_transposed(matrix: &[f32], y: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    for (row, factor) in matrix.chunks_exact(out.len().max(1)).zip(y) {
        add_scaled(out, *factor, row);
    }
}

/// `W += y transposed(x)`.
pub fn add_outer(matrix: &mut [f32], y: &[f32], x: &[f32]) {
    for (row, factor) in matrix.chunks_exact_mut(x.len().max(1)).zip(y) {
        add_scaled(row, *factor, x);
    }
}

/// Divides a row by its length and returns that; a row of zeros stays.
pub fn unit(row: &mut [f32]) -> f32 {
    let norm = dot(row, row).sqrt();
    if norm > 0.0 {
        row.iter_mut().for_each(|number| *number /= norm);
    }
    norm
}
