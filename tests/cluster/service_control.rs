//! Looking at the encoder service and acting on it: views, `cancel_request`, `warm`, `unload`, and who may.

use crate::support::{Cluster, Sql, eventually, shared};
use postgres::Client;
use std::time::Duration;

/// A statement that keeps a slot for long.
const LONG: &str =
    "SELECT situ.embed_batch(array_agg(n || repeat(' many words', 300)), 'minilm') FROM generate_series(1, 5000) n";

fn roles(cluster: &Cluster, names: &[&str]) {
    let mut admin = cluster.connect("postgres");
    for name in names {
        admin.run(&format!("DROP ROLE IF EXISTS {name}; CREATE ROLE {name} LOGIN"));
    }
}

/// The request of a process, once it is there.
fn request(client: &mut Client, pid: i32) -> i64 {
    let mut found = None;
    eventually("the request is there", 20, || {
        let sql = format!("SELECT id FROM situ.stat_requests WHERE pid = {pid}");
        found = client.column::<i64>(&sql).first().copied();
        found.is_some()
    });
    found.expect("a request")
}

#[test]
fn requests_are_seen_and_cancelled_by_those_who_may() {
    let cluster = Cluster::new();
    roles(&cluster, &["alice", "bob", "watcher", "sheriff"]);
    let mut admin = cluster.text_database("control");
    admin.run("GRANT pg_read_all_stats TO watcher; GRANT pg_signal_backend TO sheriff");
    std::thread::scope(|scope| {
        let start = |user: &str| {
            let mut client = cluster.connect_as(user, "control");
            let pid: i32 = client.one("SELECT pg_backend_pid()");
            (pid, scope.spawn(move || (client.failure(LONG), client)))
        };
        let (pid, running) = start("alice");
        let id = request(&mut admin, pid);
        let all = "SELECT datname::text, usename::text, application_name, lane, model, state, items > 0, done >= 0,
                          tokens >= 0, since <= now() FROM situ.stat_requests";
        eventually("it runs", 20, || {
            admin.one::<bool>("SELECT state = 'running' AND tokens > 0 AND done > 0 FROM situ.stat_requests")
        });
        for user in ["postgres", "alice", "watcher"] {
            let row = cluster
                .connect_as(user, "control")
                .query_one(all, &[])
                .expect("one request");
            let who = [0, 1].map(|at| row.get::<_, String>(at));
            assert_eq!(who, ["control", "alice"], "{user}");
            let what = [3, 4].map(|at| row.get::<_, Option<String>>(at).unwrap_or_default());
            assert_eq!(what, ["bulk", "minilm"], "{user}");
            assert!((6..10).all(|at| row.get::<_, bool>(at)), "{user}");
            assert_eq!(row.get::<_, String>(2), "situ-tests", "{user}");
        }
        let mut bob = cluster.connect_as("bob", "control");
        let row = bob.query_one(all, &[]).expect("bob sees that there is one");
        assert_eq!(row.get::<_, String>(1), "alice");
        assert!(
            (3..6).all(|at| row.get::<_, Option<String>>(at).is_none()),
            "bob sees what alice does"
        );
        assert!(
            (6..10).all(|at| row.get::<_, Option<bool>>(at).is_none()),
            "bob sees what alice does"
        );

        bob.failure(&format!("SELECT situ.cancel_request({id})"))
            .is("42501", "permission denied");
        let mut alice = cluster.connect_as("alice", "control");
        assert!(alice.one::<bool>(&format!("SELECT situ.cancel_request({id})")));
        let (failure, mut client) = running.join().expect("the statement ends");
        failure.is("57014", "cancelled by role \"alice\"");
        // The connection goes on, and what is gone cannot be cancelled.
        assert_eq!(
            client.one::<i32>("SELECT vector_dims(situ.embed('next', 'minilm'))"),
            384
        );
        assert!(!alice.one::<bool>(&format!("SELECT situ.cancel_request({id})")));
        for nonsense in [-1, 0, i64::MAX, 65535] {
            assert!(
                !alice.one::<bool>(&format!("SELECT situ.cancel_request({nonsense})")),
                "{nonsense}"
            );
        }

        let (pid, running) = start("alice");
        let id = request(&mut admin, pid);
        let mut sheriff = cluster.connect_as("sheriff", "control");
        assert!(sheriff.one::<bool>(&format!("SELECT situ.cancel_request({id})")));
        running
            .join()
            .expect("ends")
            .0
            .is("57014", "cancelled by role \"sheriff\"");
        let (pid, running) = start("postgres");
        let id = request(&mut admin, pid);
        sheriff
            .failure(&format!("SELECT situ.cancel_request({id})"))
            .is("42501", "permission denied");
        assert!(admin.one::<bool>(&format!("SELECT situ.cancel_request({id})")));
        running
            .join()
            .expect("ends")
            .0
            .is("57014", "cancelled by role \"postgres\"");
    });
    eventually("no request is left", 20, || {
        admin.one::<i64>("SELECT count(*) FROM situ.stat_requests") == 0
    });
    assert!(admin.one::<i64>("SELECT cancelled FROM situ.stat_service") > 0);
}

#[test]
fn models_are_warmed_and_unloaded_by_their_owner() {
    let cluster = Cluster::new();
    roles(&cluster, &["owner", "stranger"]);
    let mut admin = cluster.database("control_models");
    admin.run("GRANT EXECUTE ON FUNCTION situ.register_model(text, text, boolean) TO owner");
    let mut owner = cluster.connect_as("owner", "control_models");
    owner.run("SELECT situ.register_model('minilm', 'minilm')");
    assert_eq!(owner.one::<String>("SELECT owner::text FROM situ.models"), "owner");
    let mut stranger = cluster.connect_as("stranger", "control_models");
    for client in [&mut owner, &mut admin] {
        let row = client
            .query_one(
                "SELECT seconds, bytes, precision, tokens_per_second FROM situ.load_model('minilm')",
                &[],
            )
            .expect("it is warmed");
        assert!(row.get::<_, f64>(0) > 0.0 && row.get::<_, f64>(3) > 0.0);
        assert_eq!(
            row.get::<_, i64>(1),
            client.one::<i64>("SELECT model_bytes FROM situ.stat_service")
        );
        assert_eq!(
            row.get::<_, String>(2),
            client.one::<String>("SELECT precision FROM situ.models")
        );
        assert_eq!(client.one::<i64>("SELECT situ.unload_model()"), row.get::<_, i64>(1));
        assert_eq!(
            client.one::<i64>("SELECT situ.unload_model('minilm')"),
            0,
            "it was there no more"
        );
        eventually("the view follows", 10, || {
            client.one::<i64>("SELECT count(*) FROM situ.stat_models") == 0
        });
    }
    for statement in ["SELECT situ.load_model('minilm')", "SELECT situ.unload_model('minilm')"] {
        stranger.failure(statement).is("42501", "owner of model");
    }
    assert_eq!(stranger.failure("SELECT situ.calibrate_model('minilm')").code, "42501");
    assert_eq!(stranger.failure("SELECT situ.load_model('nothing')").code, "42704");
    assert_eq!(
        stranger.one::<i32>("SELECT vector_dims(situ.embed('served all the same', 'minilm'))"),
        384
    );
    eventually("what is loaded is shown", 10, || {
        stranger.column::<String>("SELECT name FROM situ.stat_models") == ["minilm"]
    });
}

/// The worker's memory, which it publishes once a second.
fn resident(client: &mut Client) -> i64 {
    std::thread::sleep(Duration::from_millis(2200));
    client.one("SELECT resident_bytes FROM situ.stat_service")
}

/// What a worker may take more than before.
const LITTLE: i64 = 12 << 20;

/// The worker's memory, once it is about what it was before a model was loaded.
fn shrunk(client: &mut Client, before: i64) -> i64 {
    let mut now = 0;
    eventually("the memory of the model is given back", 10, || {
        now = resident(client);
        now < before + LITTLE
    });
    now
}

#[test]
fn what_models_took_goes_back_to_the_system() {
    let cluster = Cluster::new();
    let mut client = cluster.text_database("control_memory");
    let bulk = "SELECT count(v) FROM unnest(situ.embed_batch((SELECT array_agg('row ' || n || repeat(' and words', n)) \
                FROM generate_series(1, 60) n), 'minilm')) v";
    let fresh = resident(&mut client);
    client.run(bulk);
    let loaded = resident(&mut client);
    let bytes = client.one::<i64>("SELECT situ.unload_model('minilm')");
    assert!(bytes > 20 << 20, "{bytes}");
    let empty = shrunk(&mut client, fresh);
    // Some of these come while a batch holds the model, or while it is loaded.
    let mut beside = cluster.connect("control_memory");
    for _ in 0..12 {
        std::thread::scope(|scope| {
            scope.spawn(|| beside.run(bulk));
            std::thread::sleep(Duration::from_millis(120));
            client.run("SELECT situ.unload_model('minilm')");
        });
    }
    client.run(bulk);
    let again = resident(&mut client);
    assert!(again < loaded + LITTLE, "{loaded} bytes, {again} after many loads");
    client.run("SELECT situ.unload_model('minilm')");
    let after = shrunk(&mut client, fresh);
    let megabytes = [bytes, fresh, loaded, empty, again, after].map(|bytes| bytes >> 20);
    println!("MB of the model, fresh, loaded, empty, loaded again, empty again: {megabytes:?}");
}

#[test]
fn without_the_service_the_functions_say_what_to_do() {
    let cluster = Cluster::with(&[("shared_preload_libraries", "")]);
    let mut client = cluster.database("control_none");
    client.run("SELECT situ.register_model('minilm', 'minilm')");
    let precision = "SELECT precision || coalesce(calibration::text, ' not measured') FROM situ.models";
    assert_eq!(client.one::<String>(precision), "f32 not measured");
    for statement in [
        "SELECT situ.load_model('minilm')",
        "SELECT situ.unload_model('minilm')",
        "SELECT situ.calibrate_model('minilm')",
        "SELECT situ.cancel_request(1)",
        "SELECT situ.embed('text', 'minilm')",
    ] {
        let failure = client.failure(statement);
        failure.is("55000", "not preloaded");
        assert!(failure.hint.contains("shared_preload_libraries"), "{failure:#?}");
    }
    assert_eq!(
        client.one::<String>("SELECT state FROM situ.stat_service"),
        "not preloaded"
    );
    for view in ["situ.stat_requests", "situ.stat_models"] {
        assert_eq!(client.one::<i64>(&format!("SELECT count(*) FROM {view}")), 0);
    }
}

#[test]
fn the_statistics_add_up() {
    // A fixed budget: the one that is measured depends on how busy the machine is.
    let cluster = Cluster::with(&[("situ.batch_tokens", "512")]);
    let mut client = cluster.text_database("control_statistics");
    client.run("SELECT situ.load_model('minilm')");
    let before: i64 = client.one("SELECT tokens FROM situ.stat_service");
    let requests: i64 = client.one("SELECT requests FROM situ.stat_service");
    for n in 0..20 {
        client.run(&format!("SELECT situ.embed('query {n}', 'minilm')"));
    }
    client.run("SELECT situ.embed_batch(array_agg('bulk text ' || n), 'minilm') FROM generate_series(1, 500) n");
    client.failure("SELECT situ.situate('text', 'minilm', weight => 0.5, chunk_tokens => 0)");
    let row = client
        .query_one(
            "SELECT device, state, restarts, models, slots_used, requests, tokens, errors, batch_fill,
                    query_wait_p50_ms, query_wait_p95_ms, query_wait_p99_ms, query_run_p50_ms, query_run_p95_ms,
                    query_run_p99_ms, bulk_wait_p50_ms, bulk_wait_p95_ms, bulk_wait_p99_ms, bulk_run_p50_ms,
                    bulk_run_p95_ms, bulk_run_p99_ms, busy_seconds
               FROM situ.stat_service",
            &[],
        )
        .expect("one worker");
    assert_eq!([row.get::<_, String>(0), row.get(1)], ["cpu", "running"]);
    assert_eq!(row.get::<_, i64>(2), 0);
    assert_eq!(row.get::<_, i32>(3), 1);
    assert_eq!(row.get::<_, i32>(4), 0, "no slot is taken");
    assert_eq!(row.get::<_, i64>(5) - requests, 520);
    let encoder_tokens = row.get::<_, i64>(6) - before;
    // "query N" and "bulk text N": four to seven tokens with the two special ones.
    assert!((520 * 4..520 * 8).contains(&encoder_tokens), "{encoder_tokens} tokens");
    let fill: f64 = row.get(8);
    assert!(fill > 0.3 && fill <= 1.0, "batches are filled to {fill}");
    for first in [9, 12, 15, 18] {
        let [half, most, nearly_all] = [0, 1, 2].map(|at| row.get::<_, f64>(first + at));
        assert!(
            half <= most && most <= nearly_all && nearly_all < 60_000.0,
            "{half} {most} {nearly_all}"
        );
    }
    assert!(
        row.get::<_, f64>(12) > 0.1,
        "a query runs for more than a tenth of a millisecond"
    );
    assert!(row.get::<_, f64>(21) > 0.0);
    eventually("memory and speed are shown", 10, || {
        client.one::<bool>("SELECT resident_bytes > model_bytes AND model_bytes > 0 FROM situ.stat_service")
    });
    assert!(client.one::<i64>("SELECT count(*) FROM situ.stat_service WHERE last_error IS NULL") == 1);
}

#[test]
fn every_function_of_the_service_has_a_comment() {
    let mut client = shared().database("control_comments");
    let without: Vec<String> = client.column(
        "SELECT p.oid::regprocedure::text FROM pg_proc p WHERE pronamespace = 'situ'::regnamespace
            AND obj_description(p.oid, 'pg_proc') IS NULL
         UNION ALL
         SELECT c.oid::regclass::text FROM pg_class c WHERE relnamespace = 'situ'::regnamespace AND relkind IN ('r', 'v')
            AND obj_description(c.oid, 'pg_class') IS NULL",
    );
    assert!(without.is_empty(), "{without:?}");
}
