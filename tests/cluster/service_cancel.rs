//! Whatever a statement waits for in the encoder service, it ends at once when it is cancelled.

use crate::support::cluster::signal;
use crate::support::{Cluster, Sql, eventually};
use std::time::{Duration, Instant};

/// Most time from a cancel to the end of the statement. A tenth of a second is the promise; the rest is for machines
/// that run other things meanwhile.
const LIMIT: Duration = Duration::from_millis(500);

/// Runs a statement on a connection of its own, cancels it when `ready` says so, and says how long it took to end.
/// `None` where the statement ended before it was cancelled.
fn cancel(cluster: &Cluster, database: &str, statement: &str, ready: impl FnOnce()) -> Option<Duration> {
    let mut client = cluster.connect(database);
    client.run("SELECT situ.version()");
    let token = client.cancel_token();
    let (ended, cancelled) = std::thread::scope(|scope| {
        let running = scope.spawn(move || {
            let result = client.batch_execute(statement);
            (result, Instant::now())
        });
        ready();
        let cancelled = Instant::now();
        token.cancel_query(postgres::NoTls).expect("the cancel request is sent");
        let (result, ended) = running.join().expect("the statement ends");
        let error = result.err()?;
        let code = error.code().map(|code| code.code().to_owned());
        assert_eq!(code.as_deref(), Some("57014"), "{statement}: {error}");
        Some((ended, cancelled))
    })?;
    Some(ended.saturating_duration_since(cancelled))
}

fn report(state: &str, waited: Duration) {
    println!("cancelled while {state}: {:.1} ms", waited.as_secs_f64() * 1e3);
    assert!(
        waited < LIMIT,
        "a statement that was {state} ended {waited:?} after the cancel"
    );
}

fn pause(milliseconds: u64) -> impl FnOnce() {
    move || std::thread::sleep(Duration::from_millis(milliseconds))
}

/// Distinct texts, long enough that they keep the encoder busy.
fn bulk(count: usize) -> String {
    format!(
        "SELECT situ.embed_batch(array_agg(n || repeat(' many words', 300)), 'minilm') FROM generate_series(1, {count}) n"
    )
}

#[test]
fn a_cancel_ends_a_statement_in_every_state() {
    // As few slots as there can be: seven, of which two are kept for queries.
    let cluster = Cluster::with(&[("situ.queue_memory", "1MB")]);
    let mut client = cluster.text_database("cancel");
    let many = bulk(3000);
    let requests = "SELECT count(*) FROM situ.stat_requests WHERE state IN ('waiting', 'running')";

    let waited = cancel(&cluster, "cancel", &many, || {
        eventually("the request runs", 20, || {
            client.one::<i64>("SELECT count(*) FROM situ.stat_requests WHERE state = 'running'") == 1
        });
    });
    report("running", waited.expect("it runs for long"));

    // All places for bulk work taken, one statement queued in the worker, one waiting for a place.
    let free: i32 = client.one("SELECT slots - greatest(slots / 8, 2) FROM situ.stat_service");
    std::thread::scope(|scope| {
        let blockers: Vec<_> = (1..free)
            .map(|_| {
                let mut blocker = cluster.connect("cancel");
                let token = blocker.cancel_token();
                let many = &many;
                scope.spawn(move || blocker.batch_execute(many));
                token
            })
            .collect();
        eventually("the others are there", 20, || {
            client.one::<i64>(requests) == i64::from(free) - 1
        });
        report(
            "queued",
            cancel(&cluster, "cancel", &many, pause(300)).expect("it waits"),
        );
        let mut last = cluster.connect("cancel");
        let token = last.cancel_token();
        let many = &many;
        scope.spawn(move || last.batch_execute(many));
        eventually("no place is free", 20, || {
            client.one::<i64>(requests) == i64::from(free)
        });
        report(
            "waiting for a place",
            cancel(&cluster, "cancel", many, pause(300)).expect("it waits"),
        );
        for token in blockers.into_iter().chain([token]) {
            token.cancel_query(postgres::NoTls).expect("the cancel request is sent");
        }
    });
    eventually("all places are free", 20, || {
        client.one::<i32>("SELECT slots_used FROM situ.stat_service") == 0
    });

    // A load takes a fraction of a second: tried until a cancel falls into it.
    let mut loading = None;
    for attempt in 0..20 {
        client.run("SELECT situ.unload_model('minilm')");
        let statement = format!("SELECT situ.embed('attempt {attempt}', 'minilm')");
        loading = cancel(&cluster, "cancel", &statement, pause(20));
        if loading.is_some() {
            break;
        }
    }
    report(
        "waiting for a model to be loaded",
        loading.expect("a load takes longer than 20 ms"),
    );
    let mut warming = None;
    for _ in 0..20 {
        client.run("SELECT situ.unload_model('minilm')");
        warming = cancel(&cluster, "cancel", "SELECT situ.load_model('minilm')", pause(20));
        if warming.is_some() {
            break;
        }
    }
    report("warming a model up", warming.expect("that takes longer than 20 ms"));

    // Other files, so that nothing is known of them yet.
    cluster.copy_model("minilm", "unknown");
    cluster.remove("models/unknown/1_Pooling/config.json");
    cluster.write(
        "models/unknown/1_Pooling/config.json",
        r#"{"word_embedding_dimension": 384, "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#,
    );
    let register = "SELECT situ.register_model('unknown', 'unknown')";
    let waited = cancel(&cluster, "cancel", register, pause(700));
    report("calibrating a model", waited.expect("a calibration takes longer"));
    assert_eq!(client.one::<i64>("SELECT count(*) FROM situ.models"), 1);

    // A worker that does nothing at all.
    let worker = cluster.workers("situ encoder")[0];
    signal(worker, libc::SIGSTOP);
    let waited = cancel(
        &cluster,
        "cancel",
        "SELECT situ.embed('anything', 'minilm')",
        pause(200),
    );
    signal(worker, libc::SIGCONT);
    report("waiting for a worker that hangs", waited.expect("it waits"));
    assert_eq!(
        client.one::<i32>("SELECT vector_dims(situ.embed('after', 'minilm'))"),
        384
    );
    eventually("nothing is left behind", 20, || {
        client.one::<i32>("SELECT slots_used FROM situ.stat_service") == 0
            && client.one::<i64>("SELECT queued_queries + queued_bulk FROM situ.stat_service") == 0
    });
}
