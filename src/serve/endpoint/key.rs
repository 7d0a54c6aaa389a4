//! The key of the endpoint: the first line of a file that only the server reads, or a variable of the server's environment.
//!
//! It is never the value of a setting, since those are shown to members of `pg_read_all_settings` and lie in catalogs and dumps. It
//! is read anew for each request, so that a new one counts at once, and no error says any of it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The variable of the server's environment.
pub const VARIABLE: &str = "SITU_LLM_ENDPOINT_KEY";
/// Most bytes of a key; longer ones do not fit a header that endpoints take.
const MOST_BYTES: usize = 8 << 10;
/// Rights of others than the file's owner, and of all but the group.
const GROUP_AND_OTHERS: u32 = 0o077;
const ALL_BUT_GROUP_READS: u32 = 0o037;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("the file of the LLM endpoint's key cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    #[error("the file of the LLM endpoint's key is no regular file")]
    NoFile,
    #[error("the file of the LLM endpoint's key can be read by others")]
    Open,
    #[error("the LLM endpoint's key is empty, longer than 8 kB, or holds other letters than visible ASCII")]
    Malformed,
}

/// The key in `file`, or without one the value of the variable; none where neither is there.
///
/// # Errors
/// A file that is no plain file, that others can read (as the server's own private keys: 0600, or 0640 where root owns it), or that
/// holds no key.
pub fn read(file: Option<&Path>, variable: Option<&str>) -> Result<Option<String>, KeyError> {
    match (file, variable) {
        (Some(file), _) => from_file(file).map(Some),
        (None, Some(value)) if !value.is_empty() => checked(value).map(Some),
        (None, _) => Ok(None),
    }
}

fn from_file(path: &Path) -> Result<String, KeyError> {
    // Opening a pipe would wait for its writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(KeyError::NoFile);
    }
    let file = File::open(path)?;
    let found = file.metadata()?;
    let refused = match found.uid() {
        0 => ALL_BUT_GROUP_READS,
        _ => GROUP_AND_OTHERS,
    };
    if found.mode() & refused != 0 {
        return Err(KeyError::Open);
    }
    let mut bytes = Vec::new();
    file.take(MOST_BYTES as u64 + 2).read_to_end(&mut bytes)?;
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    checked(std::str::from_utf8(line).map_err(|_| KeyError::Malformed)?)
}

/// The key without the white space around it. What would end the header's line is no key.
fn checked(text: &str) -> Result<String, KeyError> {
    let key = text.trim();
    let plain = !key.is_empty() && key.len() <= MOST_BYTES && key.bytes().all(|byte| byte.is_ascii_graphic());
    match plain {
        true => Ok(key.to_owned()),
        false => Err(KeyError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    fn file(name: &str, content: &[u8], mode: u32) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("situ-key-{name}-{}", std::process::id()));
        std::fs::write(&path, content).expect("written");
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).expect("set");
        path
    }

    #[test]
    fn a_key_is_the_first_line_of_a_file_that_others_cannot_read() {
        let good = file("good", b"open-sesame \r\nmore\n", 0o600);
        assert_eq!(
            read(Some(&good), Some("other")).expect("a key").as_deref(),
            Some("open-sesame")
        );
        assert_eq!(read(None, Some("other")).expect("a key").as_deref(), Some("other"));
        assert!(read(None, Some("")).expect("none").is_none() && read(None, None).expect("none").is_none());
        let longest = file("longest", &[b'k'; MOST_BYTES], 0o400);
        assert_eq!(
            read(Some(&longest), None).expect("a key").map(|key| key.len()),
            Some(MOST_BYTES)
        );
        let open = file("open", b"open-sesame\n", 0o604);
        assert!(matches!(read(Some(&open), None), Err(KeyError::Open)));
        let absent = std::env::temp_dir().join("situ-key-absent");
        assert!(matches!(
            read(Some(&absent), Some("other")),
            Err(KeyError::Unreadable(_))
        ));
        assert!(matches!(read(Some(&std::env::temp_dir()), None), Err(KeyError::NoFile)));
        let long = file("long", &[b'k'; MOST_BYTES + 1], 0o600);
        let words = file("words", b"open sesame\n", 0o600);
        let bytes = file("bytes", b"caf\xe9\n", 0o600);
        let empty = file("empty", b"\nopen-sesame\n", 0o600);
        for bad in [&long, &words, &bytes, &empty] {
            assert!(
                matches!(read(Some(bad), None), Err(KeyError::Malformed)),
                "{}",
                bad.display()
            );
        }
        assert!(matches!(read(None, Some("a\r\nHost: b")), Err(KeyError::Malformed)));
        for path in [good, longest, open, long, words, bytes, empty] {
            let _ = std::fs::remove_file(path);
        }
    }
}
