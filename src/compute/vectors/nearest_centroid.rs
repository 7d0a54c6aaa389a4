//! Nearest centroids of many vectors: a blocked matrix product that never stores the matrix.
//!
//! Centroids are packed in panels of 16 (component by component), so that one vector register holds 16 centroids'
//! partial products; eight vectors go through a panel pair together.

use crate::compute::ComputeError;
use crate::compute::cpu::level::{Level, level};
use crate::compute::cpu::memory::{filled, zeros};
use crate::compute::cpu::parallel::parallel_for;
use parking_lot::Mutex;

const PANEL: usize = 16;
const ROWS: usize = 8;

/// Centroids packed for products.
#[derive(Clone, Debug)]
pub struct Panels {
    dimensions: usize,
    count: usize,
    packed: Vec<f32>,
    /// Half the squared norms; infinite for the padding, which is therefore never nearest.
    half_norms: Vec<f32>,
}

impl Panels {
    /// Packs `count` centroids, row-major `[count][dimensions]`.
    ///
    /// # Errors
    /// [`ComputeError::Memory`] where there is too little.
    pub fn new(centroids: &[f32], dimensions: usize) -> Result<Panels, ComputeError> {
        let count = centroids.len() / dimensions.max(1);
        let panels = count.div_ceil(2 * PANEL) * 2;
        let mut packed = zeros::<f32>(panels * PANEL * dimensions)?;
        let mut half_norms = filled(f32::INFINITY, panels * PANEL)?;
        for (c, centroid) in centroids.chunks_exact(dimensions.max(1)).enumerate() {
            let panel = &mut packed[c / PANEL * PANEL * dimensions..];
            for (k, &x) in centroid.iter().enumerate() {
                panel[k * PANEL + c % PANEL] = x;
            }
            half_norms[c] = 0.5 * centroid.iter().map(|x| x * x).sum::<f32>();
        }
        Ok(Panels {
            dimensions,
            count,
            packed,
            half_norms,
        })
    }

    /// Number of centroids.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are no centroids.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// For each of the row-major vectors, calls `take(row, first centroid, products)` once a panel pair, where
    /// `products` are the 32 values `<x, c> - |c|^2 / 2` (padding gives minus infinity).
    fn products(&self, rows: &[f32], mut take: impl FnMut(usize, usize, &[f32; 2 * PANEL])) {
        let d = self.dimensions;
        let n = rows.len() / d.max(1);
        let mut out = [[0.0f32; 2 * PANEL]; ROWS];
        // A group of rows that fits the second-level cache meets every panel pair in turn.
        let group = (64 * 1024 / d.max(1)).clamp(ROWS, 512) / ROWS * ROWS;
        for start in (0..n).step_by(group) {
            let end = (start + group).min(n);
            for pair in 0..self.half_norms.len() / (2 * PANEL) {
                let panels = &self.packed[pair * 2 * PANEL * d..(pair + 1) * 2 * PANEL * d];
                let norms = &self.half_norms[pair * 2 * PANEL..(pair + 1) * 2 * PANEL];
                for first in (start..end).step_by(ROWS) {
                    let count = ROWS.min(end - first);
                    // A short last group repeats its last row: the kernel always has eight.
                    let pointers: [&[f32]; ROWS] = std::array::from_fn(|r| {
                        let row = first + r.min(count - 1);
                        &rows[row * d..(row + 1) * d]
                    });
                    multiply(&pointers, panels, d, &mut out);
                    for (r, products) in out.iter_mut().enumerate().take(count) {
                        products.iter_mut().zip(norms).for_each(|(p, norm)| *p -= norm);
                        take(first + r, pair * 2 * PANEL, products);
                    }
                }
            }
        }
    }

    /// Nearest centroid of every row and the squared distance to it, in pieces over `threads` threads.
    ///
    /// `rows` is row-major `[n][dimensions]`; `out` has n places and gets `(centroid, squared distance)`.
    pub fn nearest(&self, rows: &[f32], threads: usize, out: &mut [(u32, f32)]) {
        let d = self.dimensions.max(1);
        let piece = out
            .len()
            .div_ceil(threads.max(1) * 4)
            .next_multiple_of(ROWS)
            .clamp(ROWS, 2048);
        let parts: Vec<Mutex<&mut [(u32, f32)]>> = out.chunks_mut(piece).map(Mutex::new).collect();
        parallel_for(threads, parts.len(), |i| {
            let mut part = parts[i].lock();
            let rows = &rows[i * piece * d..(i * piece + part.len()) * d];
            part.fill((0, f32::NEG_INFINITY));
            self.products(rows, |row, first, products| {
                let best = &mut part[row];
                let top = products.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                if top > best.1 {
                    let at = products.iter().position(|&p| p == top).unwrap_or(0);
                    *best = ((first + at) as u32, top);
                }
            });
            for (row, best) in part.iter_mut().enumerate() {
                let norm: f32 = rows[row * d..(row + 1) * d].iter().map(|x| x * x).sum();
                best.1 = (norm - 2.0 * best.1).max(0.0);
            }
        });
    }

    /// All values `<x, c> - |c|^2 / 2` of the rows, row-major `[n][len]`.
    pub fn scores(&self, rows: &[f32], out: &mut [f32]) {
        let count = self.count;
        self.products(rows, |row, first, products| {
            let last = (first + 2 * PANEL).min(count);
            out[row * count + first..row * count + last].copy_from_slice(&products[..last - first]);
        });
    }
}

fn multiply(rows: &[&[f32]; ROWS], panels: &[f32], d: usize, out: &mut [[f32; 2 * PANEL]; ROWS]) {
    debug_assert!(panels.len() == 2 * PANEL * d && rows.iter().all(|r| r.len() == d));
    match level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level was detected; every row has d components and the panels 32 d.
        Level::Avx512 => unsafe { x86::multiply_avx512(rows, panels, d, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx2 => unsafe { x86::multiply_avx2(rows, panels, d, out) },
        _ => multiply_portable(rows, panels, d, out),
    }
}

#[inline(always)]
fn multiply_portable(rows: &[&[f32]; ROWS], panels: &[f32], d: usize, out: &mut [[f32; 2 * PANEL]; ROWS]) {
    let (low, high) = panels.split_at(PANEL * d);
    for (row, out) in rows.iter().zip(out.iter_mut()) {
        let mut sums = [0.0f32; 2 * PANEL];
        for ((&x, a), b) in row.iter().zip(low.chunks_exact(PANEL)).zip(high.chunks_exact(PANEL)) {
            for j in 0..PANEL {
                sums[j] += x * a[j];
                sums[j + PANEL] += x * b[j];
            }
        }
        *out = sums;
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{PANEL, ROWS};
    use std::arch::x86_64::*;

    /// # Safety
    /// Needs AVX-512 F; every row has `d` components, `panels` has `32 d`.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn multiply_avx512(rows: &[&[f32]; ROWS], panels: &[f32], d: usize, out: &mut [[f32; 2 * PANEL]; ROWS]) {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        let pointers: [*const f32; ROWS] = std::array::from_fn(|r| rows[r].as_ptr());
        let (low, high) = (panels.as_ptr(), panels.as_ptr().wrapping_add(PANEL * d));
        for k in 0..d {
            // SAFETY: k < d, so both panel loads and the row loads stay inside their slices.
            unsafe {
                let a = _mm512_loadu_ps(low.add(k * PANEL));
                let b = _mm512_loadu_ps(high.add(k * PANEL));
                for r in 0..ROWS {
                    let x = _mm512_set1_ps(*pointers[r].add(k));
                    sums[r][0] = _mm512_fmadd_ps(x, a, sums[r][0]);
                    sums[r][1] = _mm512_fmadd_ps(x, b, sums[r][1]);
                }
            }
        }
        for (sums, out) in sums.iter().zip(out.iter_mut()) {
            // SAFETY: 32 floats are stored into 32 places.
            unsafe {
                _mm512_storeu_ps(out.as_mut_ptr(), sums[0]);
                _mm512_storeu_ps(out.as_mut_ptr().add(PANEL), sums[1]);
            }
        }
    }

    /// # Safety
    /// Needs AVX2 and FMA; every row has `d` components, `panels` has `32 d`.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn multiply_avx2(rows: &[&[f32]; ROWS], panels: &[f32], d: usize, out: &mut [[f32; 2 * PANEL]; ROWS]) {
        // Four rows by one panel: eight sums, two loads and a broadcast fit the sixteen registers.
        for half in 0..2 {
            let panel = panels.as_ptr().wrapping_add(half * PANEL * d);
            for quad in 0..ROWS / 4 {
                let mut sums = [[_mm256_setzero_ps(); 2]; 4];
                for k in 0..d {
                    // SAFETY: k < d, so the loads stay inside their slices.
                    unsafe {
                        let a = _mm256_loadu_ps(panel.add(k * PANEL));
                        let b = _mm256_loadu_ps(panel.add(k * PANEL + 8));
                        for r in 0..4 {
                            let x = _mm256_set1_ps(*rows[quad * 4 + r].get_unchecked(k));
                            sums[r][0] = _mm256_fmadd_ps(x, a, sums[r][0]);
                            sums[r][1] = _mm256_fmadd_ps(x, b, sums[r][1]);
                        }
                    }
                }
                for (r, sums) in sums.iter().enumerate() {
                    let to = out[quad * 4 + r].as_mut_ptr().wrapping_add(half * PANEL);
                    // SAFETY: 16 floats are stored into the row's half of 32 places.
                    unsafe {
                        _mm256_storeu_ps(to, sums[0]);
                        _mm256_storeu_ps(to.add(8), sums[1]);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::splitmix64;

    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| (splitmix64(&mut state) >> 40) as f32 / (1 << 24) as f32 - 0.5)
            .collect()
    }

    #[test]
    fn nearest_equals_brute_force() {
        for (n, count, d) in [(1, 1, 1), (9, 3, 2), (37, 33, 50), (100, 70, 384)] {
            let rows = random(n * d, 1);
            let centroids = random(count * d, 2);
            let panels = Panels::new(&centroids, d).unwrap();
            let mut out = vec![(0, 0.0); n];
            panels.nearest(&rows, 2, &mut out);
            let mut scores = vec![0.0; n * count];
            panels.scores(&rows, &mut scores);
            for (r, &(_, distance)) in out.iter().enumerate() {
                let all: Vec<f32> = (0..count)
                    .map(|c| (0..d).map(|k| (rows[r * d + k] - centroids[c * d + k]).powi(2)).sum())
                    .collect();
                let best = all.iter().copied().fold(f32::INFINITY, f32::min);
                assert!(
                    (distance - best).abs() < 1e-4 * (1.0 + best),
                    "{n} {count} {d}: {distance} {best}"
                );
                let norm: f32 = rows[r * d..(r + 1) * d].iter().map(|x| x * x).sum();
                for c in 0..count {
                    assert!((norm - 2.0 * scores[r * count + c] - all[c]).abs() < 1e-3);
                }
            }
        }
    }

    #[test]
    fn every_level_gives_the_product() {
        let d = 50;
        let (rows, panels) = (random(ROWS * d, 1), random(2 * PANEL * d, 2));
        let rows: [&[f32]; ROWS] = std::array::from_fn(|r| &rows[r * d..(r + 1) * d]);
        let (mut best, mut other) = ([[0.0; 2 * PANEL]; ROWS], [[0.0; 2 * PANEL]; ROWS]);
        multiply(&rows, &panels, d, &mut best);
        let near = |other: &[[f32; 2 * PANEL]; ROWS]| {
            assert!(
                best.iter()
                    .flatten()
                    .zip(other.iter().flatten())
                    .all(|(a, b)| (a - b).abs() < 1e-4)
            );
        };
        multiply_portable(&rows, &panels, d, &mut other);
        near(&other);
        #[cfg(target_arch = "x86_64")]
        if level() >= Level::Avx2 {
            // SAFETY: the level was detected; every row has d components and the panels 32 d.
            unsafe { x86::multiply_avx2(&rows, &panels, d, &mut other) };
            near(&other);
        }
    }
}
