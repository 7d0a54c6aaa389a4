//! Text indexes under change: inserts, updates of body and title, deletes, vacuum, partitions, expressions.

use crate::data::{SUBJECTS, add_document, by_index, document_table};
use crate::support::{Sql, shared};
use postgres::Client;

const INDEX: &str = "CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm')";

fn first(client: &mut Client, question: &str) -> i64 {
    client.one(&format!(
        "SELECT d.id FROM situ.search('docs_body', '{question}', k => 1) h JOIN docs d ON d.ctid = h.ctid"
    ))
}

#[test]
fn rows_inserted_after_the_build_are_found() {
    let mut client = shared().text_database("changes_insert");
    client.run("CREATE TABLE docs (id bigint PRIMARY KEY, title text, body text)");
    client.run(INDEX);
    let none: i64 = client.one("SELECT count(*) FROM situ.search('docs_body', 'anything', k => 5)");
    assert_eq!(none, 0, "an empty index answers");
    for subject in 0..SUBJECTS.len() {
        add_document(&mut client, subject as i64, subject, 8);
    }
    for (id, (_, _, question)) in SUBJECTS.iter().enumerate() {
        assert_eq!(first(&mut client, question), id as i64, "{question}");
    }
}

#[test]
fn an_updated_body_replaces_the_old_evidence() {
    let mut client = shared().text_database("changes_update");
    document_table(&mut client);
    client.run(INDEX);
    client.run("UPDATE docs SET body = 'The lighthouse keeper winds the clockwork every evening.' WHERE id = 1");
    assert_eq!(first(&mut client, "Who winds the clockwork of the lighthouse?"), 1);
    let passages: Vec<String> =
        client.column("SELECT passage FROM situ.search('docs_body', 'What makes bread dough rise?', k => 100)");
    assert!(
        !passages.iter().any(|passage| passage.contains("Yeast")),
        "the old version is still found"
    );
    assert_eq!(passages.len(), SUBJECTS.len());
}

#[test]
fn an_updated_title_encodes_the_row_again() {
    let mut client = shared().text_database("changes_title");
    client.run("CREATE TABLE docs (id bigint PRIMARY KEY, title text, body text)");
    client.run(
        "INSERT INTO docs SELECT n, 'Record ' || n, 'The chapter lists what was observed during the year.' FROM generate_series(1, 20) n",
    );
    client.run("CREATE INDEX docs_body ON docs USING situ (body, title situ_title_ops) WITH (model = 'minilm')");
    client.run("UPDATE docs SET title = 'Whales and dolphins of the northern seas' WHERE id = 13");
    assert_eq!(first(&mut client, "whales and dolphins"), 13);
}

#[test]
fn deleted_and_rolled_back_rows_are_gone() {
    let mut client = shared().text_database("changes_delete");
    document_table(&mut client);
    client.run(INDEX);
    client.run("BEGIN");
    client.run("INSERT INTO docs VALUES (500, 'x', 'Penguins huddle together to keep warm.')");
    assert_eq!(
        first(&mut client, "How do penguins keep warm?"),
        500,
        "seen by its own transaction"
    );
    client.run("ROLLBACK");
    assert_ne!(first(&mut client, "How do penguins keep warm?"), 500);
    client.run("DELETE FROM docs WHERE id = 2");
    let ids: Vec<i64> =
        client.column("SELECT d.id FROM situ.search('docs_body', 'chess', k => 100) h JOIN docs d ON d.ctid = h.ctid");
    assert!(!ids.contains(&2) && ids.len() == SUBJECTS.len() - 1);
    client.run("VACUUM docs");
    let ids: Vec<i64> =
        client.column("SELECT d.id FROM situ.search('docs_body', 'chess', k => 100) h JOIN docs d ON d.ctid = h.ctid");
    assert!(!ids.contains(&2) && ids.len() == SUBJECTS.len() - 1);
    let documents: i64 = client.one("SELECT documents FROM situ.stat_index WHERE indexrelid = 'docs_body'::regclass");
    assert_eq!(
        documents,
        SUBJECTS.len() as i64 - 1,
        "vacuum counts documents, not entries"
    );
}

#[test]
fn hot_updated_rows_keep_their_evidence() {
    let mut client = shared().text_database("changes_hot");
    client.run("CREATE TABLE docs (id bigint, title text, body text, seen integer DEFAULT 0) WITH (fillfactor = 40)");
    for (id, (title, evidence, _)) in SUBJECTS.iter().enumerate() {
        client
            .execute(
                "INSERT INTO docs (id, title, body) VALUES ($1, $2, $3)",
                &[&(id as i64), title, evidence],
            )
            .expect("a row");
    }
    client.run(INDEX);
    for _ in 0..3 {
        client.run("UPDATE docs SET seen = seen + 1");
    }
    client.run("SELECT pg_stat_force_next_flush()");
    let hot: i64 = client.one("SELECT n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'docs'");
    assert!(hot > 0, "the updates must be heap-only for this test to mean anything");
    for (id, (_, evidence, question)) in SUBJECTS.iter().enumerate() {
        let row = client
            .query_one(
                "SELECT d.id, d.seen, h.passage FROM situ.search('docs_body', $1::text, k => 1) h JOIN docs d ON d.ctid = h.ctid",
                &[question],
            )
            .expect("one row");
        assert_eq!(
            (row.get::<_, i64>(0), row.get::<_, i32>(1)),
            (id as i64, 3),
            "{question}"
        );
        assert!(row.get::<_, String>(2).contains(evidence));
    }
}

#[test]
fn filters_are_filled_to_the_limit() {
    let mut client = shared().text_database("changes_filter");
    client.run("CREATE TABLE docs (id bigint, title text, body text, lang text)");
    client.run(
        "INSERT INTO docs SELECT n, '', 'Entry ' || n || ' of the register of ships', CASE WHEN n % 50 = 0 THEN 'sv' ELSE 'en' END
           FROM generate_series(1, 600) n",
    );
    client.run(INDEX);
    by_index(&mut client);
    let statement = "SELECT id FROM docs WHERE lang = 'sv' ORDER BY body <=> 'a register of ships' LIMIT 12";
    assert!(client.plan(statement).contains("docs_body"));
    let ids: Vec<i64> = client.column(statement);
    assert_eq!(ids.len(), 12, "all rows that match come out: {ids:?}");
}

#[test]
fn partitions_expressions_and_partial_indexes() {
    let mut client = shared().text_database("changes_partition");
    client.run(
        "CREATE TABLE docs (id bigint, title text, body text) PARTITION BY RANGE (id);
         CREATE TABLE docs_low PARTITION OF docs FOR VALUES FROM (0) TO (6);
         CREATE TABLE docs_high PARTITION OF docs FOR VALUES FROM (6) TO (1000)",
    );
    client.run(INDEX);
    for subject in 0..SUBJECTS.len() {
        add_document(&mut client, subject as i64, subject, 5);
    }
    for (id, (_, _, question)) in SUBJECTS.iter().enumerate() {
        let row = client
            .query_one(
                "SELECT d.id, h.relation::text FROM situ.search('docs_body', $1::text, k => 1) h
                   JOIN docs d ON d.ctid = h.ctid AND d.tableoid = h.relation",
                &[question],
            )
            .expect("one row");
        let table = if id < 6 { "docs_low" } else { "docs_high" };
        assert_eq!(
            (row.get::<_, i64>(0), row.get::<_, String>(1)),
            (id as i64, table.to_string()),
            "{question}"
        );
    }
    by_index(&mut client);
    let question = SUBJECTS[8].2;
    assert_eq!(
        client.one::<i64>(&format!("SELECT id FROM docs ORDER BY body <=> '{question}' LIMIT 1")),
        8
    );

    client.run("CREATE TABLE notes (id bigint, head text, tail text, kept boolean)");
    for (id, (title, evidence, _)) in SUBJECTS.iter().enumerate() {
        let row: [&(dyn postgres::types::ToSql + Sync); 4] = [&(id as i64), title, evidence, &(id % 2 == 0)];
        client
            .execute("INSERT INTO notes VALUES ($1, $2, $3, $4)", &row)
            .expect("a row");
    }
    client.run(
        "CREATE INDEX notes_text ON notes USING situ ((head || E'\\n\\n' || tail)) WITH (model = 'minilm') WHERE kept",
    );
    let ids: Vec<i64> = client.column(
        "SELECT d.id FROM situ.search('notes_text', 'What makes bread dough rise?', k => 100) h JOIN notes d ON d.ctid = h.ctid",
    );
    assert!(
        ids.len() == SUBJECTS.len() / 2 && ids.iter().all(|id| id % 2 == 0),
        "{ids:?}"
    );
    let statement = "SELECT id FROM notes WHERE kept ORDER BY (head || E'\\n\\n' || tail) <=> 'How do plants make their food?' LIMIT 1";
    assert!(
        client.plan(statement).contains("notes_text"),
        "{}",
        client.plan(statement)
    );
    assert_eq!(client.one::<i64>(statement), 6);
}

#[test]
fn a_changed_model_is_an_error_that_says_reindex() {
    let cluster = shared();
    let mut client = cluster.text_database("changes_model");
    client.run("CREATE TABLE docs (id bigint, title text, body text); INSERT INTO docs VALUES (1, '', 'A text.')");
    client.run(INDEX);
    cluster.copy_model("minilm", "changed");
    cluster.remove("models/changed/1_Pooling/config.json");
    cluster.write(
        "models/changed/1_Pooling/config.json",
        r#"{"word_embedding_dimension": 384, "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#,
    );
    client.run("SELECT situ.register_model('minilm', 'changed', replace => true)");
    client
        .failure("SELECT * FROM situ.search('docs_body', 'text', k => 1)")
        .is("55000", "model");
    let hint = client.failure("INSERT INTO docs VALUES (2, '', 'More text.')").hint;
    assert!(hint.contains("REINDEX"), "{hint}");
    client.run("REINDEX INDEX docs_body");
    assert_eq!(first(&mut client, "text"), 1);
}
