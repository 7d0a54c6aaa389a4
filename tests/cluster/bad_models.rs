//! Model directories that are not what they should be: the registration fails and says which file is wrong.

use crate::support::{Cluster, Sql, shared};

/// A copy of the test model under `name`, with one file replaced (or removed).
fn spoilt(cluster: &Cluster, name: &str, file: &str, content: Option<&[u8]>) {
    cluster.copy_model("minilm", name);
    let path = format!("models/{name}/{file}");
    cluster.remove(&path);
    if let Some(content) = content {
        cluster.write(&path, content);
    }
}

fn original(cluster: &Cluster, file: &str) -> Vec<u8> {
    std::fs::read(cluster.folder().join("models/minilm").join(file)).expect("a file of the model")
}

#[test]
fn missing_and_damaged_files_are_named() {
    let cluster = shared();
    let mut client = cluster.database("bad_model_files");
    let config = String::from_utf8(original(cluster, "config.json")).expect("JSON");
    let weights = original(cluster, "model.safetensors");
    let wider = config.replace("\"hidden_size\": 384", "\"hidden_size\": 768");
    let longer = config.replace("\"num_hidden_layers\": 6", "\"num_hidden_layers\": 7");
    let foreign = config.replace("\"model_type\": \"bert\"", "\"model_type\": \"t5\"");
    assert!(
        wider != config && longer != config && foreign != config,
        "config.json is not as expected: {config}"
    );

    let cases: [(&str, &str, Option<&[u8]>, &str); 9] = [
        ("no_weights", "model.safetensors", None, "safetensors"),
        ("no_config", "config.json", None, "config.json"),
        ("no_tokenizer", "tokenizer.json", None, "tokenizer.json"),
        (
            "truncated",
            "model.safetensors",
            Some(&weights[..weights.len() / 2]),
            "safetensors",
        ),
        (
            "no_header",
            "model.safetensors",
            Some(b"not weights at all"),
            "safetensors",
        ),
        ("bad_config", "config.json", Some(b"{ not json"), "config.json"),
        ("wider", "config.json", Some(wider.as_bytes()), "384"),
        ("longer", "config.json", Some(longer.as_bytes()), "layer.6"),
        ("foreign", "config.json", Some(foreign.as_bytes()), "t5"),
    ];
    for (name, file, content, part) in cases {
        spoilt(cluster, name, file, content);
        let failure = client.failure(&format!("SELECT situ.register_model('{name}', '{name}')"));
        let all = format!("{} {}", failure.message, failure.detail);
        assert!(all.contains(part), "{name}: does not say {part}: {failure:#?}");
        assert!(
            ["58P01", "22000", "0A000", "F0000", "XX001"].contains(&failure.code.as_str()),
            "{name}: {failure:#?}"
        );
        assert!(!failure.hint.is_empty(), "{name} has no hint: {failure:#?}");
        assert_eq!(
            client.one::<i64>("SELECT count(*) FROM situ.models"),
            0,
            "{name} was registered"
        );
        cluster.remove(&format!("models/{name}"));
    }
    client.run("SELECT situ.register_model('minilm', 'minilm')");
    assert_eq!(
        client.one::<i32>("SELECT vector_dims(situ.embed('it still works', 'minilm'))"),
        384
    );
}

#[test]
fn a_path_outside_the_model_directory_is_refused() {
    let cluster = shared();
    let mut client = cluster.database("bad_model_path");
    cluster.copy_model("minilm", "../elsewhere");
    let absolute = format!("{}/elsewhere", cluster.folder().display());
    for path in ["../elsewhere", "minilm/../../elsewhere", absolute.as_str(), "/etc"] {
        let failure = client.failure(&format!("SELECT situ.register_model('outside', '{path}')"));
        assert!(
            ["22023", "42501"].contains(&failure.code.as_str()),
            "{path}: {failure:#?}"
        );
        assert!(
            format!("{}{}{}", failure.message, failure.detail, failure.hint).contains("model_dir"),
            "{path}: {failure:#?}"
        );
        assert!(!failure.hint.is_empty(), "{path} has no hint: {failure:#?}");
    }
    // A link inside the directory that leads outside is outside.
    std::os::unix::fs::symlink("../elsewhere", cluster.folder().join("models/link")).expect("a link");
    let failure = client.failure("SELECT situ.register_model('outside', 'link')");
    assert!(["22023", "42501"].contains(&failure.code.as_str()), "{failure:#?}");
    client
        .failure("SELECT situ.register_model('outside', 'not_there')")
        .is("58P01", "not_there");
    client
        .failure("SELECT situ.register_model('', 'minilm')")
        .is("22023", "name");
}

#[test]
fn a_name_is_not_taken_twice_without_saying_so() {
    let cluster = shared();
    let mut client = cluster.text_database("bad_model_twice");
    cluster.copy_model("minilm", "other");
    cluster.remove("models/other/1_Pooling/config.json");
    cluster.write(
        "models/other/1_Pooling/config.json",
        r#"{"word_embedding_dimension": 384, "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#,
    );
    client
        .failure("SELECT situ.register_model('minilm', 'other')")
        .is("42710", "minilm");
    client.run("SELECT situ.register_model('minilm', 'other', replace => true)");
    let pooling: String = client.one("SELECT pooling FROM situ.models");
    assert_eq!(pooling, "cls");
    client.run("SELECT situ.drop_model('minilm')");
    assert_eq!(client.failure("SELECT situ.embed('text', 'minilm')").code, "42704");
}

#[test]
fn files_that_change_under_a_registered_model_are_an_error() {
    let cluster = Cluster::new();
    let mut client = cluster.text_database("files_change");
    client.run("SELECT situ.embed('text', 'minilm')");
    cluster.remove("models/minilm/1_Pooling/config.json");
    cluster.write(
        "models/minilm/1_Pooling/config.json",
        r#"{"word_embedding_dimension": 384, "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#,
    );
    // What is in memory is what was registered; a load, after an unload or in a new worker, finds other files.
    client.run("SELECT situ.embed('text', 'minilm')");
    client.run("SELECT situ.unload_model('minilm')");
    for statement in [
        "SELECT situ.embed('text', 'minilm')",
        "SELECT situ.load_model('minilm')",
        "SELECT situ.calibrate_model('minilm')",
    ] {
        let failure = client.failure(statement);
        assert!(!failure.hint.is_empty() && failure.code == "55000", "{failure:#?}");
    }
    cluster.restart();
    let mut client = cluster.connect("files_change");
    let failure = client.failure("SELECT situ.embed('text', 'minilm')");
    assert!(!failure.hint.is_empty() && failure.code == "55000", "{failure:#?}");
}
