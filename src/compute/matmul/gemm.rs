//! The matrix product: rows of activations times packed weights, tile by tile.
//!
//! Both sides consist of 32-bit words, one word a step: one f32, two bf16 or four 8-bit integers ([`Dot`]). The right
//! side lies in panels of [`Dot::COLUMNS`] columns: panel after panel, in it step after step, in it the columns. The
//! left side is read in place, [`Dot::ROWS`] rows at a time; each word of it is broadcast over the columns. What becomes
//! of a tile's sums is the business of a [`Sink`].
//!
//! Each element of the product has one accumulator that runs over all steps in order, whatever the tile, so a row's
//! result does not depend on the rows around it: a batch is bit-equal to its parts.

use crate::compute::cpu::level::Kernel;
use crate::compute::cpu::simd::Simd;
use crate::compute::rowwise::activation::{Activation, activate, approximate};
use half::bf16;
use std::marker::PhantomData;
use std::ops::Range;

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

/// Stores a tile as rows of [`Simd::COLUMNS`] numbers.
pub struct Store(pub *mut f32);

impl<S: Simd> Sink<S> for Store {
    #[inline(always)]
    unsafe fn put(&self, row: usize, part: usize, sum: S::V) {
        // SAFETY: the caller promises that the tile has this row.
        unsafe { S::store(self.0.add(row * S::COLUMNS + part * S::LANES), sum) }
    }
}

/// What accumulators stand for, and what is added to them.
pub trait Turn<D: Dot> {
    /// The numbers of a row's accumulators.
    ///
    /// # Safety
    /// As [`Sink::put`].
    unsafe fn numbers(&self, row: usize, sums: [D::Sum; 2]) -> [<D::S as Simd>::V; 2];
    /// A product of f32 words that is added, if any.
    fn rest(&self) -> Option<Rest> {
        None
    }
}

/// A product of f32 words over the same rows: how many words behind the others theirs begin, how many there are, and the
/// panel's rows of [`Simd::COLUMNS`] numbers that they are multiplied by.
#[derive(Clone, Copy)]
pub struct Rest {
    pub skip: usize,
    pub steps: usize,
    pub b: *const u32,
}

/// Accumulators that are the numbers.
pub struct Sums;

impl<D: Dot<Sum = <<D as Dot>::S as Simd>::V>> Turn<D> for Sums {
    #[inline(always)]
    unsafe fn numbers(&self, _row: usize, sums: [D::Sum; 2]) -> [D::Sum; 2] {
        sums
    }
}

/// A product of `rows` x `steps` words by one panel, stored as rows of [`Dot::COLUMNS`] numbers.
///
/// # Safety
/// As [`tile_into`]; `out` holds `rows` x `COLUMNS` words.
#[inline(always)]
pub unsafe fn tile<D: Dot<Sum = <<D as Dot>::S as Simd>::V>>(
    rows: usize,
    steps: usize,
    a: *const u32,
    a_stride: usize,
    b: *const u32,
    b_stride: usize,
    out: *mut u32,
) {
    // SAFETY: the caller's promise.
    unsafe { tile_into::<D, Sums, Store>(rows, steps, a, a_stride, b, b_stride, &Sums, &Store(out.cast())) }
}

/// A product of `rows` x `steps` words by one panel, and what [`Turn::rest`] adds.
///
/// # Safety
/// `rows` is 1..=[`Dot::ROWS`]; `a` has `rows` rows of `steps` words, `a_stride` words apart; `b` has `steps` rows of
/// `COLUMNS` words, `b_stride` apart; the rest is as it says; the sink takes `rows` rows. The instructions are there.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub unsafe fn tile_into<D: Dot, T: Turn<D>, K: Sink<D::S>>(
    rows: usize,
    steps: usize,
    a: *const u32,
    a_stride: usize,
    b: *const u32,
    b_stride: usize,
    turn: &T,
    sink: &K,
) {
    // A row's address is one of four bases plus one of four offsets: few enough to stay in registers.
    let (o0, o1, o2, o3) = (0usize, a_stride, a_stride.wrapping_mul(2), a_stride.wrapping_mul(3));

    let mut g0 = a;
    let mut g1 = a.wrapping_add(a_stride.wrapping_mul(4));
    let mut g2 = a.wrapping_add(a_stride.wrapping_mul(8));
    let mut g3 = a.wrapping_add(a_stride.wrapping_mul(12));

    /// Products of as many rows as are named. Each row has a variable of its own instead of a place in an array, which
    /// is what keeps its sums in registers.
    macro_rules! compute {
        ($(($sum:ident $base:ident $offset:ident))+) => {{
            // SAFETY: every address that is read or written is inside the ranges that the caller promises.
            unsafe {
                $(let mut $sum = [D::zero(), D::zero()];)+
                let mut right = b;
                let end = g0.wrapping_add(steps);
                while g0 != end {
                    let (b0, b1) = (D::load(right), D::load(right.wrapping_add(D::LANES)));
                    $($sum = D::row($base, $offset, [b0, b1], $sum);)+
                    g0 = g0.wrapping_add(1);
                    g1 = g1.wrapping_add(1);
                    g2 = g2.wrapping_add(1);
                    g3 = g3.wrapping_add(1);
                    right = right.wrapping_add(b_stride);
                }
                let mut row = 0;
                $(
                    let mut $sum = turn.numbers(row, $sum);
                    row += 1;
                )+
                let _ = row;
                if let Some(Rest { skip, steps, b }) = turn.rest() {
                    g0 = g0.wrapping_add(skip);
                    g1 = g1.wrapping_add(skip);
                    g2 = g2.wrapping_add(skip);
                    g3 = g3.wrapping_add(skip);
                    let mut right = b;
                    let end = g0.wrapping_add(steps);
                    while g0 != end {
                        let (b0, b1) = (
                            F32::<D::S>::load(right),
                            F32::<D::S>::load(right.wrapping_add(D::LANES)),
                        );
                        $($sum = F32::<D::S>::row($base, $offset, [b0, b1], $sum);)+
                        g0 = g0.wrapping_add(1);
                        g1 = g1.wrapping_add(1);
                        g2 = g2.wrapping_add(1);
                        g3 = g3.wrapping_add(1);
                        right = right.wrapping_add(D::COLUMNS);
                    }
                }
                let mut row = 0;
                $(
                    sink.put(row, 0, $sum[0]);
                    sink.put(row, 1, $sum[1]);
                    row += 1;
                )+
                let _ = (row, g1, g2, g3);
            }
        }};
    }

    /// Tries one number of rows after the other; those beyond the tile's height vanish when compiled.
    macro_rules! choose {
        ($count:expr; [$($taken:tt)*]) => {};
        ($count:expr; [$($taken:tt)*] $next:tt $($rest:tt)*) => {
            if rows == $count && D::ROWS > $count - 1 {
                compute!($($taken)* $next);
                return;
            }
            choose!($count + 1; [$($taken)* $next] $($rest)*);
        };
    }
    choose!(1; []
        (c0 g0 o0) (c1 g0 o1) (c2 g0 o2) (c3 g0 o3) (c4 g1 o0) (c5 g1 o1) (c6 g1 o2) (c7 g1 o3)
        (c8 g2 o0) (c9 g2 o1) (c10 g2 o2) (c11 g2 o3) (c12 g3 o0) (c13 g3 o1));
}

/// What happens to a product before it is stored; the bias is added in all cases.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Finish {
    /// `c = ab + bias`
    Bias,
    /// `c = f(ab + bias)`
    Activate(Activation),
    /// The same with [`approximate`] for f: where the next layer rounds it to 8 or 16 bits.
    Approximate(Activation),
    /// `c = c + ab + bias`
    Residual,
    /// `c = ab + bias` rounded to bf16: strides and planes count such numbers. The columns fill whole panels.
    Round,
}

/// Rows of a tile where tiles of at most `most` rows are about equally high: one of a few rows waits for its own sums.
pub fn even_height(rows: usize, most: usize) -> usize {
    rows.div_ceil(rows.div_ceil(most).max(1)).max(1)
}

/// More columns than any product has.
pub const ALL: usize = usize::MAX;

/// A product of `rows` rows by a range of panels.
pub struct Product {
    pub rows: usize,
    pub steps: usize,
    /// `rows` rows of `steps` words.
    pub a: *const u32,
    pub a_stride: usize,
    /// All panels of the right side.
    pub b: *const u32,
    /// Columns of the whole product; the last panel may be partly beyond.
    pub columns: usize,
    pub panels: Range<usize>,
    /// For each column, padded to whole panels.
    pub bias: *const f32,
    /// `rows` rows of `columns` numbers, of which the columns of `panels` are used.
    pub c: *mut f32,
    pub c_stride: usize,
    /// Columns that lie side by side, whole panels of them, and the distance from those to the next ones; a row's columns all
    /// lie side by side where the first number is [`ALL`].
    pub planes: [usize; 2],
    pub finish: Finish,
}

impl Product {
    /// Computes the product.
    ///
    /// # Safety
    /// The pointers are valid for what the fields say, nobody else uses the written part of `c` meanwhile, and the
    /// processor has the instructions of `D`.
    #[inline(always)]
    pub unsafe fn compute<D: Dot<Sum = <<D as Dot>::S as Simd>::V>>(&self) {
        let mut sums = Tile([0; TILE_WORDS]);
        let sums = (&raw mut sums.0).cast::<u32>();
        let height = even_height(self.rows, D::ROWS);
        for panel in self.panels.clone() {
            // SAFETY: `b` holds whole panels.
            let right = unsafe { self.b.add(panel * self.steps * D::COLUMNS) };
            let column = panel * D::COLUMNS;
            let mut row = 0;
            while row < self.rows {
                let rows = (self.rows - row).min(height);
                // SAFETY: rows `row..row + rows` of `a` and one panel; the tile's memory fits the largest tile.
                unsafe {
                    self.expect_tile::<D::S>(row, rows, column);
                    let left = self.a.add(row * self.a_stride);
                    tile::<D>(rows, self.steps, left, self.a_stride, right, D::COLUMNS, sums);
                    self.finish_tile::<D::S>(row, rows, column, sums.cast());
                }
                row += rows;
            }
        }
    }

    /// Asks for the rows that a tile's results are added to, where they are, while its sums are computed.
    #[inline(always)]
    pub fn expect_tile<S: Simd>(&self, row: usize, rows: usize, column: usize) {
        if self.finish == Finish::Residual {
            for i in 0..rows {
                let to = self.place(row + i, column);
                S::prefetch(to);
                S::prefetch(to.wrapping_add(S::LANES));
            }
        }
    }

    /// Where the result of a row and a panel's first column is.
    #[inline(always)]
    fn place(&self, row: usize, column: usize) -> *mut f32 {
        self.c.wrapping_add(self.offset(row, column))
    }

    /// The same where results are rounded to bf16.
    #[inline(always)]
    fn rounded_place(&self, row: usize, column: usize) -> *mut bf16 {
        self.c.cast::<bf16>().wrapping_add(self.offset(row, column))
    }

    #[inline(always)]
    fn offset(&self, row: usize, column: usize) -> usize {
        let [width, apart] = self.planes;
        row * self.c_stride + column / width * apart + column % width
    }

    /// Adds the bias and whatever else to the sums of a tile (rows of [`Simd::COLUMNS`] numbers), and stores them.
    ///
    /// # Safety
    /// As [`Product::compute`].
    #[inline(always)]
    pub unsafe fn finish_tile<S: Simd>(&self, row: usize, rows: usize, column: usize, sums: *const f32) {
        let lanes = self.columns.saturating_sub(column).min(S::COLUMNS);
        /// One loop for each way to end, so that nothing is asked inside of it.
        macro_rules! each_row {
            (|$x:ident, $old:ident| $end:expr) => {{
                // SAFETY: the bias is padded to whole panels; of `c`, `lanes` columns of row `row + i` are read and
                // written, which lie inside it.
                unsafe {
                    let bias = self.bias.add(column);
                    let bias = [S::load(bias), S::load(bias.add(S::LANES))];
                    for i in 0..rows {
                        let from = sums.add(i * S::COLUMNS);
                        let to = self.place(row + i, column);
                        if lanes == S::COLUMNS {
                            let ends = [0, S::LANES].map(|part| to.wrapping_add(part));
                            let ($x, $old) = (S::add(S::load(from), bias[0]), ends[0]);
                            let $old = || S::load($old);
                            S::store(ends[0], $end);
                            let ($x, $old) = (S::add(S::load(from.add(S::LANES)), bias[1]), ends[1]);
                            let $old = || S::load($old);
                            S::store(ends[1], $end);
                        } else {
                            for part in 0..2 {
                                let left = lanes.saturating_sub(part * S::LANES).min(S::LANES);
                                let to = to.wrapping_add(part * S::LANES);
                                let $x = S::add(S::load(from.add(part * S::LANES)), bias[part]);
                                let $old = || S::load_first(to, left);
                                S::store_first(to, $end, left);
                            }
                        }
                    }
                }
            }};
        }
        use Activation::{Gelu, GeluTanh, Relu, Silu};
        match self.finish {
            Finish::Bias => each_row!(|x, _old| x),
            Finish::Residual => each_row!(|x, old| S::add(x, old())),
            // SAFETY: as above, of numbers half as large.
            Finish::Round => unsafe {
                let bias = self.bias.add(column);
                let bias = [S::load(bias), S::load(bias.add(S::LANES))];
                for i in 0..rows {
                    let from = sums.add(i * S::COLUMNS);
                    let low = S::add(S::load(from), bias[0]);
                    let high = S::add(S::load(from.add(S::LANES)), bias[1]);
                    S::store_rounded(self.rounded_place(row + i, column), low, high);
                }
            },
            Finish::Activate(Gelu) => each_row!(|x, _old| activate::<S>(Gelu, x)),
            Finish::Activate(GeluTanh) => each_row!(|x, _old| activate::<S>(GeluTanh, x)),
            Finish::Approximate(Gelu) => each_row!(|x, _old| approximate::<S>(Gelu, x)),
            Finish::Approximate(GeluTanh) => each_row!(|x, _old| approximate::<S>(GeluTanh, x)),
            Finish::Activate(Relu) | Finish::Approximate(Relu) => each_row!(|x, _old| activate::<S>(Relu, x)),
            Finish::Activate(Silu) | Finish::Approximate(Silu) => each_row!(|x, _old| activate::<S>(Silu, x)),
        }
    }
}

/// A product of f32 words.
impl Kernel for Product {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's promise.
        unsafe { self.compute::<F32<S>>() }
    }
}
