//! What one statement, one session and one role may take of the workers that all share.

use crate::generate::{give, register, smollm};
use crate::support::{Cluster, Sql, eventually, shared};
use std::time::{Duration, Instant};

#[test]
fn a_word_of_megabytes_stalls_nobody() {
    let cluster = Cluster::new();
    let mut client = cluster.text_database("long_words");
    client.run("SELECT situ.load_model('minilm')");
    // Two, since two threads of the worker tokenise.
    let worst = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..2)
            .map(|_| {
                let mut sender = cluster.connect("long_words");
                scope.spawn(move || {
                    let word = "SELECT cardinality(situ.tokens(repeat('ab', 4000000), 'minilm'))";
                    let of_it: i32 = sender.one(word);
                    assert!(of_it > 0);
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(300));
        let (mut worst, mut count) = (Duration::ZERO, 0);
        while count < 3 || !senders.iter().all(|sender| sender.is_finished()) {
            let since = Instant::now();
            client.one::<i32>(&format!("SELECT vector_dims(situ.embed('question {count}', 'minilm'))"));
            worst = worst.max(since.elapsed());
            count += 1;
        }
        println!("{count} questions beside two words of 8 MB, the slowest after {worst:?}");
        worst
    });
    assert!(worst < Duration::from_secs(1), "a question waited {worst:?}");
}

#[test]
fn whole_texts_are_not_sent_where_a_part_is_read() {
    let mut client = shared().text_database("long_titles");
    client.run("SET situ.request_timeout = '20s'; SELECT situ.load_model('minilm')");
    let within = |client: &mut postgres::Client, sql: &str| {
        let since = Instant::now();
        client.run(sql);
        let took = since.elapsed();
        println!("{took:?}: {sql}");
        assert!(took < Duration::from_secs(5), "{took:?}: {sql}");
    };
    let title = "repeat('a title without an end ', 2500000)";
    within(
        &mut client,
        &format!("SELECT situ.situate('A short body.', 'minilm', {title}, 'header')"),
    );
    within(
        &mut client,
        &format!("SELECT situ.situate_chunks(ARRAY['A short body.'], 'minilm', {title}, 'header')"),
    );
    // What was cut off would not have been read.
    let same = "SELECT situ.situate_chunks(ARRAY['A body.'], 'minilm', repeat('a title ', 500000), 'header')
                     = situ.situate_chunks(ARRAY['A body.'], 'minilm', repeat('a title ', 1000), 'header')";
    assert!(client.one::<bool>(same));
    // Tokens are asked for in parts, and are those of the whole.
    let parts = "SELECT situ.tokens(repeat('the quick brown fox ', 30000), 'minilm') = array_agg(t ORDER BY n, o)
                   FROM (SELECT situ.tokens('the quick brown fox', 'minilm') AS ids OFFSET 0) four, generate_series(1, 30000) n,
                        unnest(four.ids) WITH ORDINALITY u(t, o)";
    assert!(client.one::<bool>(parts));
}

#[test]
fn a_cancelled_reading_of_a_long_text_leaves_the_worker_at_once() {
    let cluster = Cluster::new();
    let mut client = cluster.text_database("long_cancel");
    client.run("SELECT situ.load_model('minilm'); SET statement_timeout = 500");
    let since = Instant::now();
    let failure = client.failure("SELECT situ.tokens(repeat('ab', 50000000), 'minilm')");
    assert_eq!(failure.code, "57014");
    println!("cancelled after {:?}", since.elapsed());
    client.run("SET statement_timeout = 0");
    eventually("the worker has forgotten it", 2, || {
        client.one::<bool>("SELECT queued_queries + queued_bulk = 0 FROM situ.stat_service")
    });
}

#[test]
fn a_system_text_counts_as_part_of_the_prompt() {
    let Some(file) = smollm() else { return };
    give(shared(), &file);
    let mut client = shared().database("long_system");
    register(&mut client);
    client
        .failure("SELECT situ.generate('x', 'smol', 5, system => repeat('long words ', 500000))")
        .is("54000", "too long");
    client
        .failure("SELECT situ.generate(repeat('long words ', 350000), 'smol', 5)")
        .is("22023", "tokens");
}

#[test]
fn a_session_and_a_role_leave_places_to_others() {
    let Some(file) = smollm() else { return };
    let cluster = Cluster::with(&[("situ.llm_queue_memory", "1MB")]);
    give(&cluster, &file);
    let mut admin = cluster.database("places");
    register(&mut admin);
    admin.run("CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN; SELECT situ.load_model('smol')");
    let slots: i32 = admin.one("SELECT slots FROM situ.stat_llm");
    let (of_session, of_role) = ((slots / 4).max(2), slots - (slots / 4).max(1));
    let ask = "SELECT situ.generate_stream('Count from one to a thousand.', 'smol', 200)";
    let mut sessions = Vec::new();
    let mut held = 0;
    while held < of_role {
        let mut session = cluster.connect_as("alice", "places");
        session.run("BEGIN");
        let count = of_session.min(of_role - held);
        for number in 0..count {
            session.run(&format!("DECLARE c{number} CURSOR FOR {ask}"));
            assert_eq!(session.column::<String>(&format!("FETCH 1 FROM c{number}")).len(), 1);
        }
        held += count;
        sessions.push((session, count));
    }
    assert_eq!(admin.one::<i32>("SELECT slots_used FROM situ.stat_llm"), of_role);
    // A session that has its share would wait for itself.
    let first = &mut sessions[0].0;
    first.run("SAVEPOINT s");
    first
        .failure(&format!("DECLARE more CURSOR FOR {ask}; FETCH 1 FROM more"))
        .is("53400", "answers in progress");
    first.run("ROLLBACK TO s");
    assert_eq!(first.column::<String>("FETCH 1 FROM c0").len(), 1, "its answers go on");
    // Another one of the role waits, no longer than it wants to.
    let mut late = cluster.connect_as("alice", "places");
    late.run("SET situ.request_timeout = '700ms'");
    let since = Instant::now();
    late.failure("SELECT situ.generate('Hello', 'smol', 3)")
        .is("57014", "700 ms");
    let waited = since.elapsed();
    assert!(
        (Duration::from_millis(650)..Duration::from_secs(3)).contains(&waited),
        "{waited:?}"
    );
    // Others find room, and the role does where one of its own ends.
    let mut bob = cluster.connect_as("bob", "places");
    bob.run("SET statement_timeout = '60s'");
    assert!(!bob.one::<String>("SELECT situ.generate('Hello', 'smol', 3)").is_empty());
    first.run("CLOSE c0");
    late.run("RESET situ.request_timeout; SET statement_timeout = '60s'");
    assert!(
        !late
            .one::<String>("SELECT situ.generate('Hello', 'smol', 3)")
            .is_empty()
    );
}

#[test]
fn statistics_show_each_role_its_own() {
    let cluster = Cluster::new();
    let mut admin = cluster.text_database("mine");
    admin.run("CREATE ROLE stranger LOGIN; CREATE ROLE watcher LOGIN; GRANT pg_monitor TO watcher");
    let mut other = cluster.database("theirs");
    cluster.copy_model("minilm", "secret_project");
    other.run("SELECT situ.register_model('secret', 'secret_project'); SELECT situ.load_model('secret')");
    admin.run("SELECT situ.load_model('minilm')");
    // An error that names a folder.
    cluster.copy_model("minilm", "gone");
    other.run("SELECT situ.register_model('gone', 'gone'); SELECT situ.unload_model('gone')");
    cluster.remove("models/gone");
    other.failure("SELECT situ.embed('x', 'gone')");
    let models = "SELECT coalesce(name, path) FROM situ.stat_models ORDER BY 1";
    eventually("the models are shown", 10, || {
        admin.column::<String>(models) == ["minilm", "secret_project"]
    });
    let sees =
        "SELECT last_error IS NOT NULL AND last_error_at IS NOT NULL AND shared IS NOT NULL FROM situ.stat_service";
    assert!(admin.one::<bool>(sees) && admin.one::<bool>("SELECT last_error LIKE '%/gone%' FROM situ.stat_service"));
    let mut watcher = cluster.connect_as("watcher", "mine");
    assert!(watcher.one::<bool>(sees));
    assert_eq!(watcher.column::<String>(models), ["minilm", "secret_project"]);
    let mut stranger = cluster.connect_as("stranger", "mine");
    let nothing = "SELECT last_error IS NULL AND last_error_at IS NULL AND shared IS NULL FROM situ.stat_service";
    assert!(stranger.one::<bool>(nothing));
    assert!(stranger.one::<bool>("SELECT state = 'running' AND slots > 0 FROM situ.stat_service"));
    assert_eq!(stranger.column::<String>(models), ["minilm"]);
    let function = "SELECT situ_internal.service_models()::text || coalesce(string_agg(s.last_error, ' '), '') FROM situ_internal.service_statistics() s";
    let all: String = stranger.one(function);
    assert!(!all.contains("secret") && !all.contains("gone"), "{all}");
    let llm = "SELECT last_error IS NULL AND last_error_at IS NULL AND loaded = '[]' FROM situ.stat_llm";
    assert!(stranger.one::<bool>(llm));
}

#[test]
fn copies_of_models_are_few_and_bound_by_temp_file_limit() {
    let cluster = Cluster::new();
    let mut client = cluster.text_database("copies");
    crate::text_feedback::houses(&mut client);
    client.run(crate::text_feedback::TRAIN);
    client.run(
        "SELECT situ.import_bridge('v' || n, set_byte(w, length(w) - 4, n), model => 'minilm')
           FROM situ.export_bridge('reader') w, generate_series(1, 7) n;
         UPDATE situ.bridges SET state = 'accepted'",
    );
    let copies = "SELECT count(*) FROM pg_ls_dir('base/pgsql_tmp', true, false) d WHERE d LIKE 'pgsql_tmp_situ_%'";
    let ask = |n: i32| format!("SELECT situ.feedback_text('How many?', ARRAY['In house 1 are two.'], 'v{n}')::text");
    let first: String = client.one(&ask(1));
    for n in 2..=6 {
        client.one::<String>(&ask(n));
        assert!(client.one::<i64>(copies) <= 4, "after {n}");
    }
    assert_eq!(client.one::<i64>(copies), 4);
    let loaded = "SELECT count(*) FROM situ.stat_models WHERE path LIKE 'pgsql_tmp_situ_%'";
    eventually("copies that made room have left the worker", 10, || {
        client.one::<i64>(loaded) == 4
    });
    assert_eq!(client.one::<String>(&ask(1)), first, "it comes back");
    client.run("SET temp_file_limit = '1MB'");
    client.failure(&ask(7)).is("53400", "temp_file_limit");
    // What is there is read.
    assert_eq!(client.one::<String>(&ask(1)), first);
}
