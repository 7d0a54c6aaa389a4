//! Models and bridges that indexes were built with are not dropped from under them.

use crate::support::{Sql, shared};

#[test]
fn a_model_that_indexes_use_is_not_dropped() {
    let cluster = shared();
    let mut client = cluster.text_database("drop_model");
    client.run(
        "SELECT situ.register_model('second', 'minilm'); SELECT situ.register_model('third', 'minilm');
         CREATE TABLE docs (id bigint, body text); INSERT INTO docs VALUES (1, 'A text.');
         CREATE TABLE parts (id bigint, body text) PARTITION BY RANGE (id)",
    );
    client.run(
        "SET situ.default_model = 'second'; CREATE INDEX by_default ON docs USING situ (body); RESET situ.default_model;
         CREATE INDEX by_name ON docs USING situ (body) WITH (model = 'minilm');
         CREATE INDEX of_parts ON parts USING situ (body) WITH (model = 'third')",
    );
    for (model, index) in [("second", "by_default"), ("minilm", "by_name"), ("third", "of_parts")] {
        let failure = client.failure(&format!("SELECT situ.drop_model('{model}')"));
        failure.is("2BP01", model);
        assert!(failure.detail.contains(&format!("public.{index}")), "{failure:#?}");
    }
    client.run("INSERT INTO docs VALUES (2, 'Another text.'); TRUNCATE docs");
    client.run("DROP INDEX by_default; SELECT situ.drop_model('second')");
    client.run("DROP INDEX of_parts; SELECT situ.drop_model('third')");
}

#[test]
fn a_drop_waits_for_a_build_that_takes_the_model() {
    let cluster = shared();
    let mut client = cluster.text_database("drop_model_race");
    client.run("CREATE TABLE docs (id bigint, body text); INSERT INTO docs VALUES (1, 'A text.')");
    client.run("BEGIN; CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm')");
    let dropper = std::thread::spawn(|| {
        let mut second = shared().connect("drop_model_race");
        second.failure("SELECT situ.drop_model('minilm')").code
    });
    crate::support::eventually("the drop waits", 60, || {
        client.one::<bool>("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
    });
    client.run("COMMIT");
    assert_eq!(dropper.join().expect("the second session"), "2BP01");
    let found: i64 = client.one("SELECT count(*) FROM situ.search('docs_body', 'text')");
    assert_eq!(found, 1);
}
