//! The models that a worker has in memory: loaded on first use, at most once, verified against their fingerprint.

use super::failure::{Failure, Kind};
use super::wire::ModelKey;
use crate::model::{Encoder, ModelError};
use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
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
fn open(directory: &Path) -> Result<Encoder, ModelError> {
    for _ in 0..OPENINGS {
        match Encoder::open(directory) {
            Err(ModelError::Changed(_)) => std::thread::sleep(Duration::from_millis(100)),
            result => return result,
        }
    }
    Encoder::open(directory)
}

struct Loaded {
    encoder: Arc<Encoder>,
    bytes: usize,
    used: Instant,
}

/// Models in memory.
#[derive(Default)]
pub struct Models {
    loaded: HashMap<ModelKey, Loaded>,
}

impl Models {
    /// The model of that key, loaded now where it is not in memory; then others are unloaded, the one that was not used
    /// for longest first, until at most `most_bytes` are held (0: no limit) or only this one is left.
    pub fn get(&mut self, key: &ModelKey, most_bytes: usize) -> Result<Arc<Encoder>, Failure> {
        if let Some(model) = self.loaded.get_mut(key) {
            model.used = Instant::now();
            return Ok(model.encoder.clone());
        }
        let directory = resolve(&key.root, &key.path)?;
        let encoder = Arc::new(open(&directory).map_err(|error| Failure::from(&error))?);
        let found = &encoder.manifest().fingerprint;
        if *found != key.fingerprint {
            return Err(Failure::new(
                Kind::Changed,
                format!(
                    "the files of model \"{}\" are not the ones that were registered",
                    key.path
                ),
            )
            .detail(format!("Registered fingerprint {}, found {found}.", key.fingerprint))
            .hint(
                "Bring the old files back, or call situ.register_model(..., replace => true) and REINDEX the indexes \
                 that use the model.",
            ));
        }
        let bytes = encoder.memory();
        let used = Instant::now();
        self.loaded.insert(
            key.clone(),
            Loaded {
                encoder: encoder.clone(),
                bytes,
                used,
            },
        );
        while most_bytes > 0 && self.bytes() > most_bytes && self.loaded.len() > 1 {
            let oldest = self
                .loaded
                .iter()
                .filter(|(other, _)| *other != key)
                .min_by_key(|(_, model)| model.used);
            let Some(oldest) = oldest.map(|(other, _)| other.clone()) else {
                break;
            };
            self.loaded.remove(&oldest);
        }
        Ok(encoder)
    }

    /// Unloads what was not used for `idle`.
    pub fn unload_idle(&mut self, idle: Duration) {
        self.loaded.retain(|_, model| model.used.elapsed() < idle);
    }

    /// Models in memory.
    pub fn count(&self) -> usize {
        self.loaded.len()
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.loaded.values().map(|model| model.bytes).sum()
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
