//! The order of an index scan is an order: nothing falls, nothing is lost, ties are together.

use crate::data::{by_index, clustered, exactly, literal, vector_table};
use crate::support::{Sql, shared};
use postgres::Client;

/// Rows and places at which a distance is smaller than the one before it, over a whole scan.
fn falls(client: &mut Client, from: &str, distance: &str) -> (i64, i64) {
    let row = client
        .query_one(
            &format!(
                "SELECT count(*), count(*) FILTER (WHERE d < before) FROM (SELECT d, lag(d) OVER () AS before FROM
                   (SELECT {distance} AS d FROM {from} ORDER BY {distance} LIMIT 1000000) s) u"
            ),
            &[],
        )
        .unwrap_or_else(|error| panic!("{distance}: {error:#?}"));
    (row.get(0), row.get(1))
}

#[test]
fn distances_never_fall_and_every_row_comes() {
    let mut client = shared().database("order_whole");
    let mut vectors = clustered(1000, 64, 21);
    vectors.extend_from_within(..);
    client.run("CREATE TABLE p (id bigint, v vector(64)) PARTITION BY HASH (id)");
    for part in 0..2 {
        client.run(&format!(
            "CREATE TABLE p{part} PARTITION OF p FOR VALUES WITH (MODULUS 2, REMAINDER {part})"
        ));
    }
    vector_table(&mut client, "r", "vector", &vectors);
    vector_table(&mut client, "h", "halfvec", &vectors);
    client.run("INSERT INTO p SELECT * FROM r");
    for (class, operator) in [("l2_ops", "<->"), ("cosine_ops", "<=>"), ("ip_ops", "<#>")] {
        client.run(&format!(
            "CREATE INDEX r_v ON r USING situ (v vector_{class}); CREATE INDEX h_v ON h USING situ (v halfvec_{class});
             CREATE INDEX p_v ON p USING situ (v vector_{class})"
        ));
        by_index(&mut client);
        client.run("SET enable_sort = off");
        for query in clustered(8, 64, 22) {
            let query = literal(&query);
            for (table, kind) in [("r", "vector"), ("h", "halfvec"), ("p", "vector")] {
                let distance = format!("v {operator} '{query}'::{kind}");
                assert_eq!(falls(&mut client, table, &distance), (2000, 0), "{table} {operator}");
            }
        }
        client.run("DROP INDEX r_v; DROP INDEX h_v; DROP INDEX p_v");
    }
}

#[test]
fn little_memory_changes_neither_rows_nor_order() {
    let mut client = shared().database("order_memory");
    vector_table(&mut client, "t", "vector", &clustered(5000, 16, 31));
    client.run("CREATE INDEX t_v ON t USING situ (v vector_l2_ops); SET work_mem = '64kB'");
    by_index(&mut client);
    client.run("SET enable_sort = off");
    for query in clustered(4, 16, 32) {
        let distance = format!("v <-> '{}'", literal(&query));
        assert_eq!(falls(&mut client, "t", &distance), (5000, 0));
    }
}

#[test]
fn a_text_index_gives_documents_in_order() {
    let mut client = shared().text_database("order_text");
    client.run(
        "CREATE TABLE docs (id int, body text);
         INSERT INTO docs SELECT i, 'Crate ' || i || ' holds ' || (ARRAY['lamps','ropes','books','tea'])[i % 4 + 1] || ' for '
           || (ARRAY['the school','the mill','the inn'])[i % 3 + 1] || ', and weighs ' || (i * 37) % 211 || ' pounds.'
           FROM generate_series(1, 300) i;
         CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm')",
    );
    by_index(&mut client);
    let distance = "body <=> 'books for the school'";
    assert_eq!(falls(&mut client, "docs", distance), (300, 0));
}

#[test]
fn a_filter_gets_the_nearest_of_its_rows() {
    let mut client = shared().database("order_filter");
    vector_table(&mut client, "t", "vector", &clustered(3000, 48, 41));
    client.run("CREATE INDEX t_v ON t USING situ (v vector_l2_ops)");
    for query in clustered(10, 48, 42) {
        let statement = format!(
            "SELECT id FROM t WHERE id % 100 = 7 ORDER BY v <-> '{}' LIMIT 10",
            literal(&query)
        );
        exactly(&mut client);
        let right: Vec<i64> = client.column(&statement);
        client.run("SET enable_indexscan = on");
        by_index(&mut client);
        assert_eq!(client.column::<i64>(&statement), right);
    }
}

#[test]
fn pages_over_tied_rows_lose_none() {
    let mut client = shared().database("order_pages");
    client.run(
        "CREATE TABLE t (id bigint PRIMARY KEY, v vector(3));
         INSERT INTO t SELECT i, ARRAY[i % 12, i / 12 % 12, i % 7]::real[]::vector FROM generate_series(1, 3000) i;
         CREATE INDEX t_v ON t USING situ (v vector_l2_ops); ANALYZE t",
    );
    by_index(&mut client);
    client.run("SET enable_sort = off");
    for query in ["[5,5,3]", "[0,0,0]", "[2.5,7.25,1.125]"] {
        let mut ids: Vec<i64> = Vec::new();
        for page in 0..60 {
            let statement = format!(
                "SELECT id FROM t ORDER BY v <-> '{query}', id LIMIT 50 OFFSET {}",
                page * 50
            );
            if page == 0 {
                let plan = client.plan(&statement);
                assert!(plan.contains("Incremental Sort") && plan.contains("t_v"), "{plan}");
            }
            ids.extend(client.column::<i64>(&statement));
        }
        client.run("SET enable_sort = on");
        exactly(&mut client);
        let right: Vec<i64> = client.column(&format!("SELECT id FROM t ORDER BY v <-> '{query}', id"));
        client.run("SET enable_indexscan = on; SET enable_sort = off");
        by_index(&mut client);
        client.run("SET enable_sort = off");
        assert_eq!(ids, right, "{query}");
    }
}

#[test]
fn ties_of_the_first_distance_are_broken_by_the_second() {
    let mut client = shared().database("order_two");
    client.run(
        "CREATE TABLE ring (x int, v vector(2));
         INSERT INTO ring VALUES (-5, '[-5,0]'), (-4, '[-4,3]'), (-4, '[-4,-3]'), (-3, '[-3,4]'), (-3, '[-3,-4]'),
           (0, '[0,5]'), (0, '[0,-5]'), (3, '[3,4]'), (3, '[3,-4]'), (4, '[4,3]'), (4, '[4,-3]'), (5, '[5,0]');
         CREATE INDEX ring_v ON ring USING situ (v vector_l2_ops)",
    );
    by_index(&mut client);
    let statement = "SELECT x FROM ring ORDER BY v <-> '[0,0]', v <-> '[5,0]' LIMIT 100";
    let found: Vec<i32> = client.column(statement);
    assert_eq!(found, [5, 4, 4, 3, 3, 0, 0, -3, -3, -4, -4, -5]);
    let plan = client.plan(statement);
    assert!(plan.contains("Incremental Sort") && plan.contains("ring_v"), "{plan}");
}
