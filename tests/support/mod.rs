//! Throw-away servers for tests: where the server lies, how clusters start and end, and short ways to ask them.
//!
//! Nothing here builds or installs anything: `scripts/test.sh` does, and says in the environment where things are.
//! Every test crate that includes this module uses a part of it.
#![allow(dead_code)]

pub mod cluster;
// Each program of tests needs some of them.
#[allow(dead_code)]
pub mod fixtures;
pub mod sql;

// Two test programs include this module, and each uses a part of it.
#[allow(unused_imports)]
pub use cluster::{Cluster, shared};
#[allow(unused_imports)]
pub use sql::Sql;

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// What the environment says about the server under test.
pub struct Settings {
    /// Folder of the server's programs.
    pub bin: PathBuf,
    /// Folder for clusters: short, and owned by the server's user.
    pub scratch: PathBuf,
    /// Folder with model directories; holds `minilm/`.
    pub models: PathBuf,
    /// Unprivileged user that the server runs as, when the tests run as root.
    pub user: Option<String>,
}

/// The settings of this run.
///
/// # Panics
/// When the test was started without `scripts/test.sh`.
pub fn settings() -> &'static Settings {
    static SETTINGS: OnceLock<Settings> = OnceLock::new();
    SETTINGS.get_or_init(|| {
        let variable = |name: &str| match std::env::var(name) {
            Ok(value) if !value.is_empty() => value,
            _ => panic!("{name} is not set: these tests need a server with the extension installed. Run `make test`, or `make test-server ARGS=filter` for a part of them"),
        };
        let pg_config = PathBuf::from(variable("SITU_TEST_SERVER"));
        // SAFETY: geteuid has no preconditions.
        let root = unsafe { libc::geteuid() } == 0;
        Settings {
            bin: pg_config.parent().expect("the path of pg_config has a folder").to_path_buf(),
            scratch: variable("SITU_TEST_SCRATCH").into(),
            models: variable("SITU_TEST_MODELS").into(),
            user: root.then(|| variable("SITU_TEST_USER")),
        }
    })
}

/// A command that runs as the server's user, without the variables that change what a server reports.
pub fn as_server(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = match &settings().user {
        None => Command::new(program),
        Some(user) => {
            let mut command = Command::new("setpriv");
            command
                .arg(format!("--reuid={user}"))
                .arg(format!("--regid={}", group_of(user)))
                .args(["--init-groups", "--inh-caps=-all"])
                .arg(program);
            command
        }
    };
    command.env_remove("RUST_BACKTRACE").env("HOME", "/").current_dir("/");
    command
}

/// A program of the server, run as the server's user.
pub fn program(name: &str) -> Command {
    as_server(settings().bin.join(name))
}

/// Runs a command to its end and returns what it printed.
///
/// # Panics
/// When it fails, with its output.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        output.status.success(),
        "{command:?} failed ({}):\n{text}",
        output.status
    );
    text
}

fn group_of(user: &str) -> String {
    run(Command::new("id").args(["-g", user])).trim().to_string()
}

/// Waits until `condition` holds.
///
/// # Panics
/// When it does not within `seconds`.
pub fn eventually(what: &str, seconds: u64, mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(seconds);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "not within {seconds} s: {what}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
