//! Eigenvalues and eigenvectors of a symmetric matrix.
//!
//! Householder reduction to tridiagonal form, then implicit QL with shifts (Bowdler, Martin, Reinsch and Wilkinson
//! 1968, "The QR and QL algorithms for symmetric matrices", procedures tred2 and tql2), in f64.

use crate::bridge::BridgeError;

/// Fails where the work is to stop.
pub type Ask<'a> = &'a mut dyn FnMut() -> Result<(), BridgeError>;

/// Rounds of the QL iteration for one eigenvalue, after which the matrix is given up.
const MOST_ROUNDS: usize = 60;

/// Eigenvalues and, as columns of a row-major `n` x `n` matrix, their eigenvectors of unit length. `None` where the
/// matrix is not `n` x `n`, holds something that is not finite, or the iteration does not converge.
///
/// # Errors
/// Those of `ask`, which is called some `3 n` times, every `n * n` operations or so.
#[allow(clippy::type_complexity)] // values and vectors
pub fn symmetric(matrix: &[f64], n: usize, ask: Ask<'_>) -> Result<Option<(Vec<f64>, Vec<f64>)>, BridgeError> {
    if n == 0 || matrix.len() != n * n || matrix.iter().any(|number| !number.is_finite()) {
        return Ok(None);
    }
    let mut v = matrix.to_vec();
    let (mut d, mut e) = (vec![0.0; n], vec![0.0; n]);
    tridiagonal(&mut v, &mut d, &mut e, n, ask)?;
    let converged = ql(&mut v, &mut d, &mut e, n, ask)?;
    Ok(converged.then_some((d, v)))
}

/// `v` becomes the product of the reflections, `d` the diagonal, `e[1..]` what is beside it.
fn tridiagonal(v: &mut [f64], d: &mut [f64], e: &mut [f64], n: usize, ask: Ask<'_>) -> Result<(), BridgeError> {
    d.copy_from_slice(&v[(n - 1) * n..]);
    for i in (1..n).rev() {
        ask()?;
        let scale: f64 = d[..i].iter().map(|x| x.abs()).sum();
        let mut h = 0.0;
        if scale == 0.0 {
            e[i] = d[i - 1];
            for j in 0..i {
                d[j] = v[(i - 1) * n + j];
                v[i * n + j] = 0.0;
                v[j * n + i] = 0.0;
            }
        } else {
            for x in &mut d[..i] {
                *x /= scale;
                h += *x * *x;
            }
            let f = d[i - 1];
            let g = if f > 0.0 { -h.sqrt() } else { h.sqrt() };
            e[i] = scale * g;
            h -= f * g;
            d[i - 1] = f - g;
            e[..i].fill(0.0);
            for j in 0..i {
                let f = d[j];
                v[j * n + i] = f;
                let mut g = e[j] + v[j * n + j] * f;
                for k in j + 1..i {
                    let entry = v[k * n + j];
                    g += entry * d[k];
                    e[k] += entry * f;
                }
                e[j] = g;
            }
            let mut f = 0.0;
            for j in 0..i {
                e[j] /= h;
                f += e[j] * d[j];
            }
            let hh = f / (h + h);
            for j in 0..i {
                e[j] -= hh * d[j];
            }
            for j in 0..i {
                let (f, g) = (d[j], e[j]);
                for k in j..i {
                    v[k * n + j] -= f * e[k] + g * d[k];
                }
                d[j] = v[(i - 1) * n + j];
                v[i * n + j] = 0.0;
            }
        }
        d[i] = h;
    }
    accumulate(v, d, n, ask)?;
    e[0] = 0.0;
    Ok(())
}

/// Multiplies the reflections out.
fn accumulate(v: &mut [f64], d: &mut [f64], n: usize, ask: Ask<'_>) -> Result<(), BridgeError> {
    let mut sums = vec![0.0; n];
    for i in 0..n - 1 {
        ask()?;
        v[(n - 1) * n + i] = v[i * n + i];
        v[i * n + i] = 1.0;
        let h = d[i + 1];
        if h != 0.0 {
            for k in 0..=i {
                d[k] = v[k * n + i + 1] / h;
            }
            // Sums by rows rather than by columns, so that memory is read in order.
            sums[..=i].fill(0.0);
            for k in 0..=i {
                let factor = v[k * n + i + 1];
                let row = &v[k * n..k * n + i + 1];
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += factor * x);
            }
            for k in 0..=i {
                let factor = d[k];
                let row = &mut v[k * n..k * n + i + 1];
                row.iter_mut().zip(&sums).for_each(|(x, sum)| *x -= sum * factor);
            }
        }
        for k in 0..=i {
            v[k * n + i + 1] = 0.0;
        }
    }
    for j in 0..n {
        d[j] = v[(n - 1) * n + j];
        v[(n - 1) * n + j] = 0.0;
    }
    v[n * n - 1] = 1.0;
    Ok(())
}

/// The eigenvalues into `d`, the eigenvectors into the columns of `v`; false where the iteration does not converge.
fn ql(v: &mut [f64], d: &mut [f64], e: &mut [f64], n: usize, ask: Ask<'_>) -> Result<bool, BridgeError> {
    e.copy_within(1.., 0);
    e[n - 1] = 0.0;
    let (mut f, mut largest) = (0.0f64, 0.0f64);
    // Rotations act on pairs of columns: rows of the transpose, which lie together in memory.
    transpose(v, n);
    for l in 0..n {
        largest = largest.max(d[l].abs() + e[l].abs());
        let small = f64::EPSILON * largest;
        let mut m = l;
        while m < n - 1 && e[m].abs() > small {
            m += 1;
        }
        let mut rounds = 0;
        while m > l && e[l].abs() > small {
            ask()?;
            rounds += 1;
            if rounds > MOST_ROUNDS {
                return Ok(false);
            }
            f += iterate(v, d, e, n, l, m);
        }
        d[l] += f;
        e[l] = 0.0;
    }
    transpose(v, n);
    Ok(d.iter().all(|value| value.is_finite()))
}

/// One QL iteration with an implicit shift on the rows `l` to `m` of the transpose; gives the shift.
fn iterate(v: &mut [f64], d: &mut [f64], e: &mut [f64], n: usize, l: usize, m: usize) -> f64 {
    let g = d[l];
    let p = (d[l + 1] - g) / (2.0 * e[l]);
    let r = p.hypot(1.0).copysign(p);
    d[l] = e[l] / (p + r);
    d[l + 1] = e[l] * (p + r);
    let below = d[l + 1];
    let shift = g - d[l];
    d[l + 2..].iter_mut().for_each(|x| *x -= shift);
    let mut p = d[m];
    let (mut c, mut c2, mut c3) = (1.0, 1.0, 1.0);
    let beside = e[l + 1];
    let (mut s, mut s2) = (0.0, 0.0);
    for i in (l..m).rev() {
        c3 = c2;
        c2 = c;
        s2 = s;
        let g = c * e[i];
        let h = c * p;
        let r = p.hypot(e[i]);
        e[i + 1] = s * r;
        s = e[i] / r;
        c = p / r;
        p = c * d[i] - s * g;
        d[i + 1] = h + s * (c * g + s * d[i]);
        let (low, high) = v.split_at_mut((i + 1) * n);
        let (first, second) = (&mut low[i * n..], &mut high[..n]);
        for (a, b) in first.iter_mut().zip(second) {
            let h = *b;
            *b = s * *a + c * h;
            *a = c * *a - s * h;
        }
    }
    p = -s * s2 * c3 * beside * e[l] / below;
    e[l] = s * p;
    d[l] = c * p;
    shift
}

fn transpose(v: &mut [f64], n: usize) {
    for i in 0..n {
        for j in 0..i {
            v.swap(i * n + j, j * n + i);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn solve(matrix: &[f64], n: usize) -> Option<(Vec<f64>, Vec<f64>)> {
        symmetric(matrix, n, &mut || Ok(())).expect("nobody stops it")
    }

    fn check(matrix: &[f64], n: usize) {
        let (values, vectors) = solve(matrix, n).expect("converges");
        let size = matrix.iter().fold(1.0f64, |most, x| most.max(x.abs()));
        for k in 0..n {
            for i in 0..n {
                let product: f64 = (0..n).map(|j| matrix[i * n + j] * vectors[j * n + k]).sum();
                let error = (product - values[k] * vectors[i * n + k]).abs();
                assert!(error < 1e-10 * size * n as f64, "{n}: {error}");
            }
            for other in 0..n {
                let dot: f64 = (0..n).map(|i| vectors[i * n + k] * vectors[i * n + other]).sum();
                assert!((dot - f64::from(u8::from(k == other))).abs() < 1e-10);
            }
        }
    }

    #[test]
    fn a_hand_computed_matrix() {
        let (mut values, _) = solve(&[2.0, 1.0, 1.0, 2.0], 2).expect("converges");
        values.sort_by(f64::total_cmp);
        assert!((values[0] - 1.0).abs() < 1e-12 && (values[1] - 3.0).abs() < 1e-12);
    }

    #[test]
    fn eigenvectors_satisfy_their_equation() {
        let mut state = 1u64;
        let mut random = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) as f64 / f64::from(1u32 << 31) - 0.5
        };
        for n in [1, 2, 3, 7, 40] {
            let mut matrix = vec![0.0; n * n];
            for i in 0..n {
                for j in 0..=i {
                    let number = random();
                    matrix[i * n + j] = number;
                    matrix[j * n + i] = number;
                }
            }
            check(&matrix, n);
        }
        check(&[0.0; 9], 3);
        check(&[5.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 5.0], 3);
    }

    #[test]
    fn what_is_no_matrix_is_refused() {
        assert!(solve(&[1.0, 2.0], 2).is_none());
        assert!(solve(&[f64::NAN], 1).is_none());
        assert!(solve(&[], 0).is_none());
    }

    #[test]
    fn it_can_be_stopped_anywhere() {
        let n = 30;
        let matrix: Vec<f64> = (0..n * n).map(|at| 1.0 / (1 + at / n + at % n) as f64).collect();
        let mut asked = 0;
        let mut count = || -> Result<(), BridgeError> {
            asked += 1;
            Ok(())
        };
        assert!(symmetric(&matrix, n, &mut count).expect("nobody stops it").is_some());
        assert!(asked > 2 * n, "{asked}");
        for most in 0..asked {
            let mut left = most;
            let mut ask = || -> Result<(), BridgeError> {
                left = usize::checked_sub(left, 1).ok_or(BridgeError::Stopped)?;
                Ok(())
            };
            assert!(
                matches!(symmetric(&matrix, n, &mut ask), Err(BridgeError::Stopped)),
                "{most}"
            );
        }
    }
}
