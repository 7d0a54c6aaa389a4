//! Search over vector indexes by situ.search, and options chosen by situ.tune and used as a profile.

use crate::data::{clustered, literal, vector_table};
use crate::support::{Sql, shared};
use postgres::Client;

#[test]
fn search_over_vectors_gives_the_nearest_rows() {
    let mut client = shared().database("search_vectors");
    let vectors = clustered(400, 16, 11);
    vector_table(&mut client, "items", "vector", &vectors);
    client.run("ALTER TABLE items ADD h halfvec(16); UPDATE items SET h = v");
    let question = literal(&clustered(1, 16, 12)[0]);
    for (class, column, operator, score) in [
        ("vector_l2_ops", "v", "<->", "-distance"),
        ("vector_ip_ops", "v", "<#>", "-distance"),
        ("vector_cosine_ops", "v", "<=>", "1 - distance"),
        ("halfvec_l2_ops", "h", "<->", "-distance"),
        ("halfvec_cosine_ops", "h", "<=>", "1 - distance"),
    ] {
        client.run(&format!(
            "DROP INDEX IF EXISTS nearest; CREATE INDEX nearest ON items USING situ ({column} {class})"
        ));
        let kind = if column == "v" { "vector" } else { "halfvec" };
        let truth = client
            .query(
                &format!("SELECT id, (v::{kind} {operator} '{question}'::{kind})::float8 FROM (SELECT id, {column} AS v FROM items OFFSET 0) i ORDER BY 2 LIMIT 10"),
                &[],
            )
            .expect("brute force");
        let found = client
            .query(
                &format!(
                    "SELECT i.id, h.distance, h.score = {score}, h.ordinal IS NULL AND h.start_byte IS NULL AND h.end_char IS NULL
                            AND h.passage IS NULL, h.relation::text
                       FROM situ.search('nearest', situ.query(embedding => '{question}', probes => 1000), k => 10) h
                       JOIN items i ON i.ctid = h.ctid ORDER BY h.distance"
                ),
                &[],
            )
            .expect("a search");
        assert_eq!(found.len(), 10);
        for (found, truth) in found.iter().zip(&truth) {
            assert_eq!(found.get::<_, i64>(0), truth.get::<_, i64>(0), "{class}");
            let (distance, exact): (f64, f64) = (found.get(1), truth.get(1));
            assert!(
                (distance - exact).abs() < 2e-3 * exact.abs().max(1.0),
                "{class}: {distance} {exact}"
            );
            assert!(found.get::<_, bool>(2) && found.get::<_, bool>(3), "{class}");
            assert_eq!(found.get::<_, String>(4), "items");
        }
    }
    let failure = client.failure("SELECT * FROM situ.search('nearest', situ.query(embedding => '[1,2]'))");
    assert_eq!(failure.code, "22000", "{failure:#?}");
    let failure = client.failure("SELECT * FROM situ.search('nearest', situ.query(probes => 1))");
    assert_eq!(failure.code, "22004", "{failure:#?}");
    client.run("CREATE INDEX plain ON items (id)");
    let failure = client.failure("SELECT * FROM situ.search('plain', 'a question')");
    assert_eq!(failure.code, "42809", "{failure:#?}");
}

#[test]
fn a_question_in_words_is_encoded_for_a_vector_index() {
    let mut client = shared().text_database("search_vectors_words");
    client.run(
        "CREATE TABLE facts (id int PRIMARY KEY, fact text, v vector(384));
         INSERT INTO facts VALUES (1, 'Yeast makes bread dough rise.'), (2, 'The Moon pulls the tides.'), (3, 'Bees dance.');
         UPDATE facts SET v = situ.embed(fact, 'minilm');
         CREATE INDEX facts_v ON facts USING situ (v vector_cosine_ops)",
    );
    let search =
        "SELECT f.id FROM situ.search('facts_v', situ.query('What makes dough rise?', model => 'minilm'), k => 1) h
                    JOIN facts f ON f.ctid = h.ctid";
    assert_eq!(client.one::<i32>(search), 1);
    // Text without a model is no question for vectors: a parameter without a type would be taken for text.
    client
        .failure(&search.replace(", model => 'minilm'", ""))
        .is("42804", "facts_v");
    client
        .failure(&search.replace("situ.query('What makes dough rise?', model => 'minilm')", "'tides'"))
        .is("42804", "facts_v");
    let failure = client.failure(&search.replace("'minilm'", "'nothing'"));
    assert_eq!(failure.code, "42704", "{failure:#?}");
}

/// A vector index with questions about their nearest rows.
fn judged(name: &str) -> Client {
    let mut client = shared().text_database(name);
    vector_table(&mut client, "items", "vector", &clustered(400, 24, 21));
    client.run("ALTER TABLE items ADD PRIMARY KEY (id)");
    client.run("CREATE INDEX nearest ON items USING situ (v vector_cosine_ops)");
    client.run("CREATE TABLE asked (id bigint, text text, embedding vector(24))");
    for (id, vector) in clustered(60, 24, 22).iter().enumerate() {
        client.run(&format!("INSERT INTO asked VALUES ({id}, '', '{}')", literal(vector)));
    }
    client.run(
        "CREATE TABLE judged AS SELECT a.id AS query_id, n.id AS document_id FROM asked a
           CROSS JOIN LATERAL (SELECT id FROM items i ORDER BY i.v <=> a.embedding, id OFFSET 0 LIMIT 10) n",
    );
    client
}

#[test]
fn a_profile_gives_what_the_query_does_not_say() {
    let mut client = judged("profiles_tune");
    client.run(
        "CREATE TABLE tuned AS SELECT * FROM situ.tune('nearest', 'asked', 'judged',
           candidates => ARRAY[situ.query(probes => 2), situ.query(probes => 40)])",
    );
    assert_eq!(
        client.one::<i64>("SELECT count(*) FROM tuned"),
        3,
        "plain search is tried too"
    );
    assert!(client.one::<bool>(
        "SELECT index = 'public.nearest' AND tuned_by = 'postgres'::regrole AND measure = 'ndcg@10'
                AND figures->'queries' = '60' AND figures->'folds' = '5' FROM situ.profiles WHERE name = 'best'"
    ));
    // The stored options are used: a model that does not exist is missed, unless the query names another.
    client.run("UPDATE situ.profiles SET options = '{\"model\": \"nothing\"}'");
    let search = "SELECT count(*) FROM situ.search('nearest', situ.query('words', profile => 'best'$))";
    let failure = client.failure(&search.replace('$', ""));
    assert_eq!(
        (failure.code.as_str(), failure.message.as_str()),
        ("42704", "model \"nothing\" is not registered")
    );
    let failure = client.failure(&search.replace('$', ", model => 'minilm'"));
    assert_eq!(failure.code, "22000", "384 dimensions do not fit 24: {failure:#?}");
    client.run("UPDATE situ.profiles SET options = '{\"nothing\": 1}'");
    assert_eq!(client.failure(&search.replace('$', "")).code, "22000");
    client.run("SELECT situ.drop_profile('nearest', 'best')");
    let failure = client.failure(&search.replace('$', ""));
    assert_eq!(
        (failure.code.as_str(), failure.message.as_str()),
        ("42704", "profile \"best\" does not exist for index \"nearest\"")
    );
}

#[test]
fn feedback_that_helps_becomes_the_profile() {
    let mut client = shared().database("profiles_feedback");
    // Each question in a plane of its own, at 0 degrees. Relevant rows at 7, 8, 9 and 18 to 21 degrees, others at -12 to
    // -16: the mean of the question and the first three lies at 6, from where 21 is nearer than -12.
    client.run(
        "CREATE TABLE angles AS SELECT a, a > 0 AS good FROM unnest(ARRAY[7, 8, 9, 18, 19, 20, 21, -12, -13, -14, -15, -16]) a;
         CREATE TABLE items (id text PRIMARY KEY, v vector(24));
         INSERT INTO items SELECT q || ':' || a, (SELECT array_agg(CASE d WHEN 2 * q THEN cosd(a) WHEN 2 * q + 1 THEN sind(a) ELSE 0 END
           ORDER BY d) FROM generate_series(0, 23) d)::vector FROM generate_series(0, 11) q, angles;
         CREATE INDEX nearest ON items USING situ (v vector_cosine_ops);
         CREATE TABLE asked AS SELECT q AS id, 'question' AS text,
           (SELECT array_agg(CASE d WHEN 2 * q THEN 1 ELSE 0 END ORDER BY d) FROM generate_series(0, 23) d)::vector AS embedding
           FROM generate_series(0, 11) q;
         CREATE TABLE judged AS SELECT q AS query_id, q || ':' || a AS document_id FROM generate_series(0, 11) q, angles WHERE good",
    );
    client.run("CREATE TABLE tuned AS SELECT * FROM situ.tune('nearest', 'asked', 'judged', measure => 'map')");
    let row = client
        .query_one(
            "SELECT options->'feedback'->>'method', confirmed, held_out, held_out_plain, p FROM tuned WHERE chosen",
            &[],
        )
        .expect("a row");
    assert_eq!(row.get::<_, String>(0), "average");
    assert!(row.get::<_, bool>(1));
    // Plain: precisions 1, 1, 1, 4/9, 5/10, 6/11, 7/12 at the ranks of the relevant rows; with feedback all 1.
    let plain = (3.0 + 4.0 / 9.0 + 0.5 + 6.0 / 11.0 + 7.0 / 12.0) / 7.0;
    assert!((row.get::<_, f64>(3) - plain).abs() < 1e-9, "{}", row.get::<_, f64>(3));
    assert!((row.get::<_, f64>(2) - 1.0).abs() < 1e-9, "{}", row.get::<_, f64>(2));
    // Twelve queries that all gain, each by what the queries of other folds chose: all signs of one kind or the other.
    assert!((row.get::<_, f64>(4) - 2.0 / 4096.0).abs() < 1e-9);
    assert!(client.one::<bool>("SELECT figures->'folds_agreed' = '5' FROM situ.profiles"));
    let map: f64 = client.one(
        "SELECT value FROM situ.evaluate('nearest', 'asked', 'judged', situ.query(profile => 'best')) WHERE measure = 'map'",
    );
    assert!((map - 1.0).abs() < 1e-9, "{map}");
}

#[test]
fn what_does_not_help_is_not_kept() {
    let mut client = judged("profiles_plain");
    client.run(
        "SELECT * FROM situ.tune('nearest', 'asked', 'judged', name => 'mine', measure => 'recall@10',
           candidates => ARRAY[situ.query(probes => 1)])",
    );
    let stored: String = client.one("SELECT options::text FROM situ.profiles WHERE name = 'mine'");
    assert_eq!(stored, "{}");
    for (arguments, code) in [("measure => 'precision@3'", "22023"), ("name => ''", "22023")] {
        let failure = client.failure(&format!(
            "SELECT * FROM situ.tune('nearest', 'asked', 'judged', {arguments})"
        ));
        assert_eq!(failure.code, code, "{failure:#?}");
    }
    client.run("DELETE FROM asked WHERE id > 5");
    let failure = client.failure("SELECT * FROM situ.tune('nearest', 'asked', 'judged')");
    assert_eq!(failure.code, "22023", "{failure:#?}");
    // Nobody but the owner of the index writes profiles, not even the table itself.
    client.run("DROP ROLE IF EXISTS meddler; CREATE ROLE meddler LOGIN");
    let mut meddler = shared().connect_as("meddler", "profiles_plain");
    for statement in [
        "SELECT situ.drop_profile('nearest', 'mine')",
        "DELETE FROM situ.profiles",
        "INSERT INTO situ.profiles VALUES ('public.nearest', 'x', '{}', 'map', '{}', 'meddler')",
    ] {
        assert_eq!(meddler.failure(statement).code, "42501", "{statement}");
    }
}

#[test]
fn a_profile_serves_the_operator_through_its_index_only() {
    let mut client = shared().text_database("profiles_operator");
    client.run(
        "CREATE TABLE docs (id int PRIMARY KEY, body text);
         INSERT INTO docs SELECT n, 'Entry ' || n || ' about ' || (ARRAY['bread', 'tides', 'bees'])[1 + n % 3] FROM generate_series(1, 30) n;
         CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm');
         CREATE TABLE asked AS SELECT n AS id, 'bread number ' || n AS text FROM generate_series(1, 12) n;
         CREATE TABLE judged AS SELECT n AS query_id, 3 * n AS document_id FROM generate_series(1, 12) n",
    );
    client.run("SELECT * FROM situ.tune('docs_body', 'asked', 'judged', candidates => ARRAY[situ.query(probes => 3)])");
    client.run("UPDATE situ.profiles SET options = '{\"probes\": 3}'");
    client.run("SET enable_seqscan = off");
    let order = "SELECT id FROM docs ORDER BY body <=> situ.query(text => 'bread', $) LIMIT 3";
    let with: Vec<i32> = client.column(&order.replace('$', "profile => 'best'"));
    let plain: Vec<i32> = client.column(&order.replace('$', "probes => 3"));
    assert_eq!(with, plain);
    client.run("DROP INDEX docs_body");
    let failure = client.failure(&order.replace('$', "profile => 'best'"));
    assert_eq!(failure.code, "0A000", "{failure:#?}");
}

#[test]
fn operators_of_the_caller_never_run_as_the_owner_of_the_extension() {
    let mut client = judged("profiles_operators");
    client.run(
        "CREATE ROLE profiles_caller LOGIN;
         CREATE SCHEMA trap AUTHORIZATION profiles_caller;
         GRANT CREATE ON SCHEMA public TO profiles_caller;
         ALTER TABLE items OWNER TO profiles_caller;
         ALTER TABLE asked OWNER TO profiles_caller;
         ALTER TABLE judged OWNER TO profiles_caller",
    );
    let mut caller = shared().connect_as("profiles_caller", "profiles_operators");
    caller.run("CREATE TABLE trap.seen (role text)");
    for kind in ["text", "jsonb", "oid", "bigint", "boolean"] {
        caller.run(&format!(
            "CREATE FUNCTION trap.same({kind}, {kind}) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
                 INSERT INTO trap.seen VALUES (current_user);
                 RETURN $1 OPERATOR(pg_catalog.=) $2;
             END $$;
             CREATE OPERATOR trap.= (LEFTARG = {kind}, RIGHTARG = {kind}, FUNCTION = trap.same)"
        ));
    }
    caller.run("SET search_path = trap, pg_catalog, public");
    caller.run("SELECT 'a'::text = 'b'::text");
    assert_eq!(
        caller.one::<i64>("SELECT count(*) FROM trap.seen"),
        1,
        "the trap closes"
    );
    caller.run("TRUNCATE trap.seen");
    caller.run(
        "SELECT * FROM situ.tune('nearest', 'asked', 'judged', name => 'mine',
            candidates => ARRAY[situ.query(probes => 2), situ.query(probes => 40)]);
         SELECT * FROM situ.tune('nearest', 'asked', 'judged', name => 'mine',
            candidates => ARRAY[situ.query(probes => 2), situ.query(probes => 40)]);
         SELECT count(*) FROM situ.search('nearest',
            situ.query(embedding => (SELECT embedding FROM asked LIMIT 1), profile => 'mine'));
         SELECT * FROM situ.tune_feedback('nearest', 'asked', 'judged');
         SELECT count(*) FROM situ.search('nearest',
            situ.query(embedding => (SELECT embedding FROM asked LIMIT 1), feedback => 'rocchio'));
         SELECT situ.drop_profile('nearest', 'mine');
         SELECT situ.drop_feedback_gate('nearest')",
    );
    caller.run("SET search_path = pg_catalog");
    assert_eq!(
        caller.one::<i64>("SELECT count(*) FROM trap.seen WHERE role <> 'profiles_caller'"),
        0
    );
}
