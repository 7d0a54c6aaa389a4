//! Reads and checks the files of a model directory.
//!
//! The layout is Hugging Face's (config.json, tokenizer.json, safetensors) with the files that sentence-transformers
//! adds (modules.json, 1_Pooling/config.json, sentence_bert_config.json, config_sentence_transformers.json) and those of
//! a PEFT adapter (see `adapter.rs`).

use super::config::Config;
use super::files::{fingerprint, required};
use super::manifest::{Manifest, Pooling};
use super::modules::{Modules, Options, Prompts};
use super::situated::{self, Form, Template};
use super::weights::{self, Weights};
use super::{ModelError, adapter, embedding_head, feedback, network};
use std::path::{Path, PathBuf};

impl Manifest {
    /// Reads and checks a model directory without loading its weights: the configuration is parsed, the weights' headers
    /// are checked against it, and the content is hashed.
    pub fn read(dir: &Path) -> Result<Manifest, ModelError> {
        if !dir.is_dir() {
            return Err(ModelError::NotADirectory(dir.to_path_buf()));
        }
        adapter::beside_its_base(dir)?;
        let mut manifest = Config::read(dir)?.manifest()?;
        required(dir.join("tokenizer.json"))?;
        let modules = Modules::read(dir, manifest.pooling)?;
        let prompts = Prompts::read(dir)?;
        modules.check(&prompts)?;
        if let Some(limit) = Options::read(dir)?.max_tokens {
            manifest.max_tokens = limit.clamp(1, manifest.positions);
        }
        manifest.pooling = modules.pooling;
        manifest.normalize = modules.normalize;
        (manifest.query_prefix, manifest.passage_prefix) = (prompts.query, prompts.passage);
        let weights = Weights::open(dir)?;
        let head = embedding_head::found(&weights);
        if head && modules.pooling_config.is_none() {
            manifest.pooling = Pooling::Cls;
        }
        manifest.similarity = modules.similarity(dir, head)?;
        network::check(&manifest, &weights)?;
        embedding_head::check(&manifest, &weights)?;
        manifest.fingerprint = fingerprint(dir, &content(dir)?)?;
        Ok(manifest)
    }
}

/// The files whose content makes the vectors, in a fixed order.
pub fn content(dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
    adapter::beside_its_base(dir)?;
    let mut paths = vec![dir.join("config.json"), dir.join("tokenizer.json")];
    let named = |name: &str| Some(dir.join(name)).filter(|path| path.is_file());
    paths.extend(named("modules.json"));
    paths.extend(Options::file(dir));
    paths.extend(named("config_sentence_transformers.json"));
    // Only decoders read it (see `tokenizer.rs`).
    let tokenizer = dir.join("tokenizer_config.json");
    if Config::read(dir)?.family()?.is_decoder() && tokenizer.is_file() {
        paths.push(tokenizer);
    }
    paths.extend(Modules::read(dir, Pooling::Mean)?.pooling_config);
    paths.extend(weights::files(dir)?);
    paths.extend(adapter::files(dir)?.into_iter().flatten());
    paths.extend(situated_files(dir)?);
    paths.extend(feedback::file(dir)?);
    Ok(paths)
}

/// The files that a template adds to the content of a directory.
fn situated_files(dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let Some(template) = Template::read(dir)? else {
        return Ok(Vec::new());
    };
    let mut paths = vec![dir.join(situated::FILE)];
    if template.form == Form::Sum {
        let inner = situated::folder(dir);
        required(inner.join("config.json"))?;
        paths.extend(content(&inner)?);
    }
    Ok(paths)
}
