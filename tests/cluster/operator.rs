//! `text <=> text` outside a scan: the distance of the one index on the column, whatever the plan, and what it costs.

use crate::data::{by_index, exactly};
use crate::support::{Cluster, Sql, shared};
use postgres::Client;

const QUESTION: &str = "the town hall";

/// Documents whose titles matter: two have the same body.
fn titled(client: &mut Client) {
    client.run(
        "CREATE TABLE docs (id int PRIMARY KEY, title varchar(40), body text);
         INSERT INTO docs VALUES
           (1, 'Town hall of Elmford', 'It was rebuilt after the fire of 1911 and has two floors. It opens at nine.'),
           (2, 'Covered market', 'It was rebuilt after the fire of 1911 and has two floors. It opens at nine.'),
           (3, NULL, 'Trains leave every half hour. A town hall meeting about the new platform is held in May.'),
           (4, 'Public library', 'It lends books, maps and records. A reading room looks over the river.');
         CREATE INDEX docs_body ON docs USING situ (body, title situ_title_ops) WITH (model = 'minilm', chunk_tokens = 16)",
    );
}

/// Distances by id, to four digits.
fn distances(client: &mut Client, sql: &str) -> Vec<(i32, i64)> {
    let rows = client
        .query(sql, &[])
        .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let mut found: Vec<(i32, i64)> = rows
        .iter()
        .map(|row| (row.get(0), (row.get::<_, f64>(1) * 1e4).round() as i64))
        .collect();
    found.sort_unstable();
    found
}

#[test]
fn a_distance_is_the_index_s_under_any_plan() {
    let mut client = shared().text_database("operator_plans");
    titled(&mut client);
    let truth = distances(
        &mut client,
        &format!(
            "SELECT d.id, h.distance FROM situ.search('docs_body', '{QUESTION}', k => 10) h JOIN docs d ON d.ctid = h.ctid"
        ),
    );
    assert_eq!(truth.len(), 4);
    assert_ne!(truth[0].1, truth[1].1, "the title tells equal bodies apart");
    let first = |ids: &[i32]| -> Vec<(i32, i64)> { truth.iter().filter(|(id, _)| ids.contains(id)).copied().collect() };
    client.run("CREATE TABLE asked (words text); CREATE TABLE others (id int, note text)");
    client.run(&format!(
        "INSERT INTO asked VALUES ('{QUESTION}'); INSERT INTO others SELECT i, 'note' FROM generate_series(1, 4) i; ANALYZE"
    ));
    let everywhere = [
        format!("SELECT id, body <=> '{QUESTION}' FROM docs ORDER BY body <=> '{QUESTION}'"),
        format!("SELECT id, body <=> '{QUESTION}' AS d FROM docs ORDER BY d, id"),
        format!("SELECT id, body <=> '{QUESTION}' FROM docs"),
        format!("SELECT id, body <=> '{QUESTION}' FROM docs ORDER BY id LIMIT 4"),
        format!("SELECT id, body <=> situ.query('{QUESTION}') FROM docs"),
        format!("SELECT id, situ.distance(body, '{QUESTION}') FROM docs"),
        "SELECT d.id, d.body <=> a.words FROM docs d, asked a".to_owned(),
        "SELECT d.id, d.body <=> (SELECT words FROM asked) FROM docs d".to_owned(),
        "SELECT d.id, d.body <=> a.words FROM asked a, docs d ORDER BY d.body <=> a.words".to_owned(),
        format!("SELECT d.id, d.body <=> '{QUESTION}' FROM docs d JOIN others o USING (id) WHERE o.note = 'note'"),
        format!("SELECT id, 1 - s FROM (SELECT id, 1 - (body <=> '{QUESTION}') AS s FROM docs) x ORDER BY s DESC"),
        format!("SELECT id, min(body <=> '{QUESTION}') FROM docs GROUP BY id"),
        format!("WITH d AS MATERIALIZED (SELECT id, body <=> '{QUESTION}' AS d FROM docs) SELECT * FROM d"),
        "SELECT n.id, n.far FROM asked a, LATERAL (SELECT id, body <=> a.words AS far FROM docs ORDER BY body <=> a.words LIMIT 9) n".to_owned(),
    ];
    client.run("SET enable_hashjoin = on; SET enable_nestloop = off; SET enable_mergejoin = off");
    for join in [
        "SET enable_nestloop = off",
        "SET enable_nestloop = on; SET enable_hashjoin = off",
    ] {
        client.run(join);
        for sql in &everywhere {
            by_index(&mut client);
            assert_eq!(distances(&mut client, sql), truth, "{join}, by index: {sql}");
            exactly(&mut client);
            assert_eq!(distances(&mut client, sql), truth, "{join}, without: {sql}");
        }
    }
    // One row by its key, in a filter, and a row that is changed.
    exactly(&mut client);
    let one = format!("SELECT id, body <=> '{QUESTION}' FROM docs WHERE id = 1");
    assert_eq!(distances(&mut client, &one), first(&[1]));
    let middle = truth.iter().map(|(_, d)| *d).max().expect("four") as f64 / 1e4 - 1e-4;
    let near: i64 = client.one(&format!(
        "SELECT count(*) FROM docs WHERE body <=> '{QUESTION}' < {middle}"
    ));
    assert_eq!(near, 3);
    let returned = format!("UPDATE docs SET title = title RETURNING id, body <=> '{QUESTION}'");
    assert_eq!(distances(&mut client, &returned), truth);
}

#[test]
fn a_scan_leaves_nothing_to_later_statements() {
    let mut client = shared().text_database("operator_statements");
    titled(&mut client);
    client.run(
        "DROP ROLE IF EXISTS operator_guest; CREATE ROLE operator_guest LOGIN;
         CREATE FUNCTION scanned() RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET enable_seqscan = off AS $$
         DECLARE n bigint;
         BEGIN
           SELECT count(*) INTO n FROM (SELECT id FROM public.docs ORDER BY body OPERATOR(public.<=>) 'the town hall' LIMIT 4) s;
           RETURN n;
         END $$",
    );
    let mut guest = shared().connect_as("operator_guest", "operator_statements");
    assert_eq!(guest.failure("SELECT * FROM docs").code, "42501");
    // Whether a guess is the text of a hidden row is not told by its distance.
    let guess = "SELECT 'It was rebuilt after the fire of 1911 and has two floors. It opens at nine.'::text <=> 'the town hall'";
    let before: f64 = guest.one(guess);
    guest.run("BEGIN");
    assert_eq!(guest.one::<i64>("SELECT scanned()"), 4);
    let after: f64 = guest.one(guess);
    guest.run("ROLLBACK");
    assert_eq!(before.to_bits(), after.to_bits());
    // While a scan stands on the row, too.
    client.run("SET enable_seqscan = off; BEGIN");
    client.run("DECLARE c CURSOR FOR SELECT id FROM docs ORDER BY body <=> 'the town hall'; FETCH 1 FROM c");
    let beside: f64 = client.one(guess);
    client.run("COMMIT");
    assert_eq!(before.to_bits(), beside.to_bits());
    client.run("DROP FUNCTION scanned()");
}

#[test]
fn several_indexes_or_none_mean_the_default_model_and_chunks() {
    let mut client = shared().text_database("operator_several");
    titled(&mut client);
    let sql = format!("SELECT id, body <=> '{QUESTION}' FROM docs");
    exactly(&mut client);
    assert!(client.plan(&sql).contains("Seq Scan"));
    let shown: Vec<String> = client.column(&format!("EXPLAIN (VERBOSE) {sql}"));
    assert!(shown.join("\n").contains(r#""index":"docs_body""#), "{shown:?}");
    client.run("CREATE INDEX other ON docs USING situ (body) WITH (model = 'minilm', chunk_tokens = 48)");
    let shown: Vec<String> = client.column(&format!("EXPLAIN (VERBOSE) {sql}"));
    assert!(!shown.join("\n").contains("\"index\""), "{shown:?}");
    let several = distances(&mut client, &sql);
    client.run("DROP INDEX other; DROP INDEX docs_body");
    assert_eq!(distances(&mut client, &sql), several);
    let plain = format!(
        "SELECT d.id, min(s.embedding <=> situ.embed('{QUESTION}', 'minilm', 'query'))
           FROM docs d, LATERAL situ.situate(d.body, 'minilm', mode => 'none') s GROUP BY d.id"
    );
    assert_eq!(distances(&mut client, &plain), several);
    client
        .failure(r#"SELECT '{"text": "x", "index": 1}'::situ.query"#)
        .is("22P02", "cannot name the index");
}

#[test]
fn partitions_and_expressions_are_evaluated_as_their_index() {
    let mut client = shared().text_database("operator_parts");
    client.run(
        "CREATE TABLE parts (id int, dropped int, title text, body text) PARTITION BY LIST (id);
         CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1, 2);
         CREATE TABLE parts_2 (body text, title text, id int);
         ALTER TABLE parts DROP dropped;
         ALTER TABLE parts ATTACH PARTITION parts_2 FOR VALUES IN (3, 4);
         INSERT INTO parts VALUES (1, 'Tides', 'They come twice a day.'), (2, 'Trains', 'They come twice a day.'),
           (3, 'Tides', 'They come twice a day.'), (4, 'Bees', 'They swarm in May. They are kept in boxes of wood.');
         CREATE INDEX parts_body ON parts USING situ (body, title situ_title_ops) WITH (model = 'minilm', chunk_tokens = 8);
         CREATE TABLE made AS SELECT * FROM parts;
         CREATE INDEX made_both ON made USING situ ((coalesce(title, '') || '. ' || body)) WITH (model = 'minilm', chunk_tokens = 8)",
    );
    for (table, index, expression) in [
        ("parts", "parts_body", "body"),
        ("made", "made_both", "(coalesce(title, '') || '. ' || body)"),
    ] {
        let truth = distances(
            &mut client,
            &format!(
                "SELECT t.id, h.distance FROM situ.search('{index}', 'high water', k => 10) h
                   JOIN {table} t ON t.tableoid = h.relation AND t.ctid = h.ctid"
            ),
        );
        assert_eq!(truth.len(), 4);
        for sql in [
            format!("SELECT id, {expression} <=> 'high water' FROM {table} ORDER BY {expression} <=> 'high water'"),
            format!("SELECT id, {expression} <=> 'high water' FROM {table}"),
        ] {
            by_index(&mut client);
            assert_eq!(distances(&mut client, &sql), truth, "{sql}");
            exactly(&mut client);
            assert_eq!(distances(&mut client, &sql), truth, "without: {sql}");
        }
    }
}

/// What the encoder has done: vectors and batches.
fn work(client: &mut Client) -> (i64, i64) {
    // Counters are published once a second.
    client.run("SELECT pg_sleep(1.2)");
    let row = client
        .query_one(
            "SELECT sum(vectors)::bigint, sum(batches)::bigint FROM situ.stat_service",
            &[],
        )
        .expect("statistics");
    (row.get(0), row.get(1))
}

#[test]
fn documents_are_encoded_once_and_together_and_the_planner_prefers_the_index() {
    let cluster = Cluster::new();
    let mut client = cluster.text_database("operator_cost");
    client.run(
        "CREATE TABLE docs (id int PRIMARY KEY, body text);
         INSERT INTO docs SELECT i, 'Page ' || i || ' of the ledger counts ' || (i * 37) % 91 || ' sacks of salt.' FROM generate_series(1, 120) i;
         CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm');
         CREATE TABLE asked (words text);
         INSERT INTO asked VALUES ('salt'), ('the ledger'), ('sacks');
         ANALYZE",
    );
    for sql in [
        "SELECT id FROM docs ORDER BY body <=> 'salt' LIMIT 5",
        "SELECT id FROM docs ORDER BY body <=> 'salt'",
        "SELECT id, body <=> 'salt' FROM docs WHERE id % 2 = 0 ORDER BY body <=> 'salt'",
    ] {
        let plan = client.plan(sql);
        assert!(plan.contains("Index Scan using docs_body"), "{sql}\n{plan}");
    }
    exactly(&mut client);
    // A row by its key encodes no other row.
    let before = work(&mut client);
    client.one::<f64>("SELECT body <=> 'salt' FROM docs WHERE id = 60");
    let one = work(&mut client);
    assert!(one.0 - before.0 <= 2, "{} vectors for one row", one.0 - before.0);
    // A filter that lets one in twenty through does not encode the others.
    client.one::<f64>("SELECT sum(body <=> 'salt') FROM docs WHERE id % 20 = 0");
    let few = work(&mut client);
    assert!(few.0 - one.0 <= 12, "{} vectors for six rows", few.0 - one.0);
    let pairs: i64 =
        client.one("SELECT count(d) FROM (SELECT d.body <=> a.words AS d FROM docs d, asked a OFFSET 0) s");
    assert_eq!(pairs, 360);
    let all = work(&mut client);
    assert!(all.0 - few.0 <= 120 + 3, "{} vectors for 120 documents", all.0 - few.0);
    assert!(all.1 - few.1 <= 40, "{} batches for 120 documents", all.1 - few.1);
    client.one::<i64>("SELECT count(d) FROM (SELECT body <=> 'salt' AS d FROM docs OFFSET 0) s");
    let again = work(&mut client);
    assert_eq!(again.0 - all.0, 0, "the next statement encodes nothing again");
    // What is kept follows work_mem, and another role begins anew.
    client.run("SET work_mem = '64kB'");
    client.one::<i64>("SELECT count(d) FROM (SELECT body || '!' <=> 'salt' AS d FROM docs OFFSET 0) s");
    let small = work(&mut client);
    client.one::<i64>("SELECT count(d) FROM (SELECT body || '!' <=> 'salt' AS d FROM docs OFFSET 0) s");
    assert!(work(&mut client).0 - small.0 >= 100, "64 kB hold some 40 documents");
}
