//! The head that ANCE puts behind RoBERTa: `LayerNorm(h W^T + b)` of the first token's state (Xiong et al. 2021,
//! "Approximate Nearest Neighbor Negative Contrastive Learning for Dense Text Retrieval"; tensors `embeddingHead.*` and
//! `norm.*`). Its vectors are compared by inner product and have no fixed length.

use super::weights::Weights;
use super::{Manifest, ModelError, Pooling, Precision};
use crate::compute::cpu::Level;
use crate::compute::matmul::parallel::Matmul;
use crate::compute::{LayerNorm, Linear, Pool};

/// The tensors of the head, without `.weight` and `.bias`.
pub(super) const DENSE: &str = "embeddingHead";
pub(super) const NORM: &str = "norm";
/// Epsilon of the head's layer norm: PyTorch's default, which the published class takes.
pub(super) const EPSILON: f32 = 1e-5;

/// A head in memory. It computes in f32, on the processor.
pub struct EmbeddingHead {
    level: Level,
    hidden: usize,
    dense: Linear,
    norm: LayerNorm,
}

/// Whether weights have such a head.
pub fn found(weights: &Weights) -> bool {
    weights.contains(&format!("{DENSE}.weight"))
}

/// Checks the head's tensors, and what the manifest says of the way to a vector.
pub fn check(manifest: &Manifest, weights: &Weights) -> Result<(), ModelError> {
    if !found(weights) {
        return Ok(());
    }
    if manifest.pooling != Pooling::Cls || manifest.normalize {
        return Err(ModelError::Unsupported {
            what: "embedding head",
            found: format!(
                "behind {:?} pooling, normalised: {}",
                manifest.pooling, manifest.normalize
            ),
            supported: "the first token's state, not normalised",
        });
    }
    let hidden = manifest.hidden;
    weights.check(&format!("{DENSE}.weight"), &[hidden, hidden])?;
    for name in [
        format!("{DENSE}.bias"),
        format!("{NORM}.weight"),
        format!("{NORM}.bias"),
    ] {
        weights.check(&name, &[hidden])?;
    }
    Ok(())
}

impl EmbeddingHead {
    /// Reads the head; `None` where the weights have none.
    pub fn load(manifest: &Manifest, weights: &Weights, level: Level) -> Result<Option<EmbeddingHead>, ModelError> {
        if !found(weights) {
            return Ok(None);
        }
        check(manifest, weights)?;
        let (hidden, level) = (manifest.hidden, level.or_detected());
        let dense = weights.read(&format!("{DENSE}.weight"), &[hidden, hidden])?;
        let vector = |name: &str, part: &str| weights.read(&format!("{name}.{part}"), &[hidden]);
        let norm = [vector(NORM, "weight")?, vector(NORM, "bias")?];
        Ok(Some(EmbeddingHead {
            dense: Linear::new(level, Precision::F32, &dense, &vector(DENSE, "bias")?, hidden)?,
            norm: LayerNorm::new(&norm[0], &norm[1], EPSILON)?,
            level,
            hidden,
        }))
    }

    /// Bytes of memory that the weights take.
    pub fn memory(&self) -> usize {
        self.dense.memory() + self.norm.memory()
    }

    /// The vector of a first token's state.
    pub fn apply(&self, pool: &Pool, state: &[f32]) -> Result<Vec<f32>, ModelError> {
        let mut vector = vec![0.0f32; self.hidden];
        Matmul::new(pool, self.hidden)?.run(pool, &self.dense, state, &mut vector)?;
        self.norm.apply(self.level, &mut vector);
        Ok(vector)
    }
}
