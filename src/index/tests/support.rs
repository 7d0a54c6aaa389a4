//! What the tests share: random vectors, brute force, builds in one call, numpy files.

use crate::index::*;
use crate::random::splitmix64;
use crate::text::Span;
use std::path::PathBuf;

pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: u64) -> u64 {
        splitmix64(&mut self.0) % n
    }

    pub fn float(&mut self) -> f32 {
        (splitmix64(&mut self.0) >> 40) as f32 / (1 << 24) as f32 * 2.0 - 1.0
    }

    pub fn vector(&mut self, d: usize) -> Vec<f32> {
        (0..d).map(|_| self.float()).collect()
    }

    /// Vectors around `groups` centers.
    pub fn clustered(&mut self, n: usize, d: usize, groups: usize) -> Vec<Vec<f32>> {
        let centers: Vec<Vec<f32>> = (0..groups).map(|_| self.vector(d)).collect();
        (0..n)
            .map(|_| {
                let center = &centers[self.below(groups as u64) as usize];
                center.iter().map(|c| c + 0.3 * self.float()).collect()
            })
            .collect()
    }
}

pub fn options(metric: Metric, dimensions: usize) -> IndexOptions {
    IndexOptions {
        metric,
        element: Element::F32,
        dimensions: dimensions as u32,
        lists: 0,
        documents: false,
        model: None,
        extra: Vec::new(),
    }
}

pub fn entry(tid: Tid, vector: &[f32]) -> Entry<'_> {
    Entry {
        tid,
        ordinal: 0,
        span: Span { start: 0, end: 0 },
        hash: tid ^ 0xABCD,
        vector,
    }
}

pub fn build_with(
    store: &MemoryStore,
    options: IndexOptions,
    vectors: &[Vec<f32>],
    memory: usize,
) -> Result<BuildStats, IndexError> {
    let mut build = Build::new(
        store.clone(),
        options,
        memory,
        2,
        memory_spool(),
        Box::new(|_, _, _| {}),
    )?;
    for (i, vector) in vectors.iter().enumerate() {
        build.add(entry(i as Tid + 1, vector))?;
    }
    build.finish()
}

/// An index of vectors with tids 1, 2, ...
pub fn build(options: IndexOptions, vectors: &[Vec<f32>]) -> (MemoryStore, BuildStats) {
    let store = MemoryStore::new();
    let stats = build_with(&store, options, vectors, 64 << 20).unwrap();
    (store, stats)
}

pub fn distance(metric: Metric, a: &[f32], b: &[f32]) -> f64 {
    let sum = |f: &dyn Fn(f64, f64) -> f64| a.iter().zip(b).map(|(&x, &y)| f(x.into(), y.into())).sum::<f64>();
    match metric {
        Metric::L2 => sum(&|x, y| (x - y) * (x - y)).sqrt(),
        Metric::InnerProduct => -sum(&|x, y| x * y),
        Metric::Cosine => 1.0 - sum(&|x, y| x * y) / (sum(&|x, _| x * x) * sum(&|_, y| y * y)).sqrt(),
    }
}

/// Tids and distances of all vectors, nearest first.
pub fn brute_force(metric: Metric, query: &[f32], vectors: &[Vec<f32>]) -> Vec<(Tid, f64)> {
    let mut all: Vec<(Tid, f64)> = vectors
        .iter()
        .enumerate()
        .map(|(i, v)| (i as Tid + 1, distance(metric, query, v)))
        .collect();
    all.sort_by(|a, b| a.1.total_cmp(&b.1));
    all
}

pub fn scan(store: &MemoryStore, query: &[f32], params: ScanParams, limit: usize) -> Vec<Hit> {
    let mut scan = Scan::new(store.clone(), query, params).unwrap();
    let mut hits = Vec::new();
    while hits.len() < limit {
        match scan.next().unwrap() {
            Some(hit) => hits.push(hit),
            None => break,
        }
    }
    hits
}

pub fn scan_all(store: &MemoryStore, query: &[f32]) -> Vec<Hit> {
    scan(store, query, ScanParams::default(), usize::MAX)
}

/// How many of the nearest `k` were found among the first `k` hits, by distance.
pub fn recall(hits: &[Hit], exact: &[(Tid, f64)], k: usize) -> f64 {
    let limit = exact[k - 1].1;
    let near = limit + 1e-5 * limit.abs() + 1e-7;
    hits.iter().take(k).filter(|hit| hit.distance <= near).count() as f64 / k as f64
}

/// Pairs of hits that are out of order, as a share of all neighbours.
pub fn disorder(hits: &[Hit]) -> f64 {
    let bad = hits
        .windows(2)
        .filter(|w| w[0].distance > w[1].distance + 1e-6 * w[1].distance.abs() + 1e-9)
        .count();
    bad as f64 / hits.len().max(2) as f64
}

pub use crate::fixtures::data;

/// Rows of a two-dimensional little-endian `.npy` file of 4-byte items.
pub fn npy(path: PathBuf) -> Vec<Vec<[u8; 4]>> {
    let bytes = std::fs::read(path).unwrap();
    let header = 10 + u16::from_le_bytes([bytes[8], bytes[9]]) as usize;
    let text = String::from_utf8_lossy(&bytes[10..header]).into_owned();
    assert!(text.contains("<f4") || text.contains("<i4"), "{text}");
    assert!(text.contains("'fortran_order': False"), "{text}");
    let shape = text.split("'shape': (").nth(1).unwrap().split(')').next().unwrap();
    let columns: usize = shape.split(',').nth(1).unwrap().trim().parse().unwrap();
    let items: Vec<[u8; 4]> = bytes[header..]
        .chunks_exact(4)
        .map(|b| [b[0], b[1], b[2], b[3]])
        .collect();
    items.chunks_exact(columns).map(<[_]>::to_vec).collect()
}

pub fn npy_f32(path: PathBuf) -> Vec<Vec<f32>> {
    npy(path)
        .into_iter()
        .map(|row| row.into_iter().map(f32::from_le_bytes).collect())
        .collect()
}
