//! The harness itself, on plain pgvector: without it a failure elsewhere would say nothing about the extension.

use crate::support::{Cluster, Sql};

/// Settings under which a server starts without the library.
const PLAIN: [(&str, &str); 1] = [("shared_preload_libraries", "")];

#[test]
fn a_killed_cluster_recovers_what_was_committed() {
    let cluster = Cluster::with(&PLAIN);
    let mut client = cluster.bare_database("plain");
    client.run("CREATE EXTENSION vector; CREATE TABLE t (v vector(3)); INSERT INTO t VALUES ('[1,2,3]')");
    cluster.kill();
    cluster.start();
    assert!(
        cluster.log().contains("automatic recovery in progress"),
        "{}",
        cluster.log()
    );
    assert_eq!(cluster.connect("plain").one::<i64>("SELECT count(*) FROM t"), 1);
}

#[test]
fn a_replica_follows_its_primary() {
    let primary = Cluster::with(&PLAIN);
    let replica = primary.replica();
    primary.connect("postgres").run("CREATE TABLE t AS SELECT 42 AS n");
    replica.catch_up(&primary);
    assert!(replica.connect("postgres").one::<bool>("SELECT pg_is_in_recovery()"));
    assert_eq!(replica.connect("postgres").one::<i32>("SELECT n FROM t"), 42);
}

#[test]
fn a_dropped_cluster_leaves_nothing_behind() {
    let cluster = Cluster::with(&PLAIN);
    let folder = cluster.folder().to_path_buf();
    let postmaster: i32 = cluster.connect("postgres").one("SELECT pg_backend_pid()");
    let failed = std::panic::catch_unwind(move || {
        let _cluster = cluster;
        std::panic::resume_unwind(Box::new("a failing test"));
    });
    assert!(failed.is_err());
    assert!(!folder.exists());
    assert!(!crate::support::cluster::alive(postmaster));
}
