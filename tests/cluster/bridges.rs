//! Bridges: stored, exported, refused, used by queries, trained from rows.

use crate::support::{Sql, eventually, shared};

/// A safetensors file with an adapter over 384 numbers that doubles the first one and keeps the others.
pub const FILE: &str = "CREATE FUNCTION adapter_file(more text DEFAULT '') RETURNS bytea LANGUAGE sql AS $$
    SELECT public.int8send_le(length(header)) || convert_to(header, 'UTF8') || decode('0000803f', 'hex')
           || decode(repeat('00', 384 * 384 * 4 - 4), 'hex')
      FROM (SELECT json_build_object('__metadata__', json_build_object('situ', '{\"kind\": \"adapter\", \"dimensions\": 384' || more || '}'),
              'map', json_build_object('dtype', 'F32', 'shape', '[384,384]'::json, 'data_offsets', '[0,589824]'::json))::text) h(header) $$";
/// Eight bytes, least first.
pub const LITTLE: &str = "CREATE FUNCTION int8send_le(number bigint) RETURNS bytea LANGUAGE sql AS $$
    SELECT decode(string_agg(lpad(to_hex((number >> (8 * place)) & 255), 2, '0'), '' ORDER BY place), 'hex')
      FROM generate_series(0, 7) place $$";

#[test]
fn a_bridge_is_imported_used_exported_and_dropped() {
    let mut client = shared().text_database("bridges_import");
    client.run(LITTLE);
    client.run(FILE);
    assert_eq!(
        client.one::<String>("SELECT situ.import_bridge('double', adapter_file(), model => 'minilm')"),
        "adapter"
    );
    assert!(client.one::<bool>("SELECT situ.export_bridge('double') = adapter_file()"));
    let first = "((situ.embed('tides', 'minilm', 'query'))::real[])[1]";
    let expected = format!("2 * {first} / sqrt(1 + 3 * {first} ^ 2)");
    let twice = "SELECT situ.apply_bridge('double', situ.apply_bridge('double', situ.embed('tides', 'minilm', 'query'))) <=> situ.embed('The Moon pulls the tides.', 'minilm', 'passage')";
    let mapped = "((situ.apply_bridge('double', situ.embed('tides', 'minilm', 'query')))::real[])[1]";
    let difference = client.one::<f64>(&format!("SELECT abs({mapped} - {expected})::float8"));
    assert!(difference < 1e-5, "{difference}");
    client.run(
        "CREATE TABLE facts (id int PRIMARY KEY, fact text);
         INSERT INTO facts VALUES (1, 'Yeast makes bread dough rise.'), (2, 'The Moon pulls the tides.');
         CREATE INDEX facts_fact ON facts USING situ (fact) WITH (model = 'minilm')",
    );
    let distance = "SELECT h.distance FROM situ.search('facts_fact', situ.query(text => 'tides'), k => 1) h";
    let bridged = distance.replace("'tides')", "'tides', bridge => 'double')");
    let plain = client.one::<f64>(distance);
    let truth = client.one::<f64>(
        "SELECT situ.apply_bridge('double', situ.embed('tides', 'minilm', 'query')) <=> situ.embed('The Moon pulls the tides.', 'minilm', 'passage')",
    );
    let found = client.one::<f64>(&bridged);
    assert!(
        (found - truth).abs() < 1e-4 && (found - plain).abs() > 1e-6,
        "{found} {truth} {plain}"
    );
    let both = distance.replace("'tides')", "'tides', bridges => ARRAY['double', 'double'])");
    let (found, truth) = (client.one::<f64>(&both), client.one::<f64>(twice));
    assert!((found - truth).abs() < 1e-4, "{found} {truth}");
    assert!((client.one::<f64>(&bridged) - truth).abs() > 1e-6);
    // A profile's bridges are used where the query names none.
    client.run(
        r#"INSERT INTO situ.profiles (index, name, options, measure, figures, tuned_by)
           VALUES ('public.facts_fact', 'two', '{"bridges": ["double", "double"]}', 'map', '{}', current_user::regrole)"#,
    );
    let profile = distance.replace("'tides')", "'tides', profile => 'two')");
    assert!((client.one::<f64>(&profile) - truth).abs() < 1e-4);
    let own = bridged.replace("'double')", "'double', profile => 'two')");
    assert_eq!(client.one::<f64>(&own), client.one::<f64>(&bridged));
    for wrong in [
        "bridge => 'double', bridges => ARRAY['double']",
        "bridges => ARRAY['double', NULL]",
    ] {
        let failure = client.failure(&format!("SELECT situ.query(text => 'tides', {wrong})"));
        assert_eq!(failure.code, "22023", "{failure:#?}");
    }

    for (statement, code) in [
        (
            "SELECT situ.import_bridge('double', adapter_file(), model => 'minilm')",
            "42710",
        ),
        (
            "SELECT situ.import_bridge('cut', substr(adapter_file(), 1, 1000), model => 'minilm')",
            "22000",
        ),
        (
            "SELECT situ.import_bridge('other', adapter_file(', \"fingerprint\": \"another\"'), model => 'minilm')",
            "55000",
        ),
        ("SELECT situ.export_bridge('nothing')", "42704"),
    ] {
        let failure = client.failure(statement);
        assert_eq!(failure.code, code, "{statement}: {failure:#?}");
    }
    client.run("SELECT situ.import_bridge('bad', adapter_file(', \"accepted\": false'), model => 'minilm')");
    // A bridge that was accepted by synthetic queries may be used, and keeps the name of what it was accepted by.
    client.run("SELECT situ.import_bridge('own_words', adapter_file(', \"accepted\": true, \"synthetic_queries\": true'), model => 'minilm')");
    let state = client.one::<String>("SELECT state FROM situ.bridges WHERE name = 'own_words'");
    assert_eq!(state, "accepted (synthetic queries)");
    assert_eq!(
        client.one::<f64>(&bridged.replace("'double'", "'own_words'")),
        client.one::<f64>(&bridged)
    );
    let failure = client.failure(&bridged.replace("'double'", "'bad'"));
    assert_eq!(failure.code, "55000", "{failure:#?}");
    client.run("DROP ROLE IF EXISTS bridges_other; CREATE ROLE bridges_other; GRANT USAGE ON SCHEMA situ TO bridges_other; SET ROLE bridges_other");
    for statement in [
        "SELECT situ.export_bridge('double')",
        "SELECT situ.drop_bridge('double')",
        "SELECT weights FROM situ.bridges",
        "SELECT situ.import_bridge('another', adapter_file(), model => 'minilm')",
        "SELECT situ.import_bridge('another', adapter_file(), kind => 'xrag')",
        "CALL situ.train('adapter', 'another', passages => 'facts')",
    ] {
        let failure = client.failure(statement);
        assert_eq!(failure.code, "42501", "{statement}: {failure:#?}");
    }
    client.run("RESET ROLE; GRANT EXECUTE ON FUNCTION situ.import_bridge TO bridges_other; SET ROLE bridges_other");
    client
        .failure("SELECT situ.import_bridge('double', adapter_file(), model => 'minilm', replace => true)")
        .is("42501", "must be owner of bridge");
    client
        .failure("SELECT situ.import_bridge('double', adapter_file(), model => 'minilm')")
        .is("42501", "must be owner of bridge");
    client.run("SELECT situ.import_bridge('another', adapter_file(), model => 'minilm')");
    client.run("RESET ROLE; SELECT situ.drop_bridge('double')");
    assert_eq!(client.failure(&bridged).code, "42704");
}

#[test]
fn judged_questions_overturn_what_synthetic_queries_accepted() {
    let mut client = shared().text_database("bridges_overturned");
    // Adapters that turn a query round: what is nearest comes last.
    client.run(LITTLE);
    client.run(&FILE.replace(
        "decode('0000803f', 'hex')
           || decode(repeat('00', 384 * 384 * 4 - 4), 'hex')",
        "substr(decode(repeat('000000c0' || repeat('00', 384 * 4), 384), 'hex'), 1, 384 * 384 * 4)",
    ));
    client.run(
        "CREATE TABLE facts AS SELECT n AS id, 'The ' || w || ' of the town is open on day ' || n || '.' AS fact, 'When is the ' || w || ' open?' AS text
           FROM unnest(ARRAY['bakery','museum','harbour','library','stadium','cinema','market','castle','theatre','station','school','church',
             'hospital','prison','garden','bridge']) WITH ORDINALITY w(w, n);
         ALTER TABLE facts ADD PRIMARY KEY (id);
         CREATE INDEX facts_fact ON facts USING situ (fact) WITH (model = 'minilm');
         CREATE TABLE judged AS SELECT id AS query_id, id AS document_id, 1 AS grade FROM facts;
         SELECT situ.import_bridge('given', adapter_file(', \"accepted\": true'), model => 'minilm');
         SELECT situ.import_bridge('made', adapter_file(', \"accepted\": true, \"synthetic_queries\": true'), model => 'minilm');
         DROP ROLE IF EXISTS bridges_judge; CREATE ROLE bridges_judge; GRANT USAGE ON SCHEMA situ TO bridges_judge;
         GRANT SELECT ON ALL TABLES IN SCHEMA public TO bridges_judge; ALTER TABLE facts OWNER TO bridges_judge",
    );
    let tune = "SELECT count(*) FROM situ.tune('facts_fact', 'facts', 'judged')";
    let states = "SELECT string_agg(name || ' ' || state, ', ' ORDER BY name) FROM situ.bridges";
    let search = "SELECT count(*) FROM situ.search('facts_fact', situ.query('the museum', bridge => 'made'), 3)";
    // Whoever tunes his index changes no bridge of another.
    client.run("SET ROLE bridges_judge");
    client.one::<i64>(tune);
    client.run("RESET ROLE");
    assert_eq!(
        client.one::<String>(states),
        "given accepted, made accepted (synthetic queries)"
    );
    assert_eq!(client.one::<i64>(search), 3);
    client.one::<i64>(tune);
    assert_eq!(client.one::<String>(states), "given accepted, made rejected");
    assert_eq!(client.failure(search).code, "55000");
    assert!(client.one::<bool>(
        "SELECT (figures->'judged'->>'high')::float8 < 0 AND figures->'judged'->>'measure' = 'ndcg@10' FROM situ.bridges WHERE name = 'made'"
    ));
    // The file says so as well.
    client.run("SELECT situ.import_bridge('again', situ.export_bridge('made'), model => 'minilm')");
    assert_eq!(
        client.one::<String>("SELECT state FROM situ.bridges WHERE name = 'again'"),
        "rejected"
    );
}

#[test]
fn an_adapter_is_trained_from_rows() {
    let mut client = shared().text_database("bridges_train");
    client.run(
        "CREATE TABLE passages AS SELECT n AS id, n / 4 AS document, n % 4 AS ordinal,
                'The ' || md5(n::text) || ' of house ' || n || ' has ' || (n * 7) % 100 || ' green windows.' AS body
           FROM generate_series(0, 599) n;
         CREATE TABLE pairs AS SELECT 'Which house has ' || (n * 7) % 100 || ' windows and number ' || n || '?' AS query, n AS passage
           FROM generate_series(0, 599) n",
    );
    client.run("CALL situ.train('adapter', 'houses', model => 'minilm', passages => 'passages', pairs => 'pairs', options => '{\"epochs\": 2}')");
    let row = "SELECT (figures->>'queries') || ' ' || (state = CASE WHEN (figures->'ndcg@10'->>'low')::float8 > 0 THEN 'accepted' ELSE 'rejected' END)
                 FROM situ.bridges WHERE name = 'houses'";
    assert_eq!(client.one::<String>(row), "given true");
    assert_eq!(client.failure("CALL situ.train('adapter', 'houses', passages => 'passages', pairs => 'pairs', options => '{\"epochs\": 1}')").code, "42710");
    // Synthetic queries; another role without the privilege reads nothing.
    client.run("CALL situ.train('adapter', 'made', passages => 'passages', options => '{\"epochs\": 1}')");
    assert_eq!(
        client.one::<String>("SELECT figures->>'queries' FROM situ.bridges WHERE name = 'made'"),
        "synthetic"
    );
    // The state says that nobody asked those queries, and so does the file that leaves the server.
    client.run("SELECT situ.import_bridge('again', situ.export_bridge('made'), model => 'minilm')");
    let states = "SELECT CASE WHEN (figures->'ndcg@10'->>'low')::float8 > 0 THEN 'accepted (synthetic queries)' ELSE 'rejected' END = ALL (
                    SELECT state FROM situ.bridges WHERE name IN ('made', 'again')) FROM situ.bridges WHERE name = 'made'";
    assert!(client.one::<bool>(states));
    client.run("DROP ROLE IF EXISTS bridges_reader; CREATE ROLE bridges_reader LOGIN; GRANT EXECUTE ON PROCEDURE situ.train TO bridges_reader; SET ROLE bridges_reader");
    assert_eq!(
        client
            .failure("CALL situ.train('adapter', 'stolen', passages => 'passages')")
            .code,
        "42501"
    );
}

#[test]
fn a_situate_bridge_is_trained_from_rows() {
    let mut client = shared().text_database("bridges_situate");
    client.run(
        "CREATE TABLE passages AS SELECT n AS id, n / 6 AS document, n % 6 AS ordinal,
                'The ' || md5(n::text) || ' of house ' || n || ' has ' || (n * 7) % 100 || ' green windows.' AS body
           FROM generate_series(0, 599) n;
         CREATE TABLE pairs AS SELECT 'Which house has ' || (n * 7) % 100 || ' windows and number ' || n || '?' AS query, n AS passage
           FROM generate_series(0, 599) n",
    );
    client.run(
        "CALL situ.train('situate', 'rooms', passages => 'passages', pairs => 'pairs', options => '{\"epochs\": 1}')",
    );
    let row = "SELECT kind || ' ' || (figures->>'pairs') || ' ' || (state = CASE
                        WHEN (figures->>'low')::float8 > 0
                        THEN 'accepted' ELSE 'rejected' END)
                 FROM situ.bridges WHERE name = 'rooms'";
    assert_eq!(client.one::<String>(row), "situate given true");
    let failure =
        client.failure("CALL situ.train('situate', 'other', passages => 'passages', options => '{\"epoch\": 1}')");
    assert_eq!(failure.code, "22023", "{failure:#?}");
}

#[test]
fn the_bridges_of_a_role_have_a_limit() {
    let mut client = shared().text_database("bridges_space");
    client.run(LITTLE);
    client.run(FILE);
    client.run(
        "DROP ROLE IF EXISTS bridges_hoarder; CREATE ROLE bridges_hoarder LOGIN;
         ALTER ROLE bridges_hoarder IN DATABASE bridges_space SET situ.bridge_space = '1300kB';
         GRANT EXECUTE ON ROUTINE situ.import_bridge, situ.train TO bridges_hoarder;
         CREATE TABLE passages AS SELECT n AS id, n / 4 AS document, n % 4 AS ordinal, 'The ' || md5(n::text) || ' of house ' || n || ' has ' || (n * 7) % 100 || ' green windows.' AS body
           FROM generate_series(0, 599) n;
         GRANT SELECT ON passages TO bridges_hoarder",
    );
    let mut hoarder = shared().connect_as("bridges_hoarder", "bridges_space");
    let import =
        |name: &str| format!("SELECT situ.import_bridge('{name}', adapter_file(), model => 'minilm', replace => true)");
    hoarder.run(&import("one"));
    hoarder.run(&import("two"));
    // One in the place of another is no more than before.
    hoarder.run(&import("two"));
    hoarder.failure(&import("three")).is("53400", "situ.bridge_space");
    hoarder
        .failure("CALL situ.train('adapter', 'three', passages => 'passages', options => '{\"epochs\": 1}')")
        .is("53400", "situ.bridge_space");
    assert_eq!(hoarder.failure("SET situ.bridge_space = 0").code, "42501");
    hoarder.run("SELECT situ.drop_bridge('one')");
    hoarder.run(&import("three"));

    // What another session has stored and not committed counts once it has.
    hoarder.run("SELECT situ.drop_bridge('three'); BEGIN");
    hoarder.run(&import("first"));
    let mut second = shared().connect_as("bridges_hoarder", "bridges_space");
    let failure = std::thread::scope(|scope| {
        let waits = scope.spawn(|| second.failure(&import("second")));
        eventually("the second waits for the first", 30, || {
            client.one::<bool>("SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT granted AND datname = 'bridges_space')")
        });
        hoarder.run("COMMIT");
        waits.join().expect("the second ends")
    });
    failure.is("53400", "situ.bridge_space");

    // Who has none is held to the limit as well.
    client.run(
        "ALTER ROLE bridges_hoarder IN DATABASE bridges_space SET situ.bridge_space = '4kB'; DELETE FROM situ.bridges",
    );
    let mut hoarder = shared().connect_as("bridges_hoarder", "bridges_space");
    hoarder.failure(&import("large")).is("53400", "situ.bridge_space");
}

#[test]
fn figures_that_an_importer_wrote_choose_nothing() {
    let mut client = shared().text_database("bridges_figures");
    client.run(LITTLE);
    client.run(FILE);
    client.run(
        "CREATE TABLE docs (id int PRIMARY KEY, body text);
         INSERT INTO docs SELECT n, 'Entry ' || n || ' about ' || (ARRAY['bread', 'tides', 'bees', 'salt', 'clay'])[1 + n % 5] FROM generate_series(1, 40) n;
         CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm');
         CREATE TABLE asked AS SELECT n AS id, 'Which entry has number ' || n || '?' AS text FROM generate_series(1, 40) n;
         CREATE TABLE judged AS SELECT n AS query_id, n AS document_id FROM generate_series(1, 40) n;
         CREATE FUNCTION spoiled(bytes bytea) RETURNS bytea LANGUAGE sql AS $$
             SELECT overlay(bytes PLACING string_agg(decode('00000041', 'hex'), decode(repeat('00', 384 * 4), 'hex')) FROM length(bytes) - 384 * 384 * 4 + 1)
               FROM generate_series(1, 24) $$",
    );
    // A map that makes some numbers of every question nine times as large; said to gain a tenth, without any doubt.
    let figures = ", \"figures\": {\"queries\": \"given\", \"ndcg@10\": {\"plain\": 0.5, \"bridge\": 0.55, \"gain\": 0.1, \"low\": 0.1, \"high\": 0.1, \"queries\": 100000}}";
    client.run(&format!(
        "SELECT situ.import_bridge('spoiler', spoiled(adapter_file('{figures}')), model => 'minilm')"
    ));
    assert_eq!(
        client.one::<String>("SELECT origin || ' ' || (figures->'ndcg@10'->>'gain') FROM situ.bridges"),
        "imported 0.1"
    );
    let tune = "SELECT (options->>'bridge' IS NULL)::text FROM situ.tune('docs_body', 'asked', 'judged') WHERE chosen";
    assert_eq!(client.one::<String>(tune), "true");
    // The same words are believed of a bridge that was measured here.
    client.run("UPDATE situ.bridges SET origin = 'trained'");
    assert_eq!(client.one::<String>(tune), "false");
}
