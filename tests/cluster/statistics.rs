//! What the server knows about the indexes: rows, scans, progress, and the extension's own views.

use crate::data::{append_vectors, by_index, clustered, document_table, literal, vector_table};
use crate::support::{Sql, shared};

#[test]
fn a_build_leaves_the_right_number_of_rows() {
    let mut client = shared().text_database("statistics_rows");
    vector_table(&mut client, "t", "vector", &clustered(1234, 8, 41));
    client.run("CREATE INDEX nearest ON t USING situ (v vector_l2_ops)");
    for relation in ["t", "nearest"] {
        let rows: f32 = client.one(&format!("SELECT reltuples FROM pg_class WHERE relname = '{relation}'"));
        assert_eq!(rows, 1234.0, "reltuples of {relation} after CREATE INDEX");
    }
    client.run("DELETE FROM t WHERE id < 234; VACUUM t");
    let rows: f32 = client.one("SELECT reltuples FROM pg_class WHERE relname = 'nearest'");
    assert_eq!(rows, 1000.0, "reltuples after VACUUM");
    client.run("ANALYZE t");
    let rows: f32 = client.one("SELECT reltuples FROM pg_class WHERE relname = 'nearest'");
    assert_eq!(rows, 1000.0, "reltuples after ANALYZE");

    document_table(&mut client);
    client.run("CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm', chunk_tokens = 32)");
    let rows: f32 = client.one("SELECT reltuples FROM pg_class WHERE relname = 'docs'");
    assert_eq!(rows, 12.0, "a document is one row, however many chunks it has");
}

#[test]
fn every_scan_is_counted() {
    let mut client = shared().text_database("statistics_scans");
    document_table(&mut client);
    client.run("CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm')");
    by_index(&mut client);
    for _ in 0..3 {
        client.run("SELECT id FROM docs ORDER BY body <=> 'a question' LIMIT 1");
    }
    client.run("SELECT pg_stat_force_next_flush()");
    assert_eq!(
        client.one::<i64>("SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'docs_body'"),
        3
    );
    client.run("SELECT * FROM situ.search('docs_body', 'a question', k => 2)");
    client.run("SELECT pg_stat_force_next_flush()");
    assert_eq!(
        client.one::<i64>("SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'docs_body'"),
        4
    );
}

#[test]
fn analyze_does_not_write_to_the_index() {
    let mut client = shared().database("statistics_analyze");
    vector_table(&mut client, "t", "vector", &clustered(2000, 8, 42));
    client.run("CREATE INDEX nearest ON t USING situ (v vector_l2_ops); DELETE FROM t WHERE id % 2 = 0; CHECKPOINT");
    let hash = "SELECT md5(string_agg(pg_read_binary_file(pg_relation_filepath('nearest'))::text, ''))";
    let before: String = client.one(hash);
    client.run("ANALYZE t; CHECKPOINT");
    assert_eq!(client.one::<String>(hash), before);
}

#[test]
fn a_build_shows_its_progress() {
    let cluster = shared();
    let mut client = cluster.text_database("statistics_progress");
    client.run("CREATE TABLE docs (id bigint, title text, body text)");
    client.run(
        "INSERT INTO docs SELECT n, '', repeat('Entry ' || n || ' of a long register of ships and harbours. ', 40)
           FROM generate_series(1, 150) n",
    );
    let build = std::thread::spawn(|| {
        shared()
            .connect("statistics_progress")
            .run("CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm')");
    });
    let (mut phases, mut most) = (std::collections::BTreeSet::new(), 0);
    while !build.is_finished() {
        let rows = client
            .query(
                "SELECT phase, greatest(tuples_done, blocks_done) FROM pg_stat_progress_create_index",
                &[],
            )
            .expect("the view answers");
        for row in rows {
            phases.insert(row.get::<_, String>(0));
            most = most.max(row.get::<_, i64>(1));
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    build.join().expect("the build ends");
    assert!(
        phases.iter().any(|phase| phase.starts_with("building index: ")),
        "no phase has a name: {phases:?}"
    );
    assert!(most > 0, "no progress inside the phases {phases:?}");
}

#[test]
fn the_views_say_what_is_there() {
    let mut client = shared().text_database("statistics_views");
    document_table(&mut client);
    client.run("CREATE INDEX docs_body ON docs USING situ (body, title situ_title_ops) WITH (model = 'minilm')");
    let row = client
        .query_one(
            "SELECT documents, chunks, tokens, dimensions, lists, probes, bytes, model, situate, encode_seconds
               FROM situ.stat_index WHERE indexrelid = 'docs_body'::regclass",
            &[],
        )
        .expect("one line an index");
    let (documents, chunks, tokens): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    assert_eq!(documents, 12);
    assert!(chunks > documents, "{chunks} chunks of {documents} documents");
    assert!(
        tokens > 20 * chunks && tokens <= 128 * chunks,
        "{tokens} tokens in {chunks} chunks"
    );
    assert_eq!(row.get::<_, i32>(3), 384);
    assert!(row.get::<_, i32>(4) >= 1 && row.get::<_, i32>(5) >= 1 && row.get::<_, i32>(5) <= row.get::<_, i32>(4));
    assert_eq!(
        row.get::<_, i64>(6),
        client.one::<i64>("SELECT pg_relation_size('docs_body')")
    );
    assert_eq!(
        (row.get::<_, String>(7), row.get::<_, String>(8)),
        ("minilm".to_string(), "header".to_string())
    );
    assert!(row.get::<_, f64>(9) > 0.0);
    assert_eq!(
        client.one::<i64>("SELECT count(*) FROM situ.models WHERE name = 'minilm'"),
        1
    );
    assert!(client.one::<i64>("SELECT count(*) FROM situ.stat_service") >= 1);
    assert_eq!(client.one::<String>("SELECT situ.version()"), env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_planner_leaves_the_index_where_sorting_is_cheaper() {
    let mut client = shared().database("statistics_plans");
    vector_table(&mut client, "t", "vector", &clustered(5000, 32, 43));
    append_vectors(&mut client, "t", 5000, &clustered(10, 32, 44));
    client
        .run("CREATE INDEX nearest ON t USING situ (v vector_l2_ops); CREATE INDEX by_id ON t (id); VACUUM ANALYZE t");
    let query = literal(&clustered(1, 32, 45)[0]);
    let few = client.plan(&format!("SELECT id FROM t ORDER BY v <-> '{query}' LIMIT 10"));
    assert!(few.contains("nearest"), "{few}");
    let one = client.plan(&format!(
        "SELECT id FROM t WHERE id = 17 ORDER BY v <-> '{query}' LIMIT 10"
    ));
    assert!(one.contains("by_id"), "{one}");
    let count = client.plan("SELECT count(*) FROM t");
    assert!(!count.contains("nearest"), "{count}");
}

#[test]
fn statistics_of_what_is_no_index_of_ours_are_refused() {
    let mut client = shared().database("stat_trust");
    client.run(
        "CREATE TABLE points (id int PRIMARY KEY, v vector(3)); INSERT INTO points VALUES (1, '[1,2,3]');
         CREATE INDEX points_hnsw ON points USING hnsw (v vector_l2_ops);
         CREATE TABLE parts (id int, v vector(3)) PARTITION BY RANGE (id);
         CREATE INDEX parts_v ON parts USING situ (v)",
    );
    for name in ["points_pkey", "points_hnsw", "parts_v"] {
        client
            .failure(&format!("SELECT * FROM situ_internal.index_statistics('{name}')"))
            .is("42809", "is not a situ index");
    }
    assert_eq!(
        client
            .failure("SELECT * FROM situ_internal.index_statistics('points')")
            .code,
        "42809"
    );
    assert_eq!(
        client.one::<i64>("SELECT count(*) FROM situ_internal.index_statistics(4294967295)"),
        0
    );
}
