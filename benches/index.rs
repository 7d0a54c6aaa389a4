//! Recall and queries per second of situ and of pgvector's HNSW, side by side in one server.
//!
//! `make bench-index` starts the server and says where it is. Both get a table of their own with the same rows; the
//! questions are prepared statements with a binary vector parameter, from one client, and the peers take turns round
//! by round, so that a machine that gets slower meanwhile slows both. Prints one JSON object a line.

use bytes::BytesMut;
use postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use postgres::{Client, NoTls};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Rows asked for.
const K: usize = 10;
/// Rounds over all questions, per peer and setting.
const ROUNDS: usize = 7;

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
            "situ.probes = 0",
            "situ.probes = 4",
            "situ.probes = 16",
            "situ.probes = 64",
        ],
    },
    Peer {
        name: "pgvector_hnsw",
        index: "USING hnsw (v OPS) WITH (m = 16, ef_construction = 64)",
        settings: &["hnsw.ef_search = 40", "hnsw.ef_search = 100", "hnsw.ef_search = 200"],
    },
];

/// A set of vectors with questions.
struct Data {
    name: String,
    operator: &'static str,
    class: &'static str,
    base: Vec<Vec<f32>>,
    queries: Vec<Vec<f32>>,
}

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

    let folder = std::env::var_os("SITU_DATA").map_or_else(|| PathBuf::from("../shared/data"), PathBuf::from);
    let glove = folder.join("ann_glove50_20k");
    if glove.is_dir() {
        let (base, queries) = (read_npy(&glove.join("base.npy"))?, read_npy(&glove.join("query.npy"))?);
        let name = "ann_glove50_20k".to_string();
        measure(
            &mut client,
            &Data {
                name,
                operator: "<->",
                class: "vector_l2_ops",
                base,
                queries,
            },
        )?;
    } else {
        println!("SKIPPED: no vectors in {}", glove.display());
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

/// The passages of the demo's documents; every so many-th is a question and is left out of the table.
fn demo_vectors(demo: &mut Client) -> Result<Data, Box<dyn std::error::Error>> {
    demo.batch_execute(
        "CREATE TABLE IF NOT EXISTS bench_vectors AS
           SELECT s.embedding::real[] AS v FROM docs d, LATERAL situ.situate(d.body, 'minilm', title => d.title) s",
    )?;
    let mut base: Vec<Vec<f32>> = demo
        .query("SELECT v FROM bench_vectors", &[])?
        .iter()
        .map(|row| row.get(0))
        .collect();
    let every = (base.len() / 200).max(2);
    let queries: Vec<Vec<f32>> = base.iter().skip(every / 2).step_by(every).cloned().collect();
    let mut at = 0;
    base.retain(|_| {
        at += 1;
        (at - 1) % every != every / 2
    });
    Ok(Data {
        name: "demo".into(),
        operator: "<=>",
        class: "vector_cosine_ops",
        base,
        queries,
    })
}

fn measure(client: &mut Client, data: &Data) -> Result<(), Box<dyn std::error::Error>> {
    let truth: Vec<Vec<usize>> = data.queries.iter().map(|query| nearest(data, query)).collect();
    let helpers = std::thread::available_parallelism().map_or(1, usize::from) - 1;
    for peer in &PEERS {
        let table = format!("t_{}", peer.name);
        load(client, &table, &data.base)?;
        let index = peer.index.replace("OPS", data.class);
        // As many processes for the one as threads for the other, however small the table is.
        client.batch_execute(&format!(
            "SET maintenance_work_mem = '512MB'; SET max_parallel_maintenance_workers = {helpers};
             ALTER TABLE {table} SET (parallel_workers = {helpers})"
        ))?;
        let started = Instant::now();
        client.batch_execute(&format!("CREATE INDEX {table}_v ON {table} {index}"))?;
        print(data, peer, "build_seconds", started.elapsed().as_secs_f64(), "s", "");
        let bytes: i64 = client
            .query_one(&format!("SELECT pg_relation_size('{table}_v')"), &[])?
            .get(0);
        print(data, peer, "megabytes", bytes as f64 / 1e6, "MB", "");
        client.batch_execute(&format!("VACUUM ANALYZE {table}"))?;
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
    for at in 0..most {
        let mut seconds = [const { Vec::new() }; PEERS.len()];
        let mut found = [0; PEERS.len()];
        // One round more than is counted: it warms the caches.
        for round in 0..=ROUNDS {
            for (number, peer) in PEERS.iter().enumerate() {
                let Some(setting) = peer.settings.get(at) else { continue };
                client.batch_execute(&format!("SET {setting}"))?;
                let mut answers = Vec::with_capacity(data.queries.len());
                let started = Instant::now();
                for query in &data.queries {
                    answers.push(client.query(&statements[number], &[&Vector(query)])?);
                }
                if round > 0 {
                    seconds[number].push(started.elapsed().as_secs_f64());
                    continue;
                }
                for (rows, truth) in answers.iter().zip(&truth) {
                    found[number] += rows
                        .iter()
                        .filter(|row| truth.contains(&(row.get::<_, i64>(0) as usize)))
                        .count();
                }
            }
        }
        for (number, peer) in PEERS.iter().enumerate() {
            let Some(setting) = peer.settings.get(at) else { continue };
            let times = &mut seconds[number];
            times.sort_by(f64::total_cmp);
            let count = data.queries.len();
            print(data, peer, "qps", count as f64 / times[times.len() / 2], "1/s", setting);
            print(
                data,
                peer,
                "recall@10",
                found[number] as f64 / (count * K) as f64,
                "",
                setting,
            );
        }
    }
    Ok(())
}

fn print(data: &Data, peer: &Peer, metric: &str, value: f64, unit: &str, setting: &str) {
    let value = (value * 1e4).round() / 1e4;
    println!(
        "{}",
        serde_json::json!({"bench": "index", "metric": metric, "value": value, "unit": unit, "peer": peer.name,
            "data": data.name, "rows": data.base.len(), "setting": setting})
    );
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

/// A two-dimensional array of little-endian f32 in NumPy's format 1.0.
fn read_npy(path: &Path) -> Result<Vec<Vec<f32>>, Box<dyn std::error::Error>> {
    let bytes = std::fs::read(path)?;
    if bytes.get(..8) != Some(b"\x93NUMPY\x01\x00") {
        return Err(format!("{} is not a NumPy 1.0 file", path.display()).into());
    }
    let length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = std::str::from_utf8(&bytes[10..10 + length])?;
    if !header.contains("'<f4'") || header.contains("'fortran_order': True") {
        return Err(format!(
            "{}: only little-endian f32 in C order is read, not {header}",
            path.display()
        )
        .into());
    }
    let shape = header
        .split('(')
        .nth(1)
        .and_then(|rest| rest.split(')').next())
        .ok_or("no shape")?;
    let sizes: Vec<usize> = shape.split(',').filter_map(|size| size.trim().parse().ok()).collect();
    let [_, columns] = sizes[..] else {
        return Err("not two-dimensional".into());
    };
    let values: Vec<f32> = bytes[10 + length..]
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    Ok(values.chunks_exact(columns).map(<[f32]>::to_vec).collect())
}
