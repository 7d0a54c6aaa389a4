//! Losses of a row of logits, and their gradient in the row's place.
//!
//! `nats = -log softmax(x)[id]` has the gradient `p - onehot(id)`; `KL(t || p) = sum t (log t - log p)` has `p - t`, for `t`
//! that sums to 1.

use crate::compute::cpu::level::{Kernel, Level, dispatch};
use crate::compute::cpu::simd::Simd;
use crate::compute::rowwise::activation::exp;

/// Elements whose sum is kept in f32 vectors before it goes on in f64.
const PART: usize = 4096;

/// What a position is to say.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The token, an id inside of the vocabulary.
    pub id: u32,
    /// Logarithms of the probabilities that are to be met, one for each token.
    pub teacher: Option<&'a [f32]>,
}

/// Replaces logits by the gradient of `weight * nats + pull * KL(teacher || p)`; gives nats and divergence (0 without a
/// teacher). The id lies inside the row, and the teacher is as long.
pub fn losses(level: Level, logits: &mut [f32], wanted: Wanted<'_>, weight: f32, pull: f32) -> [f32; 2] {
    assert!((wanted.id as usize) < logits.len());
    assert!(wanted.teacher.is_none_or(|teacher| teacher.len() == logits.len()));
    let mut found = [0.0; 2];
    // SAFETY: lengths are asserted.
    unsafe {
        dispatch(
            level,
            Losses {
                logits,
                wanted,
                weight,
                pull,
                found: &mut found,
            },
        )
    }
    found
}

/// Replaces logits by the logarithms of their probabilities.
pub fn log_softmax(level: Level, logits: &mut [f32]) {
    // SAFETY: the kernel has no promise of its own.
    unsafe { dispatch(level, LogSoftmax(logits)) }
}

struct LogSoftmax<'a>(&'a mut [f32]);

impl Kernel for LogSoftmax<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: `each` gives lanes of the row alone.
        unsafe {
            let most = largest::<S>(self.0);
            let shift = S::splat(most);
            let sum = sum::<S>(self.0.len(), |at, lanes| {
                let x = S::sub(S::load_first(self.0.as_ptr().add(at), lanes), shift);
                first_lanes::<S>(exp::<S>(x), lanes)
            });
            let log = S::splat(most + sum.ln() as f32);
            for at in (0..self.0.len()).step_by(S::LANES) {
                let lanes = (self.0.len() - at).min(S::LANES);
                let x = self.0.as_mut_ptr().add(at);
                S::store_first(x, S::sub(S::load_first(x, lanes), log), lanes);
            }
        }
    }
}

struct Losses<'a> {
    logits: &'a mut [f32],
    wanted: Wanted<'a>,
    weight: f32,
    pull: f32,
    found: &'a mut [f32; 2],
}

impl Kernel for Losses<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (count, id) = (self.logits.len(), self.wanted.id as usize);
        let own = self.logits[id];
        let row = self.logits.as_mut_ptr();
        // SAFETY: all lanes are below `count`; the teacher is as long as the row.
        unsafe {
            let most = largest::<S>(self.logits);
            let shift = S::splat(most);
            let moved = |at: usize, lanes: usize| S::sub(S::load_first(row.add(at), lanes), shift);
            // sum t (log t - (x - most)) and sum t, before the exponentials take the logits' place.
            let (mut cross, mut mass) = (0.0, 0.0);
            if let Some(teacher) = self.wanted.teacher {
                let log = |at: usize, lanes: usize| S::load_first(teacher.as_ptr().add(at), lanes);
                let t = |at: usize, lanes: usize| first_lanes::<S>(exp::<S>(log(at, lanes)), lanes);
                cross = sum::<S>(count, |at, lanes| {
                    S::mul(t(at, lanes), S::sub(log(at, lanes), moved(at, lanes)))
                });
                mass = sum::<S>(count, t);
            }
            let sum = sum::<S>(count, |at, lanes| {
                let x = first_lanes::<S>(exp::<S>(moved(at, lanes)), lanes);
                S::store_first(row.add(at), x, lanes);
                x
            });
            let log = sum.ln();
            *self.found = [(log - f64::from(own - most)) as f32, (cross + log * mass) as f32];
            let inverse = 1.0 / sum;
            match self.wanted.teacher {
                None => {
                    let factor = S::splat((inverse * f64::from(self.weight)) as f32);
                    for at in (0..count).step_by(S::LANES) {
                        let lanes = (count - at).min(S::LANES);
                        let p = S::mul(S::load_first(row.add(at), lanes), factor);
                        S::store_first(row.add(at), p, lanes);
                    }
                }
                Some(teacher) => {
                    let factor = S::splat((inverse * f64::from(self.weight + self.pull)) as f32);
                    let pull = S::splat(-self.pull);
                    for at in (0..count).step_by(S::LANES) {
                        let lanes = (count - at).min(S::LANES);
                        let t = exp::<S>(S::load_first(teacher.as_ptr().add(at), lanes));
                        let p = S::mul(S::load_first(row.add(at), lanes), factor);
                        S::store_first(row.add(at), S::fma(t, pull, p), lanes);
                    }
                }
            }
        }
        self.logits[id] -= self.weight;
    }
}

/// The largest of elements.
///
/// # Safety
/// The processor has the instructions of `S`; so for all functions here.
#[inline(always)]
unsafe fn largest<S: Simd>(elements: &[f32]) -> f32 {
    let whole = elements.len() / S::LANES * S::LANES;
    // SAFETY: whole vectors of the slice.
    let most = unsafe {
        let mut most = S::splat(f32::NEG_INFINITY);
        for at in (0..whole).step_by(S::LANES) {
            most = S::max(most, S::load(elements.as_ptr().add(at)));
        }
        S::largest(most)
    };
    elements[whole..].iter().copied().fold(most, f32::max)
}

/// The sum of `term(at, lanes)` over the vectors of `count` elements, of the last of which only `lanes` lanes are there and
/// the others are 0.
#[inline(always)]
unsafe fn sum<S: Simd>(count: usize, mut term: impl FnMut(usize, usize) -> S::V) -> f64 {
    let mut total = 0.0f64;
    for part in (0..count).step_by(PART) {
        let until = (part + PART).min(count);
        // SAFETY: the instructions are the caller's promise.
        unsafe {
            let mut sum = S::zero();
            for at in (part..until).step_by(S::LANES) {
                sum = S::add(sum, term(at, (until - at).min(S::LANES)));
            }
            total += f64::from(S::sum(sum));
        }
    }
    total
}

/// A vector whose lanes behind the first are 0.
#[inline(always)]
unsafe fn first_lanes<S: Simd>(x: S::V, lanes: usize) -> S::V {
    if lanes == S::LANES {
        return x;
    }
    let mut kept = [0.0f32; 16];
    // SAFETY: sixteen elements are the widest vector.
    unsafe {
        S::store(kept.as_mut_ptr(), x);
        S::load_first(kept.as_ptr(), lanes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(count: usize, seed: usize) -> Vec<f32> {
        (0..count)
            .map(|i| (((i + seed) * 7919 % 2003) as f32 - 1001.0) / 120.0)
            .collect()
    }

    fn probabilities(x: &[f32]) -> Vec<f64> {
        let most = x.iter().copied().fold(f32::MIN, f32::max);
        let exponentials: Vec<f64> = x.iter().map(|x| f64::from(x - most).exp()).collect();
        let sum: f64 = exponentials.iter().sum();
        exponentials.iter().map(|x| x / sum).collect()
    }

    #[test]
    fn losses_and_gradients_equal_the_formulas() {
        for count in [1, 5, 16, 37, 4096, 9001] {
            let (logits, teacher) = (elements(count, 3), elements(count, 1000));
            let (p, t) = (probabilities(&logits), probabilities(&teacher));
            let id = count / 2;
            for level in Level::available() {
                let mut log = teacher.clone();
                log_softmax(level, &mut log);
                for (found, t) in log.iter().zip(&t) {
                    assert!(
                        (f64::from(*found) - t.ln()).abs() < 1e-5,
                        "{level:?} {found} {}",
                        t.ln()
                    );
                }
                for (taught, pull) in [(None, 0.0), (Some(log.as_slice()), 2.0), (Some(log.as_slice()), 0.0)] {
                    let (mut row, weight) = (logits.clone(), 0.7);
                    let wanted = Wanted {
                        id: id as u32,
                        teacher: taught,
                    };
                    let [nats, divergence] = losses(level, &mut row, wanted, weight, pull);
                    assert!((f64::from(nats) + p[id].ln()).abs() < 1e-5, "{level:?} {nats}");
                    let kl: f64 = t.iter().zip(&p).map(|(t, p)| t * (t / p).ln()).sum();
                    let kl = if taught.is_some() { kl } else { 0.0 };
                    assert!(
                        (f64::from(divergence) - kl).abs() < 1e-5 * kl.max(1.0),
                        "{level:?} {divergence} {kl}"
                    );
                    for place in 0..count {
                        let hit = f64::from(u8::from(place == id));
                        let want = f64::from(weight) * (p[place] - hit) + f64::from(pull) * (p[place] - t[place]);
                        assert!(
                            (f64::from(row[place]) - want).abs() < 2e-6,
                            "{level:?} {place}: {} {want}",
                            row[place]
                        );
                    }
                }
            }
        }
    }
}
