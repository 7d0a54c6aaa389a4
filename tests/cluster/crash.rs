//! Servers that die, and the ones that follow them: recovery, unlogged tables, replicas.

use crate::data::{
    SUBJECTS, add_document, append_vectors, by_index, clustered, document_table, literal, recall, vector_table,
};
use crate::support::{Cluster, Sql};
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn rows_inserted_before_a_crash_are_in_the_index_after_it() {
    let cluster = Cluster::new();
    let mut client = cluster.text_database("crash");
    vector_table(&mut client, "t", "vector", &clustered(2000, 16, 51));
    client.run(
        "CREATE INDEX nearest ON t USING situ (v vector_l2_ops); CREATE TABLE docs (id bigint, title text, body text)",
    );
    client.run("CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm')");
    client.run("CHECKPOINT");
    for subject in 0..SUBJECTS.len() {
        add_document(&mut client, subject as i64, subject, 3);
    }

    // Killed in the middle of inserts, vacuum at work beside them.
    let committed = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = cluster.connect("crash");
            for at in 0.. {
                let id = 2000 + at as i64;
                let row = literal(&clustered(1, 16, 1000 + at as u64)[0]);
                let sql = format!(
                    "INSERT INTO t VALUES ({id}, '{row}'); DELETE FROM t WHERE id = {}",
                    at % 500
                );
                if writer.batch_execute(&sql).is_err() {
                    break;
                }
                committed.store(at + 1, Ordering::SeqCst);
            }
        });
        scope.spawn(|| {
            let mut vacuum = cluster.connect("crash");
            while vacuum.batch_execute("VACUUM t").is_ok() {}
        });
        crate::support::eventually("some hundred rows are committed", 120, || {
            committed.load(Ordering::SeqCst) > 300
        });
        cluster.kill();
    });
    cluster.start();

    let mut client = cluster.connect("crash");
    let rows: i64 = client.one("SELECT count(*) FROM t");
    let last: i64 = client.one("SELECT max(id) FROM t");
    assert!(
        last >= 2000 + committed.load(Ordering::SeqCst) as i64 - 1,
        "a committed row is lost"
    );
    by_index(&mut client);
    let query = literal(&clustered(1, 16, 52)[0]);
    let found: Vec<i64> = client.column(&format!("SELECT id FROM t ORDER BY v <-> '{query}'"));
    assert_eq!(found.len() as i64, rows, "the index holds every row");
    let share = recall(&mut client, "t", "v <-> $q", &clustered(10, 16, 53), 10);
    assert!(share >= 0.95, "recall@10 after recovery is {share}");
    for (id, (_, _, question)) in SUBJECTS.iter().enumerate() {
        let first: i64 = client.one(&format!(
            "SELECT d.id FROM situ.search('docs_body', '{question}', k => 1) h JOIN docs d ON d.ctid = h.ctid"
        ));
        assert_eq!(first, id as i64, "{question}");
    }
    client.run("VACUUM t; INSERT INTO t SELECT id + 100000, v FROM t LIMIT 100");
    let share = recall(&mut client, "t", "v <-> $q", &clustered(10, 16, 54), 10);
    assert!(share >= 0.95, "the index goes on: recall@10 is {share}");
}

#[test]
fn a_build_survives_a_crash_right_after_its_commit() {
    let cluster = Cluster::new();
    let mut client = cluster.database("crash_build");
    vector_table(&mut client, "t", "vector", &clustered(5000, 16, 55));
    client.run("CHECKPOINT; CREATE INDEX nearest ON t USING situ (v vector_l2_ops)");
    cluster.kill();
    cluster.start();
    let mut client = cluster.connect("crash_build");
    let share = recall(&mut client, "t", "v <-> $q", &clustered(10, 16, 56), 10);
    assert!(share >= 0.95, "recall@10 is {share}");
}

#[test]
fn unlogged_indexes_are_empty_and_usable_after_a_crash() {
    let cluster = Cluster::new();
    let mut client = cluster.text_database("crash_unlogged");
    client.run("CREATE UNLOGGED TABLE t (id bigint, v vector(16)); CREATE UNLOGGED TABLE docs (id bigint, title text, body text)");
    append_vectors(&mut client, "t", 0, &clustered(1000, 16, 57));
    client.run("CREATE INDEX ON t USING situ (v vector_l2_ops)");
    client.run("CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm')");
    add_document(&mut client, 1, 1, 3);
    cluster.kill();
    cluster.start();
    let mut client = cluster.connect("crash_unlogged");
    by_index(&mut client);
    let query = literal(&clustered(1, 16, 58)[0]);
    assert!(
        client
            .column::<i64>(&format!("SELECT id FROM t ORDER BY v <-> '{query}' LIMIT 5"))
            .is_empty()
    );
    append_vectors(&mut client, "t", 0, &clustered(1000, 16, 57));
    let share = recall(&mut client, "t", "v <-> $q", &clustered(10, 16, 59), 10);
    assert!(share >= 0.95, "recall@10 is {share}");
    add_document(&mut client, 2, 2, 3);
    let found: Vec<String> = client.column("SELECT passage FROM situ.search('docs_body', 'chess', k => 10)");
    assert_eq!(found.len(), 1);
}

#[test]
fn a_replica_answers_like_its_primary() {
    let primary = Cluster::new();
    let mut client = primary.text_database("replica");
    document_table(&mut client);
    client.run("CREATE INDEX docs_body ON docs USING situ (body, title situ_title_ops) WITH (model = 'minilm')");
    let replica = primary.replica();
    // What follows comes through the log, record by record.
    vector_table(&mut client, "t", "vector", &clustered(2000, 16, 60));
    client.run("CREATE INDEX nearest ON t USING situ (v vector_l2_ops)");
    append_vectors(&mut client, "t", 2000, &clustered(500, 16, 61));
    client.run("DELETE FROM t WHERE id % 7 = 0; VACUUM t");
    client.run("UPDATE docs SET body = 'The lighthouse keeper winds the clockwork every evening.' WHERE id = 1");
    replica.catch_up(&primary);

    let mut copy = replica.connect("replica");
    let query = literal(&clustered(1, 16, 62)[0]);
    for statement in [
        format!("SELECT id FROM t ORDER BY v <-> '{query}' LIMIT 50"),
        "SELECT d.id FROM situ.search('docs_body', 'Who winds the clockwork of the lighthouse?', k => 5) h JOIN docs d ON d.ctid = h.ctid".into(),
    ] {
        by_index(&mut client);
        by_index(&mut copy);
        assert_eq!(copy.column::<i64>(&statement), client.column::<i64>(&statement), "{statement}");
    }
    let share = recall(&mut copy, "t", "v <-> $q", &clustered(10, 16, 63), 10);
    assert!(share >= 0.95, "recall@10 on the replica is {share}");
}

/// Pages of a relation's file that are zeros from end to end.
fn zero_pages(client: &mut postgres::Client, relation: &str) -> i64 {
    client.run("CHECKPOINT");
    client.one(&format!(
        "SELECT count(*) FROM pg_relation_filepath('{relation}') path,
                generate_series(0, pg_relation_size('{relation}') / 8192 - 1) block
          WHERE pg_read_binary_file(path, block * 8192, 8192) = decode(repeat('00', 8192), 'hex')"
    ))
}

#[test]
fn pages_that_a_crash_left_empty_are_used_again_without_full_page_writes() {
    let cluster = Cluster::with(&[
        ("full_page_writes", "off"),
        ("wal_writer_delay", "10s"),
        ("wal_writer_flush_after", "100MB"),
        ("wal_buffers", "64MB"),
        ("synchronous_commit", "off"),
    ]);
    let mut client = cluster.database("crash_zero");
    vector_table(&mut client, "t", "vector", &clustered(500, 128, 51));
    client.run("CREATE INDEX nearest ON t USING situ (v vector_l2_ops); CHECKPOINT");
    // The file grows at once, the log waits in memory: after the crash the new pages are zeros.
    client.run("BEGIN");
    append_vectors(&mut client, "t", 500, &clustered(3000, 128, 52));
    cluster.kill();
    cluster.start();
    let replica = cluster.replica();
    let mut client = cluster.connect("crash_zero");
    assert!(
        zero_pages(&mut client, "nearest") > 0,
        "the crash left no page of zeros"
    );
    client.run("VACUUM t; CHECKPOINT; SET synchronous_commit = on");
    append_vectors(&mut client, "t", 500, &clustered(3000, 128, 53));
    replica.catch_up(&cluster);
    cluster.kill();
    cluster.start();
    for server in [&cluster, &replica] {
        let mut client = server.connect("crash_zero");
        let share = recall(&mut client, "t", "v <-> $q", &clustered(5, 128, 54), 10);
        assert!(share >= 0.95, "recall@10 is {share}");
        by_index(&mut client);
        let query = literal(&clustered(1, 128, 52)[0]);
        let found = client.column::<i64>(&format!("SELECT id FROM t ORDER BY v <-> '{query}'"));
        assert_eq!(found.len(), 3500, "the index holds every row");
    }
}
