//! Clusters: made from one `initdb` template, started in a folder of their own, stopped and removed when dropped.

use super::{Sql, as_server, eventually, program, run, settings};
use postgres::error::SqlState;
use postgres::{Client, Config, NoTls};
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, Once, OnceLock};

/// The port in the name of the socket; no cluster listens on TCP.
const PORT: u16 = 5432;

/// A running server with a data directory, a socket directory and a model directory of its own.
pub struct Cluster {
    folder: PathBuf,
    /// Variables of the server's environment.
    environment: Vec<(String, String)>,
}

impl Cluster {
    /// A cluster with the library preloaded.
    pub fn new() -> Cluster {
        Cluster::with(&[])
    }

    /// As [`Cluster::new`], with further lines in `postgresql.conf`, which win over those of the harness.
    pub fn with(settings: &[(&str, &str)]) -> Cluster {
        Cluster::with_environment(settings, |_| Vec::new())
    }

    /// As [`Cluster::with`], with variables in the server's environment, which may name the cluster's folder.
    pub fn with_environment(
        settings: &[(&str, &str)],
        environment: impl FnOnce(&Path) -> Vec<(String, String)>,
    ) -> Cluster {
        note_panics();
        let folder = new_folder();
        let cluster = Cluster {
            environment: environment(&folder),
            folder,
        };
        run(as_server("cp").arg("-a").arg(template()).arg(cluster.data()));
        cluster.prepare(settings);
        cluster.start();
        cluster
    }

    /// A streaming replica of this cluster, up to date with it when this returns.
    pub fn replica(&self) -> Cluster {
        let replica = Cluster {
            folder: new_folder(),
            environment: Vec::new(),
        };
        run(program("pg_basebackup")
            .args(["-R", "-X", "stream", "-c", "fast", "-U", "postgres", "-p"])
            .arg(PORT.to_string())
            .arg("-h")
            .arg(&self.folder)
            .arg("-D")
            .arg(replica.data()));
        replica.prepare(&[("hot_standby", "on")]);
        replica.start();
        replica.catch_up(self);
        replica
    }

    /// Waits until this replica has replayed all that `primary` has written.
    pub fn catch_up(&self, primary: &Cluster) {
        let written: String = primary.connect("postgres").one("SELECT pg_current_wal_lsn()::text");
        let mut client = self.connect("postgres");
        eventually("the replica has replayed the log", 60, || {
            client.one::<bool>(&format!("SELECT pg_last_wal_replay_lsn() >= '{written}'::pg_lsn"))
        });
    }

    fn prepare(&self, settings: &[(&str, &str)]) {
        let folder = self.folder.display();
        let mut lines = format!(
            "listen_addresses = ''\nport = {PORT}\nunix_socket_directories = '{folder}'\nfsync = off\n\
             max_connections = 60\nshared_buffers = 64MB\nautovacuum_naptime = '1d'\nmax_wal_senders = 4\n\
             log_line_prefix = '%m [%p] %q%d '\n\
             max_worker_processes = 24\nsitu.max_trainings = 12\nsitu.model_dir = '{folder}/models'\n"
        );
        if !self.data().join("standby.signal").exists() {
            lines.push_str("shared_preload_libraries = 'situ'\n");
        }
        for (name, value) in settings {
            lines.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        }
        // Behind what is there: the last line of a setting wins, so a replica keeps its primary's settings.
        let before = std::fs::read_to_string(self.data().join("postgresql.conf")).expect("postgresql.conf");
        self.write("data/postgresql.conf", before + &lines);
        self.copy_model("minilm", "minilm");
    }

    /// Writes a file under the cluster's folder as the server's user.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        use std::io::Write;
        let path = self.folder.join(name);
        if let Some(parent) = path.parent() {
            run(as_server("mkdir").arg("-p").arg(parent));
        }
        let mut child = as_server("tee")
            .arg(&path)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("tee starts");
        child
            .stdin
            .take()
            .expect("a pipe")
            .write_all(content.as_ref())
            .expect("the file is written");
        assert!(
            child.wait().expect("tee ends").success(),
            "could not write {}",
            path.display()
        );
    }

    /// Gives the cluster a copy of a model under a name of its own. A true copy: links would change the time stamps
    /// of files that other clusters are reading.
    pub fn copy_model(&self, model: &str, name: &str) {
        let to = self.folder.join("models").join(name);
        run(as_server("mkdir").arg("-p").arg(&to));
        run(as_server("cp")
            .arg("-r")
            .arg(settings().models.join(model).join("."))
            .arg(&to));
    }

    /// Removes a file or folder under the cluster's folder.
    pub fn remove(&self, name: &str) {
        run(Command::new("rm").arg("-rf").arg(self.folder.join(name)));
    }

    /// The folder of the cluster: `data/`, `models/`, `log` and the socket.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// The server's log so far.
    pub fn log(&self) -> String {
        std::fs::read(self.folder.join("log"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Starts the server and waits until it answers.
    ///
    /// # Panics
    /// When it does not start, with its log.
    pub fn start(&self) {
        let output = program("pg_ctl")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .args(["-w", "-t", "120", "-s", "start", "-D"])
            .arg(self.data())
            .arg("-l")
            .arg(self.folder.join("log"))
            // A server that keeps the pipe of its starter open would make the starter wait for its end.
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status();
        assert!(
            output.is_ok_and(|status| status.success()),
            "the server does not start:\n{}",
            self.log()
        );
    }

    /// Stops the server: `smart`, `fast` or `immediate` (which is a crash as far as the data is concerned).
    pub fn stop(&self, mode: &str) {
        run(program("pg_ctl")
            .args(["-w", "-t", "60", "-s", "stop", "-m", mode, "-D"])
            .arg(self.data()));
    }

    /// A clean restart.
    pub fn restart(&self) {
        self.stop("fast");
        self.start();
    }

    /// Kills every process of the server with SIGKILL at once. [`Cluster::start`] then runs recovery.
    pub fn kill(&self) {
        let postmaster = self.postmaster().expect("the server runs");
        signal(postmaster, libc::SIGSTOP);
        let children = children(postmaster);
        for pid in children.iter().copied().chain([postmaster]) {
            signal(pid, libc::SIGKILL);
        }
        eventually("all processes of the server are gone", 30, || {
            children.iter().chain([&postmaster]).all(|pid| !alive(*pid))
        });
        // Where the init process does not reap it, a dead postmaster stays as a zombie, which a starting one takes
        // for a live owner of the data directory.
        if Path::new(&format!("/proc/{postmaster}")).exists() {
            self.remove("data/postmaster.pid");
            self.remove(&format!(".s.PGSQL.{PORT}.lock"));
        }
    }

    fn postmaster(&self) -> Option<i32> {
        let file = std::fs::read_to_string(self.data().join("postmaster.pid")).ok()?;
        file.lines().next()?.trim().parse().ok()
    }

    /// Process ids of background workers whose title contains `name`.
    pub fn workers(&self, name: &str) -> Vec<i32> {
        let Some(postmaster) = self.postmaster() else {
            return Vec::new();
        };
        let title = |pid: &i32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        children(postmaster)
            .into_iter()
            .filter(|pid| String::from_utf8_lossy(&title(pid)).contains(name))
            .collect()
    }

    /// How clients reach the server.
    pub fn config(&self, user: &str, database: &str) -> Config {
        let mut config = Config::new();
        config
            .host_path(&self.folder)
            .port(PORT)
            .user(user)
            .dbname(database)
            .application_name("situ-tests");
        config
    }

    /// A connection as the superuser.
    pub fn connect(&self, database: &str) -> Client {
        self.connect_as("postgres", database)
    }

    /// A connection as `user`.
    pub fn connect_as(&self, user: &str, database: &str) -> Client {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        loop {
            match self.config(user, database).connect(NoTls) {
                Ok(client) => return client,
                // Another test may have crashed the server that this one shares: it comes back.
                Err(error) if error.code() == Some(&SqlState::CANNOT_CONNECT_NOW) => {}
                Err(error) => panic!(
                    "{user} cannot connect to {database}: {error}\n{}",
                    tail(&self.log(), 12)
                ),
            }
            assert!(
                std::time::Instant::now() < deadline,
                "the server does not recover:\n{}",
                tail(&self.log(), 12)
            );
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }

    /// A new database with the extension in it, and a superuser's connection to it. A database of that name that is
    /// there already is dropped.
    pub fn database(&self, name: &str) -> Client {
        let mut client = self.bare_database(name);
        client.run("SET client_min_messages = warning; CREATE EXTENSION situ CASCADE; RESET client_min_messages");
        client
    }

    /// As [`Cluster::database`], without the extension.
    pub fn bare_database(&self, name: &str) -> Client {
        let mut admin = self.connect("postgres");
        admin.run("SET client_min_messages = warning");
        admin.run(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
        admin.run(&format!("CREATE DATABASE {name} STRATEGY file_copy"));
        self.connect(name)
    }

    /// As [`Cluster::database`], with the model `minilm` registered.
    pub fn text_database(&self, name: &str) -> Client {
        let mut client = self.database(name);
        client.run("SELECT situ.register_model('minilm', 'minilm')");
        client
    }

    /// Changes a setting of the running server.
    pub fn set(&self, name: &str, value: &str) {
        let mut client = self.connect("postgres");
        client.run(&format!("ALTER SYSTEM SET {name} = '{value}'"));
        client.run("SELECT pg_reload_conf()");
    }

    fn end(&self) {
        if let Some(postmaster) = self.postmaster() {
            let children = children(postmaster);
            signal(postmaster, libc::SIGQUIT);
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
            while alive(postmaster) && std::time::Instant::now() < deadline {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            for pid in children.into_iter().chain([postmaster]).filter(|pid| alive(*pid)) {
                signal(pid, libc::SIGKILL);
            }
        }
        if std::thread::panicking() {
            eprintln!(
                "--- the end of the log of {}:\n{}\n--- and what failed, once more: {}",
                self.folder.display(),
                tail(&self.log(), 12),
                LAST_PANIC.take()
            );
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Cluster::new()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.end();
    }
}

/// One cluster for all tests of this program that need nothing special of it; each takes a database of its own.
pub fn shared() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    extern "C" fn end() {
        if let Some(cluster) = SHARED.get() {
            cluster.end();
        }
    }
    SHARED.get_or_init(|| {
        let cluster = Cluster::new();
        // A static is never dropped: the cluster is ended when the program ends.
        // SAFETY: `end` is a plain function that does not unwind past this program's end.
        unsafe { libc::atexit(end) };
        cluster
    })
}

thread_local! {
    /// What this thread panicked with: said again below the log of the server, where it is not lost above it.
    static LAST_PANIC: Cell<String> = const { Cell::new(String::new()) };
}

fn note_panics() {
    static NOTED: Once = Once::new();
    NOTED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            LAST_PANIC.set(panic.to_string());
            before(panic);
        }));
    });
}

/// The data directory that every cluster is copied from.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let folder = settings().scratch.join(format!("template-{}", std::process::id()));
        run(program("initdb")
            .args([
                "-A",
                "trust",
                "-U",
                "postgres",
                "-E",
                "UTF8",
                "--locale=C",
                "--no-sync",
                "-D",
            ])
            .arg(&folder));
        folder
    })
}

fn new_folder() -> PathBuf {
    static LOCK: Mutex<()> = Mutex::new(());
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let _guard = LOCK.lock();
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let folder = settings().scratch.join(format!("c{}-{number}", std::process::id()));
    run(as_server("mkdir").args(["-m", "711"]).arg(&folder));
    folder
}

/// Sends a signal to a process.
pub fn signal(pid: i32, signal: i32) {
    // SAFETY: kill has no memory effects; a pid that is gone gives an error, which is ignored.
    unsafe { libc::kill(pid, signal) };
}

/// Whether a process runs (a zombie does not).
pub fn alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit(')')
            .next()
            .is_some_and(|rest| !rest.trim_start().starts_with('Z'))
    })
}

/// The children of a process.
fn children(parent: i32) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").expect("/proc can be read");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // "pid (name) state ppid ...": the name may hold spaces and brackets.
        let mut fields = stat.rsplit(')').next().unwrap_or("").split_whitespace();
        fields.nth(1).and_then(|field| field.parse::<i32>().ok()) == Some(parent)
    })
    .collect()
}

/// The last lines, without those of checkpoints.
fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().filter(|line| !line.contains("LOG:  checkpoint")).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
