//! The matrix product: rows of activations times packed weights, tile by tile (`tile.rs`), and what happens to a tile's
//! elements before they are stored.

use super::tile::{Dot, F32, Operands, TILE_WORDS, Tile, tile};
use crate::compute::cpu::level::Kernel;
use crate::compute::cpu::simd::Simd;
use crate::compute::rowwise::activation::{Activation, activate, approximate};
use half::bf16;
use std::ops::Range;

/// What happens to a product before it is stored; the bias is added in all cases.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Epilogue {
    /// `c = ab + bias`
    Bias,
    /// `c = f(ab + bias)`
    Activate(Activation),
    /// The same with [`approximate`] for f: where the next layer rounds it to 8 or 16 bits.
    Approximate(Activation),
    /// `c = c + ab + bias`
    Residual,
    /// `c = ab + bias` rounded to bf16: strides and planes count such elements. The columns fill whole panels.
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
    /// `rows` rows of `columns` elements, of which the columns of `panels` are used.
    pub c: *mut f32,
    pub c_stride: usize,
    /// Columns that lie side by side, whole panels of them, and the distance from those to the next ones; a row's columns all
    /// lie side by side where the first number is [`ALL`].
    pub planes: [usize; 2],
    pub epilogue: Epilogue,
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
                    let operands = Operands {
                        rows,
                        steps: self.steps,
                        a: left,
                        a_stride: self.a_stride,
                        b: right,
                        b_stride: D::COLUMNS,
                    };
                    tile::<D>(operands, sums);
                    self.finish_tile::<D::S>(row, rows, column, sums.cast());
                }
                row += rows;
            }
        }
    }

    /// Asks for the rows that a tile's results are added to, where they are, while its sums are computed.
    #[inline(always)]
    pub fn expect_tile<S: Simd>(&self, row: usize, rows: usize, column: usize) {
        if self.epilogue == Epilogue::Residual {
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

    /// Adds the bias and whatever else to the sums of a tile (rows of [`Simd::COLUMNS`] elements), and stores them.
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
        match self.epilogue {
            Epilogue::Bias => each_row!(|x, _old| x),
            Epilogue::Residual => each_row!(|x, old| S::add(x, old())),
            // SAFETY: as above, of elements half as large.
            Epilogue::Round => unsafe {
                let bias = self.bias.add(column);
                let bias = [S::load(bias), S::load(bias.add(S::LANES))];
                for i in 0..rows {
                    let from = sums.add(i * S::COLUMNS);
                    let low = S::add(S::load(from), bias[0]);
                    let high = S::add(S::load(from.add(S::LANES)), bias[1]);
                    S::store_rounded(self.rounded_place(row + i, column), low, high);
                }
            },
            Epilogue::Activate(Gelu) => each_row!(|x, _old| activate::<S>(Gelu, x)),
            Epilogue::Activate(GeluTanh) => each_row!(|x, _old| activate::<S>(GeluTanh, x)),
            Epilogue::Approximate(Gelu) => each_row!(|x, _old| approximate::<S>(Gelu, x)),
            Epilogue::Approximate(GeluTanh) => each_row!(|x, _old| approximate::<S>(GeluTanh, x)),
            Epilogue::Activate(Relu) | Epilogue::Approximate(Relu) => each_row!(|x, _old| activate::<S>(Relu, x)),
            Epilogue::Activate(Silu) | Epilogue::Approximate(Silu) => each_row!(|x, _old| activate::<S>(Silu, x)),
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
