//! How clients call the functions: parameters without a type, counts as bigint, types in DISTINCT and GROUP BY.

use crate::support::{Sql, shared};
use postgres::Client;
use postgres::types::Type;

fn database(name: &str) -> Client {
    let mut client = shared().text_database(name);
    client.run(
        "CREATE TABLE points AS SELECT i AS id, ARRAY[i, 300 - i, 7]::vector(3) AS v FROM generate_series(1, 300) i;
         CREATE INDEX points_v ON points USING situ (v vector_l2_ops);
         CREATE TABLE docs (id int, body text);
         INSERT INTO docs VALUES (1, 'Bread is baked before dawn.'), (2, 'Ships lie in the harbour until the tide turns.');
         CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm')",
    );
    client
}

/// The types that the server gives to parameters that come without one.
fn inferred(client: &mut Client, sql: &str) -> Vec<Type> {
    let statement = client.prepare(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    statement.params().to_vec()
}

#[test]
fn no_two_functions_of_one_name_differ_in_what_an_untyped_parameter_can_be() {
    let mut client = shared().database("clients_overloads");
    // Pairs that one call with untyped arguments fits both of: the required arguments of each are within the other's.
    let pairs: Vec<String> = client.column(
        "SELECT DISTINCT f.proname::text FROM pg_proc f JOIN pg_proc g USING (pronamespace, proname)
          WHERE pronamespace = 'situ'::regnamespace AND f.oid < g.oid
            AND f.pronargs - f.pronargdefaults <= g.pronargs AND g.pronargs - g.pronargdefaults <= f.pronargs
          ORDER BY 1",
    );
    // An untyped question is text, which over vectors is an error.
    assert_eq!(pairs, ["search"]);
}

#[test]
fn untyped_parameters_get_the_type_that_is_meant() {
    let mut client = database("clients_untyped");
    for (call, expected) in [
        ("situ.embed($1, 'minilm')", Type::TEXT),
        ("situ.embed_batch($1, 'minilm')", Type::TEXT_ARRAY),
        ("situ.situate_chunks($1, 'minilm')", Type::TEXT_ARRAY),
        ("situ.generate($1, 'an llm')", Type::TEXT),
        ("situ.import_bridge('a name', $1)", Type::BYTEA),
        ("situ.import_bridge_file($1, kind => 'xrag')", Type::TEXT),
    ] {
        assert_eq!(inferred(&mut client, &format!("SELECT {call}")), [expected], "{call}");
    }
    let prompt = inferred(&mut client, "SELECT situ.xrag_generate($1, 'an llm')");
    assert_eq!(prompt[0].name(), "prompt");
    let texts = vec!["cat", "dog"];
    let count: i32 = client
        .query_one("SELECT cardinality(situ.embed_batch($1, 'minilm'))", &[&texts])
        .expect("two vectors")
        .get(0);
    assert_eq!(count, 2);
    assert_eq!(
        client.failure("SELECT situ.embed(ARRAY['cat', 'dog'], 'minilm')").code,
        "42883"
    );
    let search = inferred(&mut client, "SELECT * FROM situ.search('points_v', $1, $2)");
    assert_eq!(search, [Type::TEXT, Type::INT8]);
}

#[test]
fn text_over_vectors_is_an_error_and_a_vector_is_searched_for() {
    let mut client = database("clients_vector");
    client
        .failure("SELECT * FROM situ.search('points_v', '[150,150,7]', 3)")
        .is("42804", "over vectors, and the question is text");
    client
        .failure("SELECT * FROM situ.search('points_v', situ.query('a question'), 3)")
        .is("42804", "over vectors, and the question is text");
    let search =
        "SELECT p.id FROM situ.search('points_v', {}, 3) h JOIN points p ON p.ctid = h.ctid ORDER BY h.distance, p.id";
    for question in ["'[150,150,7]'::vector", "(SELECT v FROM points WHERE id = 150)"] {
        let ids: Vec<i32> = client.column(&search.replace("{}", question));
        assert_eq!(ids, [150, 149, 151], "{question}");
    }
    // With a model the words are encoded, and do not fit here.
    let failure =
        client.failure("SELECT * FROM situ.search('points_v', situ.query('a question', model => 'minilm'), 3)");
    assert_eq!(failure.code, "22000", "{failure:#?}");
    // A vector of the index's model is a question over text.
    let id: i32 = client.one(
        "SELECT d.id FROM situ.search('docs_body', situ.embed('the tide in the harbour', 'minilm', 'query'), 1) h
           JOIN docs d ON d.ctid = h.ctid",
    );
    assert_eq!(id, 2);
}

#[test]
fn counts_are_bigint_everywhere_and_out_of_range_is_said() {
    let mut client = database("clients_counts");
    let narrow: Vec<String> = client.column(
        "SELECT oid::regprocedure::text FROM pg_proc
          WHERE pronamespace = 'situ'::regnamespace AND ('int4'::regtype = ANY (proargtypes) OR 'int2'::regtype = ANY (proargtypes))
            AND proname <> 'await_training'",
    );
    assert!(narrow.is_empty(), "{narrow:?}");
    let found: i64 =
        client.one("SELECT count(*) FROM situ.search('docs_body', 'the sea', k => (SELECT count(*) FROM docs))");
    assert_eq!(found, 2);
    let found: i64 = client.one("SELECT count(*) FROM situ.search('docs_body', 'the sea', 9223372036854775807)");
    assert_eq!(found, 2, "all rows");
    for call in [
        "situ.search('docs_body', 'the sea', 0::bigint)",
        "situ.search('docs_body', 'the sea', -5000000000)",
        "situ.chunks('text', 'minilm', 0)",
        "situ.chunks('text', 'minilm', 5000000000)",
        "situ.situate('text', 'minilm', chunk_tokens => 5000000000)",
        "situ.situate('text', 'minilm', window_tokens => 5000000000)",
        "situ.situate('text', 'minilm', window_tokens => -1)",
        "situ.vocabulary('text', 'minilm', 5000000000)",
        "situ.query('q', probes => 5000000000)",
        "situ.query('q', probes => 0)",
        "situ.query('q', feedback => 'rocchio', feedback_depth => 5000000000)",
        "situ.query('q', feedback => 'rocchio', feedback_bottom => -5000000000)",
        "situ.query('q', feedback => 'rocchio', feedback_rounds => 5000000000)",
        "situ.query('q', feedback => 'rocchio', feedback_keep => 5000000000)",
        "situ.query('q', feedback => 'rocchio', feedback_list => 5000000000)",
        "situ.make_queries('docs_body', n => 0)",
        "situ.rag('docs_body', 'q', k => -1, mode => 'none')",
    ] {
        let failure = client.failure(&format!("SELECT * FROM {call}"));
        // Without an LLM the last one fails before its k is looked at.
        if !call.starts_with("situ.rag") {
            failure.is("22023", "");
        }
    }
}

#[test]
fn character_columns_and_equal_questions() {
    let mut client = shared().text_database("clients_character");
    client.run(
        "CREATE TABLE notes (id int, title character(12), body character(60));
         INSERT INTO notes VALUES (1, 'Bread', 'Bread is baked before dawn.'), (2, 'Ships', 'Ships lie in the harbour.');
         CREATE INDEX notes_body ON notes USING situ (body, title situ_character_title_ops) WITH (model = 'minilm');
         ALTER TABLE notes ADD short character(60);
         UPDATE notes SET short = body;
         CREATE INDEX notes_short ON notes USING situ (short) WITH (lists = 0)",
    );
    let passage: String = client.one("SELECT passage FROM situ.search('notes_body', 'the sea', 1)");
    assert_eq!(passage, "Ships lie in the harbour.");
    for column in ["body", "short"] {
        let sql = format!("SELECT id FROM notes ORDER BY {column} <=> 'boats' LIMIT 1");
        client.run("SET enable_seqscan = off");
        assert!(client.plan(&sql).contains("Index Scan"), "{}", client.plan(&sql));
        assert_eq!(client.one::<i32>(&sql), 2);
        let by_index: f64 = client.one(&format!(
            "SELECT {column} <=> 'boats' FROM notes ORDER BY {column} <=> 'boats' LIMIT 1"
        ));
        client.run("RESET enable_seqscan; SET enable_indexscan = off");
        let without: f64 = client.one(&format!("SELECT {column} <=> 'boats' FROM notes WHERE id = 2"));
        client.run("RESET enable_indexscan");
        assert!(
            (by_index - without).abs() < 1e-4,
            "{column}: {by_index} by the index, {without} without"
        );
    }
    assert_eq!(
        inferred(&mut client, "SELECT id FROM notes ORDER BY short <=> $1"),
        [Type::TEXT]
    );

    let questions = "(VALUES (situ.query('a')), (situ.query('b', probes => 2)), (situ.query('a')), (NULL)) v(q)";
    assert_eq!(
        client.one::<i64>(&format!("SELECT count(DISTINCT q) FROM {questions}")),
        2
    );
    for (hash, sort) in [("on", "off"), ("off", "on")] {
        client.run(&format!("SET enable_hashagg = {hash}; SET enable_sort = {sort}"));
        let counts: Vec<i64> = client.column(&format!("SELECT count(*) FROM {questions} GROUP BY q ORDER BY 1"));
        assert_eq!(counts, [1, 1, 2]);
    }
    client.run("RESET enable_hashagg; RESET enable_sort");
    assert!(
        client.one::<bool>("SELECT situ.query('a') = situ.query(text => 'a') AND situ.query('a') <> situ.query('b')")
    );
    let joined: i64 = client.one(&format!(
        "SELECT count(*) FROM {questions} JOIN {} USING (q)",
        questions.replace("v(", "w(")
    ));
    assert_eq!(joined, 5);
}
