//! `situ.stat_index`: its counts are those of now, and one index that cannot be read hides no other.

use crate::data::{append_vectors, clustered, vector_table};
use crate::support::{Cluster, Sql, shared};
use postgres::Client;

fn counts(client: &mut Client, index: &str) -> (i64, i64) {
    let statement = format!("SELECT documents, chunks FROM situ.stat_index WHERE indexrelid = '{index}'::regclass");
    let row = client.query_one(&statement, &[]).expect("one line an index");
    (row.get(0), row.get(1))
}

#[test]
fn counts_follow_inserts_updates_and_vacuum() {
    let mut client = shared().text_database("counts");
    client.run(
        "CREATE TABLE docs (id bigint, body text);
         CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm', chunk_tokens = 16)",
    );
    let long = "repeat('The register of ships lists every voyage of the year. ', 20)";
    client.run(&format!(
        "INSERT INTO docs SELECT n, {long} FROM generate_series(1, 5) n"
    ));
    let (documents, chunks) = counts(&mut client, "docs_body");
    assert_eq!(documents, 5);
    assert!(chunks >= 25 && chunks % 5 == 0, "{chunks}");
    client.run("UPDATE docs SET body = 'A short text.' WHERE id = 1; DELETE FROM docs WHERE id = 2");
    assert_eq!(
        counts(&mut client, "docs_body"),
        (6, chunks + 1),
        "dead rows count until a vacuum"
    );
    client.run("VACUUM docs");
    assert_eq!(counts(&mut client, "docs_body"), (4, chunks / 5 * 3 + 1));

    // Several lists, and vectors in pieces.
    for (dimensions, rows) in [(16, 5000), (2100, 60)] {
        client.run("DROP TABLE IF EXISTS t");
        vector_table(&mut client, "t", "vector", &clustered(rows, dimensions, 5));
        client.run("CREATE INDEX nearest ON t USING situ (v vector_l2_ops) WITH (lists = 7)");
        assert_eq!(counts(&mut client, "nearest"), (rows as i64, rows as i64));
        append_vectors(&mut client, "t", rows, &clustered(rows / 2, dimensions, 6));
        let all = (rows + rows / 2) as i64;
        assert_eq!(counts(&mut client, "nearest"), (all, all));
        client.run("DELETE FROM t WHERE id % 3 = 0; VACUUM t");
        let left: i64 = client.one("SELECT count(*) FROM t");
        assert_eq!(counts(&mut client, "nearest"), (left, left));
    }
}

#[test]
fn an_index_that_cannot_be_read_hides_no_other() {
    let cluster = Cluster::new();
    let mut client = cluster.database("counts_unreadable");
    vector_table(&mut client, "t", "vector", &clustered(100, 16, 5));
    client.run(
        "CREATE INDEX nearest ON t USING situ (v vector_l2_ops);
         CREATE UNLOGGED TABLE u AS SELECT * FROM t; CREATE INDEX unlogged ON u USING situ (v vector_l2_ops);
         CREATE TABLE w (v vector); INSERT INTO w VALUES ('[1,2]'), ('[1,2,3]')",
    );
    client.failure("CREATE INDEX CONCURRENTLY half ON w USING situ (v vector_l2_ops)");
    let lines = "SELECT string_agg(concat_ws(' ', indexrelid, documents, valid), ', ' ORDER BY indexrelid::text)
                   FROM situ.stat_index";
    assert_eq!(client.one::<String>(lines), "half f, nearest 100 t, unlogged 100 t");

    let replica = cluster.replica();
    let mut copy = replica.connect("counts_unreadable");
    assert_eq!(copy.one::<String>(lines), "half f, nearest 100 t, unlogged t");

    // A rebuild that holds its index is not waited for.
    let mut other = cluster.connect("counts_unreadable");
    other.run("BEGIN; REINDEX INDEX nearest");
    client.run("SET statement_timeout = '5s'");
    assert_eq!(client.one::<String>(lines), "half f, nearest t, unlogged 100 t");
    other.run("COMMIT");
    assert_eq!(client.one::<String>(lines), "half f, nearest 100 t, unlogged 100 t");
    client
        .failure("SELECT * FROM situ_internal.index_statistics('pg_class_oid_index')")
        .is("42809", "not a situ index");
}
