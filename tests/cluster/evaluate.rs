//! Evaluation through SQL: measures by hand, comparisons, keys, privileges, questions made from a corpus, TREC files.

use crate::data::{SUBJECTS, document_table};
use crate::support::{Sql, shared};
use postgres::Client;

/// Five points on a circle, 20 degrees apart, and questions that stand on one of them: their ranking is known.
fn circle(name: &str) -> Client {
    let mut client = shared().database(name);
    client.run(
        "CREATE TABLE points (id text PRIMARY KEY, pair int, v vector(2));
         INSERT INTO points SELECT 'p' || n, n / 2, ARRAY[cosd(20 * n), sind(20 * n)]::vector FROM generate_series(0, 4) n;
         CREATE INDEX points_v ON points USING situ (v vector_cosine_ops);
         CREATE TABLE asked (id int, text text, embedding vector(2));
         INSERT INTO asked SELECT n, 'point ' || n, ARRAY[cosd(20 * n + 1), sind(20 * n + 1)]::vector FROM generate_series(0, 4) n;
         CREATE TABLE judged (query_id int, document_id text, grade int)",
    );
    client
}

fn values(client: &mut Client, sql: &str) -> Vec<(String, f64)> {
    let rows = client.query(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error}"));
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[track_caller]
fn close(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-9, "{found} is not {expected}");
}

#[test]
fn measures_by_hand() {
    let mut client = circle("evaluate_measures");
    // Query 0 finds p0 p1 p2 p3 p4; query 4 finds p4 p3 p2 p1 p0; query 2 finds p2 p3 p1 p4 p0.
    client.run(
        "INSERT INTO judged VALUES (0, 'p0', 1), (0, 'p2', 3), (4, 'p0', 1), (2, 'p1', 2), (2, 'nowhere', 1), (1, 'p1', 0)",
    );
    let found = values(
        &mut client,
        "SELECT measure, value FROM situ.evaluate('points_v', 'asked', 'judged', k => 3, depth => 4)",
    );
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["ndcg@3", "map", "mrr", "recall@1", "recall@3", "recall@4"]);
    let third = 1.0 / 3f64.log2();
    // nDCG@3: (1 + 3/2) / (3 + 1/log2 3), 0, (2/2) / (2 + 1/log2 3). Depth 4 leaves p0 out for query 4.
    close(found[0].1, (2.5 / (3.0 + third) + 1.0 / (2.0 + third)) / 3.0);
    close(found[1].1, ((1.0 + 2.0 / 3.0) / 2.0 + (1.0 / 3.0) / 2.0) / 3.0);
    close(found[2].1, (1.0 + 1.0 / 3.0) / 3.0);
    close(found[3].1, 0.5 / 3.0);
    close(found[4].1, (1.0 + 0.5) / 3.0);
    close(found[5].1, (1.0 + 0.5) / 3.0);
    let count: i64 = client.one("SELECT queries FROM situ.evaluate('points_v', 'asked', 'judged') LIMIT 1");
    assert_eq!(count, 3, "queries without a relevant document are left out");
    // Each query's own values, and their means.
    let means = values(
        &mut client,
        "SELECT measure, avg(value) FROM situ.evaluate_queries('points_v', 'asked', 'judged', k => 3, depth => 4)
          WHERE measure <> 'milliseconds' GROUP BY measure",
    );
    for (name, mean) in means {
        let value = found
            .iter()
            .find(|(measure, _)| *measure == name)
            .expect("the measure")
            .1;
        close(mean, value);
    }
    assert!(
        client.one::<f64>(
            "SELECT min(value) FROM situ.evaluate_queries('points_v', 'asked', 'judged') WHERE measure = 'milliseconds'"
        ) > 0.0
    );
}

#[test]
fn two_runs_beside_each_other() {
    let mut client = circle("evaluate_compare");
    client.run("INSERT INTO judged SELECT n, 'p' || n, 1 FROM generate_series(0, 4) n");
    client.run(
        "CREATE TABLE first AS SELECT * FROM situ.search_batch('points_v', 'asked', k => 5);
         CREATE TABLE second AS SELECT query_id, document_id, -score AS score FROM first",
    );
    // Forwards each question has its point at rank 1, backwards at rank 5.
    let row = client
        .query_one(
            "SELECT value, compared, difference, difference_low, difference_high, p, p_t, low, high, compared_low
               FROM situ.evaluate_run('first', 'judged', 'second') WHERE measure = 'mrr'",
            &[],
        )
        .expect("a row");
    let expected = [1.0, 0.2, -0.8, -0.8, -0.8, 0.0625, 0.0, 1.0, 1.0, 0.2];
    for (place, expected) in expected.into_iter().enumerate() {
        close(row.get::<_, f64>(place), expected);
    }
    let gain: f64 = client.one("SELECT gain FROM situ.evaluate_run('first', 'judged', 'second') WHERE measure = 'mrr'");
    close(gain, -0.8);
    // Differences 1, 2, 3: the randomisation test has p = 2 / 8, Student's t is 2 sqrt(3).
    let row = client
        .query_one(
            "SELECT value, compared, difference, gain, p, p_t FROM situ.compare('{1,1,1}', '{2,3,4}')",
            &[],
        )
        .expect("a row");
    for (place, expected) in [1.0, 3.0, 2.0, 2.0, 0.25, 1.0 - (12.0f64 / 14.0).sqrt()]
        .into_iter()
        .enumerate()
    {
        close(row.get::<_, f64>(place), expected);
    }
    assert_eq!(
        client.failure("SELECT * FROM situ.compare('{1}', '{1,2}')").code,
        "2202E"
    );
    // The same options twice do not differ.
    let row = client
        .query_one(
            "SELECT value, compared, difference, p FROM situ.evaluate('points_v', 'asked', 'judged',
                    options => situ.query(probes => 1), compare => situ.query(probes => 1)) WHERE measure = 'ndcg@10'",
            &[],
        )
        .expect("a row");
    for (place, expected) in [1.0, 1.0, 0.0, 1.0].into_iter().enumerate() {
        close(row.get::<_, f64>(place), expected);
    }
}

#[test]
fn documents_are_named_by_any_column() {
    let mut client = circle("evaluate_keys");
    // pair: p0 p1 are 0, p2 p3 are 1, p4 is 2. Query 4 finds 2, 1, 0.
    client.run("INSERT INTO judged VALUES (4, '0', 1)");
    let found = values(
        &mut client,
        "SELECT measure, value FROM situ.evaluate('points_v', 'asked', 'judged', key => 'pair', k => 3) WHERE measure = 'mrr'",
    );
    close(found[0].1, 1.0 / 3.0);
    let documents: Vec<String> = client
        .column("SELECT document_id FROM situ.search_batch('points_v', 'asked', k => 3, key => 'pair') WHERE query_id = '4' ORDER BY rank");
    assert_eq!(documents, ["2", "1", "0"]);
    client.run("ALTER TABLE points DROP CONSTRAINT points_pkey");
    let failure = client.failure("SELECT * FROM situ.evaluate('points_v', 'asked', 'judged')");
    assert_eq!(
        (failure.code.as_str(), failure.hint.as_str()),
        ("22023", "Name the column: key => 'id'.")
    );
    let failure = client.failure("SELECT * FROM situ.evaluate('points_v', 'asked', 'judged', key => 'nothing')");
    assert_eq!(failure.code, "42703", "{failure:#?}");
}

#[test]
fn relations_that_do_not_fit() {
    let mut client = circle("evaluate_bad");
    let failure = client.failure("SELECT * FROM situ.evaluate('points_v', 'asked', 'judged')");
    assert_eq!(failure.message, "no query has a relevant document");
    let failure = client.failure("SELECT * FROM situ.evaluate('points_v', 'judged', 'judged')");
    assert_eq!(failure.message, "relation \"judged\" has no column \"id\"");
    let failure = client.failure("SELECT * FROM situ.evaluate('points_v', 'asked', 'asked')");
    assert_eq!(failure.message, "relation \"asked\" has no column \"query_id\"");
    client.run("INSERT INTO judged VALUES (0, 'p0', 1)");
    let failure = client.failure("SELECT * FROM situ.evaluate('points_pkey', 'asked', 'judged')");
    assert_eq!(failure.code, "42809", "{failure:#?}");
    let failure = client.failure("SELECT * FROM situ.evaluate('asked', 'asked', 'judged')");
    failure.is("42704", "no situ index");
    let measures: i64 = client.one("SELECT count(*) FROM situ.evaluate('points', 'asked', 'judged')");
    assert!(measures > 0, "a table names its only index");
    let failure = client.failure("SELECT * FROM situ.evaluate(NULL, 'asked', 'judged')");
    assert_eq!(failure.code, "22004", "{failure:#?}");
    for bad in ["k => 0", "depth => -1"] {
        let failure = client.failure(&format!(
            "SELECT * FROM situ.evaluate('points_v', 'asked', 'judged', {bad})"
        ));
        assert_eq!(failure.code, "22023", "{failure:#?}");
    }
    client.run("INSERT INTO asked SELECT * FROM asked WHERE id = 0");
    let failure = client.failure("SELECT * FROM situ.evaluate('points_v', 'asked', 'judged')");
    assert_eq!(failure.message, "query \"0\" stands twice in \"asked\"");
}

fn documents(name: &str) -> Client {
    let mut client = shared().text_database(name);
    document_table(&mut client);
    client.run("CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm', chunk_tokens = 48)");
    client.run("CREATE TABLE asked (id bigint, text text); CREATE TABLE judged (query_id bigint, document_id bigint, grade real)");
    for (id, (_, _, question)) in SUBJECTS.iter().enumerate() {
        let id = id as i64;
        client
            .execute("INSERT INTO asked VALUES ($1, $2)", &[&id, question])
            .expect("a query");
        client
            .execute("INSERT INTO judged VALUES ($1, $1, 1)", &[&id])
            .expect("a judgement");
    }
    client
}

#[test]
fn a_text_index_is_judged_as_search_finds_and_as_the_caller_may_see() {
    let mut client = documents("evaluate_text");
    let found = values(
        &mut client,
        "SELECT measure, value FROM situ.evaluate('docs_body', 'asked', 'judged')",
    );
    close(found[3].1, 1.0);
    assert_eq!(found[3].0, "recall@1");
    // The same documents with the same scores as situ.search gives, question by question; equal scores have no order.
    let same: i64 = client.one(
        "SELECT count(*) FROM asked a
           CROSS JOIN LATERAL situ.search('docs_body', a.text, k => 12) h JOIN docs d ON d.ctid = h.ctid
           JOIN situ.search_batch('docs_body', 'asked') r
             ON r.query_id = a.id::text AND r.document_id = d.id::text AND r.score = h.score",
    );
    assert_eq!(same, 144);
    let ordered: bool = client.one(
        "SELECT bool_and(score <= above) FROM (SELECT score, lag(score, 1, 1.0) OVER (PARTITION BY query_id ORDER BY rank) AS above
           FROM situ.search_batch('docs_body', 'asked')) r",
    );
    assert!(ordered);
    let mut admin = shared().connect("postgres");
    admin.run("DROP ROLE IF EXISTS judge; CREATE ROLE judge LOGIN");
    client.run("GRANT SELECT ON asked, judged TO judge");
    let mut judge = shared().connect_as("judge", "evaluate_text");
    let evaluate = "SELECT value FROM situ.evaluate('docs_body', 'asked', 'judged') WHERE measure = 'recall@1'";
    assert_eq!(judge.failure(evaluate).code, "42501");
    client.run(
        "GRANT SELECT ON docs TO judge; ALTER TABLE docs ENABLE ROW LEVEL SECURITY;
         CREATE POLICY even ON docs TO judge USING (id % 2 = 0)",
    );
    close(judge.one(evaluate), 0.5);
    let failure = judge.failure("SELECT * FROM situ.tune('docs_body', 'asked', 'judged')");
    assert_eq!(failure.code, "42501", "{failure:#?}");
    client.run("DROP OWNED BY judge");
}

#[test]
fn questions_are_made_from_the_documents() {
    let mut client = documents("evaluate_made");
    for (kind, words) in [
        ("span16", Some(16)),
        ("span8", Some(8)),
        ("keyword", Some(4)),
        ("sentence", None),
    ] {
        let made =
            format!("SELECT id, text, document_id FROM situ.make_queries('docs_body', '{kind}', n => 8, seed => 3)");
        let rows = client.query(&made, &[]).expect("queries");
        assert_eq!(rows.len(), 8, "{kind}");
        let again: Vec<(String, String)> = client
            .query(&made, &[])
            .expect("queries")
            .iter()
            .map(|row| (row.get(1), row.get(2)))
            .collect();
        for (row, again) in rows.iter().zip(&again) {
            let (id, text, document): (String, String, String) = (row.get(0), row.get(1), row.get(2));
            assert!(id.starts_with(kind), "{id}");
            assert_eq!(
                (&text, &document),
                (&again.0, &again.1),
                "the same seed gives the same questions"
            );
            if let Some(words) = words {
                assert_eq!(text.split(' ').count(), words, "{kind}: {text}");
            }
            let body: String = client.one(&format!(
                "SELECT regexp_replace(body, '\\s+', ' ', 'g') FROM docs WHERE id = {document}"
            ));
            match kind {
                "keyword" => assert!(text.split(' ').all(|word| body.contains(word)), "{text}"),
                _ => assert!(body.contains(&text), "{kind}: {text}"),
            }
        }
        let other: Vec<String> = client.column(&format!(
            "SELECT text FROM situ.make_queries('docs_body', '{kind}', n => 8, seed => 4)"
        ));
        let first: Vec<String> = rows.iter().map(|row| row.get(1)).collect();
        assert_ne!(first, other, "{kind}: another seed gives other questions");
    }
    let late: Vec<String> =
        client.column("SELECT text FROM situ.make_queries('docs_body', 'sentence', n => 12, part_from => 0.6)");
    assert!(
        late.len() == 12 && late.iter().all(|text| text.starts_with("Box ")),
        "{late:?}"
    );
    // What is made can be judged at once.
    client.run(
        "CREATE TABLE spans AS SELECT * FROM situ.make_queries('docs_body', 'span16', n => 12);
         CREATE VIEW span_judged AS SELECT id AS query_id, document_id FROM spans",
    );
    assert_eq!(
        client.one::<i64>("SELECT queries FROM situ.evaluate('docs_body', 'spans', 'span_judged') LIMIT 1"),
        12
    );
    for (arguments, code) in [
        ("'span1'", "22023"),
        ("'words'", "22023"),
        ("n => 0", "22023"),
        ("part_from => 0.5, part_to => 0.5", "22023"),
    ] {
        let failure = client.failure(&format!("SELECT * FROM situ.make_queries('docs_body', {arguments})"));
        assert_eq!(failure.code, code, "{arguments}: {failure:#?}");
    }
}

#[test]
fn runs_go_through_trec_files() {
    let mut client = circle("evaluate_trec");
    client.run("INSERT INTO judged SELECT n, 'p' || (n + 1) % 5, 1 + n % 2 FROM generate_series(0, 4) n");
    client.run("CREATE TABLE run AS SELECT * FROM situ.search_batch('points_v', 'asked')");
    client.run(
        "CREATE TABLE text AS SELECT string_agg(situ.write_run(query_id, document_id, rank, score), E'\n') AS run FROM run;
         CREATE TABLE text_judged AS
           SELECT string_agg(situ.write_qrels(query_id::text, document_id, grade), E'\n') AS qrels FROM judged",
    );
    let line: String = client.one("SELECT split_part(run, E'\n', 1) FROM text");
    assert!(line.starts_with("0 Q0 p0 1 0.99") && line.ends_with(" situ"), "{line}");
    client.run(
        "CREATE VIEW read_back AS SELECT r.* FROM text, situ.read_run(text.run) r;
         CREATE VIEW judged_back AS SELECT r.* FROM text_judged, situ.read_qrels(text_judged.qrels) r",
    );
    let same: i64 = client.one("SELECT count(*) FROM run JOIN read_back USING (query_id, document_id, rank, score)");
    assert_eq!(same, 25);
    let direct = values(
        &mut client,
        "SELECT measure, value FROM situ.evaluate('points_v', 'asked', 'judged')",
    );
    let read = values(
        &mut client,
        "SELECT measure, value FROM situ.evaluate_run('read_back', 'judged_back')",
    );
    assert_eq!(direct, read);
    let failure = client.failure("SELECT * FROM situ.read_run('q Q0 d one 0.5 tag')");
    assert_eq!(
        (failure.code.as_str(), failure.message.as_str()),
        ("22P02", "line 1 of the run: rank \"one\" is not a number")
    );
    let failure = client.failure("SELECT situ.write_run('q', 'a document', 1, 0.5)");
    assert_eq!(failure.code, "22P02", "{failure:#?}");
}

#[test]
fn partitions_are_judged_as_one_table() {
    let mut client = circle("evaluate_partitions");
    client.run(
        "CREATE TABLE parts (id text, pair int, v vector(2), PRIMARY KEY (id, pair)) PARTITION BY LIST (pair);
         CREATE TABLE parts_0 PARTITION OF parts FOR VALUES IN (0);
         CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1, 2);
         INSERT INTO parts SELECT * FROM points;
         CREATE INDEX parts_v ON parts USING situ (v vector_cosine_ops);
         INSERT INTO judged VALUES (0, 'p0', 1), (0, 'p2', 3), (4, 'p0', 1), (2, 'p1', 2)",
    );
    let failure = client.failure("SELECT * FROM situ.evaluate('parts_v', 'asked', 'judged')");
    assert_eq!(failure.detail, "The primary key of the table has several columns.");
    let whole = values(
        &mut client,
        "SELECT measure, value FROM situ.evaluate('points_v', 'asked', 'judged')",
    );
    let parts = values(
        &mut client,
        "SELECT measure, value FROM situ.evaluate('parts_v', 'asked', 'judged', key => 'id')",
    );
    assert_eq!(whole, parts);
    // A profile of the whole index serves its partitions too.
    client.run(
        "INSERT INTO situ.profiles VALUES ('public.parts_v', 'mine', '{\"nothing\": 1}', 'map', '{}', 'postgres')",
    );
    for index in ["parts_v", "parts_0_v_idx"] {
        let failure = client.failure(&format!(
            "SELECT * FROM situ.search('{index}', situ.query(embedding => '[1,0]', profile => 'mine'))"
        ));
        assert_eq!(failure.code, "22000", "{failure:#?}");
    }
}
