//! What feedback adds to the latency of a search, and how exact its second round is.
//!
//! `make bench-feedback` starts the server and says where it is. Plain search and each method take turns question by
//! question, so that a machine that gets slower meanwhile slows all. Over vectors the search is `situ.search` with a
//! binary vector; over text it is `ORDER BY body <=> situ.query(...)` with the question in words, never the same twice in a row,
//! so that encoding it is part of both. Prints one JSON object a line: `latency_ratio` is the median over questions of
//! (time with feedback / time of plain search), both medians of the rounds; `recall@10` of the second round is measured
//! against a sequential scan by the moved query that SQL computes from the exact first round.

use postgres::{Client, NoTls};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// As many as methods, so that each comes as often first as the others.
const ROUNDS: usize = METHODS.len();
/// Documents of the text table.
const DOCUMENTS: usize = 600;

type Failure = Box<dyn std::error::Error>;

/// Name and options of `situ.query`; plain search first.
const METHODS: [(&str, &str); 6] = [
    ("plain", ""),
    ("average", ", feedback => 'average'"),
    ("rocchio", ", feedback => 'rocchio'"),
    ("gated", ", feedback => 'gated'"),
    ("gated_keep3", ", feedback => 'gated', feedback_keep => 3"),
    (
        "rocchio_rerank",
        ", feedback => 'rocchio', feedback_mode => 'rerank', feedback_list => 50",
    ),
];

fn main() -> Result<(), Failure> {
    let Ok(socket) = std::env::var("SITU_BENCH_SOCKET") else {
        println!("SKIPPED: no server; run `make bench-feedback`");
        return Ok(());
    };
    let connect = |database: &str| {
        postgres::Config::new()
            .host_path(&socket)
            .user("postgres")
            .dbname(database)
            .connect(NoTls)
    };
    let mut admin = connect("postgres")?;
    admin.batch_execute("DROP DATABASE IF EXISTS bench_feedback WITH (FORCE)")?;
    admin.batch_execute("CREATE DATABASE bench_feedback")?;
    let mut client = connect("bench_feedback")?;
    client
        .batch_execute("SET client_min_messages = warning; CREATE EXTENSION situ CASCADE; SET enable_seqscan = off")?;
    let folder = std::env::var_os("SITU_DATA").map_or_else(|| PathBuf::from("../shared/data"), PathBuf::from);
    match vectors(&mut client, &folder.join("ann_glove50_20k")) {
        Ok(questions) => {
            for k in [10, 100] {
                let ask = format!("SELECT count(*) FROM situ.search('t_v', situ.query(embedding => $Q$O), k => {k})");
                measure(&mut client, "ann_glove50_20k", k, &ask, &questions)?;
            }
            recall(&mut client, &questions)?;
        }
        Err(error) => println!("SKIPPED: vectors ({error})"),
    }
    match texts(&mut client, &folder.join("fairytaleqa")) {
        Ok(questions) => {
            let ask = "SELECT count(*) FROM (SELECT id FROM docs ORDER BY body <=> situ.query($Q::text$O) LIMIT 10) d";
            measure(&mut client, "fairytaleqa_600", 10, ask, &questions)?;
        }
        Err(error) => println!("SKIPPED: texts ({error})"),
    }
    drop(client);
    admin.batch_execute("DROP DATABASE bench_feedback WITH (FORCE)")?;
    Ok(())
}

fn measure(client: &mut Client, data: &str, k: usize, ask: &str, questions: &[String]) -> Result<(), Failure> {
    let mut seconds = vec![[const { Vec::new() }; METHODS.len()]; questions.len()];
    // One round more than is counted: it warms the caches.
    for round in 0..=ROUNDS {
        for (at, question) in questions.iter().enumerate() {
            for turn in 0..METHODS.len() {
                // Another one begins each round: who comes first finds nothing of the question in the processor's caches.
                let number = (turn + round) % METHODS.len();
                let (_, options) = METHODS[number];
                // More questions than a backend keeps vectors of lie between two askings of one: plain search pays for
                // encoding as the others do.
                let statement = ask
                    .replace("$Q", &question.replace("$M", &number.to_string()))
                    .replace("$O", options);
                let started = Instant::now();
                client.simple_query(&statement)?;
                if round > 0 {
                    seconds[at][number].push(started.elapsed().as_secs_f64());
                }
            }
        }
    }
    let medians: Vec<[f64; METHODS.len()]> = seconds.into_iter().map(|methods| methods.map(median)).collect();
    for (number, (method, _)) in METHODS.iter().enumerate() {
        let milliseconds = median(medians.iter().map(|times| times[number] * 1e3).collect());
        print(data, method, k, "latency", milliseconds, "ms", questions.len());
        if number > 0 {
            let ratio = median(medians.iter().map(|times| times[number] / times[0]).collect());
            print(data, method, k, "latency_ratio", ratio, "ratio", questions.len());
        }
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn print(data: &str, method: &str, k: usize, metric: &str, value: f64, unit: &str, questions: usize) {
    let value = (value * 1e4).round() / 1e4;
    println!(
        "{}",
        serde_json::json!({"bench": "feedback", "metric": metric, "value": value, "unit": unit, "peer": "plain",
            "data": data, "method": method, "k": k, "queries": questions})
    );
}

/// Recall of plain search, and of the second round where nothing of the first is kept.
fn recall(client: &mut Client, questions: &[String]) -> Result<(), Failure> {
    for (method, options, depth, formula) in [
        ("plain", "", 0, ""),
        ("average", ", feedback => 'average'", 3, "situ.feedback_average"),
        ("rocchio", ", feedback => 'rocchio'", 5, "situ.feedback_rocchio"),
    ] {
        let mut found = 0;
        for question in questions {
            client.batch_execute("SET enable_seqscan = on; SET enable_indexscan = off")?;
            let moved: String = match depth {
                0 => question.clone(),
                _ => {
                    let first = format!("SELECT v FROM t ORDER BY v <-> {question}::vector LIMIT {depth}");
                    let row = client.query_one(
                        &format!("SELECT {formula}({question}::vector, array_agg(v))::text FROM ({first}) p"),
                        &[],
                    )?;
                    format!("'{}'", row.get::<_, String>(0))
                }
            };
            let both = client.query_one(
                &format!(
                    "SELECT count(*) FROM (SELECT ctid FROM t ORDER BY v <-> {moved}::vector LIMIT 10) exact
                       JOIN situ.search('t_v', situ.query(embedding => {question}{options}), k => 10) USING (ctid)"
                ),
                &[],
            )?;
            found += both.get::<_, i64>(0);
        }
        print(
            "ann_glove50_20k",
            method,
            10,
            "recall@10",
            found as f64 / (10 * questions.len()) as f64,
            "",
            questions.len(),
        );
    }
    client.batch_execute("SET enable_seqscan = off; RESET enable_indexscan")?;
    Ok(())
}

/// Loads the vectors; gives the questions as literals.
fn vectors(client: &mut Client, folder: &Path) -> Result<Vec<String>, Failure> {
    use std::io::Write;
    let (base, questions) = (
        read_npy(&folder.join("base.npy"))?,
        read_npy(&folder.join("query.npy"))?,
    );
    client.batch_execute(&format!(
        "CREATE TABLE t (v vector({}))",
        base.first().map_or(1, Vec::len)
    ))?;
    let mut writer = client.copy_in("COPY t FROM STDIN")?;
    for row in &base {
        writeln!(writer, "{}", literal(row))?;
    }
    writer.finish()?;
    client.batch_execute("CREATE INDEX t_v ON t USING situ (v vector_l2_ops)")?;
    // A statement of its own: several together are one transaction.
    client.batch_execute("VACUUM ANALYZE t")?;
    Ok(questions.iter().map(|row| format!("'{}'", literal(row))).collect())
}

fn literal(row: &[f32]) -> String {
    let values: Vec<String> = row.iter().map(f32::to_string).collect();
    format!("[{}]", values.join(","))
}

/// Loads documents; gives questions about them, quoted, with `$M` where a number keeps each asking a question of its own.
fn texts(client: &mut Client, folder: &Path) -> Result<Vec<String>, Failure> {
    let lines = |name: &str| -> Result<Vec<serde_json::Value>, Failure> {
        let text = std::fs::read_to_string(folder.join(name))?;
        Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    };
    client.batch_execute("SELECT situ.register_model('minilm', 'minilm')")?;
    client.batch_execute("CREATE TABLE docs (id bigint, body text)")?;
    for (id, document) in lines("corpus.jsonl")?.iter().take(DOCUMENTS).enumerate() {
        let body = document["text"].as_str().unwrap_or_default();
        client.execute("INSERT INTO docs VALUES ($1, $2)", &[&(id as i64), &body])?;
    }
    client.batch_execute("CREATE INDEX docs_body ON docs USING situ (body) WITH (model = 'minilm'); ANALYZE docs")?;
    let questions = lines("queries.jsonl")?;
    let asked = questions
        .iter()
        .take(40)
        .filter_map(|question| question["text"].as_str());
    Ok(asked.map(|text| format!("'{} $M'", text.replace('\'', "''"))).collect())
}

/// A two-dimensional array of little-endian f32 in NumPy's format 1.0.
fn read_npy(path: &Path) -> Result<Vec<Vec<f32>>, Failure> {
    let bytes = std::fs::read(path)?;
    if bytes.get(..8) != Some(b"\x93NUMPY\x01\x00") {
        return Err(format!("{} is not a NumPy 1.0 file", path.display()).into());
    }
    let length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = std::str::from_utf8(&bytes[10..10 + length])?;
    let shape = header
        .split('(')
        .nth(1)
        .and_then(|rest| rest.split(')').next())
        .ok_or("no shape")?;
    let columns: usize = shape.split(',').nth(1).ok_or("not two-dimensional")?.trim().parse()?;
    if !header.contains("'<f4'") || columns == 0 {
        return Err("only little-endian f32 is read".into());
    }
    let values: Vec<f32> = bytes[10 + length..]
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    Ok(values.chunks_exact(columns).map(<[f32]>::to_vec).collect())
}
