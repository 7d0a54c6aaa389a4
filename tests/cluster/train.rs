//! Training in its own worker: progress, pause, cancel, crash and resume, privileges.

use crate::support::cluster::signal;
use crate::support::{Cluster, Sql, shared};
use postgres::Client;
use std::time::{Duration, Instant};

/// 1,200 passages of 300 documents, and a question about each.
pub fn houses(client: &mut Client) {
    client.run(
        "CREATE TABLE passages AS SELECT n AS id, n / 4 AS document, n % 4 AS ordinal,
                'The ' || md5(n::text) || ' of house ' || n || ' has ' || (n * 7) % 100 || ' green windows.' AS body
           FROM generate_series(0, 1199) n;
         CREATE TABLE pairs AS SELECT 'Which house has ' || (n * 7) % 100 || ' windows and number ' || n || '?' AS query, n AS passage
           FROM generate_series(0, 1199) n",
    );
}

/// A training that lasts: small batches, many epochs, and no early end while it gets better.
pub fn long(name: &str, epochs: u32, wait: bool) -> String {
    format!(
        "CALL situ.train('adapter', '{name}', model => 'minilm', passages => 'passages', pairs => 'pairs', seed => 3,
           options => '{{\"epochs\": {epochs}, \"batch\": 4, \"rate\": 1e-6, \"threads\": 1}}', wait => {wait})"
    )
}

pub fn until(client: &mut Client, what: &str, condition: &str) {
    let begin = Instant::now();
    while !client.one::<bool>(condition) {
        if begin.elapsed() >= Duration::from_secs(60) {
            let rows = client.column::<String>("SELECT t::text FROM situ.training t");
            panic!("{what}: {rows:#?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn state(name: &str, state: &str) -> String {
    format!(
        "SELECT EXISTS (SELECT FROM situ.training WHERE name = '{name}' AND state = '{state}' AND (state <> 'running' OR step > 0))"
    )
}

#[test]
fn a_training_shows_where_it_is_and_pauses_and_is_cancelled() {
    let mut client = shared().text_database("train_states");
    houses(&mut client);
    client.run(&long("slow", 400, false));
    until(&mut client, "it runs", &state("slow", "running"));
    assert!(client.one::<bool>("SELECT steps > step AND loss > 0 AND held_out >= 0 FROM situ.training"));
    client.run("SELECT situ.pause_training(id) FROM situ.training");
    until(&mut client, "it pauses", &state("slow", "paused"));
    let step = client.one::<i64>("SELECT step FROM situ.training");
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(client.one::<i64>("SELECT step FROM situ.training"), step);
    client.run("SELECT situ.resume_training(id) FROM situ.training");
    until(
        &mut client,
        "it goes on",
        &format!("SELECT step > {step} FROM situ.training"),
    );
    client.run("SELECT situ.cancel_training(id) FROM situ.training");
    let begin = Instant::now();
    until(&mut client, "it ends", &state("slow", "cancelled"));
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    assert_eq!(client.one::<i64>("SELECT count(*) FROM situ.bridges"), 0);
    let failure = client.failure("SELECT situ.resume_training(id) FROM situ.training");
    assert_eq!(failure.code, "55000", "{failure:#?}");
    assert_eq!(client.failure("SELECT situ.cancel_training(-1)").code, "42704");
}

#[test]
fn cancelling_the_statement_that_waits_cancels_the_training() {
    let mut client = shared().text_database("train_cancel");
    houses(&mut client);
    client.run("SET statement_timeout = '3s'");
    let failure = client.failure(&long("slow", 400, true));
    assert_eq!(failure.code, "57014", "{failure:#?}");
    client.run("RESET statement_timeout");
    until(&mut client, "it ends", &state("slow", "cancelled"));
    until(
        &mut client,
        "its process ends",
        "SELECT NOT EXISTS (SELECT FROM pg_stat_activity a JOIN situ.training t ON a.pid = t.worker)",
    );
}

#[test]
fn errors_of_the_worker_are_raised_where_it_was_called() {
    let mut client = shared().text_database("train_errors");
    houses(&mut client);
    for (call, code) in [
        ("CALL situ.train('nothing', 'x', passages => 'passages')", "22023"),
        ("CALL situ.train('adapter', 'x')", "22023"),
        (
            "CALL situ.train('adapter', 'x', model => 'none', passages => 'passages')",
            "42704",
        ),
        (
            "CALL situ.train('adapter', 'x', passages => 'passages', options => '{\"epoch\": 3}')",
            "22023",
        ),
        ("CALL situ.train('adapter', 'x', passages => 'pairs')", "42703"),
    ] {
        let failure = client.failure(call);
        assert_eq!(failure.code, code, "{call}: {failure:#?}");
    }
    let failure = client.failure("BEGIN; CALL situ.train('adapter', 'x', passages => 'passages')");
    assert_eq!(failure.code, "25001", "{failure:#?}");
    client.run("ROLLBACK");
    assert!(client.one::<bool>("SELECT bool_and(state = 'failed' AND error IS NOT NULL) FROM situ.training"));
}

#[test]
fn a_role_that_may_not_log_in_trains_where_the_server_starts_workers_for_it() {
    let mut client = shared().text_database("train_nologin");
    houses(&mut client);
    client.run(
        "DROP ROLE IF EXISTS train_group; CREATE ROLE train_group NOLOGIN;
         GRANT SELECT ON passages, pairs TO train_group; GRANT EXECUTE ON PROCEDURE situ.train TO train_group;
         SET ROLE train_group",
    );
    let train = "CALL situ.train('adapter', 'of a group', model => 'minilm', passages => 'passages', pairs => 'pairs', options => '{\"epochs\": 1}')";
    if client.one::<i32>("SELECT current_setting('server_version_num')::int") < 170_000 {
        client.failure(train).is("28000", "may not log in");
        assert_eq!(client.one::<i64>("SELECT count(*) FROM situ.training"), 0);
    } else {
        client.run(train);
        assert_eq!(
            client.one::<String>("SELECT owner::text FROM situ.bridges"),
            "train_group"
        );
    }
    client.run("RESET ROLE");
}

#[test]
fn a_training_reads_what_its_caller_may_read_and_is_the_callers_alone() {
    let mut client = shared().text_database("train_privileges");
    houses(&mut client);
    client.run(
        "DROP ROLE IF EXISTS train_reader, train_other;
         CREATE ROLE train_reader LOGIN; CREATE ROLE train_other LOGIN;
         GRANT SELECT ON passages, pairs TO train_reader;
         GRANT EXECUTE ON PROCEDURE situ.train TO train_reader, train_other;
         ALTER TABLE passages ENABLE ROW LEVEL SECURITY;
         CREATE POLICY half ON passages FOR SELECT TO train_reader USING (document % 2 = 0);
         CREATE SCHEMA trap AUTHORIZATION train_reader;
         SET ROLE train_reader;
         CREATE TABLE trap.seen (role text);
         CREATE FUNCTION trap.same(bigint, bigint) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO trap.seen VALUES (current_user); RETURN $1 OPERATOR(pg_catalog.=) $2; END $$;
         CREATE OPERATOR trap.= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = trap.same);
         CREATE FUNCTION trap.same(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO trap.seen VALUES (current_user); RETURN $1 OPERATOR(pg_catalog.=) $2; END $$;
         CREATE OPERATOR trap.= (LEFTARG = text, RIGHTARG = text, FUNCTION = trap.same);
         SET search_path = trap, pg_catalog, public;
         CALL situ.train('adapter', 'mine', model => 'minilm', passages => 'passages', pairs => 'pairs', options => '{\"epochs\": 1}')",
    );
    client.run("SET search_path = pg_catalog, public");
    assert_eq!(
        client.one::<i32>("SELECT (recipe->>'passages')::int FROM situ.bridges WHERE name = 'mine'"),
        600
    );
    assert_eq!(
        client.one::<String>("SELECT owner::text FROM situ.bridges"),
        "train_reader"
    );
    assert_eq!(
        client.one::<i64>("SELECT count(*) FROM trap.seen WHERE role <> 'train_reader'"),
        0
    );
    client.run("RESET ROLE; SET ROLE train_other");
    assert_eq!(client.one::<i64>("SELECT count(*) FROM situ.training"), 0);
    let failure = client.failure("SELECT situ.cancel_training(1)");
    assert_eq!(failure.code, "42501", "{failure:#?}");
    let failure = client.failure("CALL situ.train('adapter', 'stolen', passages => 'public.passages')");
    assert_eq!(failure.code, "42501", "{failure:#?}");
    assert_eq!(
        client.failure("SELECT * FROM situ_internal.training_jobs").code,
        "42501"
    );
    client.run("RESET ROLE");
}

#[test]
fn a_training_that_was_killed_goes_on_to_the_same_bridge() {
    let cluster = Cluster::with(&[("situ.training_checkpoint", "0")]);
    let mut client = cluster.text_database("train_crash");
    houses(&mut client);
    client.run(&long("whole", 4, true));
    client.run(&long("broken", 4, false));
    until(
        &mut client,
        "a checkpoint is kept",
        "SELECT coalesce(checkpoint_bytes, 0) > 0 FROM situ.training WHERE name = 'broken'",
    );
    let worker = client.one::<i32>("SELECT worker FROM situ.training WHERE name = 'broken' AND state = 'running'");
    signal(worker, libc::SIGKILL);
    // The server restarts all its processes.
    let begin = Instant::now();
    let mut client = loop {
        std::thread::sleep(Duration::from_millis(200));
        match cluster.config("postgres", "train_crash").connect(postgres::NoTls) {
            Ok(client) => break client,
            Err(error) => assert!(begin.elapsed() < Duration::from_secs(30), "{error}"),
        }
    };
    until(&mut client, "it is seen", &state("broken", "interrupted"));
    client.run("SELECT situ.resume_training(id) FROM situ.training WHERE name = 'broken'");
    until(
        &mut client,
        "it ends",
        "SELECT state IN ('done', 'rejected') FROM situ.training WHERE name = 'broken'",
    );
    let same = "SELECT situ.export_bridge('whole') = situ.export_bridge('broken')";
    assert!(client.one::<bool>(same), "the resumed training ended elsewhere");
}

#[test]
fn a_question_about_a_row_of_several_chunks_means_the_nearest() {
    let mut client = shared().text_database("train_chunks");
    client.run(
        "CREATE TABLE rows (id int PRIMARY KEY, body text);
         INSERT INTO rows SELECT n, string_agg('Chapter ' || k || ' of the tale ' || md5(n::text) || ' tells of the ' ||
                (ARRAY['dragon','miller','queen','fox','sailor'])[k] || ' and of ' || repeat('many strange things and ', 20) || 'its end.', ' ')
           FROM generate_series(1, 200) n, generate_series(1, 5) k GROUP BY n;
         CREATE TABLE pairs AS SELECT 'What befell the ' || (ARRAY['dragon','miller','queen','fox','sailor'])[k] || ' in ' || md5(n::text) || '?' AS query,
                n AS passage FROM generate_series(1, 200) n, generate_series(1, 5) k;
         CREATE INDEX rows_body ON rows USING situ (body) WITH (model = 'minilm', chunk_tokens = 64);
         CALL situ.train('adapter', 'tales', index => 'rows_body', pairs => 'pairs', options => '{\"epochs\": 1}')",
    );
    assert_eq!(
        client
            .one::<String>("SELECT (recipe->>'pairs') || ' ' || ((recipe->>'passages')::int > 600) FROM situ.bridges"),
        "1000 true"
    );
    // An adapter takes the index beside passages: rows that are passages as well are taken once.
    client.run(
        "CREATE TABLE sections AS SELECT id, id AS document, 0 AS ordinal, body FROM rows WHERE id <= 80;
         CREATE VIEW asked AS SELECT * FROM pairs WHERE passage <= 80;
         CALL situ.train('adapter', 'both', index => 'rows_body', passages => 'sections', pairs => 'asked', options => '{\"epochs\": 1}')",
    );
    assert_eq!(
        client.one::<String>(
            "SELECT (b.recipe->>'pairs') || ' ' || ((b.recipe->>'passages')::int BETWEEN 120 * 4 AND (t.recipe->>'passages')::int)
               FROM situ.bridges b, situ.bridges t WHERE b.name = 'both' AND t.name = 'tales'"
        ),
        "400 true"
    );
    let failure = client
        .failure("CALL situ.train('situate', 'x', index => 'rows_body', passages => 'sections', pairs => 'asked')");
    assert_eq!(failure.code, "22023", "{failure:#?}");
}

#[test]
fn more_passages_than_fit_are_drawn_and_said() {
    let cluster = Cluster::with(&[("situ.training_memory", "4MB")]);
    let mut client = cluster.text_database("train_memory");
    houses(&mut client);
    client.run("CALL situ.train('adapter', 'some', model => 'minilm', passages => 'passages', pairs => 'pairs', options => '{\"epochs\": 1}')");
    let said = "SELECT (figures->>'passages_found') || ' ' || ((figures->>'passages')::int BETWEEN 400 AND 900) FROM situ.bridges";
    assert_eq!(client.one::<String>(said), "1200 true");
}

/// What the vectors of an index hold of a row's title, a bridge over that index is trained with.
#[test]
fn a_bridge_of_an_index_is_trained_over_the_vectors_that_the_index_holds() {
    let mut client = shared().text_database("train_stored");
    // No body says whose it is; the titles do.
    client.run(
        "CREATE TABLE people (id int PRIMARY KEY, title text, body text);
         INSERT INTO people SELECT n, 'The ' || (ARRAY['baker','judge','pilot','nurse','sailor','painter','farmer','banker','miner','priest',
             'tailor','singer','hunter','doctor','teacher','soldier','butcher','plumber','actor','poet'])[1 + n % 20] || ' of '
             || (ARRAY['Lisbon','Cairo','Oslo','Lima','Tokyo','Rome','Delhi','Paris','Quito','Sydney','Dublin','Moscow','Nairobi','Havana',
             'Athens'])[1 + n / 20], 'Lives in the third house behind the old bridge and keeps two dogs.' FROM generate_series(0, 299) n;
         CREATE INDEX people_body ON people USING situ (body, title situ_title_ops) WITH (model = 'minilm');
         CREATE TABLE asked AS SELECT 'Where does ' || lower(left(title, 1)) || substr(title, 2) || ' live?' AS query, id AS passage FROM people;
         CALL situ.train('adapter', 'people', index => 'people_body', pairs => 'asked', options => '{\"epochs\": 1, \"held_out\": 0.4}')",
    );
    let plain =
        client.one::<f64>("SELECT (figures->'ndcg@10'->>'plain')::float8 FROM situ.bridges WHERE name = 'people'");
    assert!(plain > 0.5, "{plain}");
    assert_eq!(
        client.one::<String>("SELECT recipe->>'vectors' FROM situ.bridges"),
        "index"
    );
    // What changes passages is trained over the chunks alone, as it will be used.
    client.run(
        "CALL situ.train('adapter', 'passages', index => 'people_body', pairs => 'asked', options => '{\"epochs\": 1, \"held_out\": 0.4, \"side\": \"passage\"}')",
    );
    let vectors = "SELECT recipe->>'vectors' FROM situ.bridges WHERE name = 'passages'";
    assert_eq!(client.one::<String>(vectors), "encoded");
    // Rows that the index leaves out are none of its passages.
    client.run(
        "CREATE INDEX some_body ON people USING situ (body, title situ_title_ops) WITH (model = 'minilm') WHERE id < 200;
         CALL situ.train('adapter', 'some', index => 'some_body', pairs => 'asked', options => '{\"epochs\": 1, \"held_out\": 0.4}')",
    );
    assert_eq!(
        client.one::<i32>("SELECT (recipe->>'passages')::int FROM situ.bridges WHERE name = 'some'"),
        200
    );
}
