//! Vector indexes: every type and metric against exact search, wide vectors, filters, cursors.

use crate::data::{append_vectors, by_index, clustered, exactly, literal, recall, vector_table};
use crate::support::{Sql, shared};
use postgres::Client;

#[test]
fn every_type_and_metric_agrees_with_exact_search() {
    let mut client = shared().database("vectors_metrics");
    let vectors = clustered(4000, 32, 1);
    let queries = clustered(20, 32, 2);
    vector_table(&mut client, "whole", "vector", &vectors);
    vector_table(&mut client, "half", "halfvec", &vectors);
    for (table, class, operator) in [
        ("whole", "vector_l2_ops", "<->"),
        ("whole", "vector_ip_ops", "<#>"),
        ("whole", "vector_cosine_ops", "<=>"),
        ("half", "halfvec_l2_ops", "<->"),
        ("half", "halfvec_ip_ops", "<#>"),
        ("half", "halfvec_cosine_ops", "<=>"),
    ] {
        client.run(&format!("CREATE INDEX nearest ON {table} USING situ (v {class})"));
        let order = format!("v {operator} $q");
        let found = recall(&mut client, table, &order, &queries, 10);
        assert!(found >= 0.95, "{class}: recall@10 is {found}");

        let query = literal(&queries[0]);
        let statement = format!("SELECT v {operator} '{query}' FROM {table} ORDER BY v {operator} '{query}' LIMIT 50");
        by_index(&mut client);
        assert!(
            client.plan(&statement).contains("nearest"),
            "{}",
            client.plan(&statement)
        );
        let distances: Vec<f64> = client.column(&statement);
        // pgvector adds up in another order than the index: the last digits differ.
        let sorted = distances
            .windows(2)
            .all(|pair| pair[1] >= pair[0] - 1e-5 * pair[0].abs().max(1.0));
        assert!(
            sorted,
            "{class}: rows come out in the order of their distance: {distances:?}"
        );
        client.run("DROP INDEX nearest");
    }
}

#[test]
fn a_scan_to_the_end_returns_every_row_once() {
    let mut client = shared().database("vectors_all");
    vector_table(&mut client, "t", "vector", &clustered(3000, 16, 3));
    client.run("CREATE INDEX nearest ON t USING situ (v vector_l2_ops); INSERT INTO t VALUES (9000, NULL)");
    by_index(&mut client);
    let query = literal(&clustered(1, 16, 4)[0]);
    let ids: Vec<i64> = client.column(&format!(
        "SELECT id FROM t WHERE v IS NOT NULL ORDER BY v <-> '{query}'"
    ));
    let distinct: std::collections::HashSet<i64> = ids.iter().copied().collect();
    assert_eq!((ids.len(), distinct.len()), (3000, 3000));
}

#[test]
fn wide_vectors_are_indexed_up_to_the_limits() {
    let mut client = shared().database("vectors_wide");
    for (dimensions, kind, count) in [
        (2000, "vector", 300),
        (4096, "vector", 200),
        (16_000, "vector", 40),
        (16_000, "halfvec", 40),
    ] {
        let vectors = clustered(count, dimensions, 5);
        let table = format!("t{dimensions}_{kind}");
        vector_table(&mut client, &table, kind, &vectors);
        client.run(&format!("CREATE INDEX ON {table} USING situ (v {kind}_cosine_ops)"));
        append_vectors(&mut client, &table, count, &clustered(10, dimensions, 6));
        let queries = clustered(3, dimensions, 7);
        let found = recall(&mut client, &table, "v <=> $q", &queries, 5);
        assert!(found >= 0.9, "{dimensions} dimensions of {kind}: recall@5 is {found}");
    }
}

#[test]
fn a_filter_is_filled_to_the_limit_whatever_it_lets_through() {
    let mut client = shared().database("vectors_filter");
    vector_table(&mut client, "t", "vector", &clustered(8000, 24, 8));
    client.run("CREATE INDEX nearest ON t USING situ (v vector_l2_ops)");
    by_index(&mut client);
    for every in [2, 100, 1000] {
        let query = literal(&clustered(1, 24, 9)[0]);
        // An expression that the planner cannot estimate, so that the index stays the plan.
        let statement = format!("SELECT id FROM t WHERE mod(id, {every}) = 0 ORDER BY v <-> '{query}' LIMIT 8");
        assert!(client.plan(&statement).contains("nearest"));
        let ids: Vec<i64> = client.column(&statement);
        assert_eq!(ids.len(), 8, "one row of {every} matches");
    }
    let query = literal(&clustered(1, 24, 9)[0]);
    let statement = format!("SELECT id FROM t WHERE mod(id, 1000) = 0 ORDER BY v <-> '{query}' LIMIT 8");
    let by_the_index: Vec<i64> = client.column(&statement);
    exactly(&mut client);
    assert_eq!(
        by_the_index,
        client.column::<i64>(&statement),
        "and they are the nearest ones"
    );
}

#[test]
fn inserted_updated_and_deleted_vectors() {
    let mut client = shared().database("vectors_changes");
    vector_table(&mut client, "t", "vector", &clustered(1000, 24, 10));
    client.run("CREATE INDEX nearest ON t USING situ (v vector_l2_ops)");
    append_vectors(&mut client, "t", 1000, &clustered(3000, 24, 11));
    client.run("DELETE FROM t WHERE id % 3 = 0; UPDATE t SET v = (SELECT v FROM t WHERE id = 1) WHERE id = 2");
    let queries = clustered(15, 24, 12);
    let before = recall(&mut client, "t", "v <-> $q", &queries, 10);
    client.run("VACUUM t");
    let after = recall(&mut client, "t", "v <-> $q", &queries, 10);
    client.run("REINDEX INDEX nearest");
    let again = recall(&mut client, "t", "v <-> $q", &queries, 10);
    assert!(
        before >= 0.95 && after >= 0.95 && again >= 0.95,
        "recall {before}, after VACUUM {after}, after REINDEX {again}"
    );
    by_index(&mut client);
    let one: String = client.one("SELECT v::text FROM t WHERE id = 1");
    let ids: Vec<i64> = client.column(&format!("SELECT id FROM t ORDER BY v <-> '{one}' LIMIT 2"));
    assert!(ids.contains(&1) && ids.contains(&2), "{ids:?}");
}

#[test]
fn an_index_from_nothing_grows() {
    let mut client = shared().database("vectors_empty");
    client.run("CREATE TABLE t (id bigint, v vector(24)); CREATE INDEX nearest ON t USING situ (v vector_cosine_ops)");
    by_index(&mut client);
    let query = literal(&clustered(1, 24, 1)[0]);
    assert!(
        client
            .column::<i64>(&format!("SELECT id FROM t ORDER BY v <=> '{query}' LIMIT 3"))
            .is_empty()
    );
    append_vectors(&mut client, "t", 0, &clustered(2000, 24, 13));
    let found = recall(&mut client, "t", "v <=> $q", &clustered(15, 24, 14), 10);
    assert!(found >= 0.95, "recall@10 is {found}");
}

#[test]
fn cursors_go_on_where_they_stopped() {
    let mut client = shared().database("vectors_cursor");
    vector_table(&mut client, "t", "vector", &clustered(2000, 16, 15));
    client.run("CREATE INDEX nearest ON t USING situ (v vector_l2_ops)");
    by_index(&mut client);
    let query = literal(&clustered(1, 16, 16)[0]);
    let statement = format!("SELECT id FROM t ORDER BY v <-> '{query}'");
    client.run(&format!("BEGIN; DECLARE c CURSOR FOR {statement}"));
    let mut fetched: Vec<i64> = client.column("FETCH 7 FROM c");
    fetched.extend(client.column::<i64>("FETCH 500 FROM c"));
    client.run("MOVE 100 IN c");
    let later: Vec<i64> = client.column("FETCH 3 FROM c");
    client.run("COMMIT");
    let whole: Vec<i64> = client.column(&statement);
    assert_eq!(fetched, whole[..507]);
    assert_eq!(later, whole[607..610]);
}

#[test]
fn a_scan_inside_a_join_is_started_again() {
    let mut client = shared().database("vectors_join");
    vector_table(&mut client, "t", "vector", &clustered(2000, 16, 17));
    vector_table(&mut client, "q", "vector", &clustered(10, 16, 18));
    client.run("CREATE INDEX nearest ON t USING situ (v vector_l2_ops)");
    let statement =
        "SELECT q.id * 10000 + n.id FROM q, LATERAL (SELECT id FROM t ORDER BY t.v <-> q.v LIMIT 3) n ORDER BY 1";
    client.run("SET enable_seqscan = off");
    assert!(client.plan(statement).contains("nearest"));
    let by_the_index: Vec<i64> = client.column(statement);
    exactly(&mut client);
    let truth: Vec<i64> = client.column(statement);
    let same = by_the_index.iter().filter(|row| truth.contains(row)).count();
    assert!(by_the_index.len() == 30 && same >= 28, "{same} of 30 rows agree");
}

#[test]
fn equal_vectors_are_all_found() {
    let mut client = shared().database("vectors_equal");
    client.run("CREATE TABLE t (id bigint, v vector(8))");
    client.run("INSERT INTO t SELECT n, '[1,2,3,4,5,6,7,8]' FROM generate_series(1, 5000) n");
    client.run("CREATE INDEX nearest ON t USING situ (v vector_l2_ops)");
    by_index(&mut client);
    let rows: Vec<f64> =
        client.column("SELECT v <-> '[1,2,3,4,5,6,7,8]' FROM t ORDER BY v <-> '[1,2,3,4,5,6,7,8]' LIMIT 4999");
    assert_eq!(rows.len(), 4999);
    assert!(rows.iter().all(|distance| *distance == 0.0));
}

#[test]
fn a_recall_is_aimed_at_and_the_order_holds() {
    let mut client = shared().database("vectors_recall");
    vector_table(&mut client, "t", "vector", &clustered(30_000, 48, 91));
    client.run("CREATE INDEX t_v ON t USING situ (v vector_l2_ops)");
    let queries = clustered(60, 48, 92);
    let reached = |client: &mut Client, setting: &str, operand: &dyn Fn(&str) -> String| {
        client.run(setting);
        let mut found = 0;
        for query in &queries {
            let literal = literal(query);
            exactly(client);
            let truth: Vec<i64> = client.column(&format!("SELECT id FROM t ORDER BY v <-> '{literal}' LIMIT 10"));
            by_index(client);
            let rows = client.query(&operand(&literal), &[]).expect("rows");
            assert_eq!(rows.len(), 10, "{setting}");
            let distances: Vec<f64> = rows.iter().map(|row| row.get(1)).collect();
            assert!(distances.is_sorted(), "{setting}: {distances:?}");
            found += rows.iter().filter(|row| truth.contains(&row.get::<_, i64>(0))).count();
        }
        found as f64 / (queries.len() * 10) as f64
    };
    let plain = |query: &str| format!("SELECT id, v <-> '{query}' AS d FROM t ORDER BY v <-> '{query}' LIMIT 10");
    let default = reached(&mut client, "RESET situ.recall_target", &plain);
    let low = reached(&mut client, "SET situ.recall_target = 0.8", &plain);
    let high = reached(&mut client, "SET situ.recall_target = 0.99", &plain);
    let all = reached(&mut client, "SET situ.recall_target = 1", &plain);
    println!("recall@10: 0.8 reached {low}, the default {default}, 0.99 {high}, 1 {all}");
    assert!(low >= 0.75 && default >= 0.92 && high >= 0.97 && all >= 0.99);
    // What a query says goes before the setting.
    let asking = |recall: &str| {
        let recall = recall.to_owned();
        move |query: &str| {
            format!(
                "SELECT t.id, h.distance AS d FROM situ.search('t_v', situ.query(embedding => '{query}', recall => {recall})) h
                   JOIN t ON t.ctid = h.ctid ORDER BY h.distance"
            )
        }
    };
    let asked = reached(&mut client, "SET situ.recall_target = 1", &asking("0.8"));
    assert!((asked - low).abs() < 0.01, "{asked} and {low}");
    assert!(reached(&mut client, "SET situ.recall_target = 0.8", &asking("1")) >= 0.99);
    for recall in ["0", "-1", "1.5", "'NaN'"] {
        client
            .failure(&format!("SELECT situ.query(embedding => '[1]', recall => {recall})"))
            .is("22023", "recall");
    }
    assert_eq!(client.failure("SET situ.recall_target = 2").code, "22023");
    // A filter and a large LIMIT are filled whatever the target.
    client.run("SET situ.recall_target = 0.8");
    by_index(&mut client);
    let query = literal(&queries[0]);
    for (filter, limit, rows) in [("id % 100 = 7", 200, 200), ("true", 30_000, 30_000)] {
        let count: i64 = client.one(&format!(
            "SELECT count(DISTINCT id) FROM (SELECT id FROM t WHERE {filter} ORDER BY v <-> '{query}' LIMIT {limit}) x"
        ));
        assert_eq!(count, rows, "{filter}");
    }
}
