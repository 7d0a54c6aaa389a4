//! How the encoder service is shared out: between databases, between equal texts, and under changing settings.

use crate::support::{Cluster, Sql, eventually};
use std::collections::HashMap;
use std::time::Duration;

/// Distinct texts of one sender, more than it sends while a test looks on.
fn bulk(sender: usize) -> String {
    format!(
        "SELECT situ.embed_batch(array_agg('sender {sender} text ' || n || repeat(' words of a report', 10)), 'minilm')
           FROM generate_series(1, 40000) n"
    )
}

#[test]
fn a_database_with_one_sender_gets_as_much_as_one_with_twenty() {
    let cluster = Cluster::new();
    let mut client = cluster.text_database("crowd");
    cluster.text_database("single");
    let tokens = "SELECT datname::text, sum(tokens)::bigint FROM situ.stat_requests GROUP BY 1";
    let (before, after) = std::thread::scope(|scope| {
        let mut tokens_of_cancel = Vec::new();
        for sender in 0..21 {
            let mut sender_client = cluster.connect(if sender < 20 { "crowd" } else { "single" });
            tokens_of_cancel.push(sender_client.cancel_token());
            scope.spawn(move || sender_client.batch_execute(&bulk(sender)));
        }
        let mut sample = || -> HashMap<String, i64> {
            let rows = client.query(tokens, &[]).expect("the view answers");
            rows.iter().map(|row| (row.get(0), row.get(1))).collect()
        };
        eventually("all send", 60, || {
            let mut client = cluster.connect("crowd");
            client.one::<i64>("SELECT count(*) FROM situ.stat_requests WHERE tokens > 0") == 21
        });
        std::thread::sleep(Duration::from_millis(500));
        let before = sample();
        std::thread::sleep(Duration::from_secs(4));
        let after = sample();
        for token in tokens_of_cancel {
            token.cancel_query(postgres::NoTls).expect("the cancel request is sent");
        }
        (before, after)
    });
    let got = |name: &str| (after[name] - before[name]) as f64;
    let share = got("single") / (got("single") + got("crowd"));
    println!(
        "{} tokens of the crowd, {} of the single sender: {share:.3}",
        got("crowd"),
        got("single")
    );
    assert!(
        (0.42..0.58).contains(&share),
        "the single sender got {share} of the tokens"
    );
}

#[test]
fn senders_with_the_same_texts_share_the_work() {
    let cluster = Cluster::new();
    let mut client = cluster.text_database("same");
    client.run("SELECT situ.load_model('minilm')");
    let statement =
        "SELECT md5(situ.embed_batch(array_agg('text ' || n || repeat(' of a shared corpus', 30)), 'minilm')::text)
                       FROM generate_series(1, 1500) n";
    let tokens = "SELECT tokens FROM situ.stat_service";
    let start: i64 = client.one(tokens);
    let expected: String = client.one(statement);
    let alone = client.one::<i64>(tokens) - start;
    let results: Vec<String> = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..8)
            .map(|_| {
                let mut client = cluster.connect("same");
                scope.spawn(move || client.one::<String>(statement))
            })
            .collect();
        senders
            .into_iter()
            .map(|sender| sender.join().expect("a sender"))
            .collect()
    });
    assert!(
        results.iter().all(|result| *result == expected),
        "shared work gave other vectors"
    );
    let together = client.one::<i64>(tokens) - start - alone;
    let shared: i64 = client.one("SELECT shared FROM situ.stat_service");
    println!("{alone} tokens for one sender, {together} for eight; {shared} items shared");
    assert!(
        together < 3 * alone,
        "eight senders of the same texts cost {together} tokens, one {alone}"
    );
    assert!(shared > 1500);
}

/// Threads of the worker whose name starts so.
fn threads(worker: i32, name: &str) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{worker}/task")).expect("the worker runs");
    let named = |task: std::io::Result<std::fs::DirEntry>| {
        let path = task.ok()?.path().join("comm");
        std::fs::read_to_string(path)
            .ok()
            .filter(|found| found.starts_with(name))
    };
    tasks.filter_map(named).count()
}

#[test]
fn settings_are_followed_without_a_restart() {
    let cluster = Cluster::with(&[("situ.cpu_threads", "1"), ("situ.cpu_precision", "f32")]);
    let mut client = cluster.text_database("settings");
    client.run("SELECT situ.embed('text', 'minilm')");
    let worker = cluster.workers("situ encoder")[0];
    assert_eq!(threads(worker, "situ-compute"), 0, "the compute thread alone");
    cluster.set("situ.cpu_threads", "3");
    eventually("two threads more", 10, || threads(worker, "situ-compute") == 2);
    cluster.set("situ.cpu_threads", "2");
    eventually("one thread more", 10, || threads(worker, "situ-compute") == 1);

    let bulk = |from: usize| {
        let to = from + 99;
        format!("SELECT situ.embed_batch(array_agg('text ' || n), 'minilm') FROM generate_series({from}, {to}) n")
    };
    let batches = "SELECT batches FROM situ.stat_service";
    cluster.set("situ.batch_tokens", "1");
    eventually("a batch a text", 20, || {
        let before: i64 = client.one(batches);
        client.run(&bulk(1000));
        client.one::<i64>(batches) - before == 100
    });
    cluster.set("situ.batch_tokens", "4096");
    eventually("few batches", 20, || {
        let before: i64 = client.one(batches);
        client.run(&bulk(2000));
        client.one::<i64>(batches) - before < 30
    });

    // Both precisions are in memory until there is room for one.
    cluster.set("situ.cpu_precision", "int8");
    eventually("two models", 20, || {
        client.run("SELECT situ.embed('text', 'minilm')");
        client.one::<i32>("SELECT models FROM situ.stat_service") == 2
    });
    cluster.set("situ.model_memory", "1MB");
    eventually("one model", 20, || {
        client.one::<i32>("SELECT models FROM situ.stat_service") == 1
    });
    assert_eq!(
        client.one::<i32>("SELECT vector_dims(situ.embed('more', 'minilm'))"),
        384
    );
    cluster.set("situ.model_idle", "1s");
    eventually("no model", 20, || {
        client.one::<i32>("SELECT models FROM situ.stat_service") == 0
    });
    client.run("SELECT situ.embed('again', 'minilm')");
    assert_eq!(
        cluster.workers("situ encoder"),
        [worker],
        "the worker was not restarted"
    );
    assert_eq!(client.one::<i64>("SELECT restarts FROM situ.stat_service"), 0);
}
