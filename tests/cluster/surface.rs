//! The functions of SQL as their users name them: what a schema shows, the arguments' names, and what the names promise.

use crate::maker::Maker;
use crate::support::{Sql, shared};
use postgres::Client;
use serde_json::json;

#[test]
fn the_schema_shows_what_users_name_and_nothing_else() {
    let mut client = shared().database("surface_schema");
    // Every argument has a name, and every function a comment of one line.
    let unnamed: Vec<String> = client.column(
        "SELECT p.oid::regprocedure::text FROM pg_proc p
          WHERE p.pronamespace = 'situ'::regnamespace AND p.pronargs > 0
            AND (p.proargnames IS NULL OR '' = ANY (p.proargnames))",
    );
    assert_eq!(unnamed, [] as [String; 0]);
    let long: Vec<String> = client.column(
        "SELECT p.oid::regprocedure::text FROM pg_proc p LEFT JOIN pg_description d ON d.objoid = p.oid AND d.classoid = 'pg_proc'::regclass
          WHERE p.pronamespace IN ('situ'::regnamespace, 'situ_internal'::regnamespace)
            AND (d.description IS NULL OR length(d.description) > 120 OR d.description LIKE E'%\\n%')",
    );
    assert_eq!(long, [] as [String; 0]);
    // What only the extension's own objects call is not among them.
    let helpers: Vec<String> = client.column(
        "SELECT DISTINCT p.proname::text FROM pg_proc p
          WHERE p.pronamespace = 'situ'::regnamespace
            AND (EXISTS (SELECT FROM pg_type t WHERE p.oid IN (t.typinput, t.typoutput, t.typreceive, t.typsend))
                 OR EXISTS (SELECT FROM pg_aggregate a WHERE p.oid IN (a.aggtransfn, a.aggfinalfn))
                 OR EXISTS (SELECT FROM pg_amproc a WHERE p.oid = a.amproc) OR EXISTS (SELECT FROM pg_am a WHERE p.oid = a.amhandler)
                 OR p.prorettype IN ('trigger'::regtype, 'internal'::regtype))",
    );
    assert_eq!(helpers, [] as [String; 0]);
    client.run("DROP EXTENSION situ CASCADE");
    let left: i64 = client.one("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'situ%'");
    assert_eq!(left, 0, "a schema outlives the extension");
}

fn documents(client: &mut Client) {
    client.run(
        "CREATE TABLE docs (region text, id int, title text, body text, PRIMARY KEY (region, id));
         INSERT INTO docs VALUES ('nörd, \"a\"', 7, 'Le café', 'Après la pluie, le café ouvre. Die Mühle mahlt überall Getreide.'),
             ('süd', 8, 'Ships', 'Ships lie in the harbour until the tide turns.');
         CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm')",
    );
}

#[test]
fn a_hit_names_its_row_by_the_primary_key() {
    let mut client = shared().text_database("surface_key");
    documents(&mut client);
    let keys: Vec<String> = client.column("SELECT key FROM situ.search('docs_body', 'Where are the ships?')");
    let rows: Vec<String> = client.column("SELECT ROW(region, id)::text FROM docs ORDER BY id DESC");
    assert_eq!(keys, rows);
    client.run("ALTER TABLE docs DROP CONSTRAINT docs_pkey, ADD PRIMARY KEY (id)");
    let keys: Vec<String> = client.column("SELECT key FROM situ.search('docs', 'Where are the ships?')");
    assert_eq!(keys, ["8", "7"]);
    let sources: String = client.one("SELECT string_agg(key, ',') FROM situ.search('docs', situ.query('ships'), 1)");
    assert_eq!(sources, "8");
    client.run("ALTER TABLE docs DROP CONSTRAINT docs_pkey");
    let none: i64 = client.one("SELECT count(*) FROM situ.search('docs', 'ships') WHERE key IS NULL");
    assert_eq!(none, 2);

    // Over vectors, in partitions, of a key with holes before it.
    client.run(
        "CREATE TABLE points (gone int, v vector(2), id bigint PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE points_1 PARTITION OF points FOR VALUES FROM (0) TO (100);
         CREATE TABLE points_2 PARTITION OF points FOR VALUES FROM (100) TO (200);
         ALTER TABLE points DROP COLUMN gone;
         CREATE INDEX points_v ON points USING situ (v);
         INSERT INTO points SELECT ARRAY[i, 1]::vector(2), i FROM generate_series(0, 199) i",
    );
    let keys: Vec<String> = client.column("SELECT key FROM situ.search('points_v', '[99.6, 1]'::vector, 3)");
    assert_eq!(keys, ["100", "99", "101"]);
}

#[test]
fn a_key_is_of_the_row_version_that_the_snapshot_sees() {
    let mut client = shared().text_database("surface_versions");
    documents(&mut client);
    client.run("ALTER TABLE docs DROP CONSTRAINT docs_pkey, ADD PRIMARY KEY (id)");
    client.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1");
    let mut other = shared().connect("surface_versions");
    other.run("UPDATE docs SET id = id + 100");
    let search = "SELECT key FROM situ.search('docs', 'Where are the ships?')";
    assert_eq!(client.column::<String>(search), ["8", "7"]);
    client.run("COMMIT");
    assert_eq!(client.column::<String>(search), ["108", "107"]);
}

#[test]
fn a_passage_is_placed_in_bytes_and_in_characters() {
    let mut client = shared().text_database("surface_places");
    documents(&mut client);
    for from in [
        "docs d JOIN situ.search('docs_body', 'Was mahlt die Mühle?') s ON s.ctid = d.ctid",
        "docs d, LATERAL situ.chunks(d.body, 'minilm', 8) s",
        "docs d, LATERAL situ.situate(d.body, 'minilm', chunk_tokens => 8) s",
    ] {
        let row = client
            .query_one(
                &format!(
                    "SELECT count(*), count(*) FILTER (WHERE start_byte > start_char),
                            bool_and(substring(d.body FROM start_char + 1 FOR end_char - start_char) = passage
                                     AND substring(convert_to(d.body, 'UTF8') FROM start_byte + 1 FOR end_byte - start_byte)
                                         = convert_to(passage, 'UTF8')) FROM {from}"
                ),
                &[],
            )
            .expect("places");
        assert!(row.get::<_, i64>(0) >= 2 && row.get::<_, bool>(2), "{from}");
        if from.contains("LATERAL") {
            assert!(
                row.get::<_, i64>(1) > 0,
                "{from}: no passage behind a letter of two bytes"
            );
        }
    }
}

#[test]
fn a_table_and_a_column_name_an_index() {
    let mut client = shared().text_database("surface_column");
    documents(&mut client);
    client.run(
        "CREATE INDEX docs_title ON docs USING situ (title) WITH (model = 'minilm');
         CREATE TABLE plain (id int, body text)",
    );
    let search = |arguments: &str| format!("SELECT passage FROM situ.search({arguments}) LIMIT 1");
    client
        .failure(&search("'docs', 'ships'"))
        .is("42P09", "several situ indexes")
        .is("42P09", "docs_body, docs_title");
    assert_eq!(
        client.one::<String>(&search("'docs', 'ships', column_name => 'title'")),
        "Ships"
    );
    let body: String = client.one(&search("'docs', situ.query('ships'), column_name => 'body'"));
    assert!(body.starts_with("Ships lie"));
    client
        .failure(&search("'docs', 'ships', column_name => 'nothing'"))
        .is("42703", "column \"nothing\" of table \"docs\" does not exist");
    client
        .failure(&search("'docs', 'ships', column_name => 'region'"))
        .is("42704", "column \"region\" of table \"docs\" has no situ index");
    client
        .failure(&search("'docs_body', 'ships', column_name => 'body'"))
        .is("42809", "not a table");
    for nothing in ["NULL, 'ships'", "'docs_body', NULL::text", "'docs_body', 'ships', NULL"] {
        assert_eq!(
            client.column::<String>(&search(nothing)),
            [] as [String; 0],
            "{nothing}"
        );
    }
}

#[test]
fn a_role_must_be_named_where_a_model_has_forms() {
    let cluster = shared();
    let maker = Maker::new();
    let dir = maker.write();
    for (name, prompts) in [
        ("forms", json!({"query": "blue: ", "passage": "green red: "})),
        ("alike", json!({"query": "blue: ", "passage": "blue: "})),
    ] {
        for file in [
            "config.json",
            "tokenizer.json",
            "model.safetensors",
            "modules.json",
            "1_Pooling/config.json",
        ] {
            let bytes = std::fs::read(dir.path().join(file)).expect("a made file can be read");
            cluster.write(&format!("models/surface/{name}/{file}"), bytes);
        }
        cluster.write(
            &format!("models/surface/{name}/config_sentence_transformers.json"),
            json!({"prompts": prompts}).to_string(),
        );
    }
    let mut client = cluster.database("surface_roles");
    client.run("SELECT situ.register_model('forms', 'surface/forms'), situ.register_model('alike', 'surface/alike')");
    for call in [
        "situ.embed('red green', 'forms')",
        "situ.embed_batch(ARRAY['red green'], 'forms')",
    ] {
        client
            .failure(&format!("SELECT {call}"))
            .is("22023", "different forms for queries and passages");
    }
    let equal = |client: &mut Client, one: &str, other: &str| -> bool {
        client.one(&format!("SELECT ({one})::text = ({other})::text"))
    };
    let of = |model: &str, role: &str| format!("situ.embed('red green', '{model}'{role})");
    assert!(!equal(
        &mut client,
        &of("forms", ", 'query'"),
        &of("forms", ", 'passage'")
    ));
    assert!(!equal(
        &mut client,
        &of("forms", ", 'query'"),
        &of("forms", ", 'plain'")
    ));
    // One form is the model's form.
    assert!(equal(&mut client, &of("alike", ""), &of("alike", ", 'passage'")));
    assert!(!equal(&mut client, &of("alike", ""), &of("alike", ", 'plain'")));
    let batch = "(situ.embed_batch(ARRAY['red green'], 'alike'))[1]";
    assert!(equal(&mut client, batch, &of("alike", "")));
    client
        .failure("SELECT situ.embed('red', 'alike', 'judge')")
        .is("22023", "does not exist");
}

#[test]
fn queries_and_prompts_travel_in_binary() {
    let mut client = shared().database("surface_binary");
    client.run(
        "CREATE TABLE sent (q situ.query, p situ.prompt);
         INSERT INTO sent VALUES (situ.query('süß', feedback => 'rocchio', feedback_beta => 0.5, probes => 3),
                                  situ.xrag_prompt('Wo?', ARRAY['[1,2]'::vector])),
             (situ.query(embedding => '[0.1,2]'), 'plain text'), (NULL, NULL);
         CREATE TABLE received (LIKE sent)",
    );
    let copy = |client: &mut Client, from: &str| {
        let mut bytes = Vec::new();
        let mut reader = client
            .copy_out(&format!("COPY {from} TO STDOUT (FORMAT binary)"))
            .expect("the types have send functions");
        std::io::Read::read_to_end(&mut reader, &mut bytes).expect("rows");
        bytes
    };
    let put = |client: &mut Client, bytes: &[u8]| {
        let mut writer = client
            .copy_in("COPY received FROM STDIN (FORMAT binary)")
            .expect("a copy");
        std::io::Write::write_all(&mut writer, bytes).expect("rows are sent");
        writer.finish()
    };
    let bytes = copy(&mut client, "sent");
    put(&mut client, &bytes).expect("the rows come back");
    let differ: i64 = client.one(
        "SELECT count(*) FROM (SELECT q::text, p::text FROM sent EXCEPT ALL SELECT q::text, p::text FROM received) d",
    );
    assert_eq!(differ, 0);
    assert_eq!(client.one::<i64>("SELECT count(*) FROM received"), 3);
    // A version that nobody knows, and JSON that is none: the first byte of the first value follows the head of 19 bytes, the
    // number of columns and the value's length.
    let mut other = bytes.clone();
    other[19 + 2 + 4] = 9;
    let refused = put(&mut client, &other).expect_err("version 9");
    let refused = refused.as_db_error().expect("an error of the server's");
    assert!(
        refused.code().code() == "22P03" && refused.message().contains("version 9"),
        "{refused:?}"
    );
    let mut broken = bytes;
    let last = broken.iter().rposition(|byte| *byte == b'}').expect("a prompt ends");
    broken[last] = b'!';
    let refused = put(&mut client, &broken);
    let refused = refused.expect_err("broken JSON");
    assert_eq!(
        refused.as_db_error().expect("an error of the server's").code().code(),
        "22P02"
    );
}

#[test]
fn training_is_granted_by_its_procedure() {
    let mut client = shared().text_database("surface_train");
    documents(&mut client);
    client.run(
        "DROP ROLE IF EXISTS surface_trainer; CREATE ROLE surface_trainer LOGIN;
         GRANT SELECT ON docs TO surface_trainer",
    );
    let mut user = shared().connect_as("surface_trainer", "surface_train");
    assert_eq!(
        user.failure("CALL situ.train('adapter', 'a', index => 'docs_body')")
            .code,
        "42501"
    );
    // Not by way of the step that files it either.
    let step = "SELECT situ_internal.file_training('adapter', 'a', 'docs_body', NULL, NULL, NULL, NULL, NULL, NULL, NULL, false)";
    user.failure(step)
        .is("42501", "permission denied for procedure situ.train");
    client.run("GRANT EXECUTE ON PROCEDURE situ.train TO surface_trainer");
    // Too few documents to train on: the right is no longer what is missing.
    assert_ne!(
        user.failure("CALL situ.train('adapter', 'a', index => 'docs_body')")
            .code,
        "42501"
    );
    client.run("DROP OWNED BY surface_trainer; DROP ROLE surface_trainer");
}
