//! Exponential, error function and the activations made of them, lane by lane.
//!
//! A lane's result depends on that lane's input alone, so it is the same wherever a number stands in a vector.

use crate::compute::cpu::simd::Simd;
use serde::{Deserialize, Serialize};

/// The non-linearity between the two products of a feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x/2 (1 + erf(x / sqrt 2))`
    Gelu,
    /// `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`
    GeluTanh,
    /// `max(x, 0)`
    Relu,
    /// `x / (1 + e^-x)`
    Silu,
}

/// `a[0] x^n + a[1] x^(n-1) + ...` by Horner's rule.
///
/// # Safety
/// The processor has the instructions of `S`; so for all functions here.
#[inline(always)]
unsafe fn polynomial<S: Simd, const N: usize>(x: S::V, coefficients: [f32; N]) -> S::V {
    // SAFETY: the instructions are the caller's promise.
    unsafe {
        let mut value = S::splat(coefficients[0]);
        for coefficient in &coefficients[1..] {
            value = S::fma(value, x, S::splat(*coefficient));
        }
        value
    }
}

/// `e^x`, relative error below 2e-7; x is clamped to -87..88.
///
/// Cody-Waite reduction by ln 2 in two parts and the minimax polynomial of Cephes' `expf`.
///
/// # Safety
/// The processor has the instructions of `S`.
#[inline(always)]
pub unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the instructions are the caller's promise.
    unsafe {
        let x = S::min(S::max(x, S::splat(-87.0)), S::splat(88.0));
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        let r = S::fma(n, S::splat(-0.693_359_4), x);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        let p = polynomial::<S, 6>(
            r,
            [
                1.987_569_1e-4,
                1.398_2e-3,
                8.333_452e-3,
                4.166_579_6e-2,
                1.666_666_5e-1,
                0.5,
            ],
        );
        let value = S::add(S::fma(S::mul(r, r), p, r), S::splat(1.0));
        S::mul(value, S::exp2_integral(n))
    }
}

/// `erf x`, absolute error below 5e-7.
///
/// Odd rational minimax approximation on -4..4 (the one Eigen uses for f32); beyond, erf is 1 to f32's precision.
///
/// # Safety
/// The processor has the instructions of `S`.
#[inline(always)]
pub unsafe fn erf<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the instructions are the caller's promise.
    unsafe {
        let x = S::min(S::max(x, S::splat(-4.0)), S::splat(4.0));
        let x2 = S::mul(x, x);
        let numerator = polynomial::<S, 7>(
            x2,
            [
                -2.726_142_3e-10,
                2.770_681_4e-8,
                -2.101_024e-6,
                -5.692_506_4e-5,
                -7.349_906_4e-4,
                -2.954_6e-3,
                -1.609_603_3e-2,
            ],
        );
        let denominator = polynomial::<S, 5>(
            x2,
            [
                -1.456_607_2e-5,
                -2.133_740_5e-4,
                -1.682_827e-3,
                -7.373_329e-3,
                -1.426_473_9e-2,
            ],
        );
        S::div(S::mul(x, numerator), denominator)
    }
}

/// The activation of each lane.
///
/// # Safety
/// The processor has the instructions of `S`.
#[inline(always)]
pub unsafe fn activate<S: Simd>(activation: Activation, x: S::V) -> S::V {
    // SAFETY: the instructions are the caller's promise.
    unsafe {
        match activation {
            Activation::Gelu => {
                let half = S::mul(x, S::splat(0.5));
                S::fma(
                    half,
                    erf::<S>(S::mul(x, S::splat(std::f32::consts::FRAC_1_SQRT_2))),
                    half,
                )
            }
            Activation::GeluTanh => {
                // x/2 (1 + tanh u) = x - x / (e^2u + 1)
                let cube = S::mul(S::mul(x, x), x);
                let u = S::mul(S::fma(cube, S::splat(0.044_715), x), S::splat(2.0 * 0.797_884_6));
                S::sub(x, S::div(x, S::add(exp::<S>(u), S::splat(1.0))))
            }
            Activation::Relu => S::max(x, S::zero()),
            Activation::Silu => S::div(x, S::add(exp::<S>(S::sub(S::zero(), x)), S::splat(1.0))),
        }
    }
}

/// [`activate`] with GELU, exact or by tanh, to 2.2e-4, without a division.
///
/// The normal distribution's part below x less 1/2 is odd: seven terms, fitted so that their error times x is least, on
/// -4..4; beyond, it is 0 or 1.
///
/// # Safety
/// The processor has the instructions of `S`.
#[inline(always)]
pub unsafe fn approximate<S: Simd>(activation: Activation, x: S::V) -> S::V {
    let coefficients = match activation {
        Activation::Gelu => [
            2.258_819_8e-8,
            -1.588_826_6e-6,
            4.776_387_5e-5,
            -8.121_874e-4,
            8.763_69e-3,
            -6.455_441e-2,
            3.978_702_7e-1,
        ],
        Activation::GeluTanh => [
            2.346_881_6e-8,
            -1.640_721_6e-6,
            4.893_448_6e-5,
            -8.244_742e-4,
            8.818_708e-3,
            -6.459_669e-2,
            3.977_135e-1,
        ],
        // SAFETY: the instructions are the caller's promise.
        Activation::Relu | Activation::Silu => return unsafe { activate::<S>(activation, x) },
    };
    // SAFETY: as above.
    unsafe {
        let inner = S::min(S::max(x, S::splat(-4.0)), S::splat(4.0));
        let part = polynomial::<S, 7>(S::mul(inner, inner), coefficients);
        S::mul(x, S::fma(inner, part, S::splat(0.5)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::cpu::level::{Kernel, Level, dispatch};

    struct Apply<'a>(fn_kind::Kind, &'a mut [f32]);
    mod fn_kind {
        #[derive(Clone, Copy)]
        pub enum Kind {
            Exp,
            Erf,
            Act(super::Activation),
            Approximate(super::Activation),
        }
    }

    impl Kernel for Apply<'_> {
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            for part in self.1.chunks_mut(S::LANES) {
                // SAFETY: as many lanes as the part has elements.
                unsafe {
                    let x = S::load_first(part.as_ptr(), part.len());
                    let y = match self.0 {
                        fn_kind::Kind::Exp => exp::<S>(x),
                        fn_kind::Kind::Erf => erf::<S>(x),
                        fn_kind::Kind::Act(activation) => activate::<S>(activation, x),
                        fn_kind::Kind::Approximate(activation) => approximate::<S>(activation, x),
                    };
                    S::store_first(part.as_mut_ptr(), y, part.len());
                }
            }
        }
    }

    fn inputs() -> Vec<f32> {
        (-120_000..=120_000).map(|i| i as f32 * 1e-4).collect()
    }

    fn apply(level: Level, kind: fn_kind::Kind) -> Vec<f32> {
        let mut elements = inputs();
        // SAFETY: the kernel has no promise of its own.
        unsafe { dispatch(level, Apply(kind, &mut elements)) };
        elements
    }

    /// erf in f64: the Taylor series, alternating but exact enough to 1e-12 for |x| <= 3, and beyond that the
    /// continued fraction of erfc.
    fn erf64(x: f64) -> f64 {
        let a = x.abs();
        let value = if a < 3.0 {
            let (mut term, mut sum) = (a, a);
            for n in 1..100 {
                term *= -a * a / n as f64;
                sum += term / (2 * n + 1) as f64;
            }
            sum * std::f64::consts::FRAC_2_SQRT_PI
        } else {
            let mut fraction = a;
            for n in (1..80).rev() {
                fraction = a + n as f64 / 2.0 / fraction;
            }
            1.0 - (-a * a).exp() / (fraction * std::f64::consts::PI.sqrt())
        };
        value.copysign(x)
    }

    #[test]
    fn exp_and_erf_are_close_on_every_level() {
        assert!((erf64(0.5) - 0.520_499_877_813_046_5).abs() < 1e-12);
        assert!((erf64(3.5) - 0.999_999_256_901_627_7).abs() < 1e-12);
        for level in Level::available() {
            for (x, y) in inputs().into_iter().zip(apply(level, fn_kind::Kind::Exp)) {
                let expected = (x as f64).exp();
                assert!(
                    ((y as f64 - expected) / expected).abs() < 2.5e-7,
                    "{level:?} exp {x} = {y}"
                );
            }
            for (x, y) in inputs().into_iter().zip(apply(level, fn_kind::Kind::Erf)) {
                assert!((y as f64 - erf64(x as f64)).abs() < 5e-7, "{level:?} erf {x} = {y}");
            }
        }
    }

    #[test]
    fn approximations_are_close() {
        for level in Level::available() {
            for (activation, most) in [
                (Activation::Gelu, 2.2e-4),
                (Activation::GeluTanh, 2.2e-4),
                (Activation::Relu, 0.0),
                (Activation::Silu, 0.0),
            ] {
                let exact = apply(level, fn_kind::Kind::Act(activation));
                let close = apply(level, fn_kind::Kind::Approximate(activation));
                for (x, (a, b)) in inputs().into_iter().zip(exact.into_iter().zip(close)) {
                    assert!((a - b).abs() <= most, "{level:?} {activation:?} {x}: {a} and {b}");
                }
            }
        }
        // SAFETY: the kernel has no promise of its own.
        let mut odd = [f32::NAN, f32::INFINITY, 3e38];
        unsafe {
            dispatch(
                Level::detect(),
                Apply(fn_kind::Kind::Approximate(Activation::Gelu), &mut odd),
            )
        };
        assert!(
            odd[0].is_nan() && odd[1] == f32::INFINITY && odd[2] > 2.99e38,
            "{odd:?}"
        );
    }

    #[test]
    fn activations_follow_their_formulas() {
        for level in Level::available() {
            for (x, y) in inputs()
                .into_iter()
                .zip(apply(level, fn_kind::Kind::Act(Activation::Gelu)))
            {
                let x64 = x as f64;
                let expected = x64 / 2.0 * (1.0 + erf64(x64 / 2f64.sqrt()));
                assert!(
                    (y as f64 - expected).abs() < 2e-6,
                    "{level:?} gelu {x} = {y}, not {expected}"
                );
            }
            for (x, y) in inputs()
                .into_iter()
                .zip(apply(level, fn_kind::Kind::Act(Activation::GeluTanh)))
            {
                let x64 = x as f64;
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x64 + 0.044715 * x64.powi(3));
                let expected = x64 / 2.0 * (1.0 + u.tanh());
                assert!(
                    (y as f64 - expected).abs() < 2e-6,
                    "{level:?} gelu_new {x} = {y}, not {expected}"
                );
            }
            for (x, y) in inputs()
                .into_iter()
                .zip(apply(level, fn_kind::Kind::Act(Activation::Relu)))
            {
                assert_eq!(y, x.max(0.0));
            }
            for (x, y) in inputs()
                .into_iter()
                .zip(apply(level, fn_kind::Kind::Act(Activation::Silu)))
            {
                let expected = x as f64 / (1.0 + (-x as f64).exp());
                assert!(
                    (y as f64 - expected).abs() < 2e-6,
                    "{level:?} silu {x} = {y}, not {expected}"
                );
            }
        }
    }
}
