//! Centroids from a sample: Lloyd's k-means, in two levels where there are many centroids.

use super::IndexError;
use super::memory_limit::{filled, full, joined, reserve, reserve_exact};
use crate::compute::cpu::parallel::parallel_for;
use crate::compute::vectors::nearest_centroid::Panels;
use crate::random::splitmix64;
use parking_lot::Mutex;

/// More centroids than this are sought in two levels.
const FLAT_LIMIT: usize = 700;
/// Rounds of Lloyd's algorithm from random starts, and after the two levels were joined.
const ROUNDS: usize = 10;
const JOINED_ROUNDS: usize = 2;
/// Sample vectors a centroid that the first level looks at.
const FIRST_LEVEL: usize = 128;

/// Called every few milliseconds with the work done so far and in all; fails on a cancel.
pub type Tick<'a> = &'a mut dyn FnMut(u64, u64) -> Result<(), IndexError>;

/// Nearest centroid of every row, in pieces short enough for a cancel check between them.
pub fn assign(
    panels: &Panels,
    rows: &[f32],
    d: usize,
    threads: usize,
    out: &mut [(u32, f32)],
    tick: &mut dyn FnMut() -> Result<(), IndexError>,
) -> Result<(), IndexError> {
    let piece = (400_000_000 / (panels.len().max(1) * d)).clamp(64, 65_536) / 8 * 8;
    for (rows, out) in rows.chunks(piece * d).zip(out.chunks_mut(piece)) {
        tick()?;
        panels.nearest(rows, threads, out);
    }
    Ok(())
}

/// `k` centroids of the row-major sample `[n][d]`; with fewer than `k` different vectors some are equal.
///
/// An empty sample gives one centroid at zero.
pub fn cluster(
    sample: &[f32],
    d: usize,
    k: usize,
    threads: usize,
    seed: u64,
    tick: Tick<'_>,
) -> Result<Vec<f32>, IndexError> {
    let n = sample.len() / d;
    if n == 0 {
        return filled(0.0, d * k.max(1));
    }
    let k = k.max(1);
    let mut state = seed;
    if k <= FLAT_LIMIT {
        let mut done = 0;
        let total = ROUNDS as u64;
        return lloyd(
            sample,
            d,
            random_rows(sample, d, k, &mut state)?,
            ROUNDS,
            threads,
            &mut state,
            &mut |round| {
                done += u64::from(round);
                tick(done, total)
            },
        );
    }
    two_levels(sample, d, k, threads, seed, tick)
}

/// [`cluster`] by few centroids first, each of whose rows are then clustered alone.
fn two_levels(
    sample: &[f32],
    d: usize,
    k: usize,
    threads: usize,
    seed: u64,
    tick: Tick<'_>,
) -> Result<Vec<f32>, IndexError> {
    let n = sample.len() / d;
    let total = k as u64 + 2;
    let mut state = seed;
    let first = (k as f64).sqrt().round() as usize;
    let part = &sample[..n.min(first * FIRST_LEVEL) * d];
    let start = random_rows(part, d, first, &mut state)?;
    let top = lloyd(part, d, start, ROUNDS, threads, &mut state, &mut |_| tick(0, total))?;
    let mut owner = filled((0, 0.0), n)?;
    let panels = Panels::new(&top, d).map_err(full)?;
    assign(&panels, sample, d, threads, &mut owner, &mut || tick(0, total))?;
    let members = members(&owner, first)?;
    let shares = shares(&members, k);
    let results: Vec<Mutex<Result<Vec<f32>, IndexError>>> =
        members.iter().map(|_| Mutex::new(Ok(Vec::new()))).collect();
    let mut done = 0;
    let group = threads.max(1) * 2;
    for start in (0..members.len()).step_by(group) {
        tick(done, total)?;
        let end = (start + group).min(members.len());
        parallel_for(threads, end - start, |i| {
            let i = start + i;
            *results[i].lock() = cluster_members(sample, d, &members[i], shares[i], seed ^ (i as u64 + 1));
        });
        done += shares[start..end].iter().sum::<usize>() as u64;
    }
    let mut all = Vec::new();
    reserve_exact(&mut all, k * d)?;
    for found in results {
        all.extend_from_slice(&found.into_inner()?);
    }
    lloyd(sample, d, all, JOINED_ROUNDS, threads, &mut state, &mut |_| {
        tick(done, total)
    })
}

/// The rows of each centroid that owns any.
fn members(owner: &[(u32, f32)], centroids: usize) -> Result<Vec<Vec<u32>>, IndexError> {
    let mut members = vec![Vec::new(); centroids];
    for (row, (centroid, _)) in owner.iter().enumerate() {
        let rows = &mut members[*centroid as usize];
        reserve(rows, 1)?;
        rows.push(row as u32);
    }
    members.retain(|rows| !rows.is_empty());
    Ok(members)
}

/// `k` centroids of some rows of the sample, on the calling thread. It does not look for cancels, which only the thread
/// that called [`cluster`] may.
fn cluster_members(sample: &[f32], d: usize, rows: &[u32], k: usize, mut state: u64) -> Result<Vec<f32>, IndexError> {
    let rows = joined(
        rows.iter()
            .map(|&row| &sample[row as usize * d..(row as usize + 1) * d]),
        d,
    )?;
    let start = random_rows(&rows, d, k, &mut state)?;
    lloyd(&rows, d, start, ROUNDS, 1, &mut state, &mut |_| Ok(()))
}

/// How many of `k` centroids each group gets: by its size, at least one, `k` in all.
fn shares(members: &[Vec<u32>], k: usize) -> Vec<usize> {
    let total: usize = members.iter().map(Vec::len).sum();
    let mut before = 0usize;
    let spare = k.saturating_sub(members.len());
    members
        .iter()
        .map(|rows| {
            let from = before * spare / total.max(1);
            before += rows.len();
            1 + before * spare / total.max(1) - from
        })
        .collect()
}

/// `k` rows drawn without repetition while there are enough.
fn random_rows(rows: &[f32], d: usize, k: usize, state: &mut u64) -> Result<Vec<f32>, IndexError> {
    let n = rows.len() / d;
    let mut order: Vec<u32> = Vec::new();
    reserve_exact(&mut order, n)?;
    order.extend(0..n as u32);
    for i in 0..k.min(n) {
        let j = i + (splitmix64(state) % (n - i) as u64) as usize;
        order.swap(i, j);
    }
    let drawn = (0..k).map(|i| {
        let row = order[i % n] as usize;
        &rows[row * d..(row + 1) * d]
    });
    joined(drawn, d)
}

/// Lloyd's algorithm; `tick` is told when a round is over.
fn lloyd(
    rows: &[f32],
    d: usize,
    mut centroids: Vec<f32>,
    rounds: usize,
    threads: usize,
    state: &mut u64,
    tick: &mut dyn FnMut(bool) -> Result<(), IndexError>,
) -> Result<Vec<f32>, IndexError> {
    let n = rows.len() / d;
    let k = centroids.len() / d;
    let mut owner = filled((0u32, 0.0f32), n)?;
    let mut counts = filled(0u32, k)?;
    let mut before = f64::INFINITY;
    for _ in 0..rounds {
        let panels = Panels::new(&centroids, d).map_err(full)?;
        assign(&panels, rows, d, threads, &mut owner, &mut || tick(false))?;
        let spread: f64 = owner.iter().map(|(_, distance)| f64::from(*distance)).sum();
        centroids.fill(0.0);
        counts.fill(0);
        for (row, (centroid, _)) in rows.chunks_exact(d).zip(&owner) {
            let at = *centroid as usize * d;
            centroids[at..at + d].iter_mut().zip(row).for_each(|(c, x)| *c += x);
            counts[*centroid as usize] += 1;
        }
        for (centroid, &count) in centroids.chunks_exact_mut(d).zip(&counts) {
            let inverse = 1.0 / count.max(1) as f32;
            centroid.iter_mut().for_each(|c| *c *= inverse);
        }
        reseed(rows, d, &mut centroids, &counts, &owner, state);
        tick(true)?;
        let settled = before - spread < 1e-3 * before && counts.iter().all(|&c| c > 0);
        if settled || spread == 0.0 {
            break;
        }
        before = spread;
    }
    Ok(centroids)
}

/// Puts every centroid that no row chose on a row far from its own centroid: crowded, wide clusters are split.
fn reseed(rows: &[f32], d: usize, centroids: &mut [f32], counts: &[u32], owner: &[(u32, f32)], state: &mut u64) {
    if owner.is_empty() {
        return;
    }
    for (empty, _) in counts.iter().enumerate().filter(|(_, count)| **count == 0) {
        let draw = |state: &mut u64| (splitmix64(state) % owner.len() as u64) as usize;
        let far = (0..16)
            .map(|_| draw(state))
            .max_by(|&a, &b| owner[a].1.total_cmp(&owner[b].1))
            .unwrap_or(0);
        centroids[empty * d..(empty + 1) * d].copy_from_slice(&rows[far * d..(far + 1) * d]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(sample: &[f32], d: usize, centroids: &[f32]) -> f32 {
        let mut out = vec![(0, 0.0); sample.len() / d];
        Panels::new(centroids, d).unwrap().nearest(sample, 1, &mut out);
        out.iter().map(|x| x.1).sum::<f32>() / out.len() as f32
    }

    #[test]
    fn finds_separated_groups() {
        for k in [20usize, 900] {
            let d = 8;
            let mut state = 1;
            let mut random = || (splitmix64(&mut state) >> 40) as f32 / (1 << 24) as f32;
            let centers: Vec<f32> = (0..k * d).map(|_| random() * 100.0).collect();
            let sample: Vec<f32> = (0..k * 40 * d)
                .map(|i| centers[i / d % k * d + i % d] + random())
                .collect();
            let found = cluster(&sample, d, k, 2, 5, &mut |_, _| Ok(())).unwrap();
            assert_eq!(found.len(), k * d);
            let drawn = random_rows(&sample, d, k, &mut 17).unwrap();
            let (got, start) = (spread(&sample, d, &found), spread(&sample, d, &drawn));
            assert!(got < start * 0.8, "k={k}: {got} against {start} from random rows");
        }
    }

    #[test]
    fn equal_vectors_and_short_samples() {
        let sample = vec![3.0f32; 50 * 4];
        for k in [1, 7, 60, 800] {
            let found = cluster(&sample, 4, k, 2, 5, &mut |_, _| Ok(())).unwrap();
            assert_eq!(found.len(), k * 4);
            assert!(found.iter().all(|&x| x == 3.0));
        }
        assert_eq!(cluster(&[], 4, 1, 1, 5, &mut |_, _| Ok(())).unwrap(), vec![0.0; 4]);
    }

    #[test]
    fn a_failing_tick_ends_it() {
        let sample: Vec<f32> = (0..4000).map(|i| i as f32).collect();
        let result = cluster(&sample, 4, 10, 1, 5, &mut |_, _| Err(IndexError::Cancelled));
        assert!(matches!(result, Err(IndexError::Cancelled)));
    }
}
