//! What the user may do wrong: each gets an error with its SQLSTATE and a hint, and nothing is lost.

use crate::data::{SUBJECTS, by_index, clustered, document_table, literal, vector_table};
use crate::support::{Cluster, Sql, shared};

#[test]
fn an_unknown_model_is_named_with_what_to_do() {
    let mut client = shared().text_database("bad_model_name");
    document_table(&mut client);
    for statement in [
        "SELECT situ.embed('text', 'nosuch')",
        "SELECT situ.embed_batch(ARRAY['text'], 'nosuch')",
        "SELECT * FROM situ.situate('A text.', 'nosuch')",
        "CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'nosuch')",
        "SELECT situ.drop_model('nosuch')",
    ] {
        client.failure(statement).is("42704", "nosuch");
    }
    assert_eq!(client.one::<i64>("SELECT count(*) FROM docs"), SUBJECTS.len() as i64);
}

#[test]
fn a_server_without_the_library_preloaded_says_what_to_add() {
    let cluster = Cluster::with(&[("shared_preload_libraries", "")]);
    let mut client = cluster.database("no_preload");
    // Vector indexes need no encoder.
    vector_table(&mut client, "t", "vector", &clustered(500, 8, 91));
    client.run("CREATE INDEX nearest ON t USING situ (v vector_l2_ops)");
    by_index(&mut client);
    let query = literal(&clustered(1, 8, 92)[0]);
    assert_eq!(
        client
            .column::<i64>(&format!("SELECT id FROM t ORDER BY v <-> '{query}' LIMIT 3"))
            .len(),
        3
    );
    client.run("LOAD 'situ'");
    client.run("SELECT situ.register_model('minilm', 'minilm')");
    let failure = client.failure("SELECT situ.embed('text', 'minilm')");
    failure.is("55000", "encoder");
    assert!(failure.hint.contains("shared_preload_libraries"), "{failure:#?}");
}

#[test]
fn invalid_options_and_arguments() {
    let mut client = shared().text_database("bad_options");
    document_table(&mut client);
    vector_table(&mut client, "t", "vector", &clustered(100, 8, 93));
    for (options, code, part) in [
        ("model = 'minilm', chunk_tokens = 0", "22023", "chunk_tokens"),
        ("model = 'minilm', chunk_tokens = 9999999", "22023", "chunk_tokens"),
        ("model = 'minilm', situate = 'sideways'", "22023", "situate"),
        ("model = 'minilm', situate_weight = 2", "22023", "situate_weight"),
        ("model = 'minilm', lists = -1", "22023", "lists"),
        ("model = 'minilm', colour = 'red'", "22023", "colour"),
    ] {
        let failure = client.failure(&format!("CREATE INDEX ON docs USING situ (body) WITH ({options})"));
        assert_eq!(failure.code, code, "{options}: {failure:#?}");
        assert!(failure.message.contains(part), "{options}: {failure:#?}");
    }
    for (statement, code, part) in [
        (
            "SELECT * FROM situ.search('docs_pkey', 'x', k => 3)",
            "42809",
            "situ index",
        ),
        (
            "SELECT * FROM situ.chunks('A text.', 'minilm', chunk_tokens => 0)",
            "22023",
            "chunk_tokens",
        ),
        (
            "SELECT * FROM situ.situate('A text.', 'minilm', mode => 'sideways')",
            "22023",
            "sideways",
        ),
        (
            "SELECT * FROM situ.situate('A text.', 'minilm', mode => 'late', weight => 3)",
            "22023",
            "weight",
        ),
        (
            "SELECT situ.embed('A text.', 'minilm', role => 'judge')",
            "22023",
            "judge",
        ),
        ("SELECT situ.query()", "22004", "text"),
        ("SELECT situ.query('x', probes => -1)", "22023", "probes"),
        (
            "CREATE INDEX ON docs USING situ (title situ_title_ops)",
            "42P17",
            "title",
        ),
        (
            "CREATE INDEX ON t USING situ (v vector_l2_ops, v vector_l2_ops)",
            "0A000",
            "column",
        ),
        (
            "CREATE UNIQUE INDEX ON t USING situ (v vector_l2_ops)",
            "0A000",
            "unique",
        ),
    ] {
        let failure = client.failure(statement);
        assert_eq!(failure.code, code, "{statement}: {failure:#?}");
        let all = format!("{} {}", failure.message, failure.detail).to_lowercase();
        assert!(all.contains(part), "{statement}: {failure:#?}");
        // The server's own refusal of UNIQUE brings no hint.
        assert!(
            !failure.hint.is_empty() || statement.contains("UNIQUE"),
            "{statement} has no hint: {failure:#?}"
        );
    }
    client.run("CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm')");
    client
        .failure("SELECT * FROM situ.search('docs_body', 'x', k => 0)")
        .is("22023", "k must");
    client
        .failure("SELECT * FROM situ.search('docs_body', 'x', k => -5)")
        .is("22023", "k must");
    assert_eq!(
        client.one::<i64>("SELECT count(*) FROM situ.search('docs_body', 'x', k => 1000000)"),
        SUBJECTS.len() as i64
    );
    assert_eq!(
        client.one::<i64>("SELECT count(*) FROM situ.search('docs_body', NULL::text, k => 5)"),
        0
    );
}

#[test]
fn vectors_that_do_not_fit() {
    let mut client = shared().database("bad_vectors");
    client.run("CREATE TABLE t (id bigint, v vector(4)); INSERT INTO t SELECT n, ARRAY[n, 1, 2, 3]::vector FROM generate_series(1, 50) n");
    client.run("CREATE INDEX nearest ON t USING situ (v vector_l2_ops)");
    by_index(&mut client);
    // pgvector's own type check: it has no hint to give.
    assert_eq!(client.failure("INSERT INTO t VALUES (1, '[1,2,3]')").code, "22000");
    let failure = client.failure("SELECT id FROM t ORDER BY v <-> '[1,2,3]' LIMIT 1");
    failure.is("22000", "dimensions");
    assert_eq!(client.failure("INSERT INTO t VALUES (1, '[1,2,NaN,3]')").code, "22000");
    assert_eq!(
        client
            .failure("SELECT id FROM t ORDER BY v <-> '[1,2,Infinity,3]' LIMIT 1")
            .code,
        "22000"
    );

    // A column without a declared number of dimensions: the first row decides, others do not fit.
    client.run("CREATE TABLE loose (id bigint, v vector); INSERT INTO loose VALUES (1, '[1,2,3]'), (2, '[1,2]')");
    client
        .failure("CREATE INDEX ON loose USING situ (v vector_l2_ops)")
        .is("22000", "dimensions");
    client.run("DELETE FROM loose WHERE id = 2; CREATE INDEX loose_v ON loose USING situ (v vector_l2_ops)");
    client
        .failure("INSERT INTO loose VALUES (3, '[1,2,3,4]')")
        .is("22000", "dimensions");
    assert_eq!(client.one::<i64>("SELECT count(*) FROM loose"), 1);
}

#[test]
fn null_and_zero_vectors_are_kept_out_of_the_way() {
    let mut client = shared().database("bad_zero");
    client.run("CREATE TABLE t (id bigint, v vector(3))");
    client.run("INSERT INTO t VALUES (1, '[1,0,0]'), (2, '[0,0,0]'), (3, NULL), (4, '[0,1,0]')");
    client.run("CREATE INDEX nearest ON t USING situ (v vector_cosine_ops)");
    client.run("INSERT INTO t VALUES (5, '[0,0,0]'), (6, NULL), (7, '[0,0,1]')");
    by_index(&mut client);
    // As with pgvector's indexes: a zero vector has no direction, so it is not indexed under cosine.
    let ids: Vec<i64> = client.column("SELECT id FROM t ORDER BY v <=> '[1,0.1,0]'");
    assert_eq!(ids, [1, 4, 7]);
    let ids: Vec<i64> = client.column("SELECT id FROM t WHERE v IS NOT NULL ORDER BY v <=> '[0,0,0]' LIMIT 3");
    assert!(ids.len() <= 3, "a zero query answers without an error");
    client.run("CREATE TABLE u AS SELECT * FROM t; CREATE INDEX ON u USING situ (v vector_l2_ops)");
    assert_eq!(
        client.one::<i64>("SELECT count(*) FROM (SELECT id FROM u ORDER BY v <-> '[0,0,0]') s"),
        5
    );
}

#[test]
fn special_tokens_and_odd_characters_in_a_text_are_plain_text() {
    let mut client = shared().text_database("bad_text");
    client.run("CREATE TABLE docs (id bigint, title text, body text)");
    client.run("CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm')");
    let texts = [
        "The end [SEP] is not the end [CLS] of the story [PAD] [MASK] [UNK].",
        "<|endoftext|> marks nothing here, nor does <s> or </s>.",
        "\u{1}\u{2}\u{7f} control \u{200b} characters \u{feff} and \u{fffd}",
        "日本語の文章です。二つ目の文です。",
        "🙂🙃 e\u{301}\u{301}\u{301} ﷽ \u{202e}reversed",
        "\\0 \\x00 %00 are not NUL",
    ];
    for (id, text) in texts.iter().enumerate() {
        client
            .execute("INSERT INTO docs VALUES ($1, '', $2)", &[&(id as i64), text])
            .expect("an insert");
    }
    for (id, text) in texts.iter().enumerate() {
        let row = client
            .query_one("SELECT d.id, h.distance FROM situ.search('docs_body', $1::text, k => 1) h JOIN docs d ON d.ctid = h.ctid", &[text])
            .expect("an answer");
        assert_eq!(row.get::<_, i64>(0), id as i64, "{text}");
    }
    let distance: f64 =
        client.one("SELECT situ.embed('one [SEP] two', 'minilm') <=> situ.embed('one sep two', 'minilm')");
    assert!(distance > 0.0 && distance < 0.6, "brackets are characters: {distance}");
    let cut: f64 = client.one("SELECT situ.embed('one [SEP] two', 'minilm') <=> situ.embed('one', 'minilm')");
    assert!(cut > 0.01, "the text ends at what looks like a special token");
}

#[test]
fn a_document_of_ten_megabytes_is_indexed_and_found() {
    let mut client = shared().text_database("bad_large");
    client.run("CREATE TABLE docs (id bigint, title text, body text)");
    client.run("CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm')");
    // One word of 10 MB without a space, then a sentence: few tokens to encode, every byte to read.
    client.run("INSERT INTO docs VALUES (1, '', repeat('x', 10 * 1024 * 1024) || E'.\\n\\nThe lighthouse keeper winds the clockwork every evening.')");
    let row = client
        .query_one(
            "SELECT passage, start_byte FROM situ.search('docs_body', 'Who winds the clockwork of the lighthouse?', k => 1)",
            &[],
        )
        .expect("an answer");
    assert!(row.get::<_, String>(0).contains("lighthouse"));
    assert!(row.get::<_, i32>(1) > 10_000_000);
}
