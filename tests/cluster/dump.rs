//! Dump and restore of everything that is configuration: models, bridges, profiles, gates.

use crate::bridges::{FILE, LITTLE};
use crate::support::{Cluster, Sql, program, run};
use std::process::Command;

fn tool(cluster: &Cluster, name: &str, user: &str) -> Command {
    let mut command = program(name);
    command.arg("-h").arg(cluster.folder()).args(["-p", "5432", "-U", user]);
    command
}

/// What the four tables hold, but for whose it is.
const CONTENT: &str = "SELECT string_agg(line, E'\\n' ORDER BY line) FROM (
    SELECT 'model ' || name || ' ' || path || ' ' || fingerprint || ' ' || dimensions || ' ' || coalesce(calibration::text, '') FROM situ_internal.model_registry
    UNION ALL SELECT 'bridge ' || name || ' ' || kind || ' ' || state || ' ' || hash || ' ' || md5(weights) || ' ' || figures FROM situ.bridges
    UNION ALL SELECT 'profile ' || index || ' ' || name || ' ' || options || ' ' || measure FROM situ.profiles
    UNION ALL SELECT 'gate ' || index || ' ' || gate FROM situ.feedback_gates) all_of_it(line)";

/// Whose it is.
const OWNERS: &str = "SELECT string_agg(line, ', ' ORDER BY line) FROM (
    SELECT 'model ' || name || ' ' || owner::text FROM situ_internal.model_registry
    UNION ALL SELECT 'bridge ' || name || ' ' || owner::text FROM situ.bridges
    UNION ALL SELECT 'profile ' || name || ' ' || tuned_by::text FROM situ.profiles
    UNION ALL SELECT 'gate ' || tuned_by::text FROM situ.feedback_gates) all_of_it(line)";

#[test]
fn the_owner_of_a_database_dumps_and_restores_its_configuration_whoever_has_which_oid() {
    let (from, to) = (Cluster::new(), Cluster::new());
    let mut admin = from.connect("postgres");
    admin.run("CREATE ROLE keeper LOGIN; CREATE ROLE \"Writer 1\"; CREATE ROLE departed; CREATE ROLE stays_behind");
    let mut admin = from.text_database("shop");
    admin.run("ALTER DATABASE shop OWNER TO keeper");
    admin.run(LITTLE);
    admin.run(FILE);
    admin.run(
        "ALTER FUNCTION adapter_file OWNER TO keeper; ALTER FUNCTION int8send_le OWNER TO keeper;
         GRANT EXECUTE ON FUNCTION situ.import_bridge TO \"Writer 1\", departed, stays_behind;
         SET ROLE \"Writer 1\"; SELECT situ.import_bridge('words', adapter_file(), model => 'minilm'); RESET ROLE;
         SET ROLE departed; SELECT situ.import_bridge('old', adapter_file(), model => 'minilm'); RESET ROLE;
         SET ROLE stays_behind; SELECT situ.import_bridge('left', adapter_file(', \"accepted\": false'), model => 'minilm'); RESET ROLE;
         SET ROLE keeper;
         CREATE TABLE docs (id int PRIMARY KEY, body text);
         INSERT INTO docs VALUES (1, 'Salt is mined in the hills.'), (2, 'Reeds are cut in the winter.');
         CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm');
         RESET ROLE;
         INSERT INTO situ.profiles (index, name, options, measure, figures, tuned_by)
             VALUES ('public.docs_body', 'with', '{\"bridge\": \"words\"}', 'map', '{}', 'departed');
         INSERT INTO situ.feedback_gates (index, gate, figures, tuned_by) VALUES ('public.docs_body', '{}', '{}', 'keeper');
         REVOKE ALL ON FUNCTION situ.import_bridge FROM departed;
         DROP ROLE departed",
    );
    let content: String = admin.one(CONTENT);
    let owners: String = admin.one(OWNERS);
    assert_eq!(
        owners,
        "bridge left stays_behind, bridge old -, bridge words \"Writer 1\", gate keeper, model minilm postgres, profile with -"
    );
    let search =
        "SELECT string_agg(passage, ' ') FROM situ.search('docs_body', situ.query('salt', profile => 'with'), k => 10)";
    let found: String = admin.one(search);

    // Roles of the same names with other oids, some of which had other names there.
    let mut other = to.connect("postgres");
    other.run("CREATE ROLE a; CREATE ROLE b; CREATE ROLE \"Writer 1\"; CREATE ROLE c; CREATE ROLE keeper LOGIN; CREATE ROLE d");
    drop(to.database("shop"));
    other.run("ALTER DATABASE shop OWNER TO keeper");
    let file = from.folder().join("shop.dump");
    run(tool(&from, "pg_dump", "keeper")
        .args(["-Fc", "-f"])
        .arg(&file)
        .arg("shop"));
    // The extension is a superuser's, who made it; its comment is not the owner's of the database to set.
    run(tool(&to, "pg_restore", "keeper")
        .args(["-e", "--no-comments", "--no-privileges", "-d", "shop"])
        .arg(&file));
    let mut restored = to.connect("shop");
    assert_eq!(restored.one::<String>(CONTENT), content);
    assert_eq!(
        restored.one::<String>(OWNERS),
        "bridge left keeper, bridge old keeper, bridge words \"Writer 1\", gate keeper, model minilm postgres, profile with keeper"
    );
    assert_eq!(restored.one::<String>(search), found);
    restored.run("SET ROLE \"Writer 1\"; SELECT situ.drop_bridge('words'); RESET ROLE");
    restored.run("SET ROLE d");
    let failure = restored.failure("SELECT situ.drop_bridge('old')");
    assert_eq!(failure.code, "42501", "{failure:#?}");
}

#[test]
fn what_a_dropped_role_owned_is_nobodys() {
    let cluster = Cluster::new();
    let mut admin = cluster.text_database("gone");
    admin.run(LITTLE);
    admin.run(FILE);
    admin.run(
        "CREATE ROLE gone; CREATE ROLE here;
         GRANT EXECUTE ON FUNCTION situ.import_bridge TO gone;
         SET ROLE gone; SELECT situ.import_bridge('orphan', adapter_file(), model => 'minilm'); RESET ROLE;
         REVOKE ALL ON FUNCTION situ.import_bridge FROM gone; DROP ROLE gone; CREATE ROLE gone",
    );
    assert_eq!(
        admin.one::<String>("SELECT owner::text FROM situ.bridges"),
        "-",
        "the new role of that name is another"
    );
    for role in ["gone", "here"] {
        admin.run(&format!("SET ROLE {role}"));
        assert_eq!(admin.failure("SELECT situ.drop_bridge('orphan')").code, "42501");
        admin.run("RESET ROLE");
    }
    admin.run("SELECT situ.drop_bridge('orphan')");
    // In and out, whatever a name holds.
    admin.run("CREATE ROLE \"-\"; CREATE ROLE \"a \"\"b.c\"");
    for (written, read) in [
        ("postgres", "postgres"),
        ("POSTGRES", "postgres"),
        (r#""-""#, r#""-""#),
        (r#""a ""b.c""#, r#""a ""b.c""#),
        ("-", "postgres"),
        ("16384", "postgres"),
        ("nobody_of_that_name", "postgres"),
        ("a.b", "postgres"),
        (r#""unclosed"#, "postgres"),
        ("", "postgres"),
    ] {
        assert_eq!(
            admin.one::<String>(&format!("SELECT '{written}'::situ.role::text")),
            read,
            "{written}"
        );
    }
}
