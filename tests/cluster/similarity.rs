//! How a model's vectors are compared is what its files say: indexes, scores and the operator outside of an index.

use crate::maker::Maker;
use crate::support::{Cluster, Sql, shared};
use postgres::Client;
use serde_json::json;

/// The same weights three times, whose files say: nothing and no module, `dot`, and nothing but the modules.
fn models(cluster: &Cluster) {
    let maker = Maker::new();
    let dir = maker.write();
    for name in ["bare", "dot", "listed", "euclidean"] {
        for file in [
            "config.json",
            "tokenizer.json",
            "model.safetensors",
            "modules.json",
            "1_Pooling/config.json",
        ] {
            if (name, file) != ("bare", "modules.json") {
                let bytes = std::fs::read(dir.path().join(file)).expect("a made file can be read");
                cluster.write(&format!("models/similarity/{name}/{file}"), bytes);
            }
        }
    }
    for name in ["dot", "euclidean"] {
        let says = json!({"similarity_fn_name": name}).to_string();
        cluster.write(
            &format!("models/similarity/{name}/config_sentence_transformers.json"),
            says,
        );
    }
}

fn documents(client: &mut Client) {
    client.run(
        "CREATE TABLE docs (id int PRIMARY KEY, title text, body text);
         INSERT INTO docs VALUES (1, 'red', 'red red green. blue a red green.'), (2, 'a', 'blue blue a. a green.'),
             (3, NULL, 'green.'), (4, 'green', 'a blue red. red a blue. blue red a. green red. a a a.'), (5, NULL, 'query: red')",
    );
}

fn close(one: f64, other: f64) -> bool {
    (one - other).abs() < 1e-4 * (1.0 + other.abs())
}

/// Ids and distances, of which there is one a row.
fn distances(client: &mut Client, sql: &str) -> Vec<(i32, f64)> {
    let rows = client
        .query(sql, &[])
        .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

fn same(found: &[(i32, f64)], expected: &[(i32, f64)], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for ((id, distance), (expected_id, expected)) in found.iter().zip(expected) {
        assert!(
            id == expected_id && close(*distance, *expected),
            "{what}: row {id} at {distance}, by hand {expected_id} at {expected}"
        );
    }
}

/// The nearest chunk of each document under pgvector's operator, by hand; in order of distance.
fn by_hand(client: &mut Client, model: &str, operator: &str, question: &str) -> Vec<(i32, f64)> {
    distances(
        client,
        &format!(
            "SELECT id, min(embedding {operator} situ.embed('{question}', '{model}', 'query'))
               FROM docs, situ.situate(body, '{model}', mode => 'none', chunk_tokens => 8) GROUP BY id ORDER BY 2, 1"
        ),
    )
}

#[test]
fn a_model_s_files_say_how_an_index_compares() {
    let cluster = shared();
    models(cluster);
    let mut client = cluster.database("similarity");
    documents(&mut client);
    for (model, similarity, metric, operator) in [
        ("bare", "dot", "innerproduct", "<#>"),
        ("dot", "dot", "innerproduct", "<#>"),
        ("listed", "cosine", "cosine", "<=>"),
    ] {
        client.run(&format!("SELECT situ.register_model('{model}', 'similarity/{model}')"));
        let says: String = client.one(&format!("SELECT similarity FROM situ.models WHERE name = '{model}'"));
        assert_eq!(says, similarity, "{model}");
        client.run("DROP INDEX IF EXISTS docs_body");
        client.run(&format!(
            "CREATE INDEX docs_body ON docs USING situ (body) WITH (model = '{model}', chunk_tokens = 8)"
        ));
        assert_eq!(
            client.one::<String>("SELECT metric FROM situ.stat_index"),
            metric,
            "{model}"
        );
        for question in ["red green", "blue", "a red blue"] {
            let expected = by_hand(&mut client, model, operator, question);
            assert_eq!(expected.len(), 5);
            let search = format!(
                "SELECT d.id, h.distance FROM situ.search('docs_body', '{question}', k => 10) h
                   JOIN docs d ON d.ctid = h.ctid ORDER BY 2, 1"
            );
            same(&distances(&mut client, &search), &expected, &format!("{model}, search"));
            let score =
                "SELECT bool_and(abs(score - CASE metric WHEN 'cosine' THEN 1 - distance ELSE -distance END) < 1e-9)
                           FROM situ.stat_index, situ.search('docs_body', 'red green', k => 10)";
            assert!(client.one::<bool>(score), "{model}: the score is the similarity");
            let operator = format!("SELECT id, body <=> '{question}' FROM docs ORDER BY 2, 1");
            for scan in ["on", "off"] {
                client.run(&format!("SET enable_indexscan = {scan}; SET enable_seqscan = on"));
                let what = format!("{model}, the operator, index scans {scan}");
                same(&distances(&mut client, &operator), &expected, &what);
            }
            // Without an index, by the model that the question names.
            let named =
                format!("SELECT id, body <=> situ.query('{question}', model => '{model}') FROM docs ORDER BY 2, 1");
            client.run("BEGIN; DROP INDEX docs_body");
            let alone = distances(&mut client, &named);
            client.run("ROLLBACK; RESET enable_indexscan");
            assert_eq!(alone.len(), 5);
            assert!(
                alone
                    .iter()
                    .all(|(_, distance)| (*distance < 0.0) == (metric != "cosine")),
                "{model}: {alone:?}"
            );
        }
    }
}

#[test]
fn vectors_of_length_one_are_under_cosine() {
    let cluster = shared();
    models(cluster);
    let mut client = cluster.database("similarity_modes");
    documents(&mut client);
    client.run("SELECT situ.register_model('dot', 'similarity/dot')");
    for (options, metric) in [
        ("situate = 'late', chunk_tokens = 8", "cosine"),
        ("situate = 'header', chunk_tokens = 8", "innerproduct"),
    ] {
        client.run("DROP INDEX IF EXISTS docs_body");
        client.run(&format!(
            "CREATE INDEX docs_body ON docs USING situ (body, title situ_title_ops) WITH (model = 'dot', {options})"
        ));
        assert_eq!(
            client.one::<String>("SELECT metric FROM situ.stat_index"),
            metric,
            "{options}"
        );
        let search = "SELECT d.id, h.distance FROM situ.search('docs_body', 'red green', k => 10) h
                        JOIN docs d ON d.ctid = h.ctid ORDER BY 2, 1";
        let expected = distances(&mut client, search);
        assert_eq!(expected.len(), 5);
        client.run("SET enable_indexscan = off");
        let operator = "SELECT id, body <=> 'red green' FROM docs ORDER BY 2, 1";
        same(&distances(&mut client, operator), &expected, options);
        client.run("RESET enable_indexscan");
    }
}

#[test]
fn a_function_that_is_not_known_is_refused() {
    let cluster = shared();
    models(cluster);
    let mut client = cluster.database("similarity_refused");
    let error = client.failure("SELECT situ.register_model('euclidean', 'similarity/euclidean')");
    assert_eq!(error.code, "0A000", "{error:?}");
    assert!(error.message.contains("euclidean"), "{error:?}");
}
