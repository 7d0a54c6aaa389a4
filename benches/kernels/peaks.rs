//! The peak of an instruction: as many independent accumulators as hide its latency, no memory, on all threads.

use super::best;
use situ::compute::{ComputeError, Pool, cpu};
use std::arch::x86_64::*;
use std::hint::black_box;

/// The instructions that products are made of.
#[derive(Clone, Copy, Debug)]
pub enum Instruction {
    Fma256,
    Fma512,
    DpBf16,
    DpBusd256,
    DpBusd512,
    /// Two 16-bit multiplications and their additions in place of one `vpdpbusd`.
    Madd256,
}

/// Rounds of one run of a thread: about a millisecond.
const ROUNDS: usize = 200_000;

impl Instruction {
    /// What 8-bit products use at the AVX2 level.
    pub fn int8_avx2() -> Instruction {
        if cpu::has_avx_vnni() {
            Instruction::DpBusd256
        } else {
            Instruction::Madd256
        }
    }

    pub fn is_there(self) -> bool {
        match self {
            Instruction::Fma256 | Instruction::Madd256 => is_x86_feature_detected!("avx2"),
            Instruction::Fma512 => is_x86_feature_detected!("avx512f"),
            Instruction::DpBf16 => cpu::has_bf16(),
            Instruction::DpBusd512 => cpu::has_vnni(),
            Instruction::DpBusd256 => cpu::has_avx_vnni(),
        }
    }

    /// Multiplications and additions of one run.
    fn operations(self) -> f64 {
        let (accumulators, multiplications) = match self {
            Instruction::Fma256 => (12, 8),
            Instruction::Fma512 => (24, 16),
            Instruction::DpBf16 => (24, 32),
            Instruction::DpBusd256 => (12, 32),
            Instruction::DpBusd512 => (24, 64),
            Instruction::Madd256 => (12, 32),
        };
        (2 * ROUNDS * accumulators * multiplications) as f64
    }

    fn run(self) {
        // SAFETY: `operations` is only asked for instructions that are there.
        unsafe {
            match self {
                Instruction::Fma256 => fma256(),
                Instruction::Fma512 => fma512(),
                Instruction::DpBf16 => dp_bf16(),
                Instruction::DpBusd256 => dp_busd256(),
                Instruction::DpBusd512 => dp_busd512(),
                Instruction::Madd256 => madd256(),
            }
        }
    }
}

/// Operations a second on all threads of the pool.
pub fn operations(pool: &Pool, instruction: Instruction) -> Result<f64, ComputeError> {
    let threads = pool.threads();
    pool.run(threads, |_| instruction.run())?;
    let seconds = best(1.0, || drop(pool.run(threads, |_| instruction.run())));
    Ok(instruction.operations() * threads as f64 / seconds)
}

/// Writes a loop over `$count` independent accumulators.
macro_rules! peak {
    ($name:ident, $features:literal, $count:literal, $zero:expr, $input:expr, |$a:ident, $b:ident, $sum:ident| $step:expr) => {
        #[target_feature(enable = $features)]
        unsafe fn $name() {
            let ($a, $b) = (black_box($input), black_box($input));
            let mut sums = [$zero; $count];
            for _ in 0..ROUNDS {
                for $sum in &mut sums {
                    *$sum = $step;
                }
            }
            black_box(sums);
        }
    };
}

peak!(
    fma256,
    "avx2,fma",
    12,
    _mm256_setzero_ps(),
    _mm256_set1_ps(0.5),
    |a, b, sum| _mm256_fmadd_ps(a, b, *sum)
);
peak!(
    fma512,
    "avx512f",
    24,
    _mm512_setzero_ps(),
    _mm512_set1_ps(0.5),
    |a, b, sum| _mm512_fmadd_ps(a, b, *sum)
);
peak!(
    dp_bf16,
    "avx512f,avx512bf16",
    24,
    _mm512_setzero_ps(),
    _mm512_set1_ps(0.5),
    |a, b, sum| {
        // SAFETY: both types are 512 bits of bf16 numbers.
        unsafe {
            _mm512_dpbf16_ps(
                *sum,
                std::mem::transmute::<__m512, __m512bh>(a),
                std::mem::transmute::<__m512, __m512bh>(b),
            )
        }
    }
);
peak!(
    dp_busd256,
    "avx2,avxvnni",
    12,
    _mm256_setzero_si256(),
    _mm256_set1_epi8(1),
    |a, b, sum| _mm256_dpbusd_avx_epi32(*sum, a, b)
);
peak!(
    dp_busd512,
    "avx512f,avx512vnni",
    24,
    _mm512_setzero_si512(),
    _mm512_set1_epi8(1),
    |a, b, sum| _mm512_dpbusd_epi32(*sum, a, b)
);
peak!(
    madd256,
    "avx2",
    12,
    _mm256_setzero_si256(),
    _mm256_set1_epi8(1),
    |a, b, sum| {
        // The second product of the pair is made of the running sum, so that neither is computed once for all rounds.
        let even = _mm256_madd_epi16(a, _mm256_or_si256(*sum, b));
        let odd = _mm256_madd_epi16(b, _mm256_or_si256(*sum, a));
        _mm256_add_epi32(*sum, _mm256_add_epi32(even, odd))
    }
);
