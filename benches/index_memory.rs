//! Build time, queries a second and recall of the index over pages in memory. One JSON object a line.
//!
//! `cargo bench --no-default-features --bench index_memory [-- GLOVE_ONLY]`; the judged data are looked for in
//! `$SITU_DATA` (default `../shared/data`).

use situ::compute::vectors::nearest_centroid::Panels;
use situ::index::{Build, Element, Entry, IndexOptions, MemoryStore, Metric, Scan, ScanParams, memory_spool};
use situ::random::splitmix64;
use situ::text::Span;
use std::path::{Path, PathBuf};
use std::time::Instant;

const K: usize = 10;

fn report(bench: &str, metric: &str, value: f64, unit: &str) {
    println!("{{\"bench\":\"{bench}\",\"metric\":\"{metric}\",\"value\":{value:.6},\"unit\":\"{unit}\"}}");
}

/// Standard normal numbers (Box-Muller).
struct Normal(u64);

impl Normal {
    fn next(&mut self) -> f32 {
        let mut uniform = || ((splitmix64(&mut self.0) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32
    }
}

fn unit(vector: &mut [f32]) {
    let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.iter_mut().for_each(|x| *x /= norm);
}

/// Unit vectors around `groups` random directions.
fn clustered(n: usize, d: usize, groups: usize, noise: f32, normal: &mut Normal, centers: &mut Vec<f32>) -> Vec<f32> {
    if centers.is_empty() {
        centers.extend((0..groups * d).map(|_| normal.next()));
    }
    let mut rows = Vec::with_capacity(n * d);
    for _ in 0..n {
        let center = (splitmix64(&mut normal.0) % groups as u64) as usize;
        let start = rows.len();
        rows.extend((0..d).map(|k| centers[center * d + k] + noise * normal.next()));
        unit(&mut rows[start..]);
    }
    rows
}

/// Exact distances of the k-th nearest (squared euclidean), row-major queries against row-major rows.
fn kth(rows: &[f32], queries: &[f32], d: usize) -> Vec<f32> {
    let count = queries.len() / d;
    let panels = Panels::new(queries, d).expect("memory");
    let mut best = vec![vec![f32::INFINITY; K]; count];
    let mut scores = Vec::new();
    for part in rows.chunks(2048 * d) {
        scores.resize(part.len() / d * count, 0.0);
        panels.scores(part, &mut scores);
        for (row, scores) in part.chunks_exact(d).zip(scores.chunks_exact(count)) {
            let norm: f32 = row.iter().map(|x| x * x).sum();
            for (q, score) in scores.iter().enumerate() {
                // The score is <x, q> - |q|^2 / 2.
                let distance = (norm - 2.0 * score).max(0.0);
                if distance < best[q][K - 1] {
                    let at = best[q].partition_point(|&x| x <= distance);
                    best[q].insert(at, distance);
                    best[q].truncate(K);
                }
            }
        }
    }
    best.into_iter().map(|b| b[K - 1]).collect()
}

fn run(bench: &str, rows: &[f32], queries: &[f32], d: usize, probes: &[u32]) {
    let store = MemoryStore::new();
    let options = IndexOptions {
        metric: Metric::L2,
        element: Element::F32,
        dimensions: d as u32,
        lists: std::env::var("LISTS").ok().and_then(|x| x.parse().ok()).unwrap_or(0),
        documents: false,
        model: None,
        extra: Vec::new(),
    };
    let start = Instant::now();
    let mut phases: Vec<(String, f64)> = Vec::new();
    let (send, receive) = std::sync::mpsc::channel();
    let progress = move |phase, _, _| {
        let _ = send.send((format!("{phase:?}"), Instant::now()));
    };
    let mut build = Build::new(store.clone(), options, 1 << 30, 2, memory_spool(), Box::new(progress)).unwrap();
    for (i, vector) in rows.chunks_exact(d).enumerate() {
        build
            .add(Entry {
                tid: i as u64,
                ordinal: 0,
                span: Span { start: 0, end: 0 },
                hash: 0,
                vector,
            })
            .unwrap();
    }
    let stats = build.finish().unwrap();
    let end = Instant::now();
    let events: Vec<(String, Instant)> = receive.iter().collect();
    for (i, (phase, at)) in events.iter().enumerate() {
        if i == 0 || events[i - 1].0 != *phase {
            let until = events[i..].iter().find(|e| e.0 != *phase).map_or(end, |e| e.1);
            phases.push((phase.clone(), until.duration_since(*at).as_secs_f64()));
        }
    }
    report(bench, "build", start.elapsed().as_secs_f64(), "s");
    phases
        .iter()
        .for_each(|(phase, seconds)| report(bench, &format!("build {phase}"), *seconds, "s"));
    report(bench, "lists", stats.lists.into(), "lists");
    report(bench, "probes", stats.probes.into(), "lists");
    report(bench, "calibrated recall@10", stats.recall.into(), "share");
    report(bench, "size", f64::from(stats.pages) * 8192.0 / 1e6, "MB");
    let limits = kth(rows, queries, d);
    for &probes in probes {
        let name = if probes == 0 {
            "default".to_owned()
        } else {
            format!("probes {probes}")
        };
        let (mut found, mut times) = (0, Vec::new());
        for round in 0..3 {
            times.clear();
            found = 0;
            let reads = store.reads();
            for (query, limit) in queries.chunks_exact(d).zip(&limits) {
                let start = Instant::now();
                let mut scan = Scan::new(
                    store.clone(),
                    query,
                    ScanParams {
                        probes,
                        ..ScanParams::default()
                    },
                )
                .unwrap();
                let mut hits = [0.0; K];
                for hit in &mut hits {
                    *hit = scan.next().unwrap().map_or(f64::INFINITY, |h| h.distance);
                }
                times.push(start.elapsed().as_secs_f64());
                found += hits
                    .iter()
                    .filter(|&&h| h * h <= f64::from(*limit) * 1.00001 + 1e-6)
                    .count();
            }
            if round == 2 {
                report(
                    bench,
                    &format!("{name}: pages read"),
                    (store.reads() - reads) as f64 / times.len() as f64,
                    "pages",
                );
            }
        }
        times.sort_by(f64::total_cmp);
        report(
            bench,
            &format!("{name}: queries"),
            times.len() as f64 / times.iter().sum::<f64>(),
            "1/s",
        );
        report(bench, &format!("{name}: p50"), times[times.len() / 2] * 1e3, "ms");
        report(
            bench,
            &format!("{name}: recall@10"),
            found as f64 / (times.len() * K) as f64,
            "share",
        );
    }
}

fn npy(path: &Path) -> Option<(Vec<f32>, usize)> {
    let bytes = std::fs::read(path).ok()?;
    let header = 10 + u16::from_le_bytes([bytes[8], bytes[9]]) as usize;
    let text = String::from_utf8_lossy(&bytes[10..header]).into_owned();
    let columns = text
        .split("'shape': (")
        .nth(1)?
        .split(')')
        .next()?
        .split(',')
        .nth(1)?
        .trim()
        .parse()
        .ok()?;
    let values = bytes[header..]
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    Some((values, columns))
}

fn main() {
    let glove_only = std::env::args().any(|a| a == "GLOVE_ONLY");
    let root = std::env::var_os("SITU_DATA").map_or_else(|| PathBuf::from("../shared/data"), PathBuf::from);
    let folder = root.join("ann_glove50_20k");
    match (npy(&folder.join("base.npy")), npy(&folder.join("query.npy"))) {
        (Some((rows, d)), Some((queries, _))) => run("glove50_20k", &rows, &queries, d, &[0]),
        _ => println!("SKIPPED: no data at {}", folder.display()),
    }
    if glove_only {
        return;
    }
    for (name, groups, noise) in [("clustered 100000x384", 1000, 0.6), ("loose 100000x384", 100, 1.5)] {
        let (mut normal, mut centers) = (Normal(1), Vec::new());
        let rows = clustered(100_000, 384, groups, noise, &mut normal, &mut centers);
        let queries = clustered(500, 384, groups, noise, &mut normal, &mut centers);
        run(name, &rows, &queries, 384, &[0, 5, 10, 30]);
    }
}
