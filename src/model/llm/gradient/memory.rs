//! Memory of passes: taken once, grown where a pass is larger, used by one after another.

use super::Matmul;
use super::layer::{Kept, Work};
use crate::compute::attention::shape::Shape;
use crate::compute::cpu::Level;
use crate::compute::gradient::{attention, head};
use crate::compute::{ComputeError, Pool};
use parking_lot::Mutex;

/// What a pass works in.
#[derive(Default)]
pub(super) struct Memory {
    /// The residual stream.
    pub x: Vec<f32>,
    /// The gradient by it.
    pub gradient: Vec<f32>,
    /// For each layer, or for one after another where nothing goes back.
    pub kept: Vec<Kept>,
    pub work: Work,
    pub attention: Vec<Mutex<attention::Memory>>,
    head: Vec<Mutex<head::Memory>>,
    /// Threads, and positions that the attention's memory is for.
    holds: (usize, usize),
}

impl Memory {
    /// Makes room for passes on `pool` with sequences of `length` positions.
    pub fn prepare(
        &mut self,
        pool: &Pool,
        widest: usize,
        level: Level,
        shape: Shape,
        length: usize,
    ) -> Result<(), ComputeError> {
        let threads = pool.threads();
        if self.work.matmul.is_none() || threads > self.holds.0 {
            self.work.matmul = Some(Matmul::new(pool, widest)?);
            self.head.clear();
        }
        if threads > self.holds.0 || length > self.holds.1 {
            let length = length.next_power_of_two();
            let memories = (0..threads).map(|_| Ok(Mutex::new(attention::Memory::new(level, shape, length)?)));
            self.attention = memories.collect::<Result<_, ComputeError>>()?;
            self.holds = (threads, length);
        }
        Ok(())
    }

    /// The head's memory for each thread.
    pub fn heads(&mut self, of: &head::Head, pool: &Pool) -> Result<&[Mutex<head::Memory>], ComputeError> {
        if self.head.len() < pool.threads() {
            self.head = of.memories(pool)?;
        }
        Ok(&self.head)
    }
}
