//! Vectors of f32 lanes: the operations that the kernels are written in, and their portable form.

use half::bf16;

/// Lanes of the widest vector.
const MOST_LANES: usize = 16;

/// f32 lanes and the operations on them. Functions are unsafe because they may compile to instructions that the
/// processor must have (`cpu.rs` checks), and because loads and stores take raw pointers.
pub trait Simd: Copy + 'static {
    /// Lanes of a vector.
    const LANES: usize;
    /// Rows of a register tile in a matrix product.
    const ROWS: usize;
    /// Columns of a register tile: two vectors.
    const COLUMNS: usize = 2 * Self::LANES;
    type V: Copy;

    unsafe fn splat(value: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, value: Self::V);
    /// The first `lanes` lanes from memory, zero in the others. Reads no byte beyond them.
    unsafe fn load_first(from: *const f32, lanes: usize) -> Self::V;
    /// Writes the first `lanes` lanes and no byte beyond them.
    unsafe fn store_first(to: *mut f32, value: Self::V, lanes: usize);
    /// Writes two vectors rounded to bf16, one behind the other.
    #[inline(always)]
    unsafe fn store_rounded(to: *mut bf16, low: Self::V, high: Self::V) {
        for (part, vector) in [low, high].into_iter().enumerate() {
            let mut lanes = [0f32; MOST_LANES];
            // SAFETY: the caller promises room for two vectors of such elements.
            unsafe {
                Self::store(lanes.as_mut_ptr(), vector);
                for (lane, number) in lanes.iter().enumerate().take(Self::LANES) {
                    to.add(part * Self::LANES + lane).write(bf16::from_f32(*number));
                }
            }
        }
    }
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, fused where the instructions are.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The number `offset` behind `base` in all lanes, times two vectors, added to two sums.
    #[inline(always)]
    unsafe fn fma_row(base: *const f32, offset: usize, b: [Self::V; 2], sums: [Self::V; 2]) -> [Self::V; 2] {
        // SAFETY: the caller promises one readable number there.
        unsafe {
            let number = Self::splat(base.wrapping_add(offset).read());
            [Self::fma(number, b[0], sums[0]), Self::fma(number, b[1], sums[1])]
        }
    }
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// Nearest integer, ties to even.
    unsafe fn round(a: Self::V) -> Self::V;
    /// `2^a` for integral `a` in -126..=127.
    unsafe fn exp2_integral(a: Self::V) -> Self::V;
    /// Asks for a cache line that is used soon; no byte is read.
    #[inline(always)]
    fn prefetch(_address: *const f32) {}
    /// Sum of the lanes, in a fixed order.
    unsafe fn sum(a: Self::V) -> f32;
    /// Largest lane.
    unsafe fn largest(a: Self::V) -> f32;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        // SAFETY: `splat` has no precondition beyond the instructions, which are the caller's promise.
        unsafe { Self::splat(0.0) }
    }
}

/// Plain Rust, four lanes: what every processor can do.
#[derive(Clone, Copy)]
pub struct Portable;

const LANES: usize = 4;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    std::array::from_fn(f)
}

impl Simd for Portable {
    const LANES: usize = LANES;
    const ROWS: usize = 4;
    type V = [f32; LANES];

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        [value; LANES]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: the caller promises `LANES` readable elements.
        unsafe { from.cast::<Self::V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::V) {
        // SAFETY: the caller promises `LANES` writable elements.
        unsafe { to.cast::<Self::V>().write_unaligned(value) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, lanes: usize) -> Self::V {
        each(|lane| {
            if lane < lanes {
                // SAFETY: the caller promises `lanes` readable elements.
                unsafe { from.add(lane).read() }
            } else {
                0.0
            }
        })
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, value: Self::V, lanes: usize) {
        for (lane, number) in value.into_iter().enumerate().take(lanes) {
            // SAFETY: the caller promises `lanes` writable elements.
            unsafe { to.add(lane).write(number) }
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Not `mul_add`: without the instruction that is a call for each lane.
        each(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i].max(b[i]))
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i].min(b[i]))
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        each(|i| a[i].round_ties_even())
    }
    #[inline(always)]
    unsafe fn exp2_integral(a: Self::V) -> Self::V {
        each(|i| f32::from_bits(((a[i] as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn sum(a: Self::V) -> f32 {
        (a[0] + a[2]) + (a[1] + a[3])
    }
    #[inline(always)]
    unsafe fn largest(a: Self::V) -> f32 {
        a[0].max(a[2]).max(a[1].max(a[3]))
    }
}
