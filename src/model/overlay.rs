//! A model directory with some of its weights replaced, written beside the original: what a trained copy is served from.

use super::directory::content;
use super::files::{io, required};
use super::situated::Template;
use super::weights::{self, Weights};
use super::{ModelError, adapter};
use crate::compute::memory::collected;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::collections::BTreeMap;
use std::path::Path;

/// Tensors in f32 by name: shape and numbers.
pub type Replaced = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Writes the model of `base` with `replaced` in place of its tensors to the new directory `to`. All weights are written
/// in f32, in one file.
///
/// # Errors
/// [`ModelError::MissingTensor`] or [`ModelError::TensorShape`] where a tensor is not one of the model's,
/// [`ModelError::Unsupported`] for a model with an adapter beside it, and what the file system says.
pub fn write(base: &Path, replaced: &Replaced, to: &Path) -> Result<(), ModelError> {
    if adapter::files(base)?.is_some() || Template::read(base)?.is_some() {
        return Err(ModelError::Unsupported {
            what: "trained copy",
            found: "a model with an adapter or a second encoder".to_string(),
            supported: "plain model directories",
        });
    }
    let own = weights::files(base)?;
    for path in content(base)?.into_iter().filter(|path| !own.contains(path)) {
        let relative = path.strip_prefix(base).unwrap_or(&path);
        let target = to.join(relative);
        if let Some(folder) = target.parent() {
            std::fs::create_dir_all(folder).map_err(|source| io(folder, source))?;
        }
        std::fs::copy(required(path)?, &target).map_err(|source| io(&target, source))?;
    }
    let weights = Weights::open(base)?;
    for (name, (shape, _)) in replaced {
        weights.check(name, shape)?;
    }
    let mut tensors = Vec::new();
    for name in weights.names() {
        let shape = weights.shape(name).unwrap_or_default().to_vec();
        let bytes = match replaced.get(name) {
            Some((_, numbers)) => little_endian(numbers)?,
            // Tables of positions and the like, which no forward pass reads.
            None if weights.check(name, &shape).is_err() => continue,
            None => little_endian(&weights.read(name, &shape)?)?,
        };
        tensors.push((name, shape, bytes));
    }
    let path = to.join("model.safetensors");
    let corrupt = |error: safetensors::SafeTensorError| ModelError::Corrupt {
        path: path.clone(),
        what: error.to_string(),
    };
    let mut views = Vec::with_capacity(tensors.len());
    for (name, shape, bytes) in &tensors {
        views.push((
            *name,
            TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(corrupt)?,
        ));
    }
    safetensors::serialize_to_file(views, None, &path).map_err(corrupt)
}

/// Bytes of the weights that [`write`] writes for the model of `base`.
///
/// # Errors
/// What the files say.
pub fn bytes(base: &Path) -> Result<u64, ModelError> {
    let weights = Weights::open(base)?;
    let numbers = |name| weights.shape(name).unwrap_or_default().iter().product::<usize>() as u64;
    Ok(weights.names().map(|name| 4 * numbers(name)).sum())
}

fn little_endian(numbers: &[f32]) -> Result<Vec<u8>, ModelError> {
    Ok(collected(numbers.iter().map(|number| number.to_le_bytes()))?.into_flattened())
}
