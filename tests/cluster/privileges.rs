//! Who may see what: privileges, row security, functions that are not for everybody.

use crate::data::{SUBJECTS, document_table};
use crate::support::{Cluster, Sql, shared};
use postgres::Client;

fn roles(cluster: &Cluster, names: &[&str]) {
    let mut admin = cluster.connect("postgres");
    for name in names {
        admin.run(&format!("DROP ROLE IF EXISTS {name}; CREATE ROLE {name} LOGIN"));
    }
}

fn documents(name: &str) -> Client {
    let mut client = shared().text_database(name);
    document_table(&mut client);
    client.run("CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm')");
    client
}

const SEARCH: &str = "SELECT passage FROM situ.search('docs_body', 'What makes bread dough rise?', k => 5)";

#[test]
fn search_needs_the_right_to_read_the_table() {
    roles(shared(), &["reader", "stranger"]);
    let mut owner = documents("privileges_table");
    owner.run("GRANT SELECT ON docs TO reader");
    let mut stranger = shared().connect_as("stranger", "privileges_table");
    let failure = stranger.failure(SEARCH);
    assert_eq!(failure.code, "42501", "{failure:#?}");
    let mut reader = shared().connect_as("reader", "privileges_table");
    assert_eq!(reader.column::<String>(SEARCH).len(), 5);
}

#[test]
fn row_security_decides_what_search_returns_and_k_is_still_filled() {
    roles(shared(), &["tenant"]);
    let mut owner = documents("privileges_rows");
    owner.run(
        "GRANT SELECT ON docs TO tenant; ALTER TABLE docs ENABLE ROW LEVEL SECURITY;
         CREATE POLICY even ON docs TO tenant USING (id % 2 = 0)",
    );
    let mut tenant = shared().connect_as("tenant", "privileges_rows");
    let search = "SELECT d.id FROM situ.search('docs_body', 'What makes bread dough rise?', k => 5) h JOIN docs d ON d.ctid = h.ctid";
    let ids: Vec<i64> = tenant.column(search);
    assert!(ids.len() == 5 && ids.iter().all(|id| id % 2 == 0), "{ids:?}");
    let passages: Vec<String> =
        tenant.column("SELECT passage FROM situ.search('docs_body', 'What makes bread dough rise?', k => 100)");
    assert_eq!(passages.len(), SUBJECTS.len() / 2);
    assert!(
        !passages.iter().any(|passage| passage.contains("Yeast")),
        "a hidden row's text came out"
    );
    let all = "SELECT count(*) FROM situ.search('docs_body', 'bread', k => 100)";
    assert_eq!(owner.one::<i64>(all), SUBJECTS.len() as i64, "the owner sees all rows");
}

#[test]
fn a_security_definer_function_searches_as_its_owner() {
    roles(shared(), &["caller"]);
    let mut owner = documents("privileges_definer");
    owner.run(
        "CREATE FUNCTION ask(question text) RETURNS SETOF text LANGUAGE sql SECURITY DEFINER SET search_path = public
           AS $$ SELECT passage FROM situ.search('docs_body', question, k => 1) $$",
    );
    let mut caller = shared().connect_as("caller", "privileges_definer");
    let answer: String = caller.one("SELECT ask('What makes bread dough rise?')");
    assert!(answer.contains("Yeast"));
}

#[test]
fn functions_that_read_files_are_not_for_everybody() {
    roles(shared(), &["anybody"]);
    let mut client = documents("privileges_functions");
    client.run("GRANT ALL ON SCHEMA public TO anybody");
    let mut anybody = shared().connect_as("anybody", "privileges_functions");
    for statement in [
        "SELECT situ.register_model('mine', 'minilm')",
        "SELECT situ.drop_model('minilm')",
    ] {
        let failure = anybody.failure(statement);
        assert_eq!(failure.code, "42501", "{statement}: {failure:#?}");
    }
    assert_eq!(
        anybody.one::<i32>("SELECT vector_dims(situ.embed('a text', 'minilm'))"),
        384
    );
    assert_eq!(anybody.one::<i64>("SELECT count(*) FROM situ.models"), 1);
    anybody.run("CREATE TABLE own (body text); INSERT INTO own VALUES ('Some text.')");
    anybody.run("CREATE INDEX own_body ON own USING situ (body) WITH (model = 'minilm')");
    assert_eq!(
        anybody.one::<i64>("SELECT count(*) FROM situ.search('own_body', 'text', k => 3)"),
        1
    );
}
