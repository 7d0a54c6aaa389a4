//! Indexes as the server makes, moves and drops them: concurrently, unlogged, temporary, partitioned, partial.

use crate::data::{append_vectors, by_index, clustered, literal, recall, vector_table};
use crate::support::{Sql, shared};
use postgres::Client;

fn table(name: &str, rows: usize) -> Client {
    let mut client = shared().database(name);
    vector_table(&mut client, "t", "vector", &clustered(rows, 16, 21));
    client
}

#[track_caller]
fn check(client: &mut Client, table: &str) {
    let found = recall(client, table, "v <-> $q", &clustered(10, 16, 22), 10);
    assert!(found >= 0.95, "recall@10 is {found}");
}

#[test]
fn created_and_rebuilt_concurrently() {
    let mut client = table("life_concurrently", 2000);
    client.run("CREATE INDEX CONCURRENTLY nearest ON t USING situ (v vector_l2_ops)");
    check(&mut client, "t");
    client.run("REINDEX INDEX CONCURRENTLY nearest");
    check(&mut client, "t");
    assert!(client.one::<bool>("SELECT indisvalid FROM pg_index WHERE indexrelid = 'nearest'::regclass"));
}

#[test]
fn created_concurrently_while_rows_arrive() {
    let cluster = shared();
    let mut client = table("life_arrivals", 4000);
    let writer = std::thread::spawn(|| {
        let mut client = shared().connect("life_arrivals");
        for batch in 0..20 {
            append_vectors(
                &mut client,
                "t",
                4000 + batch * 50,
                &clustered(50, 16, 100 + batch as u64),
            );
        }
    });
    client.run("CREATE INDEX CONCURRENTLY nearest ON t USING situ (v vector_l2_ops)");
    writer.join().expect("the writer ends");
    let mut client = cluster.connect("life_arrivals");
    by_index(&mut client);
    let query = literal(&clustered(1, 16, 23)[0]);
    let ids: Vec<i64> = client.column(&format!("SELECT id FROM t ORDER BY v <-> '{query}'"));
    assert_eq!(ids.len(), 5000, "every row is in the index");
    check(&mut client, "t");
}

#[test]
fn temporary_and_unlogged_tables() {
    let mut client = shared().database("life_unlogged");
    for kind in ["TEMP", "UNLOGGED"] {
        client.run(&format!("CREATE {kind} TABLE {kind}_t (id bigint, v vector(16))"));
        append_vectors(&mut client, &format!("{kind}_t"), 0, &clustered(1500, 16, 24));
        client.run(&format!(
            "CREATE INDEX {kind}_nearest ON {kind}_t USING situ (v vector_l2_ops)"
        ));
        append_vectors(&mut client, &format!("{kind}_t"), 1500, &clustered(100, 16, 25));
        client.run(&format!("DELETE FROM {kind}_t WHERE id % 5 = 0; VACUUM {kind}_t"));
        check(&mut client, &format!("{kind}_t"));
    }
    client.run("ALTER TABLE unlogged_t SET LOGGED");
    check(&mut client, "unlogged_t");
}

#[test]
fn partitions_have_indexes_of_their_own() {
    let mut client = shared().database("life_partitions");
    client.run(
        "CREATE TABLE t (id bigint, v vector(16)) PARTITION BY HASH (id);
         CREATE TABLE t0 PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 0);
         CREATE INDEX nearest ON t USING situ (v vector_l2_ops);
         CREATE TABLE t1 PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
    );
    append_vectors(&mut client, "t", 0, &clustered(3000, 16, 26));
    by_index(&mut client);
    let query = literal(&clustered(1, 16, 27)[0]);
    let plan = client.plan(&format!("SELECT id FROM t ORDER BY v <-> '{query}' LIMIT 5"));
    assert!(
        plan.contains("Merge Append") && plan.matches("Index Scan").count() == 2,
        "{plan}"
    );
    check(&mut client, "t");
}

#[test]
fn partial_and_expression_indexes() {
    let mut client = table("life_partial", 3000);
    client.run("CREATE INDEX part_index ON t USING situ (v vector_l2_ops) WHERE id < 1000");
    by_index(&mut client);
    let query = literal(&clustered(1, 16, 28)[0]);
    let statement = format!("SELECT id FROM t WHERE id < 1000 ORDER BY v <-> '{query}' LIMIT 20");
    assert!(client.plan(&statement).contains("part_index"));
    let ids: Vec<i64> = client.column(&statement);
    assert!(ids.len() == 20 && ids.iter().all(|id| *id < 1000));
    client.run("CREATE INDEX cast_index ON t USING situ ((v::halfvec(16)) halfvec_l2_ops)");
    let statement = format!("SELECT id FROM t ORDER BY v::halfvec(16) <-> '{query}' LIMIT 10");
    assert!(
        client.plan(&statement).contains("cast_index"),
        "{}",
        client.plan(&statement)
    );
    assert_eq!(client.column::<i64>(&statement).len(), 10);
}

#[test]
fn truncated_rewritten_and_dropped() {
    let mut client = table("life_rewrite", 1500);
    client.run("CREATE INDEX nearest ON t USING situ (v vector_l2_ops)");
    client.run("VACUUM FULL t");
    check(&mut client, "t");
    client.run("CREATE INDEX by_id ON t (id); CLUSTER t USING by_id; ALTER TABLE t ADD COLUMN more integer DEFAULT 1");
    check(&mut client, "t");
    client.run("TRUNCATE t");
    by_index(&mut client);
    let query = literal(&clustered(1, 16, 29)[0]);
    assert!(
        client
            .column::<i64>(&format!("SELECT id FROM t ORDER BY v <-> '{query}' LIMIT 3"))
            .is_empty()
    );
    client.run("INSERT INTO t (id, v) VALUES (1, (SELECT array_agg(n)::vector FROM generate_series(1, 16) n))");
    assert_eq!(
        client.column::<i64>(&format!("SELECT id FROM t ORDER BY v <-> '{query}' LIMIT 3")),
        [1]
    );
    client.run("DROP INDEX nearest; DROP EXTENSION situ");
}

#[test]
fn the_space_of_deleted_rows_is_used_again() {
    let mut client = table("life_space", 6000);
    client.run("CREATE INDEX nearest ON t USING situ (v vector_l2_ops)");
    let mut sizes = Vec::new();
    for round in 0..6 {
        client.run("DELETE FROM t; VACUUM t");
        append_vectors(&mut client, "t", 0, &clustered(6000, 16, 30 + round));
        sizes.push(client.one::<i64>("SELECT pg_relation_size('nearest')"));
    }
    assert!(sizes[5] < sizes[0] * 3 / 2, "the index grows without end: {sizes:?}");
    check(&mut client, "t");
}

#[test]
fn a_build_within_little_memory() {
    let mut client = table("life_memory", 20_000);
    client.run("SET maintenance_work_mem = '1MB'; CREATE INDEX nearest ON t USING situ (v vector_l2_ops)");
    check(&mut client, "t");
}
