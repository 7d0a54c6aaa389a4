//! A tile of the matrix product: a few rows of activations times one panel of packed weights, in registers.
//!
//! Both sides consist of 32-bit words, one word a step: one f32, two bf16 or four 8-bit integers ([`Dot`]). The right
//! side lies in panels of [`Dot::COLUMNS`] columns: in a panel step after step, in it the columns. The left side is read
//! in place, [`Dot::ROWS`] rows at a time; each word of it is broadcast over the columns. What becomes of a tile's sums is
//! the business of a [`Sink`].
//!
//! Each element of the product has one accumulator that runs over all steps in order, whatever the tile, so a row's
//! result does not depend on the rows around it: a batch is bit-equal to its parts.

use crate::compute::cpu::simd::Simd;
use std::marker::PhantomData;

/// How words are multiplied and accumulated.
pub trait Dot {
    /// The f32 vectors of the same width.
    type S: Simd;
    /// A vector of words.
    type Word: Copy;
    /// A vector of accumulators.
    type Sum: Copy;
    const LANES: usize = Self::S::LANES;
    const ROWS: usize = Self::S::ROWS;
    const COLUMNS: usize = Self::S::COLUMNS;

    unsafe fn zero() -> Self::Sum;
    /// One word in all lanes.
    unsafe fn broadcast(from: *const u32) -> Self::Word;
    unsafe fn load(from: *const u32) -> Self::Word;
    unsafe fn dot(a: Self::Word, b: Self::Word, sum: Self::Sum) -> Self::Sum;
    /// One word of the left side, `offset` words from `base`, times two vectors of the right side.
    ///
    /// Overridden by the instructions themselves where the compiler would load words so early that it runs out of
    /// registers for the sums.
    #[inline(always)]
    unsafe fn row(base: *const u32, offset: usize, b: [Self::Word; 2], sums: [Self::Sum; 2]) -> [Self::Sum; 2] {
        // SAFETY: the caller promises one readable word there.
        unsafe {
            let word = Self::broadcast(base.wrapping_add(offset));
            [Self::dot(word, b[0], sums[0]), Self::dot(word, b[1], sums[1])]
        }
    }
}

/// One f32 a word.
pub struct F32<S: Simd>(PhantomData<S>);

impl<S: Simd> Dot for F32<S> {
    type S = S;
    type Word = S::V;
    type Sum = S::V;

    #[inline(always)]
    unsafe fn zero() -> S::V {
        // SAFETY: the instructions are the caller's promise.
        unsafe { S::zero() }
    }
    #[inline(always)]
    unsafe fn broadcast(from: *const u32) -> S::V {
        // SAFETY: the caller promises one readable word.
        unsafe { S::splat(from.cast::<f32>().read()) }
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> S::V {
        // SAFETY: the caller promises a vector of readable words.
        unsafe { S::load(from.cast()) }
    }
    #[inline(always)]
    unsafe fn dot(a: S::V, b: S::V, sum: S::V) -> S::V {
        // SAFETY: the instructions are the caller's promise.
        unsafe { S::fma(a, b, sum) }
    }
    #[inline(always)]
    unsafe fn row(base: *const u32, offset: usize, b: [S::V; 2], sums: [S::V; 2]) -> [S::V; 2] {
        // SAFETY: the caller promises one readable word there.
        unsafe { S::fma_row(base.cast(), offset, b, sums) }
    }
}

/// Words of the largest tile: 14 rows of 32 columns.
pub const TILE_WORDS: usize = 14 * 32;

/// Where a tile's accumulators are put down.
#[repr(C, align(64))]
pub struct Tile(pub [u32; TILE_WORDS]);

/// Takes the sums of a tile while they are in registers.
pub trait Sink<S: Simd> {
    /// Takes vector `part` (0 or 1) of row `row`.
    ///
    /// # Safety
    /// Row and part are inside the tile that the sink was made for; the instructions are there.
    unsafe fn put(&self, row: usize, part: usize, sum: S::V);
}

/// Stores a tile as rows of [`Simd::COLUMNS`] elements.
pub struct Store(pub *mut f32);

impl<S: Simd> Sink<S> for Store {
    #[inline(always)]
    unsafe fn put(&self, row: usize, part: usize, sum: S::V) {
        // SAFETY: the caller promises that the tile has this row.
        unsafe { S::store(self.0.add(row * S::COLUMNS + part * S::LANES), sum) }
    }
}

/// What accumulators stand for, and what is added to them.
pub trait Dequantise<D: Dot> {
    /// The elements of a row's accumulators.
    ///
    /// # Safety
    /// As [`Sink::put`].
    unsafe fn elements(&self, row: usize, sums: [D::Sum; 2]) -> [<D::S as Simd>::V; 2];
    /// A product of f32 words that is added, if any.
    fn tail(&self) -> Option<F32Tail> {
        None
    }
}

/// A product of f32 words over the same rows: how many words behind the others theirs begin, how many there are, and the
/// panel's rows of [`Simd::COLUMNS`] elements that they are multiplied by.
#[derive(Clone, Copy)]
pub struct F32Tail {
    pub skip: usize,
    pub steps: usize,
    pub b: *const u32,
}

/// Accumulators that are the elements already.
pub struct Sums;

impl<D: Dot<Sum = <<D as Dot>::S as Simd>::V>> Dequantise<D> for Sums {
    #[inline(always)]
    unsafe fn elements(&self, _row: usize, sums: [D::Sum; 2]) -> [D::Sum; 2] {
        sums
    }
}

/// The two sides of a tile's product.
#[derive(Clone, Copy)]
pub struct Operands {
    /// 1..=[`Dot::ROWS`].
    pub rows: usize,
    pub steps: usize,
    /// `rows` rows of `steps` words, `a_stride` words apart.
    pub a: *const u32,
    pub a_stride: usize,
    /// `steps` rows of [`Dot::COLUMNS`] words, `b_stride` words apart.
    pub b: *const u32,
    pub b_stride: usize,
}

/// A tile's product, stored as rows of [`Dot::COLUMNS`] elements.
///
/// # Safety
/// As [`tile_into`]; `out` holds `rows` x `COLUMNS` words.
#[inline(always)]
pub unsafe fn tile<D: Dot<Sum = <<D as Dot>::S as Simd>::V>>(operands: Operands, out: *mut u32) {
    // SAFETY: the caller's promise.
    unsafe { tile_into::<D, Sums, Store>(operands, &Sums, &Store(out.cast())) }
}

/// Where the rows of the left side are. A row's address is one of four bases plus one of four offsets: few enough to stay
/// in registers.
#[derive(Clone, Copy)]
struct LeftRows {
    bases: [*const u32; 4],
    offsets: [usize; 4],
}

impl LeftRows {
    #[inline(always)]
    fn new(a: *const u32, stride: usize) -> LeftRows {
        let offset = |row: usize| stride.wrapping_mul(row);
        LeftRows {
            bases: [
                a,
                a.wrapping_add(offset(4)),
                a.wrapping_add(offset(8)),
                a.wrapping_add(offset(12)),
            ],
            offsets: [0, stride, offset(2), offset(3)],
        }
    }

    /// The same rows, some words further on.
    #[inline(always)]
    fn after(self, words: usize) -> LeftRows {
        let [first, second, third, fourth] = self.bases;
        LeftRows {
            bases: [
                first.wrapping_add(words),
                second.wrapping_add(words),
                third.wrapping_add(words),
                fourth.wrapping_add(words),
            ],
            ..self
        }
    }
}

// Each row of a tile has a variable of its own instead of a place in an array, which is what keeps its sums in registers.
// The macros below take rows as `(variable base offset)`, where row `4 base + offset` is found in `LeftRows`.

/// Adds `$steps` steps to the sums of the rows that are named, and moves `$left` behind them.
macro_rules! add_steps {
    ($dot:ty, $left:ident, $steps:expr, $b:expr, $b_stride:expr; $(($sum:ident $base:literal $offset:literal))+) => {
        let mut right = $b;
        let end = $left.bases[0].wrapping_add($steps);
        while $left.bases[0] != end {
            let b = [<$dot>::load(right), <$dot>::load(right.wrapping_add(<$dot>::LANES))];
            $($sum = <$dot>::row($left.bases[$base], $left.offsets[$offset], b, $sum);)+
            $left = $left.after(1);
            right = right.wrapping_add($b_stride);
        }
    };
}

/// Computes the rows that are named, from zero to the sink.
macro_rules! compute_rows {
    ($dot:ty, $operands:ident, $dequantise:ident, $sink:ident; $(($sum:ident $base:literal $offset:literal))+) => {{
        let Operands { steps, a, a_stride, b, b_stride, .. } = $operands;
        let mut left = LeftRows::new(a, a_stride);
        // SAFETY: every address that is read or written is inside the ranges that the caller promises.
        unsafe {
            $(let mut $sum = [<$dot>::zero(), <$dot>::zero()];)+
            add_steps!($dot, left, steps, b, b_stride; $(($sum $base $offset))+);
            $(let mut $sum = $dequantise.elements(4 * $base + $offset, $sum);)+
            if let Some(F32Tail { skip, steps, b }) = $dequantise.tail() {
                left = left.after(skip);
                let b_stride = <$dot>::COLUMNS;
                add_steps!(F32<<$dot as Dot>::S>, left, steps, b, b_stride; $(($sum $base $offset))+);
            }
            $(
                $sink.put(4 * $base + $offset, 0, $sum[0]);
                $sink.put(4 * $base + $offset, 1, $sum[1]);
            )+
        }
    }};
}

/// Computes as many of the listed rows as the operands have. Numbers of rows beyond the tile's height vanish when compiled.
macro_rules! compute_first_rows {
    ($dot:ty, $operands:ident, $dequantise:ident, $sink:ident; $count:expr; [$($taken:tt)*]) => {};
    ($dot:ty, $operands:ident, $dequantise:ident, $sink:ident; $count:expr; [$($taken:tt)*] $next:tt $($rest:tt)*) => {
        if $operands.rows == $count && <$dot>::ROWS > $count - 1 {
            compute_rows!($dot, $operands, $dequantise, $sink; $($taken)* $next);
            return;
        }
        compute_first_rows!($dot, $operands, $dequantise, $sink; $count + 1; [$($taken)* $next] $($rest)*);
    };
}

/// A tile's product, with what [`Dequantise::tail`] adds.
///
/// # Safety
/// The operands are as [`Operands`] says, the tail as it says; the sink takes `rows` rows. The instructions are there.
#[inline(always)]
pub unsafe fn tile_into<D: Dot, Q: Dequantise<D>, K: Sink<D::S>>(operands: Operands, dequantise: &Q, sink: &K) {
    compute_first_rows!(D, operands, dequantise, sink; 1; []
        (c0 0 0) (c1 0 1) (c2 0 2) (c3 0 3) (c4 1 0) (c5 1 1) (c6 1 2) (c7 1 3)
        (c8 2 0) (c9 2 1) (c10 2 2) (c11 2 3) (c12 3 0) (c13 3 1));
}
