//! Documents as tokens of an LLM: bridges of kind xrag, prompts with vectors, `situ.rag`.
//!
//! What needs an LLM needs SmolLM2 in the cache, and says SKIPPED without it.

use crate::data::document_table;
use crate::generate::{give, register, smollm};
use crate::support::{Sql, shared};
use postgres::Client;
use std::io::Write;
use std::process::{Command, Stdio};

/// Width of SmolLM2-135M.
const WIDTH: usize = 576;

/// A projector over MiniLM's vectors: `2000 gelu(x0)` and `gelu(x1) / 64` spread over the LLM's width. `more` goes into the
/// metadata; none: a file as it is published.
fn file(more: Option<&str>) -> Vec<u8> {
    let mut first = vec![0f32; 2 * 384];
    (first[0], first[384 + 1]) = (1.0, 1.0);
    let second: Vec<f32> = (0..WIDTH)
        .flat_map(|row| [row as f32 / WIDTH as f32, 1.0 / 64.0])
        .collect();
    let tensors = [
        ("projector.projector.0.weight", "[2, 384]".to_owned(), first),
        ("projector.projector.0.bias", "[2]".to_owned(), vec![0.25, -0.5]),
        ("projector.projector.2.weight", format!("[{WIDTH}, 2]"), second),
        ("projector.projector.2.bias", format!("[{WIDTH}]"), vec![0.125; WIDTH]),
    ];
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    if let Some(more) = more {
        let situ = format!("{{\"kind\": \"xrag\", \"dimensions\": 384{more}}}").replace('"', "\\\"");
        entries.push(format!("\"__metadata__\": {{\"situ\": \"{situ}\"}}"));
    }
    for (name, shape, numbers) in tensors {
        let start = data.len();
        numbers
            .iter()
            .for_each(|number| data.extend_from_slice(&number.to_le_bytes()));
        let end = data.len();
        entries.push(format!(
            "\"{name}\": {{\"dtype\": \"F32\", \"shape\": {shape}, \"data_offsets\": [{start}, {end}]}}"
        ));
    }
    let header = format!("{{{}}}", entries.join(", "));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&data);
    file
}

fn import(client: &mut Client, name: &str, more: &str) {
    let kind: String = client
        .query_one(
            "SELECT situ.import_bridge($1, $2::bytea, model => 'minilm')",
            &[&name, &file(Some(more))],
        )
        .expect("imported")
        .get(0);
    assert_eq!(kind, "xrag");
}

fn gelu(x: f64) -> f64 {
    // The normal distribution by Simpson's rule, to well below the tolerance of the comparison.
    let (steps, from) = (2000, -8.0);
    let width = (x - from) / f64::from(steps);
    let density = |at: f64| (-at * at / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let sum: f64 = (0..=steps)
        .map(|step| {
            let weight = match step {
                0 => 1.0,
                _ if step == steps => 1.0,
                _ if step % 2 == 1 => 4.0,
                _ => 2.0,
            };
            weight * density(from + width * f64::from(step))
        })
        .sum();
    x * sum * width / 3.0
}

#[test]
fn a_token_is_what_the_formula_says() {
    let mut client = shared().text_database("xrag_token");
    import(&mut client, "doc", ", \"normalized\": true");
    let vector: Vec<f32> = client.one("SELECT (situ.embed('The Moon pulls the tides.', 'minilm', 'passage'))::real[]");
    let token: Vec<f32> = client
        .one("SELECT (situ.xrag_token(situ.embed('The Moon pulls the tides.', 'minilm', 'passage'), 'doc'))::real[]");
    assert_eq!(token.len(), WIDTH);
    let (a, b) = (gelu(f64::from(vector[0]) + 0.25), gelu(f64::from(vector[1]) - 0.5));
    for (row, found) in token.iter().enumerate() {
        let expected = a * row as f64 / WIDTH as f64 + b / 64.0 + 0.125;
        assert!((f64::from(*found) - expected).abs() < 1e-6, "{row}: {found} {expected}");
    }
    let mut fails = |call: &str, code: &str, part: &str| {
        client.failure(&format!("SELECT {call}")).is(code, part);
    };
    fails(
        "situ.xrag_token('[1,2]', 'doc')",
        "22000",
        "vectors of 384 dimensions, not 2",
    );
    fails(
        "situ.xrag_token((SELECT array_agg(n::real)::vector FROM generate_series(1, 384) n), 'doc')",
        "22000",
        "length 1",
    );
    fails("situ.xrag_token(situ.embed('x'), 'nothing')", "42704", "does not exist");
    import(&mut client, "raw", "");
    let long = "situ.xrag_token((SELECT array_agg(n::real)::vector FROM generate_series(1, 384) n), 'raw')";
    assert_eq!(client.one::<i32>(&format!("SELECT vector_dims({long})")), WIDTH as i32);
    import(&mut client, "bad", ", \"accepted\": false");
    client
        .failure("SELECT situ.xrag_token(situ.embed('x'), 'bad')")
        .is("55000", "rejected");
    // Published files need to be told what they are for.
    let error = client
        .query_one(
            "SELECT situ.import_bridge('published', $1::bytea, model => 'minilm')",
            &[&file(None)],
        )
        .expect_err("no metadata");
    let message = error.as_db_error().map(|error| error.message().to_owned());
    assert!(message.is_some_and(|message| message.contains("metadata")), "{error}");
}

#[test]
fn a_prompt_has_as_many_places_as_vectors() {
    let mut client = shared().text_database("xrag_prompt");
    let prompt = |client: &mut Client, arguments: &str| {
        client.one::<String>(&format!("SELECT situ.xrag_prompt({arguments})::text"))
    };
    let found = prompt(
        &mut client,
        "'Who?', ARRAY['[1,2]', '[3,4]']::vector[], 'Read <xRAG> and <xRAG>: {question}'",
    );
    let pieces =
        r#"{"pieces":[{"text":"Read "},{"vector":[1.0,2.0]},{"text":" and "},{"vector":[3.0,4.0]},{"text":": Who?"}]}"#;
    assert_eq!(found, pieces);
    let found = prompt(
        &mut client,
        "'Who?', ARRAY['[1,2]', '[3,4]']::vector[], '{documents}|{question}'",
    );
    let pieces = r#"{"pieces":[{"vector":[1.0,2.0]},{"text":" "},{"vector":[3.0,4.0]},{"text":"|Who?"}]}"#;
    assert_eq!(found, pieces);
    // A question is no template.
    let found = prompt(
        &mut client,
        "'<xRAG> {documents}', ARRAY['[1]']::vector[], '<xRAG>{question}'",
    );
    assert_eq!(found, r#"{"pieces":[{"vector":[1.0]},{"text":"<xRAG> {documents}"}]}"#);
    assert!(prompt(&mut client, "'Who?'").contains("Question: Who?"));
    assert!(prompt(&mut client, "'Who?', ARRAY['[1]']::vector[]").contains("Background: "));
    // What it prints is what it reads.
    assert!(client.one::<bool>(
        "SELECT p::text = p::text::situ.prompt::text FROM situ.xrag_prompt('Who?', ARRAY['[1,2.5]']::vector[]) p"
    ));
    for (arguments, part) in [
        (
            "'q', ARRAY['[1]', '[2]']::vector[], '<xRAG> {question}'",
            "1 places <xRAG> for 2",
        ),
        (
            "'q', ARRAY['[1]']::vector[], '<xRAG> <xRAG> {question}'",
            "2 places <xRAG> for 1",
        ),
        ("'q', ARRAY['[1]']::vector[], '{question}'", "no place for 1"),
        ("'q', NULL, '<xRAG>'", "1 places <xRAG> for 0"),
        ("'q', ARRAY['[1]']::vector[], '{documents} <xRAG>'", "several places"),
    ] {
        client
            .failure(&format!("SELECT situ.xrag_prompt({arguments})"))
            .is("22023", part);
    }
    client
        .failure("SELECT situ.rag(0, 'q', mode => 'xrag')")
        .is("22023", "belong together");
    client
        .failure("SELECT situ.rag(0, 'q', mode => 'all')")
        .is("22023", "does not exist");
}

/// A database with documents, an index and SmolLM2.
fn llm_documents(name: &str) -> Option<Client> {
    give(shared(), &smollm()?);
    let mut client = shared().text_database(name);
    register(&mut client);
    document_table(&mut client);
    client.run("CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm')");
    Some(client)
}

#[test]
fn an_answer_comes_with_its_sources_and_costs() {
    let Some(mut client) = llm_documents("xrag_rag") else {
        return;
    };
    let fingerprint: String = client.one("SELECT fingerprint FROM situ.models WHERE name = 'smol'");
    import(
        &mut client,
        "doc",
        &format!(", \"normalized\": true, \"llm\": \"{fingerprint}\""),
    );
    import(&mut client, "other", ", \"llm\": \"another\"");
    let question = "What makes bread dough rise?";
    let ask = |client: &mut Client, more: &str| {
        let statement = format!("SELECT * FROM situ.rag('docs_body', '{question}', 2, max_tokens => 24{more})");
        client.query_one(&statement, &[]).expect("answers")
    };
    let text = ask(&mut client, "");
    println!("{}", text.get::<_, String>("answer"));
    let sources: Vec<String> = client.column(&format!(
        "SELECT s.passage FROM situ.rag('docs_body', '{question}', 2, max_tokens => 1) r,
                jsonb_to_recordset(r.sources) s(relation text, ctid tid, passage text, distance float8)"
    ));
    let searched: Vec<String> = client.column(&format!(
        "SELECT passage FROM situ.search('docs_body', '{question}', 2)"
    ));
    assert_eq!(sources, searched);
    assert_eq!(
        client.one::<String>(&format!(
            "SELECT r.sources->0->>'relation' FROM situ.rag('docs_body', '{question}', 1, max_tokens => 1) r"
        )),
        "public.docs"
    );
    let xrag = ask(&mut client, ", mode => 'xrag', bridge => 'doc'");
    let none = ask(&mut client, ", mode => 'none'");
    let tokens = |row: &postgres::Row| row.get::<_, i32>("prompt_tokens");
    assert!(
        tokens(&none) < tokens(&xrag) && tokens(&xrag) < tokens(&text),
        "{} {} {}",
        tokens(&none),
        tokens(&xrag),
        tokens(&text)
    );
    assert!((1..=24).contains(&text.get::<_, i32>("answer_tokens")));
    for part in ["retrieval_ms", "prefill_ms"] {
        assert!(text.get::<_, f64>(part) > 0.0, "{part}");
    }
    assert!(xrag.get::<_, f64>("encoding_ms") > 0.0);

    // By hand it is the same answer.
    let by_hand: String = client.one(&format!(
        "SELECT situ.xrag_generate(situ.xrag_prompt('{question}',
           (SELECT array_agg(situ.xrag_token(situ.embed(passage, 'minilm', 'passage'), 'doc') ORDER BY distance)
              FROM situ.search('docs_body', '{question}', 2)), bridge => 'doc'), 'smol', 24)"
    ));
    assert_eq!(by_hand, xrag.get::<_, String>("answer"));
    // The same prompt as input vectors: a file of rows of the LLM's width.
    let bytes: i32 = client.one(&format!(
        "SELECT length(situ.xrag_prompt_embeds(situ.xrag_prompt('{question}', ARRAY[situ.xrag_token(situ.embed('x', 'minilm'), 'doc')]), 'smol'))"
    ));
    assert!(bytes > 20 * 4 * WIDTH as i32, "{bytes}");

    client
        .failure("SELECT * FROM situ.rag('docs_body', 'q', mode => 'xrag', bridge => 'other')")
        .is("55000", "was not trained for LLM");
    client
        .failure("SELECT situ.xrag_generate(situ.xrag_prompt('q', ARRAY[situ.xrag_token(situ.embed('x', 'minilm'), 'other')], bridge => 'other'), 'smol')")
        .is("55000", "not for LLM");
    // Vectors of another encoder are none of the bridge's.
    client.run("BEGIN; UPDATE situ.bridges SET fingerprint = 'another' WHERE name = 'doc'");
    client
        .failure("SELECT * FROM situ.rag('docs_body', 'q', mode => 'xrag', bridge => 'doc')")
        .is("55000", "was not trained over model");
    client.run("ROLLBACK");
    let published = file(None);
    client
        .query_one(
            "SELECT situ.import_bridge('published', $1, kind => 'xrag', model => 'minilm', llm => 'smol')",
            &[&published],
        )
        .expect("imported");
    assert!(client.one::<bool>(
        "SELECT situ.xrag_token(v, 'published') = situ.xrag_token(v, 'doc') FROM situ.embed('x', 'minilm') v"
    ));
}

/// Loads a prompt as vLLM does, and prints its shape and numbers.
const LOADER: &str = r#"
import base64, io, sys, torch
data = base64.b64decode(sys.stdin.buffer.read(), validate=True)
tensor = torch.load(io.BytesIO(data), weights_only=True, map_location=torch.device("cpu"))
assert tensor.dtype == torch.float32
print(*tensor.shape)
print(*tensor.flatten().tolist())
"#;

#[test]
fn torch_loads_the_input_vectors_of_a_prompt() {
    let python = std::env::var("SITU_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let there = Command::new(&python).args(["-c", "import torch"]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        println!("SKIPPED: {python} has no torch; SITU_TEST_PYTHON may name another");
        return;
    }
    let Some(mut client) = llm_documents("xrag_torch") else {
        return;
    };
    import(&mut client, "doc", ", \"normalized\": true");
    let load = |client: &mut Client, prompt: &str| -> (usize, Vec<f32>) {
        let text: String = client.one(&format!(
            "SELECT translate(encode(situ.xrag_prompt_embeds({prompt}, 'smol'), 'base64'), E'\\n', '')"
        ));
        let mut child = Command::new(&python)
            .args(["-c", LOADER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python starts");
        child
            .stdin
            .take()
            .expect("a pipe")
            .write_all(text.as_bytes())
            .expect("written");
        let output = child.wait_with_output().expect("python ends");
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).expect("text");
        let (shape, numbers) = text.split_once('\n').expect("two lines");
        let (rows, columns) = shape.split_once(' ').expect("two sizes");
        assert_eq!(columns, WIDTH.to_string());
        let numbers = numbers
            .split_whitespace()
            .map(|number| number.parse().expect("a number"));
        (rows.parse().expect("a number"), numbers.collect())
    };
    let token: Vec<f32> = client.one("SELECT (situ.xrag_token(situ.embed('x', 'minilm'), 'doc'))::real[]");
    let with =
        "situ.xrag_prompt('Who?', ARRAY[situ.xrag_token(situ.embed('x', 'minilm'), 'doc')], '{question} <xRAG>')";
    let (rows, numbers) = load(&mut client, with);
    let (fewer, without) = load(&mut client, "situ.xrag_prompt('Who?', template => '{question} ')");
    assert_eq!((rows, numbers.len()), (fewer + 1, rows * WIDTH));
    // The rows of the words, and the vector among them.
    let place = numbers
        .chunks_exact(WIDTH)
        .position(|row| row == token)
        .expect("the vector");
    let rest = [&numbers[..place * WIDTH], &numbers[(place + 1) * WIDTH..]].concat();
    assert_eq!(rest, without);
}

#[test]
fn a_published_projector_is_imported_from_a_file() {
    let Some(mut client) = llm_documents("xrag_file") else {
        return;
    };
    shared().write("models/published.safetensors", file(None));
    shared().write("models/ours.safetensors", file(Some(", \"normalized\": true")));
    let call =
        "SELECT situ.import_bridge_file('published.safetensors', kind => 'xrag', model => 'minilm', llm => 'smol')";
    assert_eq!(client.one::<String>(call), "xrag");
    let ours = "SELECT situ.import_bridge_file('ours.safetensors', kind => 'xrag', name => 'doc', model => 'minilm')";
    assert_eq!(client.one::<String>(ours), "xrag");
    assert!(client.one::<bool>(
        "SELECT situ.xrag_token(v, 'published') = situ.xrag_token(v, 'doc') FROM situ.embed('x', 'minilm') v"
    ));
    assert!(client.one::<bool>(
        "SELECT owner = current_user::regrole AND recipe ->> 'llm' = 'smol' FROM situ.bridges WHERE name = 'published'"
    ));
    client.failure(call).is("42710", "already exists");
    // What was trained on vectors as they are is given vectors of length 1 here, and that is said.
    let warnings = || {
        shared()
            .log()
            .matches("is taken as trained on vectors as they are, but model \"minilm\"")
            .count()
    };
    let before = warnings();
    assert!(before > 0);
    client.run(
        "SELECT situ.import_bridge_file('published.safetensors', kind => 'xrag', name => 'unit', model => 'minilm', llm => 'smol', normalized => true)",
    );
    assert_eq!(warnings(), before);
    // The published xrag-7b is pickles, which a script reads outside the server.
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let (checkpoint, projector) = (
        shared().folder().join("xrag_checkpoint"),
        shared().folder().join("models/xrag.safetensors"),
    );
    let python = |script: &str, arguments: &[&std::path::Path]| {
        let output = Command::new("python3")
            .arg(root.join(script))
            .args(arguments)
            .output()
            .expect("python3 starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    python("tests/cluster/make_xrag.py", &[&checkpoint]);
    python("scripts/convert_xrag.py", &[&checkpoint, &projector]);
    client.run("SELECT situ.import_bridge_file('xrag.safetensors', kind => 'xrag', model => 'minilm', llm => 'smol')");
    assert_eq!(warnings(), before + 1);
    let token: Vec<f32> = client.one("SELECT (situ.xrag_token(situ.embed('x', 'minilm'), 'xrag'))::real[]");
    assert!(token.len() == WIDTH && token.iter().all(|x| x.is_finite()));
    for (arguments, code, part) in [
        (
            "'published.safetensors', kind => 'adapter'",
            "42809",
            "no bridge of kind adapter",
        ),
        (
            "'ours.safetensors', kind => 'adapter'",
            "42809",
            "no bridge of kind adapter",
        ),
        ("'published.safetensors'", "42809", "metadata"),
        ("'nothing.safetensors', kind => 'xrag'", "58P01", "cannot open"),
        ("'../postgresql.conf', kind => 'xrag'", "22023", "outside"),
        ("'smollm.gguf', kind => 'xrag'", "22000", "not valid"),
        ("'minilm', kind => 'xrag'", "22000", "not valid"),
        ("NULL, kind => 'xrag'", "22004", "must not be null"),
    ] {
        client
            .failure(&format!("SELECT situ.import_bridge_file({arguments}, name => 'other')"))
            .is(code, part);
    }
    client.run("DROP ROLE IF EXISTS import_user; CREATE ROLE import_user LOGIN");
    let mut user = shared().connect_as("import_user", "xrag_file");
    assert_eq!(user.failure(call).code, "42501");
    client.run("DROP ROLE import_user");
}

#[test]
fn retrieval_is_the_callers() {
    let Some(mut client) = llm_documents("xrag_rights") else {
        return;
    };
    client.run(
        "DROP ROLE IF EXISTS rag_user; CREATE ROLE rag_user LOGIN; ALTER TABLE docs ENABLE ROW LEVEL SECURITY;
         CREATE POLICY even ON docs TO rag_user USING (id % 2 = 0)",
    );
    let ask = "SELECT jsonb_array_length(sources) FROM situ.rag('docs_body', 'What makes bread dough rise?', 3, max_tokens => 1)";
    let mut user = shared().connect_as("rag_user", "xrag_rights");
    assert_eq!(user.failure(ask).code, "42501");
    client.run("GRANT SELECT ON docs TO rag_user");
    assert_eq!(user.one::<i32>(ask), 3);
    let hidden = "SELECT sources::text FROM situ.rag('docs_body', 'What makes bread dough rise?', 3, max_tokens => 1)";
    assert!(
        !user.one::<String>(hidden).contains("Yeast"),
        "a hidden row got into the prompt"
    );
    assert!(client.one::<String>(hidden).contains("Yeast"));
    client.run("DROP OWNED BY rag_user; DROP ROLE rag_user");
}

#[test]
fn a_projector_is_trained_in_the_worker_and_stands_in_prompts() {
    let Some(mut client) = llm_documents("xrag_train") else {
        return;
    };
    client.run(
        "CREATE TABLE sayings AS SELECT n AS id, n AS document, 0 AS ordinal,
                'The ' || (ARRAY['sea', 'wind', 'baker', 'clock', 'fox', 'rain'])[n % 6 + 1] || ' is ' || n || ' years old.' AS body
           FROM generate_series(0, 139) n;",
    );
    let train = |llm: &str| {
        format!(
            "CALL situ.train('xrag', 'sayings', model => 'minilm', passages => 'sayings', seed => 1, replace => true, options =>
              '{{\"llm\": \"{llm}\", \"text_tokens\": 6, \"hidden\": 32, \"held_out\": 0.4, \"measured\": 20, \"batch\": 4, \"round_steps\": 8, \"epochs\": 1}}')"
        )
    };
    assert_eq!(client.failure(&train("nobody")).code, "42704");
    assert_eq!(client.failure(&train("minilm")).code, "42809");
    client.run(&train("smol"));
    // Every figure is there, whatever came of so few steps.
    assert!(client.one::<bool>(
        "SELECT kind = 'xrag' AND state IN ('accepted', 'accepted (synthetic queries)', 'rejected')
            AND (figures -> 'bits_per_token' ->> 'own')::float8 > 0 AND (figures -> 'bits_per_token' ->> 'other')::float8 > 0
            AND (figures -> 'bits_per_token' ->> 'text')::float8 < (figures -> 'bits_per_token' ->> 'none')::float8
           FROM situ.bridges WHERE name = 'sayings'"
    ));
    client.run("UPDATE situ.bridges SET state = 'accepted' WHERE name = 'sayings'");
    let width: i32 = client.one("SELECT vector_dims(situ.xrag_token(situ.embed('The fox', 'minilm'), 'sayings'))");
    assert_eq!(width as usize, WIDTH);
    let row = client
        .query_one("SELECT answer, prompt_tokens FROM situ.rag('docs_body', 'Why does bread rise?', 2, mode => 'xrag', bridge => 'sayings', max_tokens => 8)", &[])
        .expect("an answer");
    assert!(row.get::<_, i32>(1) > 2);
    // The second stage begins with it.
    client.run(
        "CREATE TABLE asked AS SELECT 'How old is it?' AS query, n AS passage, n || ' years old' AS answer FROM generate_series(0, 139) n",
    );
    let answers = |name: &str, start: &str| {
        format!(
            "CALL situ.train('xrag', '{name}', model => 'minilm', passages => 'sayings', pairs => 'asked', options =>
              '{{\"llm\": \"smol\", \"start\": \"{start}\", \"answer_epochs\": 1, \"held_out\": 0.4, \"measured\": 20, \"batch\": 8, \"round_steps\": 4}}')"
        )
    };
    assert_eq!(client.failure(&answers("answered", "nothing")).code, "42704");
    client.run(&answers("answered", "sayings"));
    assert!(client.one::<bool>(
        "SELECT figures ->> 'stage' = 'answers' AND figures -> 'answers' ->> 'pairs' = 'given' AND (recipe ->> 'pairs')::int = 140
            AND (b ->> 'text')::float8 < (b ->> 'none')::float8 AND (b ->> 'own')::float8 > 0 AND (b ->> 'other')::float8 > 0
            AND (figures -> 'answers' -> 'divergence' ->> 'own')::float8 > 0
           FROM situ.bridges, LATERAL (SELECT figures -> 'answers' -> 'bits_per_token' AS b) t WHERE name = 'answered'"
    ));
    assert!(client.one::<bool>(
        "SELECT step > 0 AND step <= steps AND state IN ('done', 'rejected') AND held_out > 0 FROM situ.training WHERE name = 'answered' ORDER BY id DESC LIMIT 1"
    ));
    // Vectors of the caller's own are taken as they are: where all are the same, no passage's says more than another's.
    client.run("ALTER TABLE sayings ADD embedding vector(3); UPDATE sayings SET embedding = '[1,2,3]' WHERE id < 100");
    client
        .failure(&train("smol"))
        .is("22023", "has 3 dimensions, the model's have 384");
    client.run(
        "ALTER TABLE sayings DROP embedding, ADD embedding vector(384);
         UPDATE sayings SET embedding = situ.embed('The fox', 'minilm') WHERE id < 100",
    );
    client
        .failure(&train("smol"))
        .is("22023", "40 of 140 passages have no embedding");
    client.run("UPDATE sayings SET embedding = situ.embed('The fox', 'minilm')");
    client.run(&train("smol"));
    assert!(client.one::<bool>(
        "SELECT state = 'rejected' AND (figures -> 'saved_over_other' ->> 'value')::float8 = 0
            AND figures -> 'bits_per_token' -> 'own' = figures -> 'bits_per_token' -> 'other'
           FROM situ.bridges WHERE name = 'sayings'"
    ));
}
