//! The head of a language model with the losses of its logits: logits are in memory for a task's rows alone, and turn into
//! their gradient and from there into that by the states before the task ends.
//!
//! The backward pass is a product over the whole vocabulary; its weights are packed in parts of [`PART`] ids whose panels stay in
//! the cache while a task's rows pass.

use super::super::ComputeError;
pub use super::loss::Wanted;
use super::loss::{log_softmax, losses};
use crate::compute::cpu::buffer::{Buffer, Shared};
use crate::compute::cpu::level::Level;
use crate::compute::cpu::pool::Pool;
use crate::compute::matmul::gemm::Epilogue;
use crate::compute::matmul::linear::{Linear, Precision, Rows};
use crate::compute::matmul::parallel::transposed;
use parking_lot::Mutex;

/// Ids of a part of the backward pass.
const PART: usize = 1024;
/// Most rows of a task, a multiple of every tile of rows, and most elements of its logits.
const MOST_ROWS: usize = 84;
const MOST_LOGITS: usize = 8 << 20;

/// The weights, packed for both ways.
pub struct Head {
    level: Level,
    hidden: usize,
    vocabulary: usize,
    forward: Linear,
    backward: Vec<Linear>,
}

/// What a thread works in.
pub struct Memory {
    logits: Buffer<f32>,
    words: Rows,
}

/// What a pass through the head is for.
pub struct Losses<'a> {
    /// For each state.
    pub wanted: &'a [Wanted<'a>],
    /// Factors of the two losses in the gradient.
    pub weight: f32,
    pub pull: f32,
}

impl Head {
    /// Packs `weights`, a row of `hidden` elements for each id.
    ///
    /// # Errors
    /// [`ComputeError`] for weights that are no whole rows, a precision that the processor lacks, or where memory is short.
    pub fn new(level: Level, precision: Precision, weights: &[f32], hidden: usize) -> Result<Head, ComputeError> {
        let vocabulary = weights.len() / hidden.max(1);
        let none = vec![0.0; vocabulary.max(hidden)];
        let backward = weights.chunks(PART * hidden.max(1)).map(|part| {
            let inputs = part.len() / hidden.max(1);
            Linear::new(level, precision, &transposed(part, hidden)?, &none[..hidden], inputs)
        });
        Ok(Head {
            level,
            hidden,
            vocabulary,
            backward: backward.collect::<Result<_, _>>()?,
            forward: Linear::new(level, precision, weights, &none[..vocabulary], hidden)?,
        })
    }

    /// Rows of a task.
    fn most_rows(&self) -> usize {
        let tile = self.forward.tile_rows();
        (MOST_LOGITS / self.vocabulary.max(1)).clamp(tile, MOST_ROWS) / tile * tile
    }

    /// Rows that keep all threads busy for one task each.
    pub fn rows(&self, pool: &Pool) -> usize {
        pool.threads() * self.most_rows()
    }

    /// Memory for each thread of a pool.
    ///
    /// # Errors
    /// [`ComputeError::Memory`] where it is short.
    pub fn memories(&self, pool: &Pool) -> Result<Vec<Mutex<Memory>>, ComputeError> {
        let rows = self.most_rows();
        let memory = |_| {
            Ok(Mutex::new(Memory {
                logits: Buffer::zeroed(rows * self.vocabulary)?,
                words: Rows::new(rows, self.hidden.max(PART))?,
            }))
        };
        (0..pool.threads()).map(memory).collect()
    }

    /// Nats and divergence of each of some states (rows of the last norm's output), and the gradient of their weighted sum
    /// by the states, unless `gradient` is empty.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where lengths or ids do not fit.
    pub fn losses(
        &self,
        pool: &Pool,
        memories: &[Mutex<Memory>],
        states: &[f32],
        losses_of: &Losses<'_>,
        found: &mut [f32],
        gradient: &mut [f32],
    ) -> Result<(), ComputeError> {
        let Losses { wanted, weight, pull } = *losses_of;
        let known = |wanted: &Wanted| {
            (wanted.id as usize) < self.vocabulary
                && wanted.teacher.is_none_or(|teacher| teacher.len() == self.vocabulary)
        };
        let backward = !gradient.is_empty();
        let fits = states.len() == wanted.len() * self.hidden
            && found.len() == 2 * wanted.len()
            && (!backward || gradient.len() == states.len());
        if !(fits && wanted.iter().all(known)) {
            return Err(ComputeError::Shape(
                "states and what they are to say do not fit".to_owned(),
            ));
        }
        let (found, gradient) = (Shared::new(found), Shared::new(gradient));
        self.each(pool, memories, states, &|first, logits, words| {
            let count = logits.len() / self.vocabulary;
            for (place, row) in logits.chunks_exact_mut(self.vocabulary).enumerate() {
                let two = losses(self.level, row, wanted[first + place], weight, pull);
                // SAFETY: each row is one task's.
                unsafe { found.part(2 * (first + place), 2) }.copy_from_slice(&two);
            }
            if !backward {
                return;
            }
            for (number, part) in self.backward.iter().enumerate() {
                let rows = part.prepare_apart(&logits[number * PART..], self.vocabulary, count, words);
                let epilogue = match number {
                    0 => Epilogue::Bias,
                    _ => Epilogue::Residual,
                };
                // SAFETY: each task has rows of its own; logits are memory of the thread.
                unsafe {
                    part.product(
                        rows,
                        0..part.panels(),
                        gradient,
                        first * self.hidden,
                        self.hidden,
                        epilogue,
                    )
                }
            }
        })
    }

    /// The logarithms of the probabilities that states give, a row of the vocabulary each.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] where lengths do not fit.
    pub fn log_probabilities(
        &self,
        pool: &Pool,
        memories: &[Mutex<Memory>],
        states: &[f32],
        out: &mut [f32],
    ) -> Result<(), ComputeError> {
        if states.len() / self.hidden * self.vocabulary != out.len() {
            return Err(ComputeError::Shape("states and probabilities do not fit".to_owned()));
        }
        let out = Shared::new(out);
        self.each(pool, memories, states, &|first, logits, _| {
            for (place, row) in logits.chunks_exact_mut(self.vocabulary).enumerate() {
                log_softmax(self.level, row);
                // SAFETY: each row is one task's.
                unsafe { out.part((first + place) * self.vocabulary, self.vocabulary) }.copy_from_slice(row);
            }
        })
    }

    /// Calls `body(first, logits, words)` with the logits of blocks of states.
    fn each(
        &self,
        pool: &Pool,
        memories: &[Mutex<Memory>],
        states: &[f32],
        body: &(dyn Fn(usize, &mut [f32], &mut Rows) + Sync),
    ) -> Result<(), ComputeError> {
        let rows = states.len() / self.hidden;
        let room = rows == 0
            || memories
                .iter()
                .all(|memory| memory.lock().logits.len() >= self.vocabulary * self.most_rows());
        if memories.len() < pool.threads() || !room || states.len() != rows * self.hidden {
            return Err(ComputeError::Shape("the head's memory is of another model".to_owned()));
        }
        // As many tasks for each thread, of as many rows.
        let tasks = rows.div_ceil(self.most_rows()).next_multiple_of(pool.threads());
        let block = rows
            .div_ceil(tasks.max(1))
            .next_multiple_of(self.forward.tile_rows())
            .min(self.most_rows());
        pool.run_indexed(rows.div_ceil(block.max(1)), |thread, task| {
            let first = task * block;
            let count = block.min(rows - first);
            let mut memory = memories[thread].lock();
            let Memory { logits, words } = &mut *memory;
            let logits = &mut logits[..count * self.vocabulary];
            let input = self
                .forward
                .prepare(&states[first * self.hidden..][..count * self.hidden], words);
            let (panels, to) = (0..self.forward.panels(), Shared::new(logits));
            // SAFETY: memory of the thread.
            unsafe {
                self.forward
                    .product(input, panels, to, 0, self.vocabulary, Epilogue::Bias)
            }
            body(first, logits, words);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(count: usize, seed: usize) -> Vec<f32> {
        (0..count)
            .map(|i| (((i + seed) * 7919 % 2003) as f32 - 1001.0) / 700.0)
            .collect()
    }

    #[test]
    fn gradients_are_those_of_the_products_by_hand() {
        // More than a part of the vocabulary, and more rows than a task has.
        let (hidden, vocabulary, rows) = (6, PART + 30, 200);
        let weights = elements(vocabulary * hidden, 3);
        let states = elements(rows * hidden, 8);
        let pool = Pool::new(2).unwrap();
        for level in Level::available() {
            let head = Head::new(level, Precision::F32, &weights, hidden).unwrap();
            let memories = head.memories(&pool).unwrap();
            let wanted: Vec<Wanted> = (0..rows)
                .map(|row| Wanted {
                    id: (row * 5 % vocabulary) as u32,
                    teacher: None,
                })
                .collect();
            let of = Losses {
                wanted: &wanted,
                weight: 0.5,
                pull: 0.0,
            };
            let mut found = vec![0.0; rows * 2];
            let mut gradient = vec![f32::NAN; states.len()];
            head.losses(&pool, &memories, &states, &of, &mut found, &mut gradient)
                .unwrap();
            let mut log = vec![f32::NAN; rows * vocabulary];
            head.log_probabilities(&pool, &memories, &states, &mut log).unwrap();
            for row in 0..rows {
                let state = &states[row * hidden..][..hidden];
                let logit = |id: usize| -> f64 {
                    let weights = &weights[id * hidden..][..hidden];
                    weights
                        .iter()
                        .zip(state)
                        .map(|(w, x)| f64::from(*w) * f64::from(*x))
                        .sum()
                };
                let exponentials: Vec<f64> = (0..vocabulary).map(|id| logit(id).exp()).collect();
                let sum: f64 = exponentials.iter().sum();
                let id = wanted[row].id as usize;
                let nats = sum.ln() - logit(id);
                assert!((f64::from(found[2 * row]) - nats).abs() < 1e-4, "{level:?} {row}");
                assert!(
                    (f64::from(log[row * vocabulary + id]) + nats).abs() < 1e-4,
                    "{level:?} {row}"
                );
                for column in 0..hidden {
                    let weight = |id: usize| f64::from(weights[id * hidden + column]);
                    let mean: f64 = exponentials
                        .iter()
                        .enumerate()
                        .map(|(id, p)| p / sum * weight(id))
                        .sum();
                    let want = 0.5 * (mean - weight(id));
                    let found = f64::from(gradient[row * hidden + column]);
                    assert!((found - want).abs() < 1e-5, "{level:?} {row}: {found} {want}");
                }
            }
            let short = head.losses(&pool, &memories, &states[1..], &of, &mut found, &mut []);
            assert!(matches!(short, Err(ComputeError::Shape(_))));
        }
    }
}
