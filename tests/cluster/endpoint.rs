//! LLMs behind an OpenAI-compatible endpoint: a small server on loopback that repeats what it was told, and llama.cpp's own
//! where `SITU_TEST_LLAMA_SERVER` says how it is started.

use crate::data::document_table;
use crate::generate::{give, register, smollm};
use crate::support::{Cluster, Sql, as_server, eventually, run, shared};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What the endpoint was asked, and who asks now.
#[derive(Default)]
struct Seen {
    requests: Mutex<Vec<String>>,
    open: AtomicUsize,
}

/// Starts an endpoint: each word of the last message (or of the prompt) comes back as a piece. Asked to be silent, it says
/// one word and then nothing.
fn start() -> (String, Arc<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}/v1", listener.local_addr().expect("an address"));
    let seen = Arc::new(Seen::default());
    let all = seen.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let seen = all.clone();
            std::thread::spawn(move || {
                seen.open.fetch_add(1, Ordering::SeqCst);
                let _ = answer(stream, &seen);
                seen.open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    (address, seen)
}

fn answer(mut stream: TcpStream, seen: &Seen) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut head, mut length) = (String::new(), 0);
    while !head.ends_with("\r\n\r\n") {
        let at = head.len();
        reader.read_line(&mut head)?;
        if let Some(value) = head[at..].strip_prefix("Content-Length: ") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let text = String::from_utf8_lossy(&body).into_owned();
    seen.requests.lock().expect("unpoisoned").push(format!("{head}{text}"));
    let body: serde_json::Value = serde_json::from_str(&text)?;
    let key = head.split("Bearer ").nth(1).and_then(|rest| rest.lines().next());
    if key != Some("open-sesame") {
        // Some endpoints repeat what they were given.
        let said = format!("no such key: {}", key.unwrap_or("none"));
        return stream.write_all(format!("HTTP/1.1 401 No\r\nContent-Length: {}\r\n\r\n{said}", said.len()).as_bytes());
    }
    let last = body["messages"]
        .as_array()
        .and_then(|all| all.last()?["content"].as_str());
    let told = last.or(body["prompt"].as_str()).unwrap_or_default().to_owned();
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    let mut send = |event: &str| {
        let event = format!("data: {event}\n\n");
        stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes())
    };
    for (at, word) in told.split_inclusive(' ').enumerate() {
        if at == 1 && told.contains("be silent") {
            // Until the client goes.
            let _ = reader.read(&mut [0]);
            return Ok(());
        }
        let piece = serde_json::json!({"choices": [{"delta": {"content": word}}]});
        send(&piece.to_string())?;
    }
    send(
        r#"{"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 5}, "timings": {"prompt_ms": 1.5, "predicted_ms": 2.5}}"#,
    )?;
    send("[DONE]")?;
    stream.write_all(b"0\r\n\r\n")
}

/// A file of the server's with a key, which nobody else can read.
fn key_file(cluster: &Cluster, key: &str) -> String {
    let name = format!("key-{key}");
    cluster.write(&name, format!("{key}\n"));
    let path = cluster.folder().join(name);
    run(as_server("chmod").arg("600").arg(&path));
    path.display().to_string()
}

fn set(client: &mut postgres::Client, address: &str) {
    let file = key_file(shared(), "open-sesame");
    client.run(&format!(
        "SET situ.llm_endpoint = '{address}'; SET situ.llm_endpoint_key_file = '{file}'; SET situ.default_llm = 'endpoint:parrot'"
    ));
}

#[test]
fn answers_of_an_endpoint_come_as_those_of_an_llm_here() {
    let (address, seen) = start();
    let mut client = shared().text_database("endpoint_answers");
    set(&mut client, &address);
    assert_eq!(
        client.one::<String>("SELECT situ.generate('Grüß dich, Welt', 'endpoint:parrot')"),
        "Grüß dich, Welt"
    );
    let pieces: Vec<String> = client.column("SELECT situ.generate_stream('one two three', chat => false)");
    assert_eq!(pieces, ["one ", "two ", "three"]);
    client.one::<String>(
        "SELECT situ.generate('x', NULL, 7, temperature => 0.5, top_p => 0.9, seed => 3, stop => ARRAY['a', NULL, 'b'], system => 'be kind')",
    );
    let requests = seen.requests.lock().expect("unpoisoned").clone();
    let bodies = requests.iter().filter_map(|request| request.split("\r\n\r\n").nth(1));
    let bodies: Vec<serde_json::Value> = bodies.map(|body| serde_json::from_str(body).expect("JSON")).collect();
    assert!(requests[0].starts_with("POST /v1/chat/completions ") && requests[1].starts_with("POST /v1/completions "));
    assert_eq!(bodies[1]["prompt"], "one two three");
    assert_eq!(
        (&bodies[2]["model"], &bodies[2]["max_tokens"]),
        (&"parrot".into(), &7.into())
    );
    assert_eq!(bodies[2]["stop"], serde_json::json!(["a", "b"]));
    assert_eq!(
        bodies[2]["messages"][0],
        serde_json::json!({"role": "system", "content": "be kind"})
    );

    document_table(&mut client);
    client.run("CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm')");
    let row = client
        .query_one(
            "SELECT * FROM situ.rag('docs_body', 'What makes bread dough rise?', 2)",
            &[],
        )
        .expect("answers");
    let answer: String = row.get("answer");
    let passages: Vec<String> =
        client.column("SELECT passage FROM situ.search('docs_body', 'What makes bread dough rise?', 2)");
    // The parrot repeats its prompt: passages, nearest first, and the question.
    let places: Vec<Option<usize>> = passages.iter().map(|passage| answer.find(passage.as_str())).collect();
    assert!(places[0].is_some() && places[0] < places[1], "{answer}");
    assert!(answer.ends_with("Question: What makes bread dough rise?"), "{answer}");
    assert_eq!(
        (row.get::<_, i32>("prompt_tokens"), row.get::<_, i32>("answer_tokens")),
        (11, 5)
    );
    assert_eq!(
        (row.get::<_, f64>("prefill_ms"), row.get::<_, f64>("decode_ms")),
        (1.5, 2.5)
    );
    let sources: serde_json::Value = serde_json::from_str(
        &client.one::<String>("SELECT sources::text FROM situ.rag('docs_body', 'What makes bread dough rise?', 2)"),
    )
    .expect("JSON");
    assert_eq!(sources[0]["passage"], passages[0].as_str());
    assert_eq!(sources[0]["relation"], "public.docs");
    let none: String =
        client.one("SELECT answer FROM situ.rag('docs_body', 'Who?', mode => 'none', template => 'Say: {question}')");
    assert_eq!(none, "Say: Who?");
    // The text of a column instead of the passage.
    let titles: String =
        client.one("SELECT answer FROM situ.rag('docs_body', 'bread', 1, body => 'title', template => '{documents}')");
    assert_eq!(
        titles,
        client
            .one::<String>("SELECT d.title FROM situ.search('docs_body', 'bread', 1) h JOIN docs d ON d.ctid = h.ctid")
    );
}

#[test]
fn a_cancel_ends_a_request_to_an_endpoint() {
    let (address, seen) = start();
    let mut client = shared().database("endpoint_cancel");
    set(&mut client, &address);
    let token = client.cancel_token();
    let waited = std::thread::scope(|scope| {
        let running = scope.spawn(move || {
            let failure = client.failure("SELECT situ.generate('Please be silent now')");
            (failure, Instant::now())
        });
        eventually("it is asked", 10, || seen.open.load(Ordering::SeqCst) == 1);
        std::thread::sleep(Duration::from_millis(100));
        let since = Instant::now();
        token.cancel_query(postgres::NoTls).expect("sent");
        let (failure, ended) = running.join().expect("ends");
        assert_eq!(failure.code, "57014");
        ended.saturating_duration_since(since)
    });
    println!(
        "cancelled while waiting for an endpoint: {:.1} ms",
        waited.as_secs_f64() * 1e3
    );
    assert!(waited < Duration::from_millis(500));
    eventually("the connection is closed", 5, || seen.open.load(Ordering::SeqCst) == 0);

    // A stream that nobody reads to its end is closed as well.
    let mut client = shared().connect("endpoint_cancel");
    set(&mut client, &address);
    let first: Vec<String> = client.column("SELECT situ.generate_stream('Please be silent now') LIMIT 1");
    assert_eq!(first, ["Please "]);
    eventually("the connection is closed", 5, || seen.open.load(Ordering::SeqCst) == 0);
    client.run("SET situ.llm_endpoint_timeout = '300ms'");
    client
        .failure("SELECT situ.generate('Please be silent now')")
        .is("57014", "did not answer in time");
}

#[test]
fn what_an_endpoint_cannot_do_is_a_clear_error() {
    let (address, _seen) = start();
    let mut client = shared().database("endpoint_errors");
    let mut fails = |statement: &str, code: &str, part: &str| {
        client.failure(statement).is(code, part);
    };
    fails(
        "SELECT situ.generate('q', 'endpoint:x')",
        "55000",
        "no LLM endpoint is set",
    );
    fails(
        "SET situ.llm_endpoint = 'https://host'; SELECT situ.generate('q', 'endpoint:x')",
        "22023",
        "plain http",
    );
    set(&mut client, &address);
    let mut fails = |statement: &str, code: &str, part: &str| {
        client.failure(statement).is(code, part);
    };
    let vector = r#"'{"pieces": [{"vector": [1]}]}'::situ.prompt"#;
    fails(
        &format!("SELECT situ.xrag_generate({vector})"),
        "0A000",
        "vectors in a prompt",
    );
    fails(
        &format!("SELECT situ.xrag_prompt_embeds({vector})"),
        "0A000",
        "vectors in a prompt",
    );
    fails("SELECT situ.generate('q', NULL, 0)", "22023", "max_tokens");
    let wrong = key_file(shared(), "never-mind");
    client.run(&format!("SET situ.llm_endpoint_key_file = '{wrong}'"));
    let failure = client.failure("SELECT situ.generate('q')");
    failure.is("38000", "status 401: no such key: [key]");
    assert!(!format!("{failure:?}").contains("never-mind"), "{failure:?}");
    run(as_server("chmod").arg("644").arg(&wrong));
    let failure = client.failure("SELECT situ.generate('q')");
    failure.is("F0000", "can be read by others");
    for (file, part) in [("nothing_there", "cannot be read"), ("base", "no regular file")] {
        client.run(&format!("SET situ.llm_endpoint_key_file = '{file}'"));
        client.failure("SELECT situ.generate('q')").is("F0000", part);
    }
    client.run("RESET situ.llm_endpoint_key_file");
    client.run("SET situ.llm_endpoint = 'http://127.0.0.1:1/v1'; SET situ.llm_endpoint_retries = 1");
    client
        .failure("SELECT situ.generate('q')")
        .is("08006", "cannot be reached");
}

#[test]
fn the_key_is_in_no_setting_and_its_use_is_granted() {
    let (address, seen) = start();
    let cluster = Cluster::with_environment(&[("situ.llm_endpoint", &address)], |_| {
        vec![("SITU_LLM_ENDPOINT_KEY".to_owned(), "open-sesame".to_owned())]
    });
    let mut admin = cluster.text_database("endpoint_key");
    document_table(&mut admin);
    admin.run(
        "CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm');
         CREATE ROLE plain LOGIN; CREATE ROLE auditor LOGIN; GRANT pg_read_all_settings TO auditor;
         GRANT SELECT ON docs TO plain",
    );
    let mut plain = cluster.connect_as("plain", "endpoint_key");
    for statement in [
        "SELECT situ.generate('hello', 'endpoint:parrot')",
        "SELECT situ.generate_stream('hello', 'endpoint:parrot')",
        "SET situ.default_llm = 'endpoint:parrot'; SELECT situ.generate('hello')",
        "SELECT * FROM situ.rag('docs_body', 'bread', 1, model => 'endpoint:parrot')",
    ] {
        plain
            .failure(statement)
            .is("42501", "permission denied for the LLM endpoint");
    }
    assert!(seen.requests.lock().expect("unpoisoned").is_empty(), "nothing was sent");
    admin.run("GRANT EXECUTE ON FUNCTION situ.llm_endpoint() TO plain");
    let hello = "SELECT situ.generate('hello', 'endpoint:parrot')";
    assert_eq!(plain.one::<String>(hello), "hello");
    assert_eq!(plain.one::<String>("SELECT situ.llm_endpoint()"), address);
    for setting in ["situ.llm_endpoint", "situ.llm_endpoint_key_file"] {
        assert_eq!(plain.failure(&format!("SET {setting} = 'x'")).code, "42501");
    }
    assert_eq!(plain.failure("SHOW situ.llm_endpoint_key_file").code, "42501");
    // No setting holds a key, so none can be asked for, stored or dumped.
    assert_eq!(admin.failure("SET situ.llm_endpoint_key = 'open-sesame'").code, "42602");
    assert_eq!(
        admin
            .failure("ALTER ROLE plain SET situ.llm_endpoint_key = 'open-sesame'")
            .code,
        "42602"
    );
    let mut auditor = cluster.connect_as("auditor", "endpoint_key");
    for client in [&mut auditor, &mut admin] {
        assert_eq!(
            client.one::<i64>(
                "SELECT count(*) FROM pg_settings WHERE setting LIKE '%sesame%' OR reset_val LIKE '%sesame%'"
            ),
            0
        );
    }
    // A file wins over the environment, and counts as soon as it is there.
    let file = key_file(&cluster, "another");
    cluster.set("situ.llm_endpoint_key_file", &file);
    eventually("the setting is read", 10, || {
        plain
            .query_one(hello, &[])
            .is_err_and(|error| error.code().is_some_and(|code| code.code() == "38000"))
    });
    cluster.write("key-another", "open-sesame\n");
    assert_eq!(plain.one::<String>(hello), "hello");
}

/// llama.cpp's server over SmolLM2, ended with this value.
struct LlamaServer {
    child: Child,
    address: String,
}

impl Drop for LlamaServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl LlamaServer {
    /// Starts it with the program, and arguments, that `SITU_TEST_LLAMA_SERVER` holds; `None`, with a line that says so,
    /// where it holds none or the model is not there.
    fn start() -> Option<LlamaServer> {
        let Ok(command) = std::env::var("SITU_TEST_LLAMA_SERVER") else {
            println!("SKIPPED: SITU_TEST_LLAMA_SERVER does not say how llama.cpp's server is started");
            return None;
        };
        let model = smollm()?;
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = port.expect("a free port").port().to_string();
        let mut words = command.split_whitespace();
        let child = Command::new(words.next().expect("a program"))
            .args(words)
            .arg("-m")
            .arg(model)
            .args(["--host", "127.0.0.1", "--port", &port, "-c", "2048", "-np", "1"])
            .args(["--api-key", "open-sesame"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("llama.cpp's server starts");
        let address = format!("http://127.0.0.1:{port}/v1");
        let server = LlamaServer { child, address };
        eventually("llama.cpp's server has read the model", 60, || {
            let Ok(mut stream) = TcpStream::connect(format!("127.0.0.1:{port}")) else {
                return false;
            };
            let mut reply = String::new();
            let asked = stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            asked.is_ok() && stream.read_to_string(&mut reply).is_ok() && reply.starts_with("HTTP/1.1 200")
        });
        Some(server)
    }
}

#[test]
fn llama_cpps_own_server_answers() {
    let Some(server) = LlamaServer::start() else {
        return;
    };
    if let Some(model) = smollm() {
        give(shared(), &model);
    }
    let mut client = shared().text_database("endpoint_llama");
    register(&mut client);
    let (right, wrong) = (key_file(shared(), "open-sesame"), key_file(shared(), "wrong"));
    client.run(&format!(
        "SET situ.llm_endpoint = '{}'; SET situ.llm_endpoint_key_file = '{right}'",
        server.address
    ));
    // Continued from the same words, both count on; a stop text ends both in the same place.
    for more in ["", ", stop => ARRAY[', 7']"] {
        let ask = |model: &str| format!("SELECT situ.generate('1, 2, 3, 4,', '{model}', 12, chat => false{more})");
        let there: String = client.one(&ask("endpoint:smollm"));
        let here: String = client.one(&ask("smol"));
        println!("{there:?} {here:?}");
        assert_eq!(there, here);
        assert!(there.starts_with(" 5, 6"), "{there}");
    }
    let arguments = "('endpoint:smollm', 'What is the capital of France? Answer with one word.', 20)";
    let whole: String = client.one(&format!("SELECT situ.generate{arguments}"));
    assert!(whole.contains("Paris"), "{whole}");
    let pieces: Vec<String> = client.column(&format!("SELECT situ.generate_stream{arguments}"));
    assert_eq!(pieces.concat(), whole);
    assert!(pieces.len() > 3, "{pieces:?}");
    let drawn = "SELECT situ.generate('Tell me a story.', 'endpoint:smollm', 16, temperature => 1.2, top_k => 40, top_p => 0.9, seed => 3)";
    assert_eq!(client.one::<String>(drawn), client.one::<String>(drawn));

    // The same passages make a prompt of as many tokens there as here.
    document_table(&mut client);
    client.run("CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm')");
    let ask = |model: &str| {
        format!(
            "SELECT * FROM situ.rag('docs_body', 'What makes bread dough rise?', 2, model => '{model}', max_tokens => 24)"
        )
    };
    let there = client.query_one(&ask("endpoint:smollm"), &[]).expect("answers");
    let here = client.query_one(&ask("smol"), &[]).expect("answers");
    for column in ["prompt_tokens", "answer_tokens"] {
        println!(
            "{column}: {} {}",
            there.get::<_, i32>(column),
            here.get::<_, i32>(column)
        );
    }
    assert_eq!(
        there.get::<_, i32>("prompt_tokens"),
        here.get::<_, i32>("prompt_tokens")
    );
    assert!((1..=24).contains(&there.get::<_, i32>("answer_tokens")));
    assert!(there.get::<_, f64>("prefill_ms") > 0.0 && there.get::<_, f64>("decode_ms") > 0.0);

    // What it refuses is said, and it is free at once for others.
    client
        .failure("SELECT situ.generate(repeat('word ', 5000), 'endpoint:smollm', 5)")
        .is("38000", "status 400");
    let few: Vec<String> =
        client.column("SELECT situ.generate_stream('1, 2, 3, 4,', 'endpoint:smollm', 1500, chat => false) LIMIT 2");
    assert_eq!(few.len(), 2);
    let token = client.cancel_token();
    let mut other = shared().connect("endpoint_llama");
    let failure = std::thread::scope(|scope| {
        let running = scope.spawn(move || {
            client.failure("SELECT situ.generate('1, 2, 3, 4,', 'endpoint:smollm', 1500, chat => false)")
        });
        std::thread::sleep(Duration::from_millis(300));
        token.cancel_query(postgres::NoTls).expect("sent");
        running.join().expect("ends")
    });
    assert_eq!(failure.code, "57014");
    other.run(&format!(
        "SET situ.llm_endpoint = '{}'; SET situ.llm_endpoint_timeout = '5s'; SET situ.llm_endpoint_key_file = '{wrong}'",
        server.address
    ));
    other
        .failure("SELECT situ.generate('Hello', 'endpoint:smollm', 3)")
        .is("38000", "status 401");
    other.run(&format!("SET situ.llm_endpoint_key_file = '{right}'"));
    // Its only slot was given up with the answers that nobody waits for.
    assert!(
        !other
            .one::<String>("SELECT situ.generate('Hello', 'endpoint:smollm', 3)")
            .is_empty()
    );
    let address = server.address.clone();
    drop(server);
    other.run(&format!(
        "SET situ.llm_endpoint = '{address}'; SET situ.llm_endpoint_retries = 1"
    ));
    other
        .failure("SELECT situ.generate('Hello', 'endpoint:smollm', 3)")
        .is("08006", "cannot be reached");
}
