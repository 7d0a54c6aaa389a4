//! Which instructions this processor has, and how a kernel is compiled once for each set.
//!
//! A kernel is a [`Kernel`]: its `run` is generic over [`Simd`] and inlined into the entry functions here, which carry
//! the target features. So one source gives the AVX-512, AVX2 and portable code, chosen at run time.

use super::simd::{Portable, Simd};
#[cfg(target_arch = "x86_64")]
use super::simd_x86::{Avx2, Avx512};
use std::sync::OnceLock;

/// A set of vector instructions, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Whatever the compiler makes of plain Rust.
    Portable,
    /// AVX2, FMA, F16C and POPCNT, 8 lanes.
    Avx2,
    /// AVX-512 F, BW, DQ and VL, 16 lanes.
    Avx512,
}

/// The strongest set of this processor, looked up once.
#[inline]
pub fn level() -> Level {
    static FOUND: OnceLock<Level> = OnceLock::new();
    *FOUND.get_or_init(Level::detect)
}

impl Level {
    /// The strongest set of this processor.
    #[cfg(target_arch = "x86_64")]
    pub fn detect() -> Level {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && Level::has_avx2()
        {
            Level::Avx512
        } else if Level::has_avx2() {
            Level::Avx2
        } else {
            Level::Portable
        }
    }

    /// The strongest set of this processor.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn detect() -> Level {
        Level::Portable
    }

    #[cfg(target_arch = "x86_64")]
    fn has_avx2() -> bool {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("popcnt")
    }

    /// The sets that this processor has, weakest first.
    pub fn available() -> Vec<Level> {
        let best = Level::detect();
        [Level::Portable, Level::Avx2, Level::Avx512]
            .into_iter()
            .filter(|level| *level <= best)
            .collect()
    }

    /// `self`, or the strongest set of this processor where that is weaker.
    pub fn or_detected(self) -> Level {
        self.min(Level::detect())
    }

    /// Columns of a weight panel, see `matmul/tile.rs`.
    pub fn panel_columns(self) -> usize {
        match self {
            Level::Portable => Portable::COLUMNS,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => Avx2::COLUMNS,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => Avx512::COLUMNS,
            #[cfg(not(target_arch = "x86_64"))]
            _ => Portable::COLUMNS,
        }
    }

    /// Rows of a register tile, see `matmul/tile.rs`.
    pub fn tile_rows(self) -> usize {
        match self {
            Level::Portable => Portable::ROWS,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => Avx2::ROWS,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => Avx512::ROWS,
            #[cfg(not(target_arch = "x86_64"))]
            _ => Portable::ROWS,
        }
    }
}

/// Whether `_mm512_dpbf16_ps` may be used.
pub fn has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        Level::detect() == Level::Avx512 && is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Whether `_mm512_dpbusd_epi32` may be used.
pub fn has_vnni() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        Level::detect() == Level::Avx512 && is_x86_feature_detected!("avx512vnni")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Whether `_mm256_dpbusd_avx_epi32` may be used.
pub fn has_avx_vnni() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        Level::detect() >= Level::Avx2 && is_x86_feature_detected!("avxvnni")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// A computation that is compiled once for each [`Level`].
pub trait Kernel {
    /// Runs with the instructions of `S`. Implementations are `#[inline(always)]`.
    ///
    /// # Safety
    /// The processor has the instructions of `S`, and what the kernel's own fields promise holds.
    unsafe fn run<S: Simd>(self);
}

/// Runs `kernel` with the instructions of `level`, or of the processor where it has less.
///
/// # Safety
/// What the kernel's fields promise holds.
pub unsafe fn dispatch<K: Kernel>(level: Level, kernel: K) {
    match level.or_detected() {
        // SAFETY: plain Rust; the kernel's promises are the caller's.
        Level::Portable => unsafe { kernel.run::<Portable>() },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `or_detected` has found AVX2 and FMA.
        Level::Avx2 => unsafe { run_avx2(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `or_detected` has found AVX-512.
        Level::Avx512 => unsafe { run_avx512(kernel) },
        #[cfg(not(target_arch = "x86_64"))]
        // SAFETY: plain Rust; the kernel's promises are the caller's.
        _ => unsafe { kernel.run::<Portable>() },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn run_avx2<K: Kernel>(kernel: K) {
    // SAFETY: this function carries the features; the rest is the caller's promise.
    unsafe { kernel.run::<Avx2>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn run_avx512<K: Kernel>(kernel: K) {
    // SAFETY: this function carries the features; the rest is the caller's promise.
    unsafe { kernel.run::<Avx512>() }
}
