//! Keys and values of a sequence: blocks of 64 positions that are added as it grows.

use super::LlmConfig;
use crate::compute::attention::cached::BLOCK;
use crate::compute::{Buffer, ComputeError};

/// Shapes of a block.
#[derive(Clone, Copy, Debug)]
struct Shape {
    layers: usize,
    heads: usize,
    width: usize,
}

impl Shape {
    /// Numbers of the keys, or of the values, of one head of one layer.
    fn part(self) -> usize {
        BLOCK * self.width
    }
}

/// What a sequence has kept, in f32.
pub struct Cache {
    shape: Shape,
    /// Each `[layer][head][keys, then values]`.
    blocks: Vec<Buffer<f32>>,
    length: usize,
}

impl Cache {
    /// An empty one for a model.
    pub fn new(config: &LlmConfig) -> Cache {
        Cache {
            shape: Shape {
                layers: config.layers,
                heads: config.key_heads,
                width: config.head_width,
            },
            blocks: Vec::new(),
            length: 0,
        }
    }

    /// Bytes that a sequence of that many tokens takes.
    pub fn bytes(config: &LlmConfig, tokens: usize) -> usize {
        tokens.div_ceil(BLOCK) * BLOCK * 2 * config.layers * config.key_heads * config.head_width * 4
    }

    /// Tokens that are kept.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Forgets all tokens from `length` on.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
        self.blocks.truncate(self.length.div_ceil(BLOCK));
    }

    /// Makes room for `count` more tokens and counts them as kept.
    ///
    /// # Errors
    /// [`ComputeError::Memory`] where the memory is refused.
    pub fn grow(&mut self, count: usize) -> Result<(), ComputeError> {
        let wanted = (self.length + count).div_ceil(BLOCK);
        while self.blocks.len() < wanted {
            let numbers = self.shape.layers * self.shape.heads * 2 * self.shape.part();
            self.blocks.push(Buffer::zeroed(numbers)?);
        }
        self.length += count;
        Ok(())
    }

    /// Keeps the key and value of one head of one token. The position is below [`Cache::len`].
    pub fn put(&mut self, layer: usize, head: usize, position: usize, key: &[f32], value: &[f32]) {
        let (width, part) = (self.shape.width, self.shape.part());
        let start = (layer * self.shape.heads + head) * 2 * part;
        let Some(block) = self
            .blocks
            .get_mut(position / BLOCK)
            .and_then(|block| block.get_mut(start..start + 2 * part))
        else {
            return;
        };
        let (keys, values) = block.split_at_mut(part);
        let within = position % BLOCK;
        keys.iter_mut()
            .skip(within)
            .step_by(BLOCK)
            .zip(key)
            .for_each(|(to, from)| *to = *from);
        values
            .iter_mut()
            .skip(within * width)
            .zip(value)
            .for_each(|(to, from)| *to = *from);
    }

    /// The blocks of keys and of values of one head.
    pub fn head(&self, layer: usize, head: usize) -> (Vec<&[f32]>, Vec<&[f32]>) {
        let part = self.shape.part();
        let start = (layer * self.shape.heads + head) * 2 * part;
        let of = |from: usize| {
            self.blocks
                .iter()
                .filter_map(move |block| block.get(from..from + part))
                .collect()
        };
        (of(start), of(start + part))
    }
}
