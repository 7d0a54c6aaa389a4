//! Processes of the server that find no memory: an error of the statement (53200), after which session, worker and server go
//! on. An allocation that ended its process would restart the whole server.

use crate::data::{append_vectors, clustered};
use crate::generate::{give, register, smollm};
use crate::support::cluster::alive;
use crate::support::sql::failure_of;
use crate::support::{Cluster, Sql, as_server, run};
use postgres::Client;

/// Bytes of address space of a process.
pub fn address_space(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the status of a running process");
    let size = status
        .lines()
        .find_map(|line| line.strip_prefix("VmSize:"))
        .expect("VmSize");
    size.trim()
        .trim_end_matches(" kB")
        .trim()
        .parse::<u64>()
        .expect("a number")
        * 1024
}

/// Limits the address space of a process of the server, as its own user: `bytes`, or `unlimited`.
pub fn limit(pid: i32, bytes: &str) {
    run(as_server("prlimit").args(["--pid", &pid.to_string(), &format!("--as={bytes}:")]));
}

/// Runs a statement while `pid` may take some megabytes more than it has, a few times with other limits; `between` undoes
/// what it did. Says how often memory was short.
fn refused(client: &mut Client, pid: i32, more: &[u64], statement: &str, between: &str) -> usize {
    let mut failed = 0;
    for more in more {
        limit(pid, &(address_space(pid) + (more << 20)).to_string());
        let result = client.batch_execute(statement);
        assert!(alive(pid), "{more} MB: the process is gone: {result:?}");
        limit(pid, "unlimited");
        match result {
            Ok(()) => client.run(between),
            Err(error) => {
                let failure = failure_of(&error);
                assert_eq!(failure.code, "53200", "{more} MB: {failure:#?}");
                println!("{more} MB: {}", failure.message);
                failed += 1;
            }
        }
    }
    failed
}

/// No process of the server has ended.
fn assert_none_ended(cluster: &Cluster) {
    let log = cluster.log();
    for line in [
        "was terminated by signal",
        "terminating any other active server processes",
    ] {
        assert!(!log.contains(line), "{log}");
    }
}

#[test]
fn a_model_that_finds_no_memory_fails_its_request_and_not_the_worker() {
    let settings = [("situ.cpu_threads", "2"), ("situ.cpu_precision", "f32")];
    let cluster = Cluster::with(&settings);
    let mut client = cluster.text_database("capped_model");
    let embed = "SELECT situ.embed('A text that is encoded', 'minilm')";
    client.run(embed);
    client.run("SELECT situ.unload_model('minilm')");
    let worker = cluster.workers("situ encoder")[0];
    let caps = [2, 6, 12, 20, 30, 45, 60, 80, 100, 120, 140, 160];
    let failed = refused(&mut client, worker, &caps, embed, "SELECT situ.unload_model('minilm')");
    assert!(failed > 2, "the limits were too wide to mean anything: {failed} failed");
    let last: String = client.one("SELECT last_error FROM situ.stat_service");
    assert!(last.contains("cannot allocate"), "{last}");
    client.run(embed);
    assert_eq!(cluster.workers("situ encoder"), [worker]);
    assert_none_ended(&cluster);
}

#[test]
fn an_llm_that_finds_no_memory_fails_its_request_and_not_the_worker() {
    let Some(file) = smollm() else { return };
    let cluster = Cluster::with(&[("situ.cpu_threads", "2")]);
    give(&cluster, &file);
    let mut client = cluster.database("capped_llm");
    register(&mut client);
    let ask = "SELECT situ.generate('Count to three.', 'smol', 8)";
    client.run(ask);
    client.run("SELECT situ.unload_model('smol')");
    let worker = cluster.workers("situ llm")[0];
    let caps = [2, 10, 30, 60, 90, 120, 160, 200, 250, 300];
    let failed = refused(&mut client, worker, &caps, ask, "SELECT situ.unload_model('smol')");
    assert!(failed > 2, "the limits were too wide to mean anything: {failed} failed");
    client.run(ask);
    assert_eq!(cluster.workers("situ llm"), [worker]);
    assert_none_ended(&cluster);
}

#[test]
fn a_session_that_finds_no_memory_for_its_messages_goes_on() {
    let cluster = Cluster::with(&[("situ.cpu_precision", "int8")]);
    let mut client = cluster.text_database("capped_messages");
    let pid: i32 = client.one("SELECT pg_backend_pid()");
    // Some thousand vectors of 1.5 kB come back.
    let embed =
        "SELECT length(situ.embed_batch(array_agg('text ' || n), 'minilm')::text) FROM generate_series(1, 6000) n";
    client.run(embed);
    let failed = refused(&mut client, pid, &[1, 2, 4, 6, 9, 14], embed, "SELECT 1");
    assert!(failed > 0, "the limits were too wide to mean anything");
    client.run(embed);
    let taken: i64 = client.one("SELECT count(*) FROM situ.stat_requests");
    assert_eq!(taken, 0, "places in the queue that failed statements hold");
    assert_eq!(client.one::<i32>("SELECT pg_backend_pid()"), pid);
    // Many pieces of one document, by a session that has no memory of others to fall back on.
    let mut client = cluster.connect("capped_messages");
    let pid: i32 = client.one("SELECT pg_backend_pid()");
    let situate = "SELECT sum(length(passage)) FROM situ.situate(repeat('A sentence about the weather in the north. ', 8000), 'minilm')";
    client.run("SELECT passage FROM situ.situate('A sentence.', 'minilm')");
    let failed = refused(&mut client, pid, &[1, 2, 4, 6, 9, 14], situate, "SELECT 1");
    assert!(failed > 0, "the limits were too wide to mean anything");
    client.run(situate);
    assert_eq!(client.one::<i32>("SELECT pg_backend_pid()"), pid);
    assert_none_ended(&cluster);
}

#[test]
fn a_search_for_many_rows_that_finds_no_memory_is_an_error_of_its_statement() {
    const ROWS: usize = 60_000;
    let cluster = Cluster::new();
    let mut client = cluster.database("capped_search");
    client.run("CREATE TABLE t (id bigint, v vector(8))");
    append_vectors(&mut client, "t", 0, &clustered(ROWS, 8, 5));
    client.run("CREATE INDEX nearest ON t USING situ (v vector_l2_ops); VACUUM ANALYZE t");
    client.run("SET enable_seqscan = off; SET enable_sort = off; SET work_mem = '256MB'");
    let pid: i32 = client.one("SELECT pg_backend_pid()");
    let query = "'[1,2,3,4,5,6,7,8]'";
    let search = format!("SELECT count(distance) FROM situ.search('nearest', {query}::vector, {ROWS})");
    let scan = format!("SELECT count(*) FROM (SELECT id FROM t ORDER BY v <-> {query} LIMIT {ROWS}) s");
    for statement in [search, scan] {
        assert_eq!(client.one::<i64>(&statement), ROWS as i64);
        let failed = refused(&mut client, pid, &[1, 2, 3, 4, 6, 8, 12], &statement, "SELECT 1");
        println!("{failed} of 7 failed: {statement}");
        assert_eq!(client.one::<i64>(&statement), ROWS as i64);
    }
    // What the session keeps free after a first run may be enough for the next: one that has run nothing asks for all.
    let mut failed = 0;
    for more in [2, 4, 6, 8] {
        let mut fresh = cluster.connect("capped_search");
        let pid: i32 = fresh.one("SELECT pg_backend_pid()");
        fresh.run("SET work_mem = '256MB'; SET enable_seqscan = off");
        fresh.run(&format!(
            "SELECT count(*) FROM situ.search('nearest', {query}::vector, 1)"
        ));
        let search = format!("SELECT count(distance) FROM situ.search('nearest', {query}::vector, {ROWS})");
        failed += refused(&mut fresh, pid, &[more], &search, "SELECT 1");
        assert_eq!(fresh.one::<i64>(&search), ROWS as i64);
    }
    assert!(failed > 0, "the limits were too wide to mean anything");
    assert_none_ended(&cluster);
}
