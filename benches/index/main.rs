//! Recall and queries per second of situ and of pgvector's HNSW, side by side in one server.
//!
//! `make bench-index` starts the server and says where it is. Both get a table of their own with the same rows; the
//! questions are prepared statements with a binary vector parameter, from one client, and the peers take turns round
//! by round, so that a machine that gets slower meanwhile slows both. Prints one JSON object a line.

mod data;

use bytes::BytesMut;
use data::{Data, demo_vectors};
use postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use postgres::{Client, NoTls};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Rows asked for.
const K: usize = 10;
/// Recalls at which the peers are compared.
const RECALLS: [f64; 2] = [0.95, 0.99];

/// A peer: its name, the index on column `v`, and the settings to measure it under.
struct Peer {
    name: &'static str,
    index: &'static str,
    settings: &'static [&'static str],
}

const PEERS: [Peer; 2] = [
    Peer {
        name: "situ",
        index: "USING situ (v OPS)",
        settings: &[
            "situ.recall_target = 0.9",
            "situ.recall_target = 0.95",
            "situ.recall_target = 0.97",
            "situ.recall_target = 0.99",
            "situ.recall_target = 0.995",
            "situ.recall_target = 1",
        ],
    },
    Peer {
        name: "pgvector_hnsw",
        index: "USING hnsw (v OPS) WITH (m = 16, ef_construction = 64)",
        settings: &[
            "hnsw.ef_search = 40",
            "hnsw.ef_search = 70",
            "hnsw.ef_search = 120",
            "hnsw.ef_search = 200",
            "hnsw.ef_search = 400",
            "hnsw.ef_search = 800",
        ],
    },
];

/// pgvector's binary form: dimensions and an unused number in 2 bytes each, then the values, all big-endian.
#[derive(Debug)]
struct Vector<'a>(&'a [f32]);

impl ToSql for Vector<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(&u16::try_from(self.0.len())?.to_be_bytes());
        out.extend_from_slice(&[0, 0]);
        for value in self.0 {
            out.extend_from_slice(&value.to_be_bytes());
        }
        Ok(IsNull::No)
    }
    fn accepts(kind: &Type) -> bool {
        kind.name() == "vector"
    }
    to_sql_checked!();
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Ok(socket) = std::env::var("SITU_BENCH_SOCKET") else {
        println!("SKIPPED: no server; run `make bench-index`");
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
    admin.batch_execute("DROP DATABASE IF EXISTS bench WITH (FORCE)")?;
    admin.batch_execute("CREATE DATABASE bench")?;
    let mut client = connect("bench")?;
    client.batch_execute("SET client_min_messages = warning; CREATE EXTENSION situ CASCADE")?;

    let quick = std::env::var_os("QUICK").is_some();
    match std::env::var_os("SITU_GLOVE") {
        Some(file) => measure(&mut client, &Data::glove(Path::new(&file))?)?,
        None => println!("SKIPPED: GloVe is not there; run `make bench-index`"),
    }
    if !quick {
        let folder = std::env::var_os("SITU_DATA").map_or_else(|| PathBuf::from("../shared/data"), PathBuf::from);
        let glove = folder.join("ann_glove50_20k");
        match glove.is_dir() {
            true => measure(&mut client, &Data::glove_20k(&glove)?)?,
            false => println!("SKIPPED: no vectors in {}", glove.display()),
        }
        measure(&mut client, &Data::clustered(50_000, 768, 500))?;
    }
    match connect("demo")
        .map_err(Into::into)
        .and_then(|mut demo| demo_vectors(&mut demo))
    {
        Ok(data) => measure(&mut client, &data)?,
        Err(error) => println!("SKIPPED: the demo's vectors, run `make demo` first ({error})"),
    }
    admin.batch_execute("DROP DATABASE bench WITH (FORCE)")?;
    Ok(())
}

/// What a peer reaches under a setting.
struct Reached {
    recall: f64,
    qps: f64,
}

fn measure(client: &mut Client, data: &Data) -> Result<(), Box<dyn std::error::Error>> {
    let truth = truth(data);
    let raw = (data.base.len() * data.base.first().map_or(0, Vec::len) * 4) as f64;
    let mut seconds = Vec::new();
    for peer in &PEERS {
        let (build, bytes) = build(client, data, peer)?;
        seconds.push(build);
        print(data, peer, "build_seconds", build, "s", "");
        print(data, peer, "megabytes", bytes / 1e6, "MB", "");
        print(data, peer, "size_ratio", bytes / raw, "of the raw vectors", "");
    }
    for (peer, build) in PEERS.iter().zip(&seconds).skip(1) {
        print(data, peer, "build_ratio", build / seconds[0], "times", "");
    }
    client.batch_execute("SET enable_seqscan = off")?;
    let statements: Vec<_> = PEERS
        .iter()
        .map(|peer| {
            let order = format!("v {} $1::vector", data.operator);
            client.prepare(&format!("SELECT id FROM t_{} ORDER BY {order} LIMIT {K}", peer.name))
        })
        .collect::<Result<_, _>>()?;
    let most = PEERS.iter().map(|peer| peer.settings.len()).max().unwrap_or(0);
    let mut reached: [Vec<Reached>; PEERS.len()] = [const { Vec::new() }; PEERS.len()];
    for at in 0..most {
        let mut rounds = [const { Vec::new() }; PEERS.len()];
        // One round more than is counted: it warms the caches.
        for _ in 0..=data.rounds {
            for (number, peer) in PEERS.iter().enumerate() {
                let Some(setting) = peer.settings.get(at) else { continue };
                client.batch_execute(&format!("SET {setting}"))?;
                rounds[number].push(round(client, &statements[number], data, &truth)?);
            }
        }
        for (number, peer) in PEERS.iter().enumerate() {
            let Some(setting) = peer.settings.get(at) else { continue };
            reached[number].push(said(data, peer, setting, &rounds[number]));
        }
    }
    ratios(data, &reached);
    Ok(())
}

/// Loads a peer's table and builds its index: seconds, and bytes of the index.
fn build(client: &mut Client, data: &Data, peer: &Peer) -> Result<(f64, f64), Box<dyn std::error::Error>> {
    let helpers = std::thread::available_parallelism().map_or(1, usize::from) - 1;
    let table = format!("t_{}", peer.name);
    load(client, &table, &data.base)?;
    let index = peer.index.replace("OPS", data.class);
    // As many processes for the one as threads for the other, however small the table is.
    client.batch_execute(&format!(
        "SET maintenance_work_mem = '1GB'; SET max_parallel_maintenance_workers = {helpers};
         ALTER TABLE {table} SET (parallel_workers = {helpers})"
    ))?;
    let started = Instant::now();
    client.batch_execute(&format!("CREATE INDEX {table}_v ON {table} {index}"))?;
    let seconds = started.elapsed().as_secs_f64();
    let size = client.query_one(&format!("SELECT pg_relation_size('{table}_v')"), &[])?;
    client.batch_execute(&format!("VACUUM ANALYZE {table}"))?;
    Ok((seconds, size.get::<_, i64>(0) as f64))
}

/// One pass over all questions: seconds of each, and the share of true neighbours that came.
struct Round {
    seconds: Vec<f64>,
    recall: f64,
}

fn round(
    client: &mut Client,
    statement: &postgres::Statement,
    data: &Data,
    truth: &[Vec<usize>],
) -> Result<Round, Box<dyn std::error::Error>> {
    let (mut seconds, mut answers) = (Vec::new(), Vec::new());
    for query in &data.queries {
        let started = Instant::now();
        answers.push(client.query(statement, &[&Vector(query)])?);
        seconds.push(started.elapsed().as_secs_f64());
    }
    let found = answers.iter().zip(truth).map(|(rows, truth)| {
        let known = |row: &&postgres::Row| truth.contains(&(row.get::<_, i64>(0) as usize));
        rows.iter().filter(known).count()
    });
    let recall = found.sum::<usize>() as f64 / (data.queries.len() * K) as f64;
    Ok(Round { seconds, recall })
}

/// Prints what rounds under a setting came to; the first warmed the caches.
fn said(data: &Data, peer: &Peer, setting: &str, rounds: &[Round]) -> Reached {
    let mut passes: Vec<f64> = rounds[1..].iter().map(|round| round.seconds.iter().sum()).collect();
    passes.sort_by(f64::total_cmp);
    let mut each: Vec<f64> = rounds[1..]
        .iter()
        .flat_map(|round| round.seconds.iter().copied())
        .collect();
    each.sort_by(f64::total_cmp);
    let quantile = |share: f64| each[((each.len() - 1) as f64 * share) as usize];
    let reached = Reached {
        recall: rounds[0].recall,
        qps: data.queries.len() as f64 / passes[passes.len() / 2],
    };
    print(data, peer, "recall@10", reached.recall, "", setting);
    print(data, peer, "qps", reached.qps, "1/s", setting);
    print(data, peer, "p50_ms", quantile(0.5) * 1e3, "ms", setting);
    print(
        data,
        peer,
        "p99_over_p50",
        quantile(0.99) / quantile(0.5),
        "times",
        setting,
    );
    reached
}

/// Prints how many times as many questions situ answers as each peer at the same recall: each at its fastest setting that
/// reaches it.
fn ratios(data: &Data, reached: &[Vec<Reached>; PEERS.len()]) {
    for recall in RECALLS {
        let best = |curve: &[Reached]| {
            let enough = curve.iter().filter(|one| one.recall >= recall).map(|one| one.qps);
            enough.reduce(f64::max)
        };
        let own = best(&reached[0]);
        for (peer, curve) in PEERS.iter().zip(reached).skip(1) {
            match (own, best(curve)) {
                (Some(own), Some(other)) => {
                    print(
                        data,
                        peer,
                        "qps_ratio",
                        own / other,
                        "times",
                        &format!("recall {recall}"),
                    );
                }
                (own, other) => println!(
                    "SKIPPED: no ratio at recall {recall}: situ {own:?}, {} {other:?}",
                    peer.name
                ),
            }
        }
    }
}

fn print(data: &Data, peer: &Peer, metric: &str, value: f64, unit: &str, setting: &str) {
    let value = (value * 1e4).round() / 1e4;
    let mut line = serde_json::json!({"bench": "index", "metric": metric, "value": value, "unit": unit, "peer": peer.name,
        "data": data.name, "rows": data.base.len(), "setting": setting});
    if let Some(recall) = setting.strip_prefix("recall ") {
        line["recall"] = recall.into();
    }
    println!("{line}");
}

/// Numbers of the nearest rows of every question.
fn truth(data: &Data) -> Vec<Vec<usize>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let piece = data.queries.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let pieces = data.queries.chunks(piece);
        let running: Vec<_> = pieces
            .map(|queries| scope.spawn(|| queries.iter().map(|query| nearest(data, query)).collect::<Vec<_>>()))
            .collect();
        running
            .into_iter()
            .flat_map(|piece| piece.join().expect("no panic"))
            .collect()
    })
}

/// Numbers of the `K` nearest rows, by brute force.
fn nearest(data: &Data, query: &[f32]) -> Vec<usize> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let distance = |row: &Vec<f32>| match data.operator {
        "<->" => row
            .iter()
            .zip(query)
            .map(|(x, y)| f64::from(x - y).powi(2))
            .sum::<f64>(),
        _ => -dot(row, query) / dot(row, row).sqrt().max(f64::MIN_POSITIVE),
    };
    let mut all: Vec<(f64, usize)> = data.base.iter().map(distance).zip(0..).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    all.into_iter().take(K).map(|(_, row)| row).collect()
}

fn load(client: &mut Client, table: &str, rows: &[Vec<f32>]) -> Result<(), Box<dyn std::error::Error>> {
    use std::io::Write;
    let dimensions = rows.first().map_or(1, Vec::len);
    client.batch_execute(&format!(
        "DROP TABLE IF EXISTS {table}; CREATE TABLE {table} (id bigint, v vector({dimensions}))"
    ))?;
    let mut writer = client.copy_in(&format!("COPY {table} FROM STDIN"))?;
    for (id, row) in rows.iter().enumerate() {
        let values: Vec<String> = row.iter().map(f32::to_string).collect();
        writeln!(writer, "{id}\t[{}]", values.join(","))?;
    }
    writer.finish()?;
    Ok(())
}
