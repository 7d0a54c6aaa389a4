//! Models that read a chunk in its context (`situate = 'residual'`): both published forms as small random models, indexed,
//! searched and changed through a server, against the same scores by hand.

use crate::families::{Sizes, qwen3};
use crate::maker::Maker;
use crate::support::{Cluster, Sql, shared};
use postgres::Client;
use serde_json::json;

/// Copies a made directory into the cluster's models.
fn place(cluster: &Cluster, maker: &Maker, name: &str) {
    copy(cluster, maker.write().path(), &format!("models/{name}"));
}

fn copy(cluster: &Cluster, from: &std::path::Path, to: &str) {
    for entry in std::fs::read_dir(from).expect("a folder of a made model") {
        let path = entry.expect("an entry of it").path();
        let to = format!("{to}/{}", path.file_name().expect("a name").to_string_lossy());
        match path.is_dir() {
            true => copy(cluster, &path, &to),
            false => cluster.write(&to, std::fs::read(&path).expect("the file can be read")),
        }
    }
}

/// One causal encoder that is read out twice.
fn mix(cluster: &Cluster) {
    place(cluster, &qwen3(Sizes::SMALL), "mix");
    let template = json!({"form": "mix", "separator": "<|endoftext|>", "instruction": "Context: ", "window_chunks": 2});
    cluster.write("models/mix/situated.json", template.to_string());
}

/// Two encoders that are added.
fn sum(cluster: &Cluster) {
    let mut second = Maker::new();
    let tensors = second.tensors.values_mut();
    tensors.for_each(|(_, numbers)| numbers.iter_mut().for_each(|x| *x *= 0.9));
    place(cluster, &Maker::new(), "sum");
    place(cluster, &second, "sum/situated");
    let template = json!({"form": "sum", "separator": "[SEP]", "window_chunks": 16});
    cluster.write("models/sum/situated.json", template.to_string());
}

const QUESTIONS: [&str; 4] = ["red green", "blue", "a red blue", "green green a"];

/// Every question's best row, its distance and its score are those of the chunks compared by hand.
fn compare(client: &mut Client, model: &str) {
    for question in QUESTIONS {
        let search = format!(
            "SELECT d.id, h.distance, h.score FROM situ.search('docs_body', '{question}', k => 100) h
               JOIN docs d ON d.ctid = h.ctid ORDER BY h.distance"
        );
        let by_hand = format!(
            "SELECT id, min(embedding <#> situ.embed('{question}', '{model}', 'query'))
               FROM docs, situ.situate(body, '{model}', mode => 'residual', chunk_tokens => 8) GROUP BY id ORDER BY 2"
        );
        let found = client.query(&search, &[]).expect("rows of a search");
        let expected = client.query(&by_hand, &[]).expect("rows by hand");
        assert_eq!(found.len(), expected.len(), "{model} {question}");
        for (found, expected) in found.iter().zip(&expected) {
            let (distance, score, by_hand): (f64, f64, f64) = (found.get(1), found.get(2), expected.get(1));
            let close = |a: f64, b: f64| (a - b).abs() < 1e-4 * (1.0 + b.abs());
            assert!(
                close(distance, by_hand),
                "{model} {question}: {distance}, by hand {by_hand}"
            );
            assert_eq!(score, -distance, "{model} {question}: the score is the inner product");
        }
        // The operator says the same where no index is scanned.
        client.run("SET enable_indexscan = off");
        let operator = format!("SELECT id, body <=> '{question}' FROM docs ORDER BY 2");
        let evaluated = client.query(&operator, &[]).expect("rows of the operator");
        client.run("RESET enable_indexscan");
        assert_eq!(evaluated.len(), expected.len(), "{model} {question}");
        for (evaluated, expected) in evaluated.iter().zip(&expected) {
            let (distance, by_hand): (f64, f64) = (evaluated.get(1), expected.get(1));
            assert!(
                (distance - by_hand).abs() < 1e-4 * (1.0 + by_hand.abs()),
                "{model} {question}: the operator says {distance}, by hand {by_hand}"
            );
        }
    }
}

#[test]
fn both_forms_are_indexed_searched_and_changed() {
    let cluster = shared();
    mix(cluster);
    sum(cluster);
    let mut client = cluster.database("residual");
    for model in ["mix", "sum"] {
        client.run(&format!("SELECT situ.register_model('{model}', '{model}')"));
        client.run("DROP TABLE IF EXISTS docs; CREATE TABLE docs (id bigint, body text)");
        client.run(
            "INSERT INTO docs VALUES (1, 'red red green. blue a red green. a a blue red green. green blue a.'),
                 (2, 'blue blue a. a green.'), (3, 'green.'), (4, 'a blue red. red a blue. blue red a. green red. a a a.')",
        );
        client.run(&format!(
            "CREATE INDEX docs_body ON docs USING situ (body) WITH (model = '{model}', situate = 'residual', chunk_tokens = 8)"
        ));
        let chunks: i64 = client.one("SELECT chunks FROM situ.stat_index");
        assert!(chunks > 4, "{model}: {chunks} chunks");
        let metric: String = client.one("SELECT metric FROM situ.stat_index");
        assert_eq!(metric, "innerproduct", "{model}");
        compare(&mut client, model);
        client.run("UPDATE docs SET body = 'a blue a. red red red green. ' || body WHERE id = 2");
        client.run("INSERT INTO docs VALUES (5, 'red blue green a. a green blue red.')");
        compare(&mut client, model);
    }
}
