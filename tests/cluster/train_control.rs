//! Who may act on a training and its process, how many run, and what an end of the process in mid-work leaves behind.

use crate::generate::{give, register, smollm};
use crate::support::cluster::{alive, signal};
use crate::support::{Cluster, Sql, eventually, shared};
use crate::train::{houses, long, state, until};
use postgres::Client;
use std::time::{Duration, Instant};

const TRAINERS: &str = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'situ trainer'";

fn trainer(client: &mut Client, name: &str) -> i32 {
    until(client, "it runs", &state(name, "running"));
    client.one(&format!(
        "SELECT worker FROM situ.training WHERE name = '{name}' AND worker > 0"
    ))
}

#[test]
fn no_function_signals_a_process_of_the_callers_choice() {
    let mut client = shared().text_database("train_signals");
    client.run(
        "DROP ROLE IF EXISTS train_signaller; CREATE ROLE train_signaller LOGIN;
         INSERT INTO situ_internal.training_jobs (kind, name, owner, arguments, search_path, state)
              VALUES ('adapter', 'mine', 'train_signaller', '{}', '', 'running')",
    );
    let mut victim = shared().connect("train_signals");
    let pid = victim.one::<i32>("SELECT pg_backend_pid()");
    let sleeper = std::thread::spawn(move || victim.batch_execute("SELECT pg_sleep(3)"));
    let mut caller = shared().connect_as("train_signaller", "train_signals");
    caller.run("SET statement_timeout = '500ms'");
    let failure = caller.failure(&format!(
        "SELECT situ_internal.await_training(1, {pid}) FROM generate_series(1, 1000)"
    ));
    assert_eq!(
        failure.code, "42883",
        "there is nowhere to name a process: {failure:#?}"
    );
    // The job says that it runs, and has no trainer.
    caller
        .failure("SELECT situ_internal.await_training(1) FROM generate_series(1, 1000)")
        .is("57P01", "has ended");
    assert_eq!(caller.one::<String>("SELECT state FROM situ.training"), "interrupted");
    let slept = sleeper.join().expect("the thread ends");
    assert!(slept.is_ok(), "another's statement was cancelled: {slept:?}");
    let named = "SELECT coalesce(string_agg(p.oid::regprocedure::text, ', '), '') FROM pg_proc p, unnest(p.proargnames, p.proargmodes) a(name, mode)
                  WHERE pronamespace = 'situ'::regnamespace AND a.name IN ('pid', 'worker', 'process') AND coalesce(a.mode, 'i') IN ('i', 'b', 'v')";
    assert_eq!(client.one::<String>(named), "", "functions that take a process");
    client.run("DELETE FROM situ_internal.training_jobs; DROP OWNED BY train_signaller; DROP ROLE train_signaller");
}

#[test]
fn views_over_rows_of_all_show_functions_of_their_reader_no_others() {
    let mut client = shared().text_database("train_leaks");
    client.run(
        "DROP ROLE IF EXISTS train_peeper; CREATE ROLE train_peeper LOGIN;
         INSERT INTO situ_internal.training_jobs (kind, name, owner, arguments, search_path, error)
              VALUES ('adapter', 'hidden', 'postgres', '{\"secret\": 42}', '', 'a secret'),
                     ('adapter', 'shown', 'train_peeper', '{}', '', 'no secret');
         CREATE SCHEMA peep AUTHORIZATION train_peeper;
         SET ROLE train_peeper;
         CREATE TABLE peep.seen (what text);
         CREATE FUNCTION peep.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.000001 AS $$ BEGIN
             INSERT INTO peep.seen VALUES ($1); RETURN true; END $$",
    );
    let names = "SELECT name FROM situ.training WHERE peep.leak(name || coalesce(error, '') || arguments::text)";
    assert_eq!(client.column::<String>(names), ["shown"]);
    assert_eq!(
        client.column::<String>("SELECT what FROM peep.seen"),
        ["shownno secret{}"]
    );
    client.run("RESET ROLE; DROP OWNED BY train_peeper; DROP ROLE train_peeper");
    // Whatever view decides by role which rows it shows.
    let open = "SELECT coalesce(string_agg(c.relname, ', '), '') FROM pg_class c
                 WHERE c.relnamespace = 'situ'::regnamespace AND c.relkind = 'v'
                   AND pg_get_viewdef(c.oid) ~* 'pg_has_role|current_user|session_user|has_\\w+_privilege'
                   AND NOT coalesce('security_barrier=true' = ANY (c.reloptions), false)";
    assert_eq!(client.one::<String>(open), "", "views without a barrier");
}

#[test]
fn ending_the_process_waits_until_it_can_be_ended() {
    let cluster = Cluster::with(&[("situ.training_checkpoint", "0")]);
    let mut client = cluster.text_database("train_sigterm");
    houses(&mut client);
    client.run(&long("slow", 400, false));
    let pid = trainer(&mut client, "slow");
    // A commit of the trainer's waits now for a standby that does not exist, in a part that must not be left in between.
    client.run("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    client.run("SELECT pg_reload_conf()");
    until(
        &mut client,
        "its commit waits",
        &format!("SELECT coalesce(wait_event = 'SyncRep', false) FROM pg_stat_activity WHERE pid = {pid}"),
    );
    assert!(client.one::<bool>(&format!("SELECT pg_terminate_backend({pid})")));
    eventually("the process ends", 10, || !alive(pid));
    client.run("ALTER SYSTEM RESET synchronous_standby_names");
    client.run("SELECT pg_reload_conf()");
    let log = cluster.log();
    assert!(
        log.contains("canceling the wait for synchronous replication and terminating connection"),
        "it was ended in the midst of its commit"
    );
    assert!(!log.contains("PANIC"), "{log}");
    assert_eq!(client.one::<String>("SELECT state FROM situ.training"), "interrupted");
    // In any moment of the work, and the place is free each time.
    for round in 0..10 {
        client.run("SELECT situ.resume_training(1)");
        std::thread::sleep(Duration::from_millis(137 * round % 700));
        until(
            &mut client,
            "it has a trainer",
            "SELECT coalesce(worker > 0, false) FROM situ.training",
        );
        let pid = client.one::<i32>("SELECT worker FROM situ.training");
        assert!(pid > 0);
        signal(pid, libc::SIGTERM);
        eventually("the process ends", 10, || !alive(pid));
        assert_eq!(client.one::<Option<i32>>("SELECT worker FROM situ.training"), None);
    }
    client.run("SELECT situ.cancel_training(1)");
    assert_eq!(client.one::<String>("SELECT state FROM situ.training"), "cancelled");
}

#[test]
fn trainings_are_limited_and_a_paused_one_leaves_its_place() {
    let cluster = Cluster::with(&[("situ.max_trainings", "1")]);
    let mut client = cluster.text_database("train_limit");
    houses(&mut client);
    client.run(&long("whole", 3, true));
    client.run(&long("first", 3, false));
    client
        .failure(&long("second", 400, false))
        .is("53400", "situ.max_trainings");
    assert_eq!(client.one::<i64>("SELECT count(*) FROM situ.training"), 2);
    client.run("SELECT situ.pause_training(id) FROM situ.training WHERE name = 'first'");
    until(&mut client, "it pauses", &state("first", "paused"));
    until(
        &mut client,
        "its process ends",
        "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'situ trainer')",
    );
    client.run(&long("second", 400, false));
    let resume = "SELECT situ.resume_training(id) FROM situ.training WHERE name = 'first'";
    client.failure(resume).is("53400", "situ.max_trainings");
    // It may be on its way.
    until(&mut client, "one process trains", &format!("SELECT ({TRAINERS}) = 1"));
    client.run("SELECT situ.cancel_training(id) FROM situ.training WHERE name = 'second'");
    until(&mut client, "it ends", &state("second", "cancelled"));
    until(
        &mut client,
        "its place is free",
        "SELECT worker IS NULL FROM situ.training WHERE name = 'second'",
    );
    client.run(resume);
    until(
        &mut client,
        "it ends",
        "SELECT state IN ('done', 'rejected') FROM situ.training WHERE name = 'first'",
    );
    let same = "SELECT situ.export_bridge('whole') = situ.export_bridge('first')";
    assert!(client.one::<bool>(same), "the paused training ended elsewhere");
    cluster.set("situ.max_trainings", "0");
    until(
        &mut client,
        "the setting is read",
        "SELECT current_setting('situ.max_trainings') = '0'",
    );
    client
        .failure(&long("none", 3, false))
        .is("53400", "situ.max_trainings");
}

#[test]
fn a_job_is_trained_once_however_often_it_is_resumed() {
    let mut client = shared().text_database("train_twice");
    houses(&mut client);
    client.run(&long("slow", 400, false));
    let mine = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'situ trainer' AND datname = 'train_twice'";
    for round in 0..4 {
        until(&mut client, "it runs", &state("slow", "running"));
        if round % 2 == 0 {
            client.run("SELECT situ.pause_training(1)");
            until(&mut client, "it pauses", &state("slow", "paused"));
        } else {
            let pid = trainer(&mut client, "slow");
            assert!(client.one::<bool>(&format!("SELECT pg_terminate_backend({pid}, 10000)")));
            until(&mut client, "it is seen", &state("slow", "interrupted"));
        }
        let resumes: Vec<_> = (0..4)
            .map(|_| {
                let mut client = shared().connect("train_twice");
                std::thread::spawn(move || {
                    client.column::<i32>("SELECT situ.resume_training(1) FROM generate_series(1, 3)")
                })
            })
            .collect();
        let mut pids: Vec<i32> = resumes
            .into_iter()
            .flat_map(|one| one.join().expect("resumed"))
            .collect();
        pids.retain(|pid| *pid != 0);
        pids.sort_unstable();
        pids.dedup();
        assert_eq!(pids.len(), 1, "{pids:?}");
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(600) {
            assert!(client.one::<i64>(mine) <= 1);
        }
    }
    until(&mut client, "it runs", &state("slow", "running"));
    assert_eq!(client.one::<i64>(mine), 1);
    client.run("SELECT situ.cancel_training(1)");
    until(&mut client, "it ends", &state("slow", "cancelled"));
}

#[test]
fn a_pause_is_cancelled_and_a_training_is_dropped_by_its_owner() {
    let mut client = shared().text_database("train_drop");
    houses(&mut client);
    client.run(
        "DROP ROLE IF EXISTS train_dropper, train_stranger;
         CREATE ROLE train_dropper LOGIN; CREATE ROLE train_stranger LOGIN;
         GRANT SELECT ON passages, pairs TO train_dropper;
         GRANT EXECUTE ON PROCEDURE situ.train TO train_dropper",
    );
    let mut owner = shared().connect_as("train_dropper", "train_drop");
    owner.run(&long("slow", 400, false));
    until(&mut owner, "it runs", &state("slow", "running"));
    owner.failure("SELECT situ.drop_training(1)").is("55006", "runs");
    // What failed is not done: the request is as it was.
    until(&mut owner, "it runs on", &state("slow", "running"));
    let mut stranger = shared().connect_as("train_stranger", "train_drop");
    for call in ["drop", "cancel", "pause", "resume"] {
        let failure = stranger.failure(&format!("SELECT situ.{call}_training(1)"));
        assert_eq!(failure.code, "42501", "{call}: {failure:#?}");
    }
    owner.run("SELECT situ.pause_training(1)");
    until(&mut owner, "it pauses", &state("slow", "paused"));
    owner.run("SELECT situ.cancel_training(1)");
    assert_eq!(
        owner.one::<String>("SELECT state || coalesce(checkpoint_bytes::text, '') FROM situ.training"),
        "cancelled"
    );
    owner.run("SELECT situ.drop_training(1)");
    assert_eq!(owner.failure("SELECT situ.drop_training(1)").code, "42704");
    // A paused one goes with its checkpoint.
    owner.run(&long("slow", 400, false));
    until(&mut owner, "it runs", &state("slow", "running"));
    owner.run("SELECT situ.pause_training(2)");
    until(&mut owner, "it pauses", &state("slow", "paused"));
    owner.run("SELECT situ.drop_training(2)");
    assert_eq!(client.one::<i64>("SELECT count(*) FROM situ_internal.training_jobs"), 0);
    client.run("DROP OWNED BY train_dropper, train_stranger; DROP ROLE train_dropper, train_stranger");
}

#[test]
fn pairs_beyond_the_memory_are_drawn_and_said() {
    let cluster = Cluster::with(&[("situ.training_memory", "1MB")]);
    let mut client = cluster.text_database("train_pairs");
    client.run(
        "CREATE TABLE passages AS SELECT n AS id, n AS document, 0 AS ordinal,
                'The ' || md5(n::text) || ' of house ' || n || ' has ' || (n * 7) % 100 || ' green windows.' AS body
           FROM generate_series(0, 99) n;
         CREATE TABLE pairs AS SELECT 'Which house has ' || k || ' windows and number ' || n || '?' AS query, n AS passage
           FROM generate_series(0, 99) n, generate_series(1, 20) k;
         CALL situ.train('adapter', 'some', model => 'minilm', passages => 'passages', pairs => 'pairs', options => '{\"epochs\": 1, \"held_out\": 0.4}')",
    );
    let said =
        "SELECT (figures->>'pairs_found') || ' ' || ((recipe->>'pairs')::int BETWEEN 50 AND 700) FROM situ.bridges";
    assert_eq!(client.one::<String>(said), "2000 true");
}

#[test]
fn a_relation_larger_than_the_memory_is_not_read_into_it() {
    let cluster = Cluster::with(&[("situ.training_memory", "8MB")]);
    let mut client = cluster.text_database("train_large");
    // 380 MB of text in documents of 48 kB.
    client.run(
        "CREATE VIEW passages AS SELECT n AS id, n AS document, 0 AS ordinal, repeat('The house ' || n || ' has green windows. ', 1200) AS body
           FROM generate_series(1, 8000) n",
    );
    client.run(
        "CALL situ.train('lexsem', 'words', model => 'minilm', passages => 'passages', scheme => 'bag', wait => false)",
    );
    let (mut most, begin) = (0, Instant::now());
    let ended = "SELECT state IN ('done', 'rejected', 'failed', 'interrupted') FROM situ.training";
    while !client.one::<bool>(ended) && begin.elapsed() < Duration::from_secs(120) {
        if let Some(pid) = client.one::<Option<i32>>("SELECT nullif(worker, 0) FROM situ.training") {
            most = most.max(own_memory(pid));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let state = client.one::<String>("SELECT state || coalesce(': ' || error, '') FROM situ.training");
    assert!(most > 0, "{state}");
    assert!(most < 200 << 20, "the trainer took {} MB ({state})", most >> 20);
    client.run("SELECT situ.cancel_training(id) FROM situ.training");
}

#[test]
fn an_llm_that_does_not_fit_is_not_loaded_to_train_with() {
    let Some(file) = smollm() else { return };
    let cluster = Cluster::with(&[("situ.llm_memory", "256MB")]);
    give(&cluster, &file);
    let mut client = cluster.text_database("train_llm");
    register(&mut client);
    houses(&mut client);
    let failure = client.failure(
        "CALL situ.train('xrag', 'doc', model => 'minilm', passages => 'passages', options => '{\"llm\": \"smol\"}')",
    );
    failure.is("53400", "situ.llm_memory allows");
    assert!(failure.detail.contains("of 256 MB"), "{failure:#?}");
}

/// Bytes of a process that are its own.
fn own_memory(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or_default() * 1024
}
