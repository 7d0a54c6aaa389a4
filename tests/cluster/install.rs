//! Where the extension can be installed: encodings, and schemas named `situ` that are there before.

use crate::support::{Cluster, Sql, program, run, shared};
use postgres::Client;

#[test]
fn databases_that_are_not_utf8_are_refused_when_the_extension_is_installed() {
    let cluster = shared();
    for encoding in ["LATIN1", "SQL_ASCII", "EUC_JP"] {
        let name = format!("install_{}", encoding.to_lowercase());
        let mut admin = cluster.connect("postgres");
        admin.run(&format!("DROP DATABASE IF EXISTS {name}"));
        admin.run(&format!(
            "CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        ));
        let mut client = cluster.connect(&name);
        client
            .failure("CREATE EXTENSION situ CASCADE")
            .is("0A000", &format!("this one is in {encoding}"));
        client.run("SELECT 1");
    }
}

/// A cluster with a role `other`, and a database without the extension.
fn bare() -> (Cluster, Client) {
    let cluster = Cluster::new();
    let mut client = cluster.bare_database("bare");
    client.run("CREATE ROLE other; GRANT CREATE ON DATABASE bare TO other");
    (cluster, client)
}

#[test]
fn a_schema_that_others_own_or_filled_is_not_taken_over() {
    let (_cluster, mut client) = bare();
    for before in [
        "CREATE SCHEMA situ AUTHORIZATION other",
        "CREATE SCHEMA situ; GRANT CREATE ON SCHEMA situ TO other",
        "CREATE SCHEMA situ; GRANT CREATE ON SCHEMA situ TO PUBLIC",
        "CREATE SCHEMA situ; CREATE TABLE situ.mine (id int)",
        "CREATE SCHEMA situ; CREATE FUNCTION situ.embed(text) RETURNS text LANGUAGE sql AS 'SELECT $1'",
        "CREATE SCHEMA situ; CREATE TYPE situ.kind AS ENUM ('a')",
        "CREATE SCHEMA situ; CREATE OPERATOR situ.= (LEFTARG = text, RIGHTARG = text, FUNCTION = texteq)",
    ] {
        client.run(before);
        client
            .failure("CREATE EXTENSION situ CASCADE")
            .is("42P06", "schema \"situ\" already exists");
        client.run("SET client_min_messages = warning; DROP SCHEMA situ CASCADE");
    }
}

#[test]
fn an_empty_schema_of_a_superuser_is_taken_over() {
    let (cluster, mut client) = bare();
    client.run("SET client_min_messages = warning; CREATE SCHEMA situ; CREATE EXTENSION situ CASCADE");
    client.run("SELECT situ.register_model('minilm', 'minilm')");
    let member = "SELECT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_namespace'::regclass AND objid = 'situ'::regnamespace AND deptype = 'e')";
    assert!(client.one::<bool>(member));
    client.run("CREATE ROLE plain LOGIN");
    assert!(
        cluster
            .connect_as("plain", "bare")
            .one::<bool>("SELECT situ.embed('tides') IS NOT NULL"),
        "everybody may use it"
    );
    client.run("DROP EXTENSION situ");
    assert_eq!(
        client.one::<i64>("SELECT count(*) FROM pg_namespace WHERE nspname = 'situ'"),
        0
    );
    client.run("CREATE EXTENSION situ");

    // All of it in that schema, and a dump of that.
    client.run("DROP EXTENSION situ, vector; CREATE SCHEMA situ; CREATE EXTENSION situ SCHEMA situ CASCADE");
    client.run(
        "SELECT situ.register_model('minilm', 'minilm');
         CREATE TABLE docs (id int, body text);
         INSERT INTO docs VALUES (1, 'Salt is mined in the hills.'), (2, 'Reeds are cut in the winter.');
         CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm')",
    );
    let search = "SELECT passage FROM situ.search('docs_body', 'Where does salt come from?', 1)";
    assert_eq!(client.one::<String>(search), "Salt is mined in the hills.");
    let file = cluster.folder().join("bare.sql");
    let tool = |name: &str| {
        let mut command = program(name);
        command
            .arg("-h")
            .arg(cluster.folder())
            .args(["-p", "5432", "-U", "postgres"]);
        command
    };
    run(tool("pg_dump").arg("-f").arg(&file).arg("bare"));
    let mut again = cluster.bare_database("again");
    run(tool("psql")
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", "again", "-f"])
        .arg(&file));
    assert_eq!(again.one::<String>(search), "Salt is mined in the hills.");
}
