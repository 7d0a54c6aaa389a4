//! The heads of an attention: how a row of queries, keys and values is laid out, what each token sees, and how many
//! rows a task takes.

use crate::compute::cpu::level::{self, Level};
use std::ops::Range;

/// Most and fewest query rows of a task, each counted once for each head of its group.
pub(super) const MOST_ROWS: usize = 504;
const FEWEST_ROWS: usize = 84;
/// Query rows of a task are a multiple of this: whole tiles with AVX-512.
pub(super) const ROW_STEP: usize = 14;
/// Multiplications that a task aims at: some 10 to 20 ms, after which the caller's stop hook is asked.
const TASK_PRODUCTS: usize = 500_000_000;

/// Heads and what each token sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Heads of the queries: a multiple of `key_heads`.
    pub heads: usize,
    /// Heads of keys and values.
    pub key_heads: usize,
    /// Elements of a head.
    pub width: usize,
    /// Whether a token sees itself and those before it alone.
    pub causal: bool,
    /// Tokens that a causal head sees, its own included; tokens that another one sees on either side of its own.
    pub window: Option<usize>,
}

/// How far apart tokens and heads are in queries, keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    pub token: usize,
    pub head: usize,
}

impl Shape {
    /// Elements of a row of queries, keys and values, in that order.
    pub fn row(&self) -> usize {
        (self.heads + 2 * self.key_heads) * self.width
    }

    /// Elements of a row that comes out.
    pub fn out_row(&self) -> usize {
        self.heads * self.width
    }

    /// Where tokens and heads are in rows of [`Shape::row`] elements.
    pub fn by_rows(&self) -> Places {
        Places {
            token: self.row(),
            head: self.width,
        }
    }

    /// Where they are when each head of queries, keys and values has its `tokens` rows by itself.
    pub fn by_heads(&self, tokens: usize) -> Places {
        Places {
            token: self.width,
            head: tokens * self.width,
        }
    }

    /// Query heads that share a head of keys.
    pub(in crate::compute) fn group(&self) -> usize {
        self.heads / self.key_heads.max(1)
    }

    /// Keys that the query at `place` of a sequence of `length` sees.
    pub(in crate::compute) fn seen(&self, place: usize, length: usize) -> Range<usize> {
        match (self.causal, self.window) {
            (false, None) => 0..length,
            (false, Some(window)) => place.saturating_sub(window)..(place.saturating_add(window) + 1).min(length),
            (true, None) => 0..place + 1,
            (true, Some(window)) => (place + 1).saturating_sub(window.max(1))..place + 1,
        }
    }

    /// Whether this processor has attention in bf16 for such heads: every token sees its whole sequence, and heads have keys
    /// of their own and fill whole panels.
    pub fn takes_bf16(&self) -> bool {
        let whole = self.width.is_multiple_of(Level::Avx512.panel_columns());
        level::has_bf16() && !self.causal && self.window.is_none() && self.heads == self.key_heads && whole
    }

    /// Query rows of a task.
    pub(in crate::compute) fn rows(&self, length: usize) -> usize {
        let group = self.group().max(1);
        let products = 2 * group * self.window.unwrap_or(length).min(length) * self.width;
        let rows = (TASK_PRODUCTS / products.max(1)).clamp(FEWEST_ROWS / group, MOST_ROWS / group);
        (rows / ROW_STEP * ROW_STEP).max(ROW_STEP)
    }
}
