//! The files of a language model: a GGUF file or a directory of safetensors, seen alike.
//!
//! Tensors have Hugging Face's names and order of rows in both. GGUF files of the llama architecture keep the rows of a
//! query or key head so that the two numbers of a rotary pair are neighbours; they are put back where each half of the
//! head holds one number of every pair.

use super::super::ModelError;
use super::super::files::{State, fingerprint, fingerprint_of_content, states};
use super::super::gguf::{Gguf, PartName, TensorKind};
use super::super::weights::{self, Weights};
use super::config::LlmConfig;
use super::{directory, gguf_config};
pub use crate::compute::BlockKind;
use crate::compute::memory;
use std::path::{Path, PathBuf};

/// A matrix, or a vector as one row.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub rows: usize,
    pub columns: usize,
    pub data: TensorData,
}

/// The numbers of a tensor, row after row.
#[derive(Clone, Debug)]
pub enum TensorData {
    F32(Vec<f32>),
    /// Blocks along the rows; each row has `kind.row_bytes(columns)` bytes.
    Blocks {
        kind: BlockKind,
        bytes: Vec<u8>,
    },
}

impl Tensor {
    /// The numbers, row-major.
    pub fn to_f32(&self) -> Result<Vec<f32>, ModelError> {
        match &self.data {
            TensorData::F32(numbers) => Ok(memory::copied(numbers)?),
            TensorData::Blocks { kind, bytes } => {
                let mut numbers = memory::zeros(bytes.len() / kind.bytes() * kind.length())?;
                kind.dequantise(bytes, &mut numbers);
                Ok(numbers)
            }
        }
    }
}

pub(super) enum Container {
    Gguf(Gguf),
    Directory { dir: PathBuf, weights: Weights },
}

/// The open files of a language model.
pub struct LlmFiles {
    container: Container,
    config: LlmConfig,
    paths: Vec<PathBuf>,
    states: Vec<State>,
    fingerprint: String,
}

impl LlmFiles {
    /// Opens a `.gguf` file (of a model in parts the first), a directory with one or with the parts of one, or a directory with config.json, tokenizer.json and safetensors.
    /// Reads all files once for the fingerprint.
    pub fn open(path: &Path) -> Result<LlmFiles, ModelError> {
        if path.is_dir() {
            let mut found = Vec::new();
            let entries = std::fs::read_dir(path).map_err(|source| super::super::files::io(path, source))?;
            for entry in entries {
                let entry = entry.map_err(|source| super::super::files::io(path, source))?.path();
                if entry.extension().is_some_and(|extension| extension == "gguf") {
                    found.push(entry);
                }
            }
            found.sort();
            let first = match found.as_slice() {
                [] => return LlmFiles::open_directory(path),
                [one] => Some(one.clone()),
                several => PartName::first_of(several),
            };
            let files = first.map(|first| LlmFiles::open_gguf(&first)).transpose()?;
            // What only has the names of parts is no model's whole.
            return files
                .filter(|files| files.paths.len() >= found.len())
                .ok_or_else(|| ModelError::Invalid {
                    path: path.to_path_buf(),
                    what: format!("it holds {} GGUF files: name one of them", found.len()),
                });
        }
        LlmFiles::open_gguf(path)
    }

    fn open_gguf(path: &Path) -> Result<LlmFiles, ModelError> {
        let file = Gguf::open(path)?;
        let config = gguf_config::config(&file)?;
        let (paths, states): (Vec<PathBuf>, Vec<State>) =
            file.files().map(|(path, state)| (path.to_path_buf(), state)).unzip();
        Ok(LlmFiles {
            container: Container::Gguf(file),
            config,
            // The names of the files are left out: copies under others are the same model.
            fingerprint: fingerprint_of_content(&paths)?,
            paths,
            states,
        })
    }

    fn open_directory(dir: &Path) -> Result<LlmFiles, ModelError> {
        let mut paths = weights::files(dir)?;
        let names = [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
            "adapter_config.json",
            "adapter_model.safetensors",
        ];
        paths.extend(
            names
                .map(|name| dir.join(name))
                .into_iter()
                .filter(|path| path.is_file()),
        );
        let states = states(&paths)?;
        let weights = Weights::open(dir)?;
        let config = directory::config(dir, &weights)?;
        Ok(LlmFiles {
            container: Container::Directory {
                dir: dir.to_path_buf(),
                weights,
            },
            config,
            fingerprint: fingerprint(dir, &paths)?,
            paths,
            states,
        })
    }

    pub fn config(&self) -> &LlmConfig {
        &self.config
    }

    /// Hex SHA-256 over the content of all files.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Fails where a file was written since it was opened. To be asked once the tensors have been read.
    pub fn unchanged(&self) -> Result<(), ModelError> {
        if states(&self.paths)? == self.states {
            return Ok(());
        }
        Err(ModelError::Changed(self.paths.first().cloned().unwrap_or_default()))
    }

    pub(super) fn container(&self) -> &Container {
        &self.container
    }

    /// Whether there is a tensor of that name (Hugging Face's).
    pub fn has(&self, name: &str) -> bool {
        match &self.container {
            Container::Gguf(file) => gguf_name(name).is_some_and(|name| file.info(&name).is_some()),
            Container::Directory { weights, .. } => weights.contains(name),
        }
    }

    /// Reads a tensor by Hugging Face's name. Fails where its numbers are not finite.
    ///
    /// # Errors
    /// [`ModelError::Stopped`] where [`stop`](super::super::stop) says so, and what the file says.
    pub fn tensor(&self, name: &str) -> Result<Tensor, ModelError> {
        super::super::stop::check()?;
        match &self.container {
            Container::Gguf(file) => self.gguf_tensor(file, name),
            Container::Directory { weights, .. } => {
                let shape = weights
                    .shape(name)
                    .ok_or_else(|| ModelError::MissingTensor(name.to_string()))?;
                let (rows, columns) = matrix(name, shape)?;
                let data = TensorData::F32(weights.read(name, shape)?);
                Ok(Tensor { rows, columns, data })
            }
        }
    }

    fn gguf_tensor(&self, file: &Gguf, name: &str) -> Result<Tensor, ModelError> {
        let missing = || ModelError::MissingTensor(name.to_string());
        let stored = gguf_name(name).ok_or_else(missing)?;
        let info = file.info(&stored).ok_or_else(missing)?;
        let (rows, columns) = matrix(name, &info.shape)?;
        let not_finite = || ModelError::NotFinite(name.to_string());
        let heads = self.interleaved_heads(name);
        let data = match info.kind {
            TensorKind::Blocks(kind) => {
                let mut bytes = file.read(&stored)?;
                if !kind.is_finite(&bytes) {
                    return Err(not_finite());
                }
                if let Some(heads) = heads {
                    bytes = self.halves(name, &bytes, rows, heads)?;
                }
                TensorData::Blocks { kind, bytes }
            }
            _ => {
                let mut numbers = file.elements(&stored)?;
                if numbers.iter().any(|number| !number.is_finite()) {
                    return Err(not_finite());
                }
                if let Some(heads) = heads {
                    // A bias has one number for each row of the weights.
                    let rows = if info.shape.len() == 1 { columns } else { rows };
                    numbers = self.halves(name, &numbers, rows, heads)?;
                }
                TensorData::F32(numbers)
            }
        };
        Ok(Tensor { rows, columns, data })
    }

    /// The heads of a tensor whose rows a GGUF file of this family keeps in rotary pairs.
    fn interleaved_heads(&self, name: &str) -> Option<usize> {
        use super::LlmFamily::{Llama, Mistral};
        if !matches!(self.config.family, Llama | Mistral) {
            return None;
        }
        let is = |part: &str| name.contains(part);
        match () {
            _ if is(".self_attn.q_proj.") => Some(self.config.heads),
            _ if is(".self_attn.k_proj.") => Some(self.config.key_heads),
            _ => None,
        }
    }

    /// Rows (of equal length) of heads in pairs, put into halves: row `2 j + i` of a head becomes row `i width / 2 + j`.
    fn halves<T: Copy>(&self, name: &str, values: &[T], rows: usize, heads: usize) -> Result<Vec<T>, ModelError> {
        let width = self.config.head_width;
        if rows != heads * width {
            return Err(ModelError::TensorShape {
                name: name.to_string(),
                expected: vec![heads * width],
                found: vec![rows],
            });
        }
        let length = values.len() / rows;
        let mut turned = memory::with_room(values.len())?;
        for head in values.chunks_exact(length * width) {
            for half in 0..2 {
                for pair in head.chunks_exact(2 * length) {
                    turned.extend_from_slice(pair.get(half * length..(half + 1) * length).unwrap_or_default());
                }
            }
        }
        Ok(turned)
    }
}

/// Rows and columns of a vector or matrix.
fn matrix(name: &str, shape: &[usize]) -> Result<(usize, usize), ModelError> {
    match shape {
        [columns] => Ok((1, *columns)),
        [rows, columns] => Ok((*rows, *columns)),
        _ => Err(ModelError::TensorShape {
            name: name.to_string(),
            expected: vec![0, 0],
            found: shape.to_vec(),
        }),
    }
}

/// The name in a GGUF file of a tensor with Hugging Face's name.
fn gguf_name(name: &str) -> Option<String> {
    match name {
        "model.embed_tokens.weight" => return Some("token_embd.weight".to_string()),
        "model.norm.weight" => return Some("output_norm.weight".to_string()),
        "lm_head.weight" => return Some("output.weight".to_string()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (part, end) = rest.rsplit_once('.')?;
    let part = match part {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{layer}.{part}.{end}"))
}
