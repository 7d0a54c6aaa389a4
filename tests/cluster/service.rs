//! The encoder service: many connections, several databases, cancellation, workers that die.

use crate::data::{SUBJECTS, add_document, document_table};
use crate::support::cluster::{alive, signal};
use crate::support::{Cluster, Sql, eventually, shared};
use std::time::{Duration, Instant};

#[test]
fn thirty_two_connections_get_the_same_vectors_as_one() {
    let cluster = shared();
    let mut client = cluster.text_database("service_many");
    let expected: Vec<String> = (0..8)
        .map(|n| {
            client.one::<String>(&format!(
                "SELECT situ.embed('text number {n} about the sea', 'minilm')::text"
            ))
        })
        .collect();
    std::thread::scope(|scope| {
        for connection in 0..32 {
            let expected = &expected;
            scope.spawn(move || {
                let mut client = cluster.connect("service_many");
                for round in 0..6 {
                    let n = (connection + round) % 8;
                    let vector: String = client.one(&format!(
                        "SELECT situ.embed('text number {n} about the sea', 'minilm')::text"
                    ));
                    assert_eq!(vector, expected[n], "connection {connection}, round {round}");
                }
            });
        }
    });
}

#[test]
fn two_databases_share_one_worker() {
    let cluster = Cluster::new();
    let mut first = cluster.text_database("first");
    let mut second = cluster.text_database("second");
    let sentence = "SELECT situ.embed('The same text.', 'minilm')::text";
    let vectors: (String, String) = std::thread::scope(|scope| {
        let one = scope.spawn(|| first.one(sentence));
        let two = scope.spawn(|| second.one(sentence));
        (one.join().expect("first"), two.join().expect("second"))
    });
    assert_eq!(vectors.0, vectors.1);
    assert_eq!(cluster.workers("situ encoder").len(), 1);
}

#[test]
fn a_cancelled_statement_ends_within_a_tenth_of_a_second() {
    let cluster = shared();
    let mut client = cluster.text_database("service_cancel");
    client.run("SELECT situ.embed('warm', 'minilm')");
    client.run("CREATE TABLE docs (id bigint, title text, body text)");
    client.run("INSERT INTO docs SELECT n, '', n || repeat(' A long sentence about harbours, ships and weather.', 400) FROM generate_series(1, 200) n");
    let statements = [
        "SELECT situ.embed_batch((SELECT array_agg(body) FROM docs), 'minilm')",
        "CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm')",
        "SELECT count(*) FROM docs, LATERAL situ.situate(body, 'minilm')",
    ];
    for statement in statements {
        let token = client.cancel_token();
        let running = std::thread::spawn(move || {
            let failure = client.failure(statement);
            (client, failure, Instant::now())
        });
        std::thread::sleep(Duration::from_millis(700));
        let cancelled = Instant::now();
        token.cancel_query(postgres::NoTls).expect("the cancel request is sent");
        let (back, failure, ended) = running.join().expect("the statement ends");
        client = back;
        assert_eq!(failure.code, "57014", "{statement}: {failure:#?}");
        // A tenth of a second, and as much again for machines that run other tests meanwhile.
        let waited = ended.duration_since(cancelled);
        assert!(
            waited < Duration::from_millis(200),
            "{statement} ended {waited:?} after the cancel"
        );
        // PostgreSQL 16 and 17 signal for one cancel the process and then its group: what comes second ends this.
        let _ = client.batch_execute("SELECT pg_sleep(0.05)");
    }
    let started = Instant::now();
    client.run("SELECT situ.embed('after', 'minilm')");
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "the queue is still full of what was cancelled"
    );
    assert_eq!(
        client.one::<i64>("SELECT count(*) FROM pg_class WHERE relname = 'docs_body'"),
        0
    );
}

#[test]
fn a_worker_that_is_killed_comes_back_and_requests_are_sent_again() {
    // SIGTERM: the server takes SIGKILL of any process attached to shared memory for a crash of the whole.
    let cluster = Cluster::new();
    let mut client = cluster.text_database("worker");
    document_table(&mut client);
    client.run("CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm')");
    let before = cluster.workers("situ encoder");
    assert_eq!(before.len(), 1, "one worker for the processor");

    let build = std::thread::scope(|scope| {
        let build = scope.spawn(|| {
            let mut client = cluster.connect("worker");
            client.run("INSERT INTO docs SELECT n, '', repeat('Another sentence about the weather. ', 200) FROM generate_series(1000, 1030) n");
            client.batch_execute("CREATE INDEX again ON docs USING situ (body) WITH (model = 'minilm')").map_err(|e| format!("{e:?}"))
        });
        std::thread::sleep(Duration::from_millis(800));
        signal(before[0], libc::SIGTERM);
        build.join().expect("the build ends")
    });
    build.expect("a request that lost its worker is sent once more");
    eventually("the old worker is gone and a new one is there", 20, || {
        !alive(before[0]) && cluster.workers("situ encoder").len() == 1
    });
    let question = SUBJECTS[4].2;
    let first: i64 = client.one(&format!(
        "SELECT d.id FROM situ.search('docs_body', '{question}', k => 1) h JOIN docs d ON d.ctid = h.ctid"
    ));
    assert_eq!(first, 4);
}

#[test]
fn a_killed_worker_takes_nothing_with_it() {
    // SIGKILL makes the postmaster restart all processes: connections are lost, data is not, and the service returns.
    let cluster = Cluster::new();
    let mut client = cluster.text_database("killed");
    client.run("CREATE TABLE docs (id bigint, title text, body text)");
    client.run("CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm')");
    add_document(&mut client, 4, 4, 3);
    signal(cluster.workers("situ encoder")[0], libc::SIGKILL);
    eventually("the server answers again", 60, || {
        cluster
            .config("postgres", "killed")
            .connect(postgres::NoTls)
            .is_ok_and(|mut client| client.batch_execute("SELECT situ.embed('back', 'minilm')").is_ok())
    });
    let mut client = cluster.connect("killed");
    assert_eq!(
        client
            .column::<String>("SELECT passage FROM situ.search('docs_body', 'vaccine', k => 1)")
            .len(),
        1
    );
}

#[test]
fn a_backend_that_dies_frees_its_place_in_the_queue() {
    let cluster = shared();
    let mut client = cluster.text_database("service_sender");
    for _ in 0..12 {
        let mut other = cluster.connect("service_sender");
        let pid: i32 = other.one("SELECT pg_backend_pid()");
        let lost = std::thread::spawn(move || {
            other.batch_execute("SELECT situ.embed_batch(array_agg(repeat('many words ', 500) || n), 'minilm') FROM generate_series(1, 300) n")
        });
        std::thread::sleep(Duration::from_millis(150));
        client.run(&format!("SELECT pg_terminate_backend({pid})"));
        assert!(lost.join().expect("the thread ends").is_err());
    }
    let started = Instant::now();
    client.run("SELECT situ.embed('still here', 'minilm')");
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "waited {:?}",
        started.elapsed()
    );
}

#[test]
fn a_query_does_not_wait_for_an_index_build() {
    let cluster = shared();
    let mut client = cluster.text_database("service_lanes");
    client.run("CREATE TABLE docs (id bigint, title text, body text)");
    client.run("INSERT INTO docs SELECT n, '', repeat('A long sentence about harbours, ships and weather. ', 200) FROM generate_series(1, 60) n");
    let build = std::thread::spawn(|| {
        shared()
            .connect("service_lanes")
            .run("CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm')");
    });
    std::thread::sleep(Duration::from_millis(800));
    let mut slowest = Duration::ZERO;
    let mut asked = 0;
    while !build.is_finished() && asked < 20 {
        let started = Instant::now();
        client.run(&format!("SELECT situ.embed('question number {asked}', 'minilm')"));
        if build.is_finished() {
            break;
        }
        slowest = slowest.max(started.elapsed());
        asked += 1;
    }
    build.join().expect("the build ends");
    assert!(asked >= 3, "the build ended too early for this test to mean anything");
    assert!(
        slowest < Duration::from_secs(2),
        "a query waited {slowest:?} for the build"
    );
}

#[test]
fn a_server_without_room_for_the_worker_says_so() {
    // One place, and the server's own launcher of logical replication takes it.
    let cluster = Cluster::with(&[("max_worker_processes", "1")]);
    let mut client = cluster.text_database("no_room");
    client
        .failure("SELECT situ.embed('text', 'minilm')")
        .is("55000", "does not start");
    let state: String = client.one("SELECT state FROM situ.stat_service");
    assert_eq!(state, "starting");
    // Registered without a service that could measure it: in f32 until somebody asks for more.
    let precision = "SELECT precision || coalesce(calibration::text, ' not measured') FROM situ.models";
    assert_eq!(client.one::<String>(precision), "f32 not measured");
    for statement in [
        "SELECT situ.load_model('minilm')",
        "SELECT situ.calibrate_model('minilm')",
    ] {
        client.failure(statement).is("55000", "does not start");
    }
}

#[test]
fn a_request_that_takes_too_long_ends_with_its_timeout() {
    let cluster = shared();
    let mut client = cluster.text_database("request_timeout");
    client.run("SELECT situ.embed('warm', 'minilm')");
    client.run("SET situ.request_timeout = 1");
    client
        .failure(
            "SELECT situ.embed_batch(array_agg(repeat('many words ', 500) || n), 'minilm') FROM generate_series(1, 50) n",
        )
        .is("57014", "did not answer");
    client.run("RESET situ.request_timeout");
    client.run("SELECT situ.embed('after', 'minilm')");
}
