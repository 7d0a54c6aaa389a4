//! One matrix of a language model: in blocks, as its file has it, or in full.

use super::files::{LlmFiles, Tensor, TensorData};
use crate::compute::cpu::Level;
use crate::compute::matmul::parallel::Matmul;
use crate::compute::memory::{spare, zeros};
use crate::compute::quantised::activations::QuantisedActivations;
use crate::compute::quantised::{Quantised, Target, products};
use crate::compute::{Buffer, ComputeError, Linear, Pool, Precision};
use crate::model::ModelError;

/// A linear layer without bias.
pub enum Matrix {
    Blocks(Quantised),
    Full(Box<Linear>),
}

/// How tensors are packed.
#[derive(Clone, Copy, Debug)]
pub struct Packing {
    pub level: Level,
    /// Of what is not in blocks.
    pub precision: Precision,
    /// Whether blocks are unpacked first: the reference that the quantised products are measured by.
    pub unpack: bool,
}

impl Matrix {
    /// Packs a tensor.
    pub fn new(tensor: &Tensor, packing: Packing) -> Result<Matrix, ModelError> {
        let full = |numbers: &[f32]| -> Result<Matrix, ModelError> {
            let none = zeros::<f32>(tensor.rows)?;
            let linear = Linear::new(packing.level, packing.precision, numbers, &none, tensor.columns)?;
            Ok(Matrix::Full(Box::new(linear)))
        };
        match &tensor.data {
            TensorData::F32(numbers) => full(numbers),
            TensorData::Blocks { .. } if packing.unpack => full(&tensor.to_f32()?),
            TensorData::Blocks { kind, bytes } => Ok(Matrix::Blocks(Quantised::new(
                *kind,
                tensor.rows,
                tensor.columns,
                bytes,
            )?)),
        }
    }

    /// Reads a tensor of that shape and packs it.
    pub fn read(files: &LlmFiles, name: &str, shape: [usize; 2], packing: Packing) -> Result<Matrix, ModelError> {
        spare()?;
        let tensor = files.tensor(name)?;
        if [tensor.rows, tensor.columns] != shape {
            return Err(ModelError::TensorShape {
                name: name.to_string(),
                expected: shape.to_vec(),
                found: vec![tensor.rows, tensor.columns],
            });
        }
        Matrix::new(&tensor, packing)
    }

    pub fn outputs(&self) -> usize {
        match self {
            Matrix::Blocks(layer) => layer.outputs(),
            Matrix::Full(layer) => layer.outputs(),
        }
    }

    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        match self {
            Matrix::Blocks(layer) => layer.memory(),
            Matrix::Full(layer) => layer.memory(),
        }
    }
}

/// Memory for the products of a pass.
pub struct Products {
    level: Level,
    codes: QuantisedActivations,
    matmul: Matmul,
    beside: Buffer<f32>,
}

impl Products {
    /// For passes of up to `rows` rows, layers of up to `widest` inputs and `outputs` outputs.
    pub fn new(
        pool: &Pool,
        level: Level,
        rows: usize,
        widest: usize,
        outputs: usize,
    ) -> Result<Products, ComputeError> {
        Ok(Products {
            level,
            codes: QuantisedActivations::new(rows, widest)?,
            matmul: Matmul::new(pool, widest)?,
            beside: Buffer::zeroed(rows * outputs)?,
        })
    }

    /// `out = x [W1; W2; ..]^T`, or added to `out`: the layers' outputs side by side in rows of `stride` numbers.
    #[allow(clippy::too_many_arguments)]
    pub fn run(
        &mut self,
        pool: &Pool,
        x: &[f32],
        inputs: usize,
        layers: &[&Matrix],
        out: &mut [f32],
        stride: usize,
        add: bool,
        stop: &dyn Fn() -> bool,
    ) -> Result<(), ComputeError> {
        let mut column = 0;
        let mut targets = Vec::with_capacity(layers.len());
        for layer in layers {
            match layer {
                Matrix::Blocks(layer) => targets.push(Target { layer, column }),
                Matrix::Full(full) => {
                    let outputs = full.outputs();
                    let rows = x.len() / inputs.max(1);
                    let beside = self
                        .beside
                        .get_mut(..rows * outputs)
                        .ok_or_else(|| ComputeError::Shape(format!("{rows} rows of {outputs} outputs")))?;
                    self.matmul.run(pool, full, x, beside)?;
                    for (from, to) in beside.chunks_exact(outputs).zip(out.chunks_exact_mut(stride)) {
                        for (from, to) in from.iter().zip(to.iter_mut().skip(column)) {
                            *to = if add { *to + from } else { *from };
                        }
                    }
                    if stop() {
                        return Err(ComputeError::Stopped);
                    }
                }
            }
            column += layer.outputs();
        }
        if targets.is_empty() {
            return Ok(());
        }
        self.codes.fill(pool, self.level, x, inputs)?;
        products(pool, &self.codes, &targets, out, stride, add, stop)
    }
}
