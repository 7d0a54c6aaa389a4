//! Exact sums over one pair of vectors: a query in f32 against a vector as it lies on a page.
//!
//! Stored vectors are little-endian bytes without alignment: 4 bytes a component (f32), 2 (f16) or 1 (i8).

use crate::compute::cpu::level::{Level, level};

/// What a stored component is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    F32,
    F16,
    I8,
}

impl Stored {
    const fn bytes(self) -> usize {
        match self {
            Stored::F32 => 4,
            Stored::F16 => 2,
            Stored::I8 => 1,
        }
    }
}

/// Sums over pairs of components of a query `q` and a stored vector `x`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// `sum (q - x)^2`, or `sum q x`.
    pub main: f32,
    /// `sum x^2` where asked for.
    pub norm: f32,
}

/// `sum (q_i - x_i)^2` over the components that both have.
pub fn l2_squared(query: &[f32], stored: &[u8], kind: Stored) -> f32 {
    match kind {
        Stored::F32 => sums::<F32, true, false>(query, stored).main,
        Stored::F16 => sums::<F16, true, false>(query, stored).main,
        Stored::I8 => sums::<I8, true, false>(query, stored).main,
    }
}

/// `sum q_i x_i` over the components that both have.
pub fn dot(query: &[f32], stored: &[u8], kind: Stored) -> f32 {
    match kind {
        Stored::F32 => sums::<F32, false, false>(query, stored).main,
        Stored::F16 => sums::<F16, false, false>(query, stored).main,
        Stored::I8 => sums::<I8, false, false>(query, stored).main,
    }
}

/// `sum q_i x_i` and `sum x_i^2` over the components that both have.
pub fn dot_and_norm(query: &[f32], stored: &[u8], kind: Stored) -> Sums {
    match kind {
        Stored::F32 => sums::<F32, false, true>(query, stored),
        Stored::F16 => sums::<F16, false, true>(query, stored),
        Stored::I8 => sums::<I8, false, true>(query, stored),
    }
}

trait Component {
    const KIND: Stored;
    fn get(bytes: &[u8]) -> f32;
}

struct F32;
struct F16;
struct I8;

impl Component for F32 {
    const KIND: Stored = Stored::F32;
    #[inline(always)]
    fn get(b: &[u8]) -> f32 {
        f32::from_le_bytes([b[0], b[1], b[2], b[3]])
    }
}

impl Component for F16 {
    const KIND: Stored = Stored::F16;
    #[inline(always)]
    fn get(b: &[u8]) -> f32 {
        half::f16::from_le_bytes([b[0], b[1]]).to_f32()
    }
}

impl Component for I8 {
    const KIND: Stored = Stored::I8;
    #[inline(always)]
    fn get(b: &[u8]) -> f32 {
        b[0] as i8 as f32
    }
}

fn sums<C: Component, const L2: bool, const NORM: bool>(query: &[f32], stored: &[u8]) -> Sums {
    let n = query.len().min(stored.len() / C::KIND.bytes());
    let (query, stored) = (&query[..n], &stored[..n * C::KIND.bytes()]);
    match level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level was detected at run time; the slices hold n components each.
        Level::Avx512 => unsafe { x86::sums_avx512::<C, L2, NORM>(query, stored) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx2 => unsafe { x86::sums_avx2::<C, L2, NORM>(query, stored) },
        _ => sums_portable::<C, L2, NORM>(query, stored),
    }
}

fn sums_portable<C: Component, const L2: bool, const NORM: bool>(query: &[f32], stored: &[u8]) -> Sums {
    // Eight partial sums keep the rounding error and the dependency chain short.
    let mut main = [0.0f32; 8];
    let mut norm = [0.0f32; 8];
    for (i, (&q, bytes)) in query.iter().zip(stored.chunks_exact(C::KIND.bytes())).enumerate() {
        let x = C::get(bytes);
        let lane = i % 8;
        main[lane] += if L2 { (q - x) * (q - x) } else { q * x };
        if NORM {
            norm[lane] += x * x;
        }
    }
    Sums {
        main: main.iter().sum(),
        norm: norm.iter().sum(),
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Component, Stored, Sums, sums_portable};
    use std::arch::x86_64::*;

    /// # Safety
    /// Needs AVX-512 F; `stored` holds `query.len()` components.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub unsafe fn sums_avx512<C: Component, const L2: bool, const NORM: bool>(query: &[f32], stored: &[u8]) -> Sums {
        let n = query.len();
        let mut main = [_mm512_setzero_ps(); 2];
        let mut norm = [_mm512_setzero_ps(); 2];
        // SAFETY: i + 16 <= n, and the masked tail reads only components below n.
        let load = |i: usize| unsafe {
            let at = stored.as_ptr().add(i * C::KIND.bytes());
            match C::KIND {
                Stored::F32 => _mm512_loadu_ps(at.cast()),
                Stored::F16 => _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())),
                Stored::I8 => _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast()))),
            }
        };
        let step = |main: &mut __m512, norm: &mut __m512, q: __m512, x: __m512| {
            if L2 {
                let difference = _mm512_sub_ps(q, x);
                *main = _mm512_fmadd_ps(difference, difference, *main);
            } else {
                *main = _mm512_fmadd_ps(q, x, *main);
            }
            if NORM {
                *norm = _mm512_fmadd_ps(x, x, *norm);
            }
        };
        let mut i = 0;
        while i + 32 <= n {
            // SAFETY: i + 32 <= n.
            let (q0, q1) = unsafe {
                (
                    _mm512_loadu_ps(query.as_ptr().add(i)),
                    _mm512_loadu_ps(query.as_ptr().add(i + 16)),
                )
            };
            step(&mut main[0], &mut norm[0], q0, load(i));
            step(&mut main[1], &mut norm[1], q1, load(i + 16));
            i += 32;
        }
        if i + 16 <= n {
            // SAFETY: i + 16 <= n.
            let q = unsafe { _mm512_loadu_ps(query.as_ptr().add(i)) };
            step(&mut main[0], &mut norm[0], q, load(i));
            i += 16;
        }
        let rest = sums_portable::<C, L2, NORM>(&query[i..], &stored[i * C::KIND.bytes()..]);
        Sums {
            main: _mm512_reduce_add_ps(_mm512_add_ps(main[0], main[1])) + rest.main,
            norm: if NORM {
                _mm512_reduce_add_ps(_mm512_add_ps(norm[0], norm[1])) + rest.norm
            } else {
                0.0
            },
        }
    }

    /// # Safety
    /// Needs AVX2, FMA and F16C; `stored` holds `query.len()` components.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn sums_avx2<C: Component, const L2: bool, const NORM: bool>(query: &[f32], stored: &[u8]) -> Sums {
        let n = query.len();
        let mut main = [_mm256_setzero_ps(); 2];
        let mut norm = [_mm256_setzero_ps(); 2];
        let mut i = 0;
        while i + 16 <= n {
            for part in 0..2 {
                let at = i + 8 * part;
                // SAFETY: at + 8 <= n for both slices.
                let (q, x) = unsafe {
                    let from = stored.as_ptr().add(at * C::KIND.bytes());
                    let x = match C::KIND {
                        Stored::F32 => _mm256_loadu_ps(from.cast()),
                        Stored::F16 => _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                        Stored::I8 => _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))),
                    };
                    (_mm256_loadu_ps(query.as_ptr().add(at)), x)
                };
                if L2 {
                    let difference = _mm256_sub_ps(q, x);
                    main[part] = _mm256_fmadd_ps(difference, difference, main[part]);
                } else {
                    main[part] = _mm256_fmadd_ps(q, x, main[part]);
                }
                if NORM {
                    norm[part] = _mm256_fmadd_ps(x, x, norm[part]);
                }
            }
            i += 16;
        }
        let mut lanes = [0.0f32; 8];
        // SAFETY: eight lanes are stored into eight floats.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), _mm256_add_ps(main[0], main[1])) };
        let rest = sums_portable::<C, L2, NORM>(&query[i..], &stored[i * C::KIND.bytes()..]);
        let main = lanes.iter().sum::<f32>() + rest.main;
        // SAFETY: as above.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), _mm256_add_ps(norm[0], norm[1])) };
        Sums {
            main,
            norm: if NORM {
                lanes.iter().sum::<f32>() + rest.norm
            } else {
                0.0
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::splitmix64;

    #[test]
    fn equal_to_the_sum_in_f64() {
        let mut state = 5;
        for n in [1usize, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 50, 384, 1000] {
            let mut random = || (splitmix64(&mut state) >> 40) as f32 / (1 << 24) as f32 - 0.5;
            let query: Vec<f32> = (0..n).map(|_| random()).collect();
            let values: Vec<f32> = (0..n).map(|_| random()).collect();
            for kind in [Stored::F32, Stored::F16, Stored::I8] {
                let mut bytes = Vec::new();
                let mut exact = Vec::new();
                for &v in &values {
                    match kind {
                        Stored::F32 => {
                            bytes.extend(v.to_le_bytes());
                            exact.push(v as f64);
                        }
                        Stored::F16 => {
                            bytes.extend(half::f16::from_f32(v).to_le_bytes());
                            exact.push(half::f16::from_f32(v).to_f64());
                        }
                        Stored::I8 => {
                            bytes.push((v * 200.0) as i8 as u8);
                            exact.push((v * 200.0) as i8 as f64);
                        }
                    }
                }
                let pairs = || query.iter().map(|&q| q as f64).zip(exact.iter().copied());
                let near = |got: f32, want: f64| {
                    assert!((got as f64 - want).abs() < 1e-4 * (1.0 + want.abs()), "{n} {kind:?}")
                };
                near(
                    l2_squared(&query, &bytes, kind),
                    pairs().map(|(q, x)| (q - x) * (q - x)).sum(),
                );
                near(dot(&query, &bytes, kind), pairs().map(|(q, x)| q * x).sum());
                near(
                    dot_and_norm(&query, &bytes, kind).norm,
                    exact.iter().map(|x| x * x).sum(),
                );
                match kind {
                    Stored::F32 => every_level::<F32>(&query, &bytes),
                    Stored::F16 => every_level::<F16>(&query, &bytes),
                    Stored::I8 => every_level::<I8>(&query, &bytes),
                }
            }
        }
    }

    /// The levels below this machine's best agree with it.
    fn every_level<C: Component>(query: &[f32], bytes: &[u8]) {
        let best = sums::<C, true, true>(query, bytes);
        let near = |a: Sums| {
            assert!((a.main - best.main).abs() < 1e-4 * (1.0 + best.main));
            assert!((a.norm - best.norm).abs() < 1e-4 * (1.0 + best.norm));
        };
        near(sums_portable::<C, true, true>(query, bytes));
        #[cfg(target_arch = "x86_64")]
        if level() >= Level::Avx2 {
            // SAFETY: the level was detected; the slices hold as many components each.
            near(unsafe { x86::sums_avx2::<C, true, true>(query, bytes) });
        }
    }
}
