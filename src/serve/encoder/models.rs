//! The models that a worker has in memory: loaded on first use, verified against their fingerprint.

use crate::compute::ComputeError;
use crate::model::{Device, Encoder, ModelError, Precision};
use crate::serve::ipc::failure::{Failure, Kind};
use crate::serve::ipc::memory::GivesBack;
use crate::serve::ipc::wire::ModelKey;
use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often a load starts again.
const OPENINGS: usize = 3;

/// The directory that `path` names below `root`, with symbolic links resolved on both.
///
/// A path that is absolute, climbs with `..`, or leads outside through a symbolic link is refused.
pub fn resolve(root: &str, path: &str) -> Result<PathBuf, Failure> {
    let outside = || {
        Failure::new(
            Kind::Argument,
            format!("model path \"{path}\" lies outside situ.model_dir"),
        )
        .detail(format!("situ.model_dir is \"{root}\"."))
        .hint("Give the path of a directory below situ.model_dir, relative to it.")
    };
    let plain = |component: Component<'_>| matches!(component, Component::Normal(_) | Component::CurDir);
    if path.is_empty() || path.contains('\0') || !Path::new(path).components().all(plain) {
        return Err(outside());
    }
    let canonical = |path: &Path, what: &str| {
        path.canonicalize().map_err(|error| {
            let kind = match error.kind() {
                std::io::ErrorKind::NotFound => Kind::MissingFile,
                _ => Kind::Io,
            };
            Failure::new(kind, format!("cannot open {what} \"{}\": {error}", path.display()))
                .hint("Put the model's directory below situ.model_dir, readable by the server's operating-system user.")
        })
    };
    let root_directory = canonical(Path::new(root), "situ.model_dir")?;
    let directory = canonical(&root_directory.join(path), "model directory")?;
    if !directory.starts_with(&root_directory) {
        return Err(outside());
    }
    Ok(directory)
}

/// Loads a model; once more where its files were touched meanwhile (a link or a change of mode counts).
///
/// A GPU computes in bf16, whatever `precision` says. A model that a GPU cannot run (its family, the sizes of its heads) is
/// run on the processor instead. Kernels come from the GPU that the worker holds open.
///
/// The only place where the service opens a model.
pub fn open(directory: &Path, device: Device, precision: Precision) -> Result<Encoder, ModelError> {
    let once = || match Encoder::open_on(directory, device, precision, None) {
        Err(ModelError::Unsupported { .. } | ModelError::Compute(ComputeError::Shape(_))) if device != Device::Cpu => {
            Encoder::open_with(directory, precision)
        }
        result => result,
    };
    for _ in 0..OPENINGS {
        match once() {
            Err(ModelError::Changed(_)) => std::thread::sleep(Duration::from_millis(100)),
            result => return result,
        }
    }
    once()
}

/// Fails where a loaded model is not the one that was registered.
pub fn verify(key: &ModelKey, encoder: &Encoder) -> Result<(), Failure> {
    let found = &encoder.manifest().fingerprint;
    if *found == key.fingerprint {
        return Ok(());
    }
    let message = format!(
        "the files of model \"{}\" are not the ones that were registered",
        key.path
    );
    Err(Failure::new(Kind::Changed, message)
        .detail(format!("Registered fingerprint {}, found {found}.", key.fingerprint))
        .hint(
            "Bring the old files back, or call situ.register_model(..., replace => true) and REINDEX the indexes \
             that use the model.",
        ))
}

/// A model in memory.
pub struct Model {
    pub key: ModelKey,
    pub encoder: Encoder,
    /// Bytes of the weights.
    pub bytes: usize,
    /// Tokens a second in bulk batches, smoothed; 0 before the first.
    pub speed: AtomicU64,
    /// Behind all that the model holds.
    _memory: GivesBack,
}

impl Model {
    /// Loads the model of that key and checks its fingerprint.
    pub fn load(key: &ModelKey, device: Device) -> Result<Model, Failure> {
        let directory = resolve(&key.root, &key.path)?;
        let encoder = open(&directory, device, key.precision).map_err(|error| Failure::from(&error))?;
        verify(key, &encoder)?;
        Ok(Model {
            key: key.clone(),
            bytes: encoder.memory(),
            encoder,
            speed: AtomicU64::new(0),
            _memory: GivesBack,
        })
    }
}

struct Loaded {
    model: Arc<Model>,
    used: Instant,
    /// Items that asked for it.
    requests: u64,
}

/// Models in memory.
#[derive(Default)]
pub struct Models {
    loaded: HashMap<ModelKey, Loaded>,
}

impl Models {
    /// The model of that key, where it is in memory.
    pub fn find(&mut self, key: &ModelKey) -> Option<Arc<Model>> {
        let loaded = self.loaded.get_mut(key)?;
        loaded.used = Instant::now();
        loaded.requests += 1;
        Some(loaded.model.clone())
    }

    /// Takes in a model. To make room others leave, the one that was not used for longest first, until at most
    /// `most_bytes` are held (0: no limit) or only this one is left; they are returned, for the caller to drop where
    /// nobody waits.
    pub fn insert(&mut self, model: Arc<Model>, most_bytes: usize) -> Vec<Arc<Model>> {
        let key = model.key.clone();
        let loaded = Loaded {
            model,
            used: Instant::now(),
            requests: 0,
        };
        self.loaded.insert(key.clone(), loaded);
        self.shrink(most_bytes, Some(&key))
    }

    /// Makes room as [`Models::insert`] does; without `keep`, the last that was used stays.
    pub fn shrink(&mut self, most_bytes: usize, keep: Option<&ModelKey>) -> Vec<Arc<Model>> {
        let mut gone = Vec::new();
        while most_bytes > 0 && self.bytes() > most_bytes && self.loaded.len() > 1 {
            let others = self.loaded.iter().filter(|(key, _)| Some(*key) != keep);
            let oldest = others.min_by_key(|(_, loaded)| loaded.used).map(|(key, _)| key.clone());
            let Some(loaded) = oldest.and_then(|key| self.loaded.remove(&key)) else {
                break;
            };
            gone.push(loaded.model);
        }
        gone
    }

    fn remove(&mut self, leaves: impl Fn(&ModelKey, &Loaded) -> bool) -> Vec<Arc<Model>> {
        let left = self.loaded.extract_if(|key, loaded| leaves(key, loaded));
        left.map(|(_, loaded)| loaded.model).collect()
    }

    /// Takes out what was not used for `idle`.
    pub fn unload_idle(&mut self, idle: Duration) -> Vec<Arc<Model>> {
        self.remove(|_, loaded| loaded.used.elapsed() >= idle)
    }

    /// Takes out a model in all precisions.
    pub fn unload(&mut self, wanted: &ModelKey) -> Vec<Arc<Model>> {
        self.remove(|key, _| (&key.root, &key.path) == (&wanted.root, &wanted.path))
    }

    /// Models in memory.
    pub fn count(&self) -> usize {
        self.loaded.len()
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.loaded.values().map(|loaded| loaded.model.bytes).sum()
    }

    /// A JSON array of what is loaded, the last used first: as many as fit into `most` bytes.
    pub fn describe(&self, most: usize) -> String {
        let mut all: Vec<&Loaded> = self.loaded.values().collect();
        all.sort_by_key(|loaded| loaded.used.elapsed());
        let mut text = String::from("[");
        for loaded in all {
            let model = &loaded.model;
            let one = serde_json::json!({
                "path": model.key.path,
                "fingerprint": model.key.fingerprint,
                "precision": model.encoder.precision().name(),
                "bytes": model.bytes,
                "requests": loaded.requests,
                "tokens_per_second": model.speed.load(Ordering::Relaxed),
                "idle_seconds": loaded.used.elapsed().as_secs(),
            });
            let one = one.to_string();
            if text.len() + one.len() + 2 > most {
                break;
            }
            if text.len() > 1 {
                text.push(',');
            }
            text.push_str(&one);
        }
        text + "]"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_root() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("models");
        std::fs::create_dir_all(root.join("a/b")).expect("folders");
        std::fs::create_dir(folder.path().join("models-not")).expect("a folder");
        std::os::unix::fs::symlink(folder.path().join("models-not"), root.join("escape")).expect("a link");
        std::os::unix::fs::symlink(root.join("a"), root.join("inside")).expect("a link");
        let root = root.to_str().expect("UTF-8");
        for good in ["a", "a/b", "./a", "inside", "a/b/."] {
            assert!(resolve(root, good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "..",
            "../models-not",
            "a/../../models-not",
            "/etc",
            "escape",
            "a\0b",
        ] {
            assert_eq!(
                resolve(root, bad).map_err(|failure| failure.kind),
                Err(Kind::Argument),
                "{bad}"
            );
        }
        assert_eq!(
            resolve(root, "nothing").map_err(|failure| failure.kind),
            Err(Kind::MissingFile)
        );
        let failure = resolve("/nowhere/at/all", "a").expect_err("no root");
        assert!(failure.message.contains("situ.model_dir"), "{failure:?}");
    }
}
