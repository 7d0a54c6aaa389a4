//! Which rows `situ.search` gives out, and as whom it reads them: one snapshot, the relation's own policies, the owner's
//! functions.

use crate::data::{SUBJECTS, clustered, document, document_table, vector_table};
use crate::support::{Sql, shared};
use postgres::Client;

fn role(name: &str) {
    shared()
        .connect("postgres")
        .run(&format!("DROP ROLE IF EXISTS {name}; CREATE ROLE {name} LOGIN"));
}

#[test]
fn rows_are_read_under_the_snapshot_of_the_statement() {
    let mut client = shared().database("rows_snapshot");
    vector_table(&mut client, "t", "vector", &clustered(50, 8, 3));
    client.run("ALTER TABLE t ADD n bigint; CREATE INDEX t_v ON t USING situ (v vector_l2_ops)");
    // Each row is changed while the statement goes on: what it changed before, it must not see.
    client.run("UPDATE t SET n = (SELECT count(*) FROM situ.search('t_v', situ.query(embedding => t.v), 1000))");
    let counts: Vec<i64> = client.column("SELECT DISTINCT n FROM t");
    assert_eq!(counts, [50]);
    // A function that is not volatile counts no commands up, so that a cursor's own later changes stay unseen.
    client.run("CREATE TABLE seen (n bigint)");
    client.run("BEGIN; INSERT INTO seen VALUES (0)");
    client.run("DECLARE c CURSOR FOR SELECT count(*) FROM situ.search('t_v', situ.query(embedding => '[0,0,0,0,0,0,0,0]'), 1000)");
    client.run("DELETE FROM t WHERE id < 20");
    assert_eq!(client.one::<i64>("FETCH c"), 50);
    client.run("ROLLBACK");
}

#[test]
fn a_profile_is_read_under_the_snapshot_of_the_statement() {
    let mut client = shared().database("rows_profile");
    vector_table(&mut client, "t", "vector", &clustered(50, 8, 3));
    client.run("CREATE INDEX t_v ON t USING situ (v vector_l2_ops)");
    client.run(
        "INSERT INTO situ.profiles (index, name, options, measure, figures, tuned_by)
           VALUES ('public.t_v', 'best', '{}', 'ndcg@10', '{}', 'postgres'::regrole)",
    );
    client.run("BEGIN; CREATE TABLE marks (n bigint); INSERT INTO marks VALUES (0)");
    client.run(
        "DECLARE c CURSOR FOR SELECT count(*)
           FROM situ.search('t_v', situ.query(embedding => '[0,0,0,0,0,0,0,0]', profile => 'best'), 1000)",
    );
    client.run("DELETE FROM situ.profiles");
    assert_eq!(client.one::<i64>("FETCH c"), 50);
    client.run("ROLLBACK");
}

#[test]
fn an_older_snapshot_is_not_answered_by_an_index_built_over_newer_rows() {
    let mut owner = shared().text_database("rows_checkxmin");
    document_table(&mut owner);
    owner.run("VACUUM docs");
    let mut older = shared().connect("rows_checkxmin");
    older.run("BEGIN ISOLATION LEVEL REPEATABLE READ");
    assert_eq!(older.one::<i64>("SELECT count(*) FROM docs"), SUBJECTS.len() as i64);
    // Versions of one chain: the older snapshot sees the first, the index holds the text of the last.
    owner.run("UPDATE docs SET title = 'changed', body = 'A short text about bread.'");
    owner.run("CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm')");
    let search = "SELECT passage FROM situ.search('docs_body', 'bread', k => 3)";
    if owner.one::<bool>("SELECT indcheckxmin FROM pg_index WHERE indexrelid = 'docs_body'::regclass") {
        let failure = older.failure(search);
        failure.is("55000", "snapshot");
    } else {
        panic!("the updates made no broken chain: the test shows nothing");
    }
    older.run("ROLLBACK");
    assert_eq!(older.column::<String>(search).len(), 3);
    assert_eq!(owner.column::<String>(search).len(), 3);
}

#[test]
fn an_index_made_in_the_same_transaction_answers_it() {
    let mut client = shared().text_database("rows_same_transaction");
    document_table(&mut client);
    client.run("BEGIN; UPDATE docs SET title = 'changed', body = body || ' Bread.'");
    client.run("CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm')");
    let found: Vec<String> = client.column("SELECT passage FROM situ.search('docs_body', 'bread', k => 3)");
    assert_eq!(found.len(), 3);
    client.run("ROLLBACK");
}

fn partitioned(name: &str) -> Client {
    let mut client = shared().text_database(name);
    client.run(
        "CREATE TABLE docs (id bigint, part int, body text, PRIMARY KEY (id, part)) PARTITION BY LIST (part);
         CREATE TABLE docs_0 PARTITION OF docs FOR VALUES IN (0);
         CREATE TABLE docs_1 PARTITION OF docs FOR VALUES IN (1)",
    );
    for subject in 0..SUBJECTS.len() {
        let (id, part) = (subject as i64, (subject / 2 % 2) as i32);
        client
            .execute(
                "INSERT INTO docs VALUES ($1, $2, $3)",
                &[&id, &part, &document(subject, 4)],
            )
            .expect("a document");
    }
    client.run("CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm')");
    client
}

const IDS: &str = "SELECT d.id FROM situ.search('docs_body', 'What makes bread dough rise?', k => 100) h
                     JOIN docs d ON d.tableoid = h.relation AND d.ctid = h.ctid ORDER BY 1";

#[test]
fn the_parents_privileges_decide_over_partitions() {
    role("parent_reader");
    let mut owner = partitioned("rows_parent");
    let mut reader = shared().connect_as("parent_reader", "rows_parent");
    let passages = "SELECT passage FROM situ.search('docs_body', 'What makes bread dough rise?', k => 100)";
    assert_eq!(reader.failure(passages).code, "42501");
    owner.run("GRANT SELECT ON docs_0, docs_1 TO parent_reader");
    assert_eq!(reader.failure(passages).code, "42501", "partitions are not the parent");
    owner.run("REVOKE SELECT ON docs_0, docs_1 FROM parent_reader; GRANT SELECT ON docs TO parent_reader");
    let all: Vec<i64> = (0..SUBJECTS.len() as i64).collect();
    assert_eq!(reader.column::<i64>(IDS), all);
    assert_eq!(reader.column::<String>(passages).len(), all.len());
    let leaf: String =
        owner.one("SELECT relid::text FROM pg_partition_tree('docs_body') WHERE isleaf ORDER BY relid::text LIMIT 1");
    let failure = reader.failure(&format!("SELECT * FROM situ.search('{leaf}', 'bread', k => 5)"));
    assert_eq!(failure.code, "42501", "a partition by itself has its own privileges");
}

#[test]
fn the_parents_policies_decide_over_partitions() {
    role("parent_tenant");
    let mut owner = partitioned("rows_policies");
    owner.run(
        "GRANT SELECT ON docs, docs_0, docs_1 TO parent_tenant; ALTER TABLE docs ENABLE ROW LEVEL SECURITY;
         CREATE POLICY even ON docs TO parent_tenant USING (id % 2 = 0)",
    );
    let mut tenant = shared().connect_as("parent_tenant", "rows_policies");
    let even: Vec<i64> = (0..SUBJECTS.len() as i64).step_by(2).collect();
    assert_eq!(tenant.column::<i64>(IDS), even);
    let passages: Vec<String> =
        tenant.column("SELECT passage FROM situ.search('docs_body', 'What makes bread dough rise?', k => 100)");
    assert_eq!(passages.len(), even.len());
    owner.run("REVOKE SELECT ON docs_0, docs_1 FROM parent_tenant");
    assert_eq!(tenant.column::<i64>(IDS), even);
    // A policy of a partition counts where the partition itself is searched.
    owner.run("ALTER TABLE docs_0 ENABLE ROW LEVEL SECURITY");
    assert_eq!(tenant.column::<i64>(IDS), even);
}

#[test]
fn functions_of_an_index_run_as_the_owner_of_the_table() {
    role("indexer");
    let mut admin = shared().text_database("rows_functions");
    admin.run("GRANT ALL ON SCHEMA public TO indexer");
    let mut owner = shared().connect_as("indexer", "rows_functions");
    owner.run(
        "CREATE FUNCTION told(body text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
           BEGIN
             IF current_user <> 'indexer' THEN RAISE EXCEPTION 'runs as %', current_user; END IF;
             RETURN body;
           END $$",
    );
    owner.run("CREATE TABLE docs (id bigint PRIMARY KEY, body text)");
    for subject in 0..6 {
        owner
            .execute(
                "INSERT INTO docs VALUES ($1, $2)",
                &[&(subject as i64), &document(subject, 2)],
            )
            .expect("a document");
    }
    owner.run("CREATE INDEX docs_body ON docs USING situ (told(body)) WITH (model = 'minilm')");
    let found: Vec<String> =
        admin.column("SELECT passage FROM situ.search('docs_body', 'Why does a volcano erupt?', k => 3)");
    assert_eq!(found.len(), 3);
    assert!(found[0].contains("Magma"), "{found:?}");
    let made: Vec<String> = admin.column("SELECT text FROM situ.make_queries('docs_body', 'span8', 5)");
    assert_eq!(made.len(), 5);
}

/// Ids and distances that a search with feedback finds, nearest first.
fn moved(client: &mut Client, index: &str, options: &str) -> Vec<(i64, f64)> {
    let table = index.trim_end_matches("_v");
    let rows = client
        .query(
            &format!(
                "SELECT t.id, round(h.distance::numeric, 5)::float8 FROM situ.search('{index}',
                   situ.query(embedding => '[1,0,0,0]', feedback_depth => 1, feedback_keep => 0, {options}), k => 10) h
                   JOIN {table} t ON t.ctid = h.ctid ORDER BY h.distance, t.id"
            ),
            &[],
        )
        .unwrap_or_else(|error| panic!("{options}: {error:#?}"));
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[test]
fn feedback_is_not_moved_by_rows_that_the_caller_may_not_see() {
    role("fed");
    let mut owner = shared().database("rows_feedback");
    let vectors = clustered(200, 4, 9);
    for table in ["hidden", "deleted", "without"] {
        vector_table(&mut owner, table, "vector", &vectors);
    }
    owner.run(
        "INSERT INTO hidden VALUES (1000, '[1,0.2,0,0.3]'); INSERT INTO deleted VALUES (1000, '[1,0.2,0,0.3]');
         CREATE INDEX hidden_v ON hidden USING situ (v vector_cosine_ops);
         CREATE INDEX deleted_v ON deleted USING situ (v vector_cosine_ops);
         CREATE INDEX without_v ON without USING situ (v vector_cosine_ops);
         DELETE FROM deleted WHERE id = 1000;
         GRANT SELECT ON hidden, deleted, without TO fed; ALTER TABLE hidden ENABLE ROW LEVEL SECURITY;
         CREATE POLICY most ON hidden TO fed USING (id < 1000)",
    );
    let mut fed = shared().connect_as("fed", "rows_feedback");
    for options in [
        "feedback => 'average'",
        "feedback => 'rocchio'",
        "feedback => 'gated'",
        "feedback => 'average', feedback_mode => 'rerank', feedback_list => 20",
        "feedback => 'rocchio', feedback_rounds => 2",
    ] {
        let right = moved(&mut fed, "without_v", options);
        assert_eq!(moved(&mut fed, "hidden_v", options), right, "{options}: a hidden row");
        assert_eq!(moved(&mut fed, "deleted_v", options), right, "{options}: a deleted row");
    }
    // Rows that somebody else is about to insert count as little.
    let mut writer = shared().connect("rows_feedback");
    writer.run("BEGIN; INSERT INTO without VALUES (1001, '[1,0.2,0,0.3]')");
    let right = moved(&mut fed, "deleted_v", "feedback => 'average'");
    assert_eq!(moved(&mut fed, "without_v", "feedback => 'average'"), right);
    writer.run("ROLLBACK");
}

#[test]
fn what_names_the_table_survives_a_rebuilt_index() {
    let mut client = shared().text_database("rows_names");
    document_table(&mut client);
    client.run(
        "CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm');
         CREATE VIEW found AS SELECT passage FROM situ.search('docs', 'What makes bread dough rise?', k => 3);
         CREATE MATERIALIZED VIEW kept AS SELECT passage FROM situ.search('docs', 'What makes bread dough rise?', k => 3)",
    );
    // Sent as it is: a semicolon inside ends no statement.
    client
        .batch_execute(
            "CREATE FUNCTION ask(question text) RETURNS SETOF text LANGUAGE sql STABLE
               BEGIN ATOMIC SELECT passage FROM situ.search('docs', question, k => 3); END",
        )
        .expect("a function");
    let before: Vec<String> = client.column("SELECT passage FROM found");
    assert!(before[0].contains("Yeast"), "{before:?}");
    client.run("REINDEX INDEX CONCURRENTLY docs_body");
    assert_eq!(client.column::<String>("SELECT passage FROM found"), before);
    client.run("REFRESH MATERIALIZED VIEW kept");
    assert_eq!(client.column::<String>("SELECT passage FROM kept"), before);
    assert_eq!(
        client.column::<String>("SELECT ask('What makes bread dough rise?')"),
        before
    );
    client.run("DROP INDEX docs_body; CREATE INDEX other_name ON docs USING situ (body) WITH (model = 'minilm')");
    assert_eq!(client.column::<String>("SELECT passage FROM found"), before);
    client.run("DROP INDEX other_name");
    client.failure("SELECT passage FROM found").is("42704", "no situ index");
    client.run(
        "CREATE INDEX one ON docs USING situ (body) WITH (model = 'minilm');
                CREATE INDEX two ON docs USING situ (title) WITH (model = 'minilm')",
    );
    client.failure("SELECT passage FROM found").is("42P09", "several");
}
