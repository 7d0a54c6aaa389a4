//! Indexes over tables without rows: what nothing says yet (dimensions, model, bridge) is decided by the first row.

use crate::data::{SUBJECTS, append_vectors, by_index, clustered, literal, recall, vector_table};
use crate::support::{Cluster, Sql, shared};

const COUNTS: &str = "SELECT concat_ws(' ', documents, chunks, coalesce(dimensions, 0), valid) FROM situ.stat_index
                       WHERE indexrelid = 'nearest'::regclass";

#[test]
fn the_first_vector_decides_the_dimensions() {
    let mut client = shared().database("undecided_vectors");
    for (kind, class) in [("vector", "vector_cosine_ops"), ("halfvec", "halfvec_ip_ops")] {
        client.run("DROP TABLE IF EXISTS t");
        client.run(&format!("CREATE TABLE t (id bigint, v {kind})"));
        client.run(&format!("CREATE INDEX nearest ON t USING situ (v {class})"));
        by_index(&mut client);
        let ordered = format!(
            "SELECT id FROM t ORDER BY v {} '[1,2,3]'",
            if kind == "vector" { "<=>" } else { "<#>" }
        );
        assert!(client.column::<i64>(&ordered).is_empty());
        assert_eq!(client.one::<String>(COUNTS), "0 0 0 t");
        client.run("VACUUM t; REINDEX INDEX nearest");
        client.run("INSERT INTO t VALUES (1, NULL), (2, '[3,2,1]'), (3, '[1,2,3]')");
        assert_eq!(client.one::<String>(COUNTS), "2 2 3 t");
        assert_eq!(client.column::<i64>(&ordered), [3, 2]);
        let failure = client.failure("INSERT INTO t VALUES (4, '[1,2]')");
        failure.is("22000", "3 dimensions");
        // What empties the table asks anew.
        for emptied in ["TRUNCATE t", "DELETE FROM t; VACUUM FULL t"] {
            client.run(emptied);
            assert_eq!(client.one::<String>(COUNTS), "0 0 0 t", "{emptied}");
            client.run("INSERT INTO t VALUES (5, '[1,2]')");
            assert_eq!(client.one::<String>(COUNTS), "1 1 2 t", "{emptied}");
        }
    }
}

#[test]
fn long_vectors_decide_an_index_of_many_first_pages() {
    let mut client = shared().database("undecided_long");
    client.run("CREATE TABLE t (id bigint, v vector); CREATE INDEX nearest ON t USING situ (v vector_l2_ops)");
    append_vectors(&mut client, "t", 0, &clustered(20, 16_000, 5));
    let share = recall(&mut client, "t", "v <-> $q", &clustered(3, 16_000, 6), 5);
    assert!(share >= 0.99, "{share}");
}

#[test]
fn sessions_that_insert_at_once_decide_once() {
    let mut client = shared().database("undecided_race");
    client.run("CREATE TABLE t (id bigint, v vector); CREATE INDEX nearest ON t USING situ (v vector_l2_ops)");
    let vectors = clustered(8 * 50, 32, 9);
    std::thread::scope(|scope| {
        for (part, vectors) in vectors.chunks(50).enumerate() {
            scope.spawn(move || {
                let mut client = shared().connect("undecided_race");
                for (at, vector) in vectors.iter().enumerate() {
                    client.run(&format!(
                        "INSERT INTO t VALUES ({}, '{}')",
                        part * 50 + at,
                        literal(vector)
                    ));
                }
            });
        }
    });
    assert_eq!(client.one::<String>(COUNTS), "400 400 32 t");
    let share = recall(&mut client, "t", "v <-> $q", &clustered(5, 32, 10), 10);
    assert!(share >= 0.99, "{share}");
}

#[test]
fn partitions_views_and_unlogged_tables_need_no_row_either() {
    let cluster = Cluster::new();
    let mut client = cluster.database("undecided_kinds");
    client.run(
        "CREATE TABLE t (id bigint, v vector) PARTITION BY RANGE (id); CREATE INDEX ON t USING situ (v vector_l2_ops);
         CREATE TABLE t_low PARTITION OF t FOR VALUES FROM (0) TO (10); INSERT INTO t VALUES (1, '[1,2]')",
    );
    vector_table(&mut client, "source", "vector", &clustered(50, 8, 3));
    client.run(
        "CREATE MATERIALIZED VIEW m AS SELECT id, v::vector AS v FROM source; CREATE INDEX ON m USING situ (v vector_l2_ops);
         CREATE UNIQUE INDEX ON m (id); DELETE FROM source; REFRESH MATERIALIZED VIEW m; REFRESH MATERIALIZED VIEW CONCURRENTLY m",
    );
    client.run("INSERT INTO source VALUES (1, '[1,2,3,4,5,6,7,8]'); REFRESH MATERIALIZED VIEW CONCURRENTLY m");
    by_index(&mut client);
    assert_eq!(
        client.column::<i64>("SELECT id FROM m ORDER BY v <-> '[1,2,3,4,5,6,7,8]'"),
        [1]
    );
    client.run(
        "CREATE UNLOGGED TABLE u (id bigint, v vector); CREATE INDEX ON u USING situ (v vector_l2_ops);
         INSERT INTO u VALUES (1, '[1,2,3]'); CHECKPOINT",
    );
    cluster.kill();
    cluster.start();
    let mut client = cluster.connect("undecided_kinds");
    client.run("INSERT INTO u VALUES (2, '[1,2]')");
    by_index(&mut client);
    assert_eq!(client.column::<i64>("SELECT id FROM u ORDER BY v <-> '[1,2]'"), [2]);
}

#[test]
fn a_restored_schema_takes_its_models_with_the_first_text() {
    let mut client = shared().database("undecided_texts");
    client.run("CREATE TABLE docs (id bigint, title text, body text)");
    // What pg_dump --schema-only writes, before any row of situ.models is there.
    client.run(
        "CREATE INDEX docs_body ON docs USING situ (body, title situ_title_ops) WITH (model = 'minilm');
         CREATE INDEX docs_situated ON docs USING situ (body) WITH (situate = 'bridge', bridge = 'house');
         CREATE UNLOGGED TABLE drafts (body text); CREATE INDEX ON drafts USING situ (body)",
    );
    let options = "CREATE INDEX ON docs USING situ (body) WITH (bridge = 'house', situate = 'late')";
    client.failure(options).is("22023", "belong together");
    let found: i64 = client.one("SELECT count(*) FROM situ.search('docs_body', 'anything')");
    assert_eq!(found, 0);
    client
        .failure("INSERT INTO docs VALUES (1, '', 'A text.')")
        .is("42704", "not registered");
    client.run("INSERT INTO docs VALUES (2, 'No text', NULL)");
    client.run("DROP INDEX docs_situated; SELECT situ.register_model('minilm', 'minilm')");
    client.run("DELETE FROM docs");
    for (id, (title, evidence, _)) in SUBJECTS.iter().enumerate() {
        client
            .execute("INSERT INTO docs VALUES ($1, $2, $3)", &[&(id as i64), title, evidence])
            .expect("a row");
    }
    for (id, (_, _, question)) in SUBJECTS.iter().enumerate() {
        let first: i64 = client.one(&format!(
            "SELECT d.id FROM situ.search('docs_body', '{question}', k => 1) h JOIN docs d ON d.ctid = h.ctid"
        ));
        assert_eq!(first, id as i64, "{question}");
    }
    let (situate, model): (String, String) = (
        client.one("SELECT situate FROM situ.stat_index WHERE indexrelid = 'docs_body'::regclass"),
        client.one("SELECT model FROM situ.stat_index WHERE indexrelid = 'docs_body'::regclass"),
    );
    assert_eq!((situate.as_str(), model.as_str()), ("header", "minilm"));
    // With rows, the registry is asked at once.
    client
        .failure("CREATE INDEX ON docs USING situ (body) WITH (model = 'nosuch')")
        .is("42704", "nosuch");
}

#[test]
fn a_crash_in_the_midst_of_the_first_insert_leaves_an_index_that_can_be_decided() {
    let cluster = Cluster::new();
    let mut client = cluster.database("undecided_crash");
    client.run(
        "CREATE TABLE t (id bigint, v vector); CREATE INDEX nearest ON t USING situ (v vector_l2_ops); CHECKPOINT",
    );
    client.run("BEGIN");
    append_vectors(&mut client, "t", 0, &clustered(10, 4000, 5));
    cluster.kill();
    cluster.start();
    let mut client = cluster.connect("undecided_crash");
    client.run("VACUUM t");
    let dimensions: Option<i32> = client.one("SELECT dimensions FROM situ.stat_index");
    append_vectors(
        &mut client,
        "t",
        0,
        &clustered(30, dimensions.unwrap_or(300) as usize, 5),
    );
    assert_eq!(client.one::<i64>("SELECT documents FROM situ.stat_index"), 30);
    cluster.kill();
    cluster.start();
    let mut client = cluster.connect("undecided_crash");
    by_index(&mut client);
    let zero = literal(&vec![0.0; dimensions.unwrap_or(300) as usize]);
    assert_eq!(
        client
            .column::<i64>(&format!("SELECT id FROM t ORDER BY v <-> '{zero}'"))
            .len(),
        30
    );
}
