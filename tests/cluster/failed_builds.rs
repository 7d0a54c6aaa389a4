//! Builds that end in an error, again and again in one session: what they held is given back.

use crate::data::{append_vectors, clustered};
use crate::memory_caps::{address_space, limit};
use crate::support::sql::failure_of;
use crate::support::{Cluster, Sql};
use postgres::Client;

/// Resident memory of the session's server process, in MB.
fn resident(client: &mut Client) -> usize {
    let pid: i32 = client.one("SELECT pg_backend_pid()");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the status of a running process");
    let anonymous = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .expect("RssAnon");
    anonymous
        .trim()
        .trim_end_matches(" kB")
        .trim()
        .parse::<usize>()
        .expect("a number")
        / 1024
}

#[test]
fn ten_failed_and_ten_cancelled_builds_leave_memory_where_it_was() {
    let cluster = Cluster::new();
    let mut client = cluster.database("failed_builds");
    client.run("CREATE TABLE t (id bigint, v vector); SET maintenance_work_mem = '64MB'");
    append_vectors(&mut client, "t", 0, &clustered(15_000, 256, 5));
    // The last row fails the build, when all others are in memory.
    client.run("INSERT INTO t VALUES (-1, '[1,2]')");
    let build = "CREATE INDEX ON t USING situ (v vector_l2_ops)";
    assert_eq!(client.failure(build).code, "22000");
    let before = resident(&mut client);
    for _ in 0..10 {
        assert_eq!(client.failure(build).code, "22000");
    }
    let failed = resident(&mut client);
    assert!(
        failed < before + 16,
        "{before} MB before ten failed builds, {failed} MB after them"
    );

    client.run("DELETE FROM t WHERE id = -1");
    // The scan itself is cancelled, in the server's code: an expression sleeps behind the rows that are read.
    client
        .batch_execute(
            "CREATE FUNCTION late(v vector, id bigint) RETURNS vector LANGUAGE plpgsql IMMUTABLE AS $$
             BEGIN IF id = 14000 THEN PERFORM pg_sleep(60); END IF; RETURN v; END $$;
             SET statement_timeout = '1500ms'",
        )
        .expect("a function");
    let build = "CREATE INDEX ON t USING situ (late(v, id) vector_l2_ops)";
    for _ in 0..10 {
        assert_eq!(client.failure(build).code, "57014");
    }
    let cancelled = resident(&mut client);
    assert!(
        cancelled < before + 16,
        "{before} MB before ten cancelled builds, {cancelled} MB after them"
    );
}

#[test]
fn failed_builds_inside_one_transaction_keep_no_slot_of_the_encoder() {
    let cluster = Cluster::with(&[("situ.queue_memory", "1MB")]);
    let mut client = cluster.text_database("failed_slots");
    client.run("CREATE TABLE docs (id bigint, body text); INSERT INTO docs SELECT n, 'Text ' || n FROM generate_series(1, 20) n");
    client
        .batch_execute(
            "CREATE FUNCTION body_of(id bigint, body text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
             BEGIN IF id = 20 THEN RAISE division_by_zero; END IF; RETURN body; END $$",
        )
        .expect("a function");
    client.run("BEGIN; SET LOCAL statement_timeout = '30s'");
    for _ in 0..12 {
        client.run("SAVEPOINT build");
        let build = "CREATE INDEX ON docs USING situ (body_of(id, body)) WITH (model = 'minilm')";
        assert_eq!(client.failure(build).code, "22012");
        client.run("ROLLBACK TO build");
    }
    let taken: i64 = client.one("SELECT count(*) FROM situ.stat_requests");
    assert_eq!(taken, 0, "slots that failed builds hold");
    client.run("COMMIT");
}

#[test]
fn a_build_that_finds_no_memory_is_an_error_of_its_statement() {
    let cluster = Cluster::new();
    let mut client = cluster.database("failed_memory");
    client
        .run("CREATE TABLE t (id bigint, v vector(256)); SET maintenance_work_mem = '1GB'; SET situ.build_threads = 1");
    append_vectors(&mut client, "t", 0, &clustered(15_000, 256, 5));
    let pid: i32 = client.one("SELECT pg_backend_pid()");
    let build = "CREATE INDEX nearest ON t USING situ (v vector_l2_ops)";
    let free = address_space(pid);
    let mut failed = 0;
    for more in [6, 10, 14, 20, 28] {
        limit(pid, &(free + (more << 20)).to_string());
        match client.batch_execute(build) {
            Ok(()) => client.run("DROP INDEX nearest"),
            Err(error) => {
                let failure = failure_of(&error);
                assert_eq!(failure.code, "53200", "{more} MB: {failure:#?}");
                failed += 1;
            }
        }
    }
    assert!(failed > 0, "the limits were too wide to mean anything");
    limit(pid, "unlimited");
    client.run(build);
    assert_eq!(client.one::<i64>("SELECT documents FROM situ.stat_index"), 15_000);
}
