//! Writers, readers and vacuum at the same time.

use crate::data::{SUBJECTS, append_vectors, by_index, clustered, document, literal, recall, vector_table};
use crate::support::{Sql, shared};
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn inserts_deletes_vacuum_and_scans_together() {
    let cluster = shared();
    let mut client = cluster.database("together");
    vector_table(&mut client, "t", "vector", &clustered(3000, 16, 71));
    client.run("CREATE INDEX nearest ON t USING situ (v vector_l2_ops)");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut workers = Vec::new();
        for writer in 0..3u64 {
            workers.push(scope.spawn(move || {
                let mut client = cluster.connect("together");
                for batch in 0..20u64 {
                    let first = 10_000 * (writer as usize + 1) + batch as usize * 40;
                    append_vectors(&mut client, "t", first, &clustered(40, 16, 2000 + writer * 100 + batch));
                    client.run(&format!("DELETE FROM t WHERE id = {}", writer * 900 + batch));
                }
            }));
        }
        let done = &done;
        scope.spawn(move || {
            let mut client = cluster.connect("together");
            while !done.load(Ordering::SeqCst) {
                client.run("VACUUM t");
            }
        });
        for reader in 0..2u64 {
            scope.spawn(move || {
                let mut client = cluster.connect("together");
                by_index(&mut client);
                for at in 0.. {
                    if done.load(Ordering::SeqCst) {
                        break;
                    }
                    let query = literal(&clustered(1, 16, 5000 + reader * 1000 + at)[0]);
                    // Rows that no writer touches: every scan to the end must see each exactly once.
                    let ids: Vec<i64> = client.column(&format!(
                        "SELECT id FROM t WHERE id BETWEEN 2700 AND 2999 ORDER BY v <-> '{query}'"
                    ));
                    let distinct: std::collections::HashSet<&i64> = ids.iter().collect();
                    assert_eq!((ids.len(), distinct.len()), (300, 300), "a scan lost or repeated rows");
                }
            });
        }
        for worker in workers {
            worker.join().expect("a writer ends");
        }
        done.store(true, Ordering::SeqCst);
    });
    by_index(&mut client);
    let query = literal(&clustered(1, 16, 72)[0]);
    let found = client
        .column::<i64>(&format!("SELECT id FROM t ORDER BY v <-> '{query}'"))
        .len() as i64;
    assert_eq!(found, client.one::<i64>("SELECT count(*) FROM t"));
    let share = recall(&mut client, "t", "v <-> $q", &clustered(10, 16, 73), 10);
    assert!(share >= 0.95, "recall@10 is {share}");
}

#[test]
fn documents_are_inserted_by_several_connections_while_others_ask() {
    let cluster = shared();
    let mut client = cluster.text_database("together_text");
    client.run("CREATE TABLE docs (id bigint, title text, body text)");
    client.run("CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm')");
    std::thread::scope(|scope| {
        for writer in 0..4usize {
            scope.spawn(move || {
                let mut client = cluster.connect("together_text");
                for subject in (writer..SUBJECTS.len()).step_by(4) {
                    let (id, body) = (subject as i64, document(subject, 6));
                    client.execute("INSERT INTO docs VALUES ($1, '', $2)", &[&id, &body]).expect("an insert");
                    let (_, _, question) = SUBJECTS[subject];
                    let first: i64 = client.one(&format!(
                        "SELECT d.id FROM situ.search('docs_body', '{question}', k => 1) h JOIN docs d ON d.ctid = h.ctid"
                    ));
                    assert_eq!(first, id, "a row is found by the connection that inserted it");
                }
            });
        }
    });
    assert_eq!(
        client.one::<i64>("SELECT count(*) FROM situ.search('docs_body', 'a question', k => 100)"),
        SUBJECTS.len() as i64
    );
}
