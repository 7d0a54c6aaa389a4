//! Several devices: a worker each, the work shared out, and what happens when one is lost. Workers on the processor
//! stand in for cards; the setting `situ.test_lost_device`, which only test builds have, makes one of them a lost card.

use crate::support::cluster::signal;
use crate::support::{Cluster, Sql, eventually, run, settings};
use std::process::Command;
use std::time::{Duration, Instant};

const STATES: &str = "SELECT device || ' ' || state FROM situ.stat_service ORDER BY worker";

/// Distinct texts of a sender, answered as a hash of all their vectors.
fn bulk(sender: usize, count: usize) -> String {
    format!(
        "SELECT md5(situ.embed_batch(array_agg('sender {sender} text ' || n || repeat(' words of a report', 20)), 'minilm')::text)
           FROM generate_series(1, {count}) n"
    )
}

#[test]
fn senders_spread_over_two_workers() {
    let cluster = Cluster::with(&[("situ.devices", "cpu, cpu"), ("situ.cpu_threads", "1")]);
    let mut client = cluster.text_database("devices");
    eventually("both workers run", 20, || {
        client.column::<String>(STATES) == ["cpu running", "cpu running"]
    });
    assert_eq!(cluster.workers("situ encoder").len(), 2);
    assert_eq!(
        client.one::<i64>("SELECT count(*) FROM situ.load_model('minilm')"),
        2,
        "each worker is warmed"
    );
    eventually("each has the model", 10, || {
        client.column::<i32>("SELECT worker FROM situ.stat_models ORDER BY 1") == [0, 1]
    });
    let expected: Vec<String> = (0..8).map(|sender| client.one(&bulk(sender, 100))).collect();
    let before: Vec<i64> = client.column("SELECT tokens FROM situ.stat_service ORDER BY worker");
    std::thread::scope(|scope| {
        for (sender, expected) in expected.iter().enumerate() {
            let cluster = &cluster;
            scope.spawn(move || {
                let mut client = cluster.connect("devices");
                assert_eq!(client.one::<String>(&bulk(sender, 100)), *expected, "sender {sender}");
            });
        }
    });
    let after: Vec<i64> = client.column("SELECT tokens FROM situ.stat_service ORDER BY worker");
    let made = [after[0] - before[0], after[1] - before[1]];
    println!("tokens of the two workers: {made:?}");
    assert!(
        made.iter().all(|tokens| *tokens > (made[0] + made[1]) / 5),
        "the work is not shared out: {made:?}"
    );
    assert!(client.one::<i64>("SELECT situ.unload_model('minilm')") > 0);
    eventually("unloaded everywhere", 10, || {
        client.one::<i64>("SELECT count(*) FROM situ.stat_models") == 0
    });
    assert_eq!(
        client.one::<i32>("SELECT sum(slots_used)::int FROM situ.stat_service"),
        0
    );
}

#[test]
fn what_a_lost_device_had_is_done_by_another() {
    let cluster = Cluster::with(&[("situ.devices", "cpu,cpu"), ("situ.cpu_threads", "1")]);
    let mut client = cluster.text_database("lost");
    client.run("SELECT count(*) FROM situ.load_model('minilm')");
    let expected: Vec<String> = (0..6).map(|sender| client.one(&bulk(sender, 200))).collect();
    std::thread::scope(|scope| {
        for (sender, expected) in expected.iter().enumerate() {
            let cluster = &cluster;
            scope.spawn(move || {
                let mut client = cluster.connect("lost");
                assert_eq!(client.one::<String>(&bulk(sender, 200)), *expected, "sender {sender}");
            });
        }
        eventually("both work", 20, || {
            let running = "SELECT count(DISTINCT worker) FROM situ.stat_requests WHERE state = 'running'";
            client.one::<i64>(running) == 2
        });
        cluster.set("situ.test_lost_device", "1");
        eventually("the second is lost", 20, || {
            client.column::<String>(STATES) == ["cpu running", "cpu lost"]
        });
    });
    let last_error: String = client.one("SELECT last_error FROM situ.stat_service WHERE worker = 1");
    assert!(last_error.contains("device cpu is lost"), "{last_error}");
    assert!(cluster.log().contains("device cpu is lost"));
    eventually("no slot stays behind", 20, || {
        client.one::<i32>("SELECT sum(slots_used)::int FROM situ.stat_service") == 0
    });

    // Without fallback: an error for what the device had, while others go on.
    cluster.set("situ.test_lost_device", "-1");
    eventually("it is back", 30, || {
        client.column::<String>(STATES) == ["cpu running", "cpu running"]
    });
    cluster.set("situ.device_fallback", "off");
    let outcomes: Vec<Result<(), String>> = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..6)
            .map(|sender| {
                let cluster = &cluster;
                scope.spawn(move || {
                    let mut client = cluster.connect("lost");
                    let result = client.batch_execute(&bulk(sender + 10, 2000));
                    result.map_err(|error| error.code().map_or(error.to_string(), |code| code.code().to_owned()))
                })
            })
            .collect();
        eventually("both work", 20, || {
            let running = "SELECT count(DISTINCT worker) FROM situ.stat_requests WHERE state = 'running'";
            client.one::<i64>(running) == 2
        });
        cluster.set("situ.test_lost_device", "1");
        eventually("the second is lost", 20, || {
            client.column::<String>(STATES) == ["cpu running", "cpu lost"]
        });
        std::thread::sleep(Duration::from_secs(2));
        let pids = "SELECT pg_cancel_backend(pid) FROM situ.stat_requests";
        client.run(pids);
        senders
            .into_iter()
            .map(|sender| sender.join().expect("a sender"))
            .collect()
    });
    // A call that had nothing there goes on until it is cancelled.
    let ended = |code: &str| {
        outcomes
            .iter()
            .filter(|outcome| **outcome == Err(code.to_owned()))
            .count()
    };
    assert!(
        ended("58030") > 0 && ended("58030") + ended("57014") == 6,
        "those with work on the lost device fail: {outcomes:?}"
    );
    assert_eq!(
        client.one::<i32>("SELECT vector_dims(situ.embed('the other serves', 'minilm'))"),
        384
    );
}

#[test]
fn without_fallback_a_device_that_is_lost_again_and_again_fails_nobody_else() {
    let devices = [
        ("situ.devices", "cpu,cpu"),
        ("situ.cpu_threads", "1"),
        ("situ.device_fallback", "off"),
        // The second is lost as soon as it has work.
        ("situ.test_lost_device", "101"),
    ];
    let cluster = Cluster::with(&devices);
    let mut client = cluster.text_database("again");
    eventually("both workers run", 20, || {
        client.column::<String>(STATES) == ["cpu running", "cpu running"]
    });
    let expected: String = client.one(&one_by_one(0, 400));
    client.failure(&bulk(0, 400)).is("58030", "device cpu is lost");
    for round in 0..5 {
        eventually("the second runs again", 20, || {
            client.column::<String>(STATES) == ["cpu running", "cpu running"]
        });
        assert_eq!(client.one::<String>(&bulk(0, 400)), expected, "round {round}");
    }
    // What it answers proves it, and from then on it has its share.
    cluster.set("situ.test_lost_device", "-1");
    eventually("it is warmed", 20, || {
        let warmed = client.query_one("SELECT count(*) FROM situ.load_model('minilm')", &[]);
        warmed.is_ok_and(|row| row.get::<_, i64>(0) == 2)
    });
    let before = tokens(&mut client);
    assert_eq!(client.one::<String>(&bulk(0, 400)), expected);
    let after = tokens(&mut client);
    assert!(
        after[1] - before[1] > (after[0] - before[0]) / 4,
        "{before:?} {after:?}"
    );
}

#[test]
fn the_processor_steps_in_for_a_card_that_does_not_start() {
    let cluster = Cluster::with(&[("situ.devices", "cuda:63")]);
    let mut client = cluster.text_database("card");
    assert_eq!(
        client.one::<i32>("SELECT vector_dims(situ.embed('served all the same', 'minilm'))"),
        384
    );
    assert_eq!(client.column::<String>(STATES), ["cuda:63 lost", "cpu running"]);
    let last_error: String = client.one("SELECT last_error FROM situ.stat_service WHERE worker = 0");
    assert!(last_error.contains("device cuda:63 is lost"), "{last_error}");
    cluster.set("situ.device_fallback", "off");
    eventually("the setting has arrived", 10, || {
        client.one::<String>("SHOW situ.device_fallback") == "off"
    });
    client
        .failure("SELECT situ.embed('nobody', 'minilm')")
        .is("58030", "cuda:63 is lost");
    cluster.set("situ.device_fallback", "on");
    eventually("served again", 10, || {
        client.batch_execute("SELECT situ.embed('again', 'minilm')").is_ok()
    });
}

/// Tokens that each worker has computed.
fn tokens(client: &mut postgres::Client) -> Vec<i64> {
    client.column("SELECT tokens FROM situ.stat_service ORDER BY worker")
}

/// The hash of [`bulk`], from one call a text, each of which runs on one device.
fn one_by_one(sender: usize, count: usize) -> String {
    format!(
        "SELECT md5(array_agg(situ.embed('sender {sender} text ' || n || repeat(' words of a report', 20), 'minilm') ORDER BY n)::text)
           FROM generate_series(1, {count}) n"
    )
}

#[test]
fn one_sender_uses_both_workers() {
    let cluster = Cluster::with(&[("situ.devices", "cpu,cpu"), ("situ.cpu_threads", "1")]);
    let mut client = cluster.text_database("spread");
    client.run("SELECT count(*) FROM situ.load_model('minilm')");
    let expected: String = client.one(&one_by_one(0, 400));

    let before = tokens(&mut client);
    assert_eq!(
        client.one::<String>(&bulk(0, 400)),
        expected,
        "vectors in the order of the texts"
    );
    let after = tokens(&mut client);
    let made = [after[0] - before[0], after[1] - before[1]];
    println!("tokens of the two workers for one sender: {made:?}");
    assert!(
        made.iter().all(|tokens| *tokens > (made[0] + made[1]) / 4),
        "the work is not shared out: {made:?}"
    );

    // Documents of a build go both ways as well.
    client.run(
        "CREATE TABLE pages (id int, body text);
         INSERT INTO pages SELECT n, 'Page ' || n || repeat('. A sentence of the page ' || n, 60) FROM generate_series(1, 60) n;
         CREATE INDEX pages_body ON pages USING situ (body situ_text_ops) WITH (model = 'minilm')",
    );
    let built = tokens(&mut client);
    assert!(
        (0..2).all(|worker| built[worker] > after[worker]),
        "{after:?} {built:?}"
    );
    let top: i32 = client.one("SELECT id FROM pages ORDER BY body <=> 'A sentence of the page 37' LIMIT 1");
    assert!((1..=60).contains(&top));

    // A worker that ends: what it had is sent again, nothing is lost or doubled.
    let both = "SELECT count(DISTINCT worker) FROM situ.stat_requests WHERE state = 'running'";
    let restarts: i64 = client.one("SELECT sum(restarts)::bigint FROM situ.stat_service");
    let expected: String = client.one(&one_by_one(1, 600));
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| cluster.connect("spread").one::<String>(&bulk(1, 600)));
        eventually("one call runs on both", 20, || client.one::<i64>(both) == 2);
        let ended = cluster.workers("situ encoder 1");
        assert_eq!(ended.len(), 1);
        signal(ended[0], libc::SIGTERM);
        assert_eq!(sender.join().expect("the sender"), expected);
    });
    assert!(client.one::<i64>("SELECT sum(restarts)::bigint FROM situ.stat_service") > restarts);

    // Either of its rows cancels the call, and so does the server.
    for cancel in [
        "SELECT situ.cancel_request(max(id)) FROM situ.stat_requests",
        "SELECT situ.cancel_request(min(id)) FROM situ.stat_requests",
        "SELECT bool_or(pg_cancel_backend(pid)) FROM situ.stat_requests",
    ] {
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| cluster.connect("spread").batch_execute(&bulk(2, 5000)));
            eventually("one call runs on both", 20, || client.one::<i64>(both) == 2);
            let since = Instant::now();
            assert!(client.one::<bool>(cancel));
            let error = sender.join().expect("the sender").expect_err("it is cancelled");
            assert_eq!(error.code().map(|code| code.code()), Some("57014"), "{cancel}: {error}");
            assert!(
                since.elapsed() < Duration::from_secs(1),
                "{cancel}: {:?}",
                since.elapsed()
            );
        });
        eventually("no slot stays behind", 20, || {
            client.one::<i32>("SELECT sum(slots_used)::int FROM situ.stat_service") == 0
        });
    }
}

/// The libraries of the emulated card, where the server can load them; `None` without a C++ compiler.
fn emulated() -> Option<String> {
    let folder = settings().scratch.join("emulate");
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/emulate/build.sh");
    let output = Command::new("sh").arg(script).arg(&folder).output().expect("sh runs");
    if output.status.code() == Some(3) {
        println!("SKIPPED: no C++ compiler for the emulated card");
        return None;
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    run(Command::new("chmod").args(["-R", "a+rX"]).arg(&folder));
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[test]
fn a_card_serves_and_the_processor_takes_over_when_it_is_lost() {
    let Some(libraries) = emulated() else { return };
    let cluster = Cluster::with_environment(&[("situ.devices", "cuda:0"), ("situ.cpu_precision", "f32")], |folder| {
        let lost = folder.join("lost").display().to_string();
        vec![
            ("LD_LIBRARY_PATH".to_owned(), libraries),
            ("EMULATE_LOST_FILE".to_owned(), lost),
        ]
    });
    let mut client = cluster.text_database("emulated");
    eventually("the card's worker runs", 20, || {
        client.column::<String>(STATES) == ["cuda:0 running", "cpu standby"]
    });
    client.run("CREATE TABLE v (place text, n int, v vector)");
    let texts = "SELECT n, situ.embed('number ' || n || ' of the sentences', 'minilm') FROM generate_series(1, 4) n";
    client.run(&format!("INSERT INTO v SELECT 'card', * FROM ({texts}) t"));
    eventually("the worker has said what it serves", 5, || {
        client.column::<String>("SELECT device || ' ' || precision FROM situ.stat_models") == ["cuda:0 bf16"]
    });
    assert!(tokens(&mut client)[0] > 0);
    let kept = std::fs::read_dir(cluster.folder().join("data/situ_kernels")).map(Iterator::count);
    println!("files in the cache of kernels: {kept:?}");

    // It is lost while it serves: the same statement is answered by the processor.
    cluster.write("lost", "");
    client.run(&format!("INSERT INTO v SELECT 'processor', * FROM ({texts}) t"));
    assert_eq!(client.column::<String>(STATES), ["cuda:0 lost", "cpu running"]);
    let last_error: String = client.one("SELECT last_error FROM situ.stat_service WHERE worker = 0");
    assert!(last_error.contains("device cuda:0 is lost"), "{last_error}");
    let least: f64 = client.one(
        "SELECT min(1 - (a.v <=> b.v)) FROM v a JOIN v b USING (n) WHERE a.place = 'card' AND b.place = 'processor'",
    );
    println!("least cosine between card and processor: {least:.6}");
    assert!((0.9995..1.0).contains(&least), "{least}");

    // A reload tries the card at once.
    cluster.remove("lost");
    client.run("SELECT pg_reload_conf()");
    eventually("the card is back", 20, || {
        client.column::<String>(STATES)[0] == "cuda:0 running"
    });
}
