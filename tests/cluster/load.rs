//! Load with accidents: many connections mix queries and bulk work while clients, statements, requests and workers are
//! ended at random. Every statement is answered or fails with an error, no answer is wrong, nothing is left behind.
//!
//! `SITU_LOAD_SECONDS` sets how long (20), `SITU_LOAD_SEED` repeats the accidents of a run.

use crate::data::Random;
use crate::support::cluster::signal;
use crate::support::{Cluster, Sql, eventually, program};
use postgres::{Client, NoTls};
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Connections that ask one text at a time, and those that send lists.
const QUERIES: usize = 40;
const BULK: usize = 24;
const DATABASES: [&str; 3] = ["load_a", "load_b", "load_c"];
const TEXTS: usize = 400;
/// Least time between two ends of a worker: a request is sent again once.
const WORKER_LIFE: Duration = Duration::from_secs(4);

/// What came of the statements.
#[derive(Default)]
struct Tally {
    answered: AtomicU64,
    texts: AtomicU64,
    failed: AtomicU64,
    wrong: Mutex<Vec<String>>,
    /// Errors by code, for the report.
    codes: Mutex<std::collections::BTreeMap<String, u64>>,
}

fn random(random: &mut Random, below: usize) -> usize {
    (random.bits() % below as u64) as usize
}

fn text(number: usize) -> String {
    let tail = [
        "",
        " It rained for days.",
        " The letters were never found, and nobody asked for them again.",
    ];
    let repeat = 1 + number % 13;
    format!(
        "Report {number}: the ship arrived late.{}",
        tail[number % 3].repeat(repeat)
    )
}

/// The texts as SQL.
fn array(numbers: &[usize]) -> String {
    let texts: Vec<String> = numbers.iter().map(|number| format!("'{}'", text(*number))).collect();
    format!("ARRAY[{}]", texts.join(","))
}

fn select(numbers: &[usize]) -> String {
    let array = array(numbers);
    format!("SELECT v::text FROM unnest(situ.embed_batch({array}, 'minilm')) WITH ORDINALITY u(v, n) ORDER BY n")
}

/// Sends statements until `done`, on a new connection wherever the old one was lost.
fn client(cluster: &Cluster, number: usize, seed: u64, expected: &[String], done: &AtomicBool, tally: &Tally) {
    let mut dice = Random::new(seed.wrapping_mul(1000) + number as u64);
    let database = DATABASES[number % DATABASES.len()];
    let mut connection: Option<Client> = None;
    while !done.load(Ordering::SeqCst) {
        let mut client = match connection.take() {
            Some(client) => client,
            None => match cluster.config("postgres", database).connect(NoTls) {
                Ok(client) => client,
                Err(_) => {
                    std::thread::sleep(Duration::from_millis(50));
                    continue;
                }
            },
        };
        let count = if number < QUERIES {
            1
        } else {
            20 + random(&mut dice, 200)
        };
        let numbers: Vec<usize> = (0..count).map(|_| random(&mut dice, TEXTS)).collect();
        let result = client.query(&select(&numbers), &[]);
        match result {
            Ok(rows) => {
                let got: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
                let right = got.len() == numbers.len() && got.iter().zip(&numbers).all(|(g, n)| *g == expected[*n]);
                if !right {
                    tally
                        .wrong
                        .lock()
                        .expect("no panic")
                        .push(format!("client {number}: {numbers:?}"));
                }
                tally.answered.fetch_add(1, Ordering::SeqCst);
                tally.texts.fetch_add(count as u64, Ordering::SeqCst);
                connection = Some(client);
            }
            Err(error) => {
                tally.failed.fetch_add(1, Ordering::SeqCst);
                let code = error
                    .code()
                    .map_or("connection lost".to_owned(), |code| code.code().to_owned());
                // Cancelled, terminated by an administrator, or the worker was lost twice.
                let known = ["connection lost", "57014", "57P01", "08006"].contains(&code.as_str());
                if !known {
                    tally
                        .wrong
                        .lock()
                        .expect("no panic")
                        .push(format!("client {number}: {error:?}"));
                }
                *tally.codes.lock().expect("no panic").entry(code).or_default() += 1;
                if !client.is_closed() {
                    connection = Some(client);
                }
            }
        }
    }
}

/// A client of its own process, to be killed while it waits: its socket just goes away.
fn victim(cluster: &Cluster, numbers: &[usize]) -> Child {
    let mut command = program("psql");
    command
        .args(["-X", "-q", "-U", "postgres", "-p", "5432", "-d", DATABASES[0], "-h"])
        .arg(cluster.folder())
        .args(["-c", &select(numbers)])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().expect("psql starts")
}

/// Accidents until `done`: how many there were of each sort.
fn accidents(cluster: &Cluster, seed: u64, done: &AtomicBool) -> [u32; 7] {
    let mut dice = Random::new(seed);
    let mut counts = [0; 7];
    let mut admin = cluster.connect("load_a");
    let mut last_end = Instant::now();
    let pids = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
                   AND state = 'active'";
    while !done.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(50 + random(&mut dice, 150) as u64));
        let kind = random(&mut dice, counts.len());
        match kind {
            0 | 1 => {
                let found: Vec<i32> = admin.column(pids);
                if found.is_empty() {
                    continue;
                }
                let pid = found[random(&mut dice, found.len())];
                let function = ["pg_terminate_backend", "pg_cancel_backend"][kind];
                admin.run(&format!("SELECT {function}({pid})"));
            }
            2 => {
                let found: Vec<i64> = admin.column("SELECT id FROM situ.stat_requests");
                if found.is_empty() {
                    continue;
                }
                admin.run("SET client_min_messages = error");
                let id = found[random(&mut dice, found.len())];
                admin.run(&format!("SELECT situ.cancel_request({id})"));
            }
            3 => {
                let numbers: Vec<usize> = (0..300).map(|_| random(&mut dice, TEXTS)).collect();
                let mut child = victim(cluster, &numbers);
                std::thread::sleep(Duration::from_millis(40 + random(&mut dice, 100) as u64));
                child.kill().expect("psql is killed");
                child.wait().expect("psql ends");
            }
            4 => {
                // The end of a worker: asked for by a signal that it may get from an administrator.
                if last_end.elapsed() < WORKER_LIFE {
                    continue;
                }
                let Some(worker) = cluster.workers("situ encoder").first().copied() else {
                    continue;
                };
                last_end = Instant::now();
                signal(worker, libc::SIGTERM);
            }
            5 => {
                let result = admin.batch_execute("SELECT situ.unload_model('minilm')");
                assert!(result.is_ok(), "{result:?}");
            }
            _ => cluster.set("situ.cpu_threads", ["1", "2"][random(&mut dice, 2)]),
        }
        counts[kind] += 1;
    }
    counts
}

/// The worker's memory, once it has been quiet for some seconds.
fn level(client: &mut Client) -> i64 {
    std::thread::sleep(Duration::from_millis(2500));
    client.one("SELECT resident_bytes FROM situ.stat_service")
}

fn run(cluster: &Cluster, seconds: u64, seed: u64, expected: &[String], with_accidents: bool) -> (Tally, [u32; 7]) {
    let (done, tally) = (AtomicBool::new(false), Tally::default());
    let counts = std::thread::scope(|scope| {
        for number in 0..QUERIES + BULK {
            let (done, tally) = (&done, &tally);
            scope.spawn(move || client(cluster, number, seed, expected, done, tally));
        }
        let done = &done;
        let chaos = with_accidents.then(|| scope.spawn(move || accidents(cluster, seed, done)));
        std::thread::sleep(Duration::from_secs(seconds));
        done.store(true, Ordering::SeqCst);
        chaos.map_or([0; 7], |chaos| chaos.join().expect("the accidents end"))
    });
    (tally, counts)
}

#[test]
fn load_with_accidents() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seconds = variable("SITU_LOAD_SECONDS").unwrap_or(20);
    let seed = variable("SITU_LOAD_SEED").unwrap_or(u64::from(std::process::id()));
    let cluster = Cluster::with(&[("max_connections", "120")]);
    for database in DATABASES {
        cluster.text_database(database);
    }
    let mut admin = cluster.connect("load_a");
    // The table of right answers, made one text at a time on an idle service.
    let expected: Vec<String> = (0..TEXTS)
        .map(|number| admin.query(&select(&[number]), &[]))
        .map(|rows| rows.expect("a vector")[0].get(0))
        .collect();

    // Some seconds of load without accidents set the level that memory has to return to.
    let (tally, _) = run(&cluster, 3, seed ^ 1, &expected, false);
    assert_eq!(tally.failed.load(Ordering::SeqCst), 0, "{:?}", tally.codes.lock());
    assert!(tally.wrong.lock().expect("no panic").is_empty());
    let before = level(&mut admin);

    let (tally, counts) = run(&cluster, seconds, seed, &expected, true);
    let wrong = tally.wrong.into_inner().expect("no panic");
    let [terminated, cancelled, requests, sockets, workers, unloads, reloads] = counts;
    println!(
        "seed {seed}, {seconds} s: {} statements answered ({} texts), {} failed {:?}; {terminated} terminated, {cancelled} \
         cancelled, {requests} requests cancelled, {sockets} sockets dropped, {workers} workers ended, {unloads} unloads, \
         {reloads} reloads",
        tally.answered.load(Ordering::SeqCst),
        tally.texts.load(Ordering::SeqCst),
        tally.failed.load(Ordering::SeqCst),
        tally.codes.into_inner().expect("no panic"),
    );
    assert!(
        wrong.is_empty(),
        "seed {seed}: {} wrong: {:#?}",
        wrong.len(),
        &wrong[..wrong.len().min(5)]
    );
    assert!(
        tally.answered.load(Ordering::SeqCst) > 10 * seconds,
        "hardly anything was answered"
    );

    let mut admin = cluster.connect("load_a");
    eventually("no slot is taken, no request is left", 60, || {
        admin.one::<i32>("SELECT slots_used FROM situ.stat_service") == 0
            && admin.one::<i64>("SELECT count(*) FROM situ.stat_requests") == 0
            && admin.one::<i64>("SELECT queued_queries + queued_bulk FROM situ.stat_service") == 0
    });
    for (number, vector) in expected.iter().enumerate().step_by(17) {
        let rows = admin.query(&select(&[number]), &[]).expect("a vector");
        assert_eq!(
            rows[0].get::<_, String>(0),
            *vector,
            "seed {seed}, text {number} after the load"
        );
    }
    // The same load as before the accidents, so that what is compared is alike.
    run(&cluster, 3, seed ^ 1, &expected, false);
    let after = level(&mut admin);
    println!("resident: {} MB before, {} MB after", before >> 20, after >> 20);
    assert!(
        after < before + before / 4 + (32 << 20),
        "seed {seed}: {before} bytes before, {after} after"
    );
    assert_eq!(cluster.workers("situ encoder").len(), 1);
}
