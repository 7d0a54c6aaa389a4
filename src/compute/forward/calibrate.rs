//! Calibration of 8-bit layers: which inputs are large, found by running the model on token ids from a fixed generator.
//!
//! Where a model's large activations are is a property of its weights: on MiniLM, random ids and real text name the same
//! inputs. So this needs no text, and two loads of a model give the same bits.

use super::bert::{Bert, Layer, Packed};
use crate::compute::ComputeError;
use crate::compute::cpu::pool::Pool;
use crate::compute::matmul::linear::Linear;

/// Lengths of the sequences that are run, as far as the model reads so many tokens.
const LENGTHS: [usize; 5] = [2, 16, 32, 64, 128];

/// The largest magnitude of each input of a layer's products.
pub struct Peaks {
    pub qkv: Vec<f32>,
    pub attention_output: Vec<f32>,
    pub up: Vec<f32>,
    pub down: Vec<f32>,
}

/// The largest activations of each layer. The model may be of any precision.
pub fn peaks(model: &mut Bert) -> Result<Vec<Peaks>, ComputeError> {
    fn each(layer: &mut Layer) -> [&mut Linear; 4] {
        [
            &mut layer.qkv,
            &mut layer.attention_output,
            &mut layer.up,
            &mut layer.down,
        ]
    }
    let layers = model.layers.iter_mut();
    layers.for_each(|layer| each(layer).into_iter().for_each(Linear::record_peaks));
    let batch = sample(model.words.len() / model.hidden, model.positions.len() / model.hidden);
    model.forward(&Pool::new(1)?, &batch, &|| false)?;
    let layers = model.layers.iter_mut();
    Ok(layers
        .map(|layer| {
            let [qkv, attention_output, up, down] = each(layer).map(|linear| linear.take_peaks().unwrap_or_default());
            Peaks {
                qkv,
                attention_output,
                up,
                down,
            }
        })
        .collect())
}

/// Ids of a vocabulary, spread evenly by Knuth's MMIX generator, in sequences of at most `positions` tokens.
fn sample(vocabulary: usize, positions: usize) -> Packed {
    let mut seed = 1u64;
    let mut batch = Packed {
        ids: Vec::new(),
        starts: vec![0],
    };
    for length in LENGTHS {
        for _ in 0..length.min(positions) {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            batch.ids.push(((seed >> 33) as usize % vocabulary.max(1)) as u32);
        }
        batch.starts.push(batch.ids.len());
    }
    batch
}
