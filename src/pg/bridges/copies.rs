//! Copies of models with other weights, in the server's temporary files: what trained copies of an encoder are served
//! from.
//!
//! The worker reads model directories and no tables, so a copy is written before it is asked for. A copy is named by
//! the hash of its weights; base backups leave the directory out, the server empties it when it starts, and whoever
//! misses a copy writes it again. Anybody may own any number of bridges, so there are at most [`MOST`] copies, of which
//! the one that was not used for longest makes room and leaves the worker's memory too; one alone is bound by
//! `temp_file_limit`, as what sorts and joins write.

use crate::model::overlay::{self, Replaced};
use crate::pg::ereport::{fail, fail_with_hint};
use crate::pg::error::OrRaise;
use crate::pg::service::client::ask_each;
use crate::pg::service::model_ref::ModelRef;
use crate::pg::service::{Item, ServiceError};
use crate::pg::settings;
use pgrx::{PgSqlErrorCode, pg_sys};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Most copies of all databases together.
const MOST: usize = 4;
/// What the names of copies begin with.
const PREFIX: &str = "pgsql_tmp_situ_";

/// Where the server keeps temporary files.
pub fn root() -> PathBuf {
    settings::data_directory().join("base").join("pgsql_tmp")
}

/// The name of the copy whose weights have that hash.
pub fn name_of(hash: &str) -> String {
    format!("{PREFIX}{hash}")
}

fn own_pid() -> i32 {
    // SAFETY: a plain global of the backend.
    unsafe { pg_sys::MyProcPid }
}

fn io(path: &Path, error: &std::io::Error) -> ! {
    fail(
        PgSqlErrorCode::ERRCODE_IO_ERROR,
        format!("cannot write \"{}\": {error}", path.display()),
    )
}

/// Whether a copy is there; notes that it is used.
pub fn is_there(name: &str) -> bool {
    let directory = root().join(name);
    let there = directory.is_dir();
    if there {
        // The time of the last use decides which one leaves. Where it cannot be written, the copy leaves earlier.
        let _ = std::fs::File::open(&directory).and_then(|open| open.set_modified(SystemTime::now()));
    }
    there
}

/// Writes the copy `name` of the model in `base`. Of two backends that write at once the first one's gets the name.
pub fn write(name: &str, model: &ModelRef, base: &Path, replaced: &Replaced) {
    check_limit(base);
    make_room(model);
    let own = root().join(format!("{name}.{}", own_pid()));
    std::fs::create_dir_all(&own).unwrap_or_else(|error| io(&own, &error));
    if let Err(error) = overlay::write(base, replaced, &own) {
        let _ = std::fs::remove_dir_all(&own);
        Err(error).or_raise()
    }
    if std::fs::rename(&own, root().join(name)).is_err() {
        let _ = std::fs::remove_dir_all(&own);
    }
}

/// Raises an error where a copy would take more than a process may write.
fn check_limit(base: &Path) {
    // SAFETY: a plain global of the backend, in kB; -1 for no limit.
    let limit = unsafe { pg_sys::temp_file_limit };
    let Ok(limit) = u64::try_from(limit) else { return };
    let bytes = overlay::bytes(base).or_raise();
    if bytes > limit * 1024 {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            format!(
                "the trained copy of {} kB exceeds temp_file_limit ({limit} kB)",
                bytes / 1024
            ),
            "A copy of the encoder's weights in f32 is written to the temporary files: raise temp_file_limit.",
        )
    }
}

/// Removes what dead backends have left, and the copies that were not used for longest until another one fits.
fn make_room(model: &ModelRef) {
    let entries = std::fs::read_dir(root()).into_iter().flatten().flatten();
    let mut copies: Vec<(SystemTime, String)> = Vec::new();
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix(PREFIX) else {
            continue;
        };
        // SAFETY: looks into the server's process table.
        let is_gone = |pid: i32| pid != own_pid() && unsafe { pg_sys::BackendPidGetProc(pid) }.is_null();
        match rest.split_once('.') {
            Some((_, pid)) => match pid.split('.').next().and_then(|pid| pid.parse().ok()) {
                Some(pid) if is_gone(pid) => {
                    let _ = std::fs::remove_dir_all(entry.path());
                }
                _ => {}
            },
            None => {
                let used = entry.metadata().and_then(|data| data.modified());
                copies.push((used.unwrap_or(SystemTime::UNIX_EPOCH), name));
            }
        }
    }
    copies.sort();
    let over = (copies.len() + 1).saturating_sub(MOST);
    for (_, name) in copies.into_iter().take(over) {
        remove(&name, model).or_raise();
    }
}

/// Removes a copy, and has the workers forget it.
fn remove(name: &str, model: &ModelRef) -> Result<(), ServiceError> {
    // A name of its own first: nobody sees half a copy.
    let gone = root().join(format!("{name}.{}.old", own_pid()));
    if std::fs::rename(root().join(name), &gone).is_err() {
        return Ok(());
    }
    let _ = std::fs::remove_dir_all(&gone);
    let copy = ModelRef {
        root: Some(root().to_string_lossy().into_owned()),
        path: name.to_owned(),
        ..model.clone()
    };
    ask_each(&copy, Item::Unload)?;
    Ok(())
}
