//! Reading the files of a model directory, and the fingerprint of their content.

use super::ModelError;
use crate::compute::memory::{room_for, with_room, zeros};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Largest JSON file that is read whole.
const MAX_JSON: u64 = 256 << 20;

/// Bytes of memory that a byte of JSON takes at most while it is parsed.
const PARSED: usize = 8;

/// An error of the file system, with the path.
pub fn io(path: &Path, source: std::io::Error) -> ModelError {
    match source.kind() {
        std::io::ErrorKind::NotFound => ModelError::Missing(path.to_path_buf()),
        _ => ModelError::Io {
            path: path.to_path_buf(),
            source,
        },
    }
}

/// `path`, if it is a file.
pub fn required(path: PathBuf) -> Result<PathBuf, ModelError> {
    if path.is_file() {
        Ok(path)
    } else {
        Err(ModelError::Missing(path))
    }
}

/// The bytes of a file that is read whole.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>, ModelError> {
    let length = std::fs::metadata(path).map_err(|source| io(path, source))?.len();
    if length > MAX_JSON {
        let what = format!("{length} bytes are more than the limit of {MAX_JSON}");
        return Err(ModelError::Invalid {
            path: path.to_path_buf(),
            what,
        });
    }
    let file = File::open(path).map_err(|source| io(path, source))?;
    let mut bytes = with_room(length as usize)?;
    // No more than there was: a file that grows meanwhile is another one.
    let read = file.take(length).read_to_end(&mut bytes);
    read.map_err(|source| io(path, source))?;
    Ok(bytes)
}

/// A JSON file.
pub fn read_json(path: &Path) -> Result<serde_json::Value, ModelError> {
    let bytes = read_bytes(path)?;
    room_for(bytes.len().saturating_mul(PARSED))?;
    serde_json::from_slice(&bytes).map_err(|error| ModelError::Invalid {
        path: path.to_path_buf(),
        what: error.to_string(),
    })
}

/// A JSON file, or null where there is none.
pub fn read_optional_json(path: &Path) -> Result<serde_json::Value, ModelError> {
    if path.is_file() {
        read_json(path)
    } else {
        Ok(serde_json::Value::Null)
    }
}

/// Hex SHA-256 over names (relative to `dir`), lengths and content of the files, in the given order.
pub fn fingerprint(dir: &Path, paths: &[PathBuf]) -> Result<String, ModelError> {
    hashed(paths, |path| path.strip_prefix(dir).unwrap_or(path).to_string_lossy())
}

/// [`fingerprint`] without the names: copies of the files under others are the same.
pub fn fingerprint_of_content(paths: &[PathBuf]) -> Result<String, ModelError> {
    hashed(paths, |_| Cow::Borrowed(""))
}

fn hashed<'a>(paths: &'a [PathBuf], name: impl Fn(&'a Path) -> Cow<'a, str>) -> Result<String, ModelError> {
    let mut hash = Sha256::new();
    let mut buffer = zeros::<u8>(1 << 20)?;
    for path in paths {
        let name = name(path);
        let mut file = File::open(path).map_err(|source| io(path, source))?;
        let length = file.metadata().map_err(|source| io(path, source))?.len();
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name.as_bytes());
        hash.update(length.to_le_bytes());
        loop {
            super::stop::check()?;
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => hash.update(buffer.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => return Err(io(path, source)),
            }
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Identity, size and time of the last write of a file. The inode's own change time would also tell of a new name or
/// owner, which leave the content as it is.
pub type State = (u64, u64, i64, i64);

/// The state of each file: equal before and after a load, the content was not changed by it.
pub fn states(paths: &[PathBuf]) -> Result<Vec<State>, ModelError> {
    let state = |path: &PathBuf| Ok(state(&std::fs::metadata(path).map_err(|source| io(path, source))?));
    paths.iter().map(state).collect()
}

/// The state of a file by what the system says of it.
pub fn state(metadata: &std::fs::Metadata) -> State {
    (metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec())
}
