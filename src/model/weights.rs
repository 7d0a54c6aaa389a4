//! The weights of a model directory: one safetensors file or several with an index (`tensors.rs`), and the adapter beside
//! them, which is merged into the elements as they are read (`adapter.rs`).

use super::ModelError;
use super::adapter::Adapter;
use super::files::{read_json, required};
use super::tensors::Tensors;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The tensors of a model directory, with the change of its adapter.
pub struct Weights {
    tensors: Tensors,
    adapter: Option<Adapter>,
}

/// Paths of the weights files of a directory, in the order of their names; with the index first where there is one.
pub fn files(dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let single = dir.join("model.safetensors");
    let index = dir.join("model.safetensors.index.json");
    if single.is_file() || !index.is_file() {
        return Ok(vec![required(single)?]);
    }
    let parsed = read_json(&index)?;
    let invalid = |what: &str| ModelError::Invalid {
        path: index.clone(),
        what: what.to_string(),
    };
    let map = parsed
        .get("weight_map")
        .and_then(|map| map.as_object())
        .ok_or_else(|| invalid("no weight_map"))?;
    let mut names = BTreeSet::new();
    for name in map.values() {
        let name = name
            .as_str()
            .ok_or_else(|| invalid("weight_map holds something that is not a file name"))?;
        if name.contains('/') || name.starts_with('.') {
            return Err(invalid("weight_map names a file outside the directory"));
        }
        names.insert(name);
    }
    let mut paths = vec![index.clone()];
    for name in names {
        paths.push(required(dir.join(name))?);
    }
    Ok(paths)
}

impl Weights {
    /// Opens the weights files of a model directory and its adapter, if it has one, and checks their headers.
    pub fn open(dir: &Path) -> Result<Weights, ModelError> {
        let paths = files(dir)?.into_iter();
        let is_weights = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "safetensors");
        let tensors = Tensors::open(paths.filter(is_weights))?;
        let adapter = Adapter::open(dir, &tensors)?;
        Ok(Weights { tensors, adapter })
    }

    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains(name)
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.names()
    }

    /// The shape of a tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.shape(name)
    }

    /// Checks that a tensor is there with this shape and a type that can be read.
    pub fn check(&self, name: &str, shape: &[usize]) -> Result<(), ModelError> {
        self.tensors.check(name, shape)
    }

    /// The elements of a tensor as f32, row-major, with the adapter's change; fails where one is NaN or infinite, and with
    /// [`ModelError::Stopped`] where [`stop`](super::stop) says so.
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let mut elements = self.tensors.read(name, shape)?;
        if let Some(adapter) = &self.adapter {
            adapter.merge(name, &mut elements)?;
        }
        Ok(elements)
    }
}
