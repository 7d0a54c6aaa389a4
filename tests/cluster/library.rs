//! The library in its processes: what it takes from the environment, how it meets SQL of another version, and its launcher.

use crate::support::cluster::{alive, signal};
use crate::support::{Cluster, Sql, eventually, shared};
use std::time::{Duration, Instant};

#[test]
fn backtraces_stay_in_the_server() {
    for value in ["1", ""] {
        for preload in ["situ", ""] {
            let environment = |_: &std::path::Path| {
                ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"]
                    .map(|name| (name.to_owned(), value.to_owned()))
                    .to_vec()
            };
            let cluster = Cluster::with_environment(&[("shared_preload_libraries", preload)], environment);
            let mut client = cluster.database("backtraces");
            // An error of the server's own, below functions of the library.
            client.run(
                "CREATE TABLE judged (query_id int, document_id int); INSERT INTO judged VALUES (1, 1);
                 CREATE VIEW broken AS SELECT query_id, document_id, 1.0 / (document_id - 1) AS score FROM judged",
            );
            for statement in [
                "SELECT * FROM situ.evaluate_run('broken', 'judged')",
                "SELECT situ.embed('text', 'nothing')",
                "SELECT * FROM situ.compare('{1}', '{1,2}')",
                "SELECT situ.drop_bridge('nothing')",
            ] {
                let failure = client.failure(statement);
                assert!(
                    !failure.detail.contains("situ::") && failure.detail.len() < 300,
                    "{preload:?} {value:?} {statement}: {failure:#?}"
                );
            }
        }
    }
}

/// How often a process has slept and woken up.
fn wake_ups(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.and_then(|line| line.trim().parse().ok()).expect("counted")
}

#[test]
fn a_launcher_that_ends_is_started_again_and_finds_its_workers() {
    let cluster = Cluster::new();
    let mut client = cluster.text_database("launcher");
    client.run("SELECT situ.embed('text', 'minilm')");
    let encoder = client.one::<i32>("SELECT pid FROM situ.stat_service");
    for _ in 0..2 {
        let first = cluster.workers("situ launcher");
        assert_eq!(first.len(), 1);
        signal(first[0], libc::SIGTERM);
        let mut next = None;
        eventually("another launcher", 15, || {
            next = cluster.workers("situ launcher").pop().filter(|pid| *pid != first[0]);
            next.is_some()
        });
        let next = next.expect("a launcher");
        assert_eq!(client.one::<i32>("SELECT pid FROM situ.stat_service"), encoder);
        std::thread::sleep(Duration::from_millis(500));
        let before = wake_ups(next);
        std::thread::sleep(Duration::from_secs(2));
        let woken = wake_ups(next) - before;
        assert!(woken < 20, "the new launcher woke up {woken} times in two seconds");
    }
    // A worker that it has not started itself is started again all the same.
    let begin = Instant::now();
    signal(encoder, libc::SIGTERM);
    eventually("the worker ends", 10, || !alive(encoder));
    client.run("SELECT situ.embed('another text', 'minilm')");
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert_ne!(client.one::<i32>("SELECT pid FROM situ.stat_service"), encoder);
    assert_eq!(client.one::<i64>("SELECT restarts FROM situ.stat_service"), 1);
    cluster.restart();
    cluster.connect("launcher").run("SELECT situ.embed('text', 'minilm')");
}

#[test]
fn a_library_of_another_version_than_its_sql_says_so() {
    let mut client = shared().text_database("versions");
    client.run(
        "CREATE TABLE docs (id int PRIMARY KEY, body text); INSERT INTO docs VALUES (1, 'A text.');
         CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm');
         CREATE TABLE points (id int, v vector(3)); INSERT INTO points VALUES (1, '[1,2,3]');
         CREATE INDEX points_v ON points USING situ (v)",
    );
    let version = client.one::<String>("SELECT situ.version()");
    client.run("UPDATE pg_extension SET extversion = '0.0.1' WHERE extname = 'situ'");
    // A session that has used it goes on; the next is told.
    client.run("SELECT situ.embed('text', 'minilm')");
    for statement in [
        "SELECT situ.embed('text', 'minilm')",
        "SELECT * FROM situ.search('docs_body', 'text')",
        "INSERT INTO docs VALUES (2, 'Another.')",
        "INSERT INTO points VALUES (2, '[1,2,4]')",
        "REINDEX INDEX points_v",
        "SET enable_seqscan = off; SELECT id FROM points ORDER BY v <-> '[1,2,3]'",
        "SELECT situ.drop_bridge('nothing')",
        "CALL situ.train('adapter', 'x', index => 'docs_body')",
        "SELECT situ.register_model('again', 'minilm')",
        "SELECT * FROM situ.generate('text', 'nothing')",
    ] {
        let failure = shared().connect("versions").failure(statement);
        failure.is("55000", "0.0.1");
        assert!(failure.message.contains(&version), "{statement}: {failure:#?}");
        assert!(failure.hint.contains("ALTER EXTENSION"), "{failure:#?}");
    }
    // What tells and mends goes on.
    let mut next = shared().connect("versions");
    assert_eq!(next.one::<String>("SELECT situ.version()"), version);
    next.run("SELECT * FROM situ.stat_service; SELECT * FROM situ.models");
    client.run(&format!(
        "UPDATE pg_extension SET extversion = '{version}' WHERE extname = 'situ'"
    ));
    next.run("SELECT situ.embed('text', 'minilm')");
    shared().connect("versions").run("DROP EXTENSION situ CASCADE");
}

#[test]
fn a_build_takes_no_more_threads_than_the_server_grants() {
    let mut client = shared().database("build_threads");
    client.run(
        "CREATE TABLE points AS SELECT n AS id, ARRAY(SELECT random() FROM generate_series(1, 64) WHERE n > 0)::vector(64) AS v
           FROM generate_series(1, 30000) n",
    );
    let pid = client.one::<i32>("SELECT pg_backend_pid()");
    let mut most = |workers: i32| {
        client.run(&format!(
            "SET situ.build_threads = 48; SET max_parallel_maintenance_workers = {workers}; DROP INDEX IF EXISTS points_v"
        ));
        std::thread::scope(|scope| {
            let build = scope.spawn(|| client.run("CREATE INDEX points_v ON points USING situ (v)"));
            let mut most = 0;
            while !build.is_finished() {
                let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
                most = most.max(tasks);
                std::thread::sleep(Duration::from_millis(1));
            }
            build.join().expect("the build ends");
            most
        })
    };
    assert_eq!(most(0), 1, "no worker is granted, so the backend builds alone");
    assert!((2..=3).contains(&most(2)), "two workers beside the backend");
}
