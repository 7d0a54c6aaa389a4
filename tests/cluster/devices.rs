//! Several devices: a worker each, the work shared out, and what happens when one is lost. Workers on the processor
//! stand in for cards; the setting `situ.test_lost_device`, which only test builds have, makes one of them a lost card.

use crate::support::{Cluster, Sql, eventually};
use std::time::Duration;

const STATES: &str = "SELECT device || ' ' || state FROM situ.stat_service ORDER BY worker";

/// Distinct texts of a sender, answered as a hash of all their vectors.
fn bulk(sender: usize, count: usize) -> String {
    format!(
        "SELECT md5(situ.embed(array_agg('sender {sender} text ' || n || repeat(' words of a report', 20)), 'minilm')::text)
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
        client.one::<i64>("SELECT count(*) FROM situ.warm('minilm')"),
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
    assert!(client.one::<i64>("SELECT situ.unload('minilm')") > 0);
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
    client.run("SELECT count(*) FROM situ.warm('minilm')");
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
    let lost = outcomes
        .iter()
        .filter(|outcome| **outcome == Err("58030".to_owned()))
        .count();
    assert!(
        (1..6).contains(&lost),
        "those of the lost device fail, others do not: {outcomes:?}"
    );
    assert_eq!(
        client.one::<i32>("SELECT vector_dims(situ.embed('the other serves', 'minilm'))"),
        384
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
