//! How many lists a scan has to read, found by searching.
//!
//! While a build gives entries to lists, the exact ten nearest of some sample vectors (themselves left out) are kept. When
//! all is written, the sample is searched for, and the number of lists is set for a recall@10 above what is asked.

use super::IndexError;
use super::lists::{RankedList, rank};
use super::memory_limit::{collected, filled, full, reserve, with_room};
use super::meta::Meta;
use super::page::{Layout, Reader};
use super::rabitq::Prepared;
use super::recall::{self, Curve, Known};
use super::scan::Scan;
use super::store::PageStore;
use super::types::{Metric, ScanParams, Tid};
use super::vector::prepare;
use crate::compute::vectors::nearest_centroid::Panels;
use crate::compute::vectors::rotation::Rotation;

/// Sample queries of a build.
pub const QUERIES: usize = 200;
/// Neighbours a query.
const K: usize = 10;
/// Recall@10 that the sample must reach: above what is promised, as real queries may lie between the indexed vectors.
const TARGET: f64 = 0.985;
/// Lists read beyond what the sample needs.
const MARGIN: f64 = 1.15;
/// The share of neighbours that lie in the lists which the curve of recalls is measured in.
const DEPTH: f64 = 0.9995;

/// An entry of the index used as a query.
pub struct Sample {
    pub vector: Vec<f32>,
    pub tid: Tid,
    pub ordinal: u32,
    /// Number of the entry in the build's order.
    pub number: u64,
}

/// One of a query's nearest: distance on the bounds' scale, and list.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Neighbour {
    distance: f32,
    known: Known,
}

/// The exact nearest of the sample, gathered while the build passes over its entries.
pub struct Truth {
    metric: Metric,
    queries: Vec<Sample>,
    panels: Panels,
    half_norms: Vec<f32>,
    nearest: Vec<Vec<Neighbour>>,
    scores: Vec<f32>,
}

impl Truth {
    /// `queries` hold prepared vectors (directions under cosine).
    pub fn new(queries: Vec<Sample>, dimensions: usize, metric: Metric) -> Result<Truth, IndexError> {
        let mut rows: Vec<f32> = with_room(queries.len() * dimensions)?;
        queries.iter().for_each(|q| rows.extend_from_slice(&q.vector));
        let half_norms = queries
            .iter()
            .map(|q| 0.5 * q.vector.iter().map(|x| x * x).sum::<f32>())
            .collect();
        let nearest = vec![Vec::with_capacity(K + 1); queries.len()];
        Ok(Truth {
            metric,
            panels: Panels::new(&rows, dimensions).map_err(full)?,
            queries,
            half_norms,
            nearest,
            scores: Vec::new(),
        })
    }

    /// Shows it prepared rows, their lists, the number of the first in the build's order, and tid and ordinal of each.
    pub fn show(
        &mut self,
        rows: &[f32],
        d: usize,
        lists: &[(u32, f32)],
        first: u64,
        name: &dyn Fn(usize) -> (Tid, u32),
    ) -> Result<(), IndexError> {
        let count = self.queries.len();
        if count == 0 {
            return Ok(());
        }
        let more = (lists.len() * count).saturating_sub(self.scores.len());
        reserve(&mut self.scores, more)?;
        self.scores.resize(lists.len() * count, 0.0);
        self.panels.scores(rows, &mut self.scores);
        for (i, (row, &(list, _))) in rows.chunks_exact(d).zip(lists).enumerate() {
            let norm: f32 = row.iter().map(|x| x * x).sum();
            for (q, &score) in self.scores[i * count..(i + 1) * count].iter().enumerate() {
                let distance = match self.metric {
                    Metric::InnerProduct => -(score + self.half_norms[q]),
                    Metric::L2 | Metric::Cosine => (norm - 2.0 * score).max(0.0),
                };
                let nearest = &mut self.nearest[q];
                if nearest.len() == K && nearest.last().is_some_and(|n| n.distance <= distance) {
                    continue;
                }
                if self.queries[q].number == first + i as u64 {
                    continue;
                }
                let at = nearest.partition_point(|n| n.distance <= distance);
                let (tid, ordinal) = name(i);
                let known = Known { tid, ordinal, list };
                nearest.insert(at, Neighbour { distance, known });
                nearest.truncate(K);
            }
        }
        Ok(())
    }

    /// Sets the probes and the slack of `meta` by searching the finished pages; gives the recall@10 reached.
    pub fn calibrate<S: PageStore>(&self, store: &S, meta: &mut Meta) -> Result<f32, IndexError> {
        meta.probes = meta.lists;
        meta.slack = 0.0;
        if meta.lists == 1 || self.queries.is_empty() {
            return Ok(1.0);
        }
        let (ranked, found_at) = self.ranked(store, meta)?;
        let wanted = (found_at.iter().sum::<u64>() as f64 * TARGET).ceil() as u64;
        let mut sum = 0;
        let needed = found_at
            .iter()
            .position(|&n| {
                sum += n;
                sum >= wanted
            })
            .map_or(meta.lists as usize, |p| p + 1);
        let mut probes = ((needed as f64 * MARGIN).ceil() as u32 + 1).min(meta.lists);
        let recall = loop {
            let recall = self.measure(store, meta, probes)?;
            if recall >= TARGET || probes >= meta.lists {
                break recall;
            }
            probes = (probes + probes.div_ceil(4)).min(meta.lists);
        };
        meta.probes = probes;
        meta.slack = slack(&ranked, meta.options.metric, probes as usize);
        meta.curve = self.curve(store, meta, &found_at)?;
        Ok(recall as f32)
    }

    /// The work for each recall, looked for in the lists that hold nearly all neighbours.
    fn curve<S: PageStore>(&self, store: &S, meta: &Meta, found_at: &[u64]) -> Result<Curve, IndexError> {
        let wanted = (found_at.iter().sum::<u64>() as f64 * DEPTH).ceil() as u64;
        let mut sum = 0;
        let depth = found_at.iter().position(|&found| {
            sum += found;
            sum >= wanted
        });
        let queries = self.queries.iter().zip(&self.nearest).map(|(query, nearest)| {
            let known = nearest.iter().map(|neighbour| neighbour.known).collect();
            (query, known, nearest.last().map_or(0.0, |last| last.distance))
        });
        recall::measure(store, meta, depth.map_or(found_at.len(), |depth| depth + 1), queries)
    }

    /// What each query sees of the lists, and of all true neighbours how many lie in the nearest list of their query, in
    /// the second nearest, and so on.
    fn ranked<S: PageStore>(&self, store: &S, meta: &Meta) -> Result<(Vec<RankedQuery>, Vec<u64>), IndexError> {
        let layout = Layout::new(&meta.options);
        let rotation = Rotation::new(layout.dimensions, meta.seed);
        let mut reader = Reader::new(store.clone())?;
        let mut ranked = Vec::with_capacity(self.queries.len());
        let mut found_at = filled(0u64, meta.lists as usize)?;
        let (mut direction, mut rotated) = (Vec::new(), Vec::new());
        for (query, nearest) in self.queries.iter().zip(&self.nearest) {
            if prepare(&query.vector, meta.options.metric, &mut direction).is_none() {
                continue;
            }
            rotation.apply(&direction, &mut rotated);
            let prepared = Prepared::new(meta.options.metric, rotated.clone(), &meta.origin, &layout);
            let mut lists = rank(&mut reader, meta, &layout, &prepared.rotated, |product, norm| {
                prepared.list(product, norm)
            })?;
            let order = |a: &RankedList, b: &RankedList| a.terms.add.total_cmp(&b.terms.add).then(a.list.cmp(&b.list));
            lists.sort_unstable_by(order);
            let mut place = filled(0u32, lists.len())?;
            lists
                .iter()
                .enumerate()
                .for_each(|(i, list)| place[list.list as usize] = i as u32);
            for neighbour in nearest {
                found_at[place[neighbour.known.list as usize] as usize] += 1;
            }
            ranked.push(RankedQuery {
                lists: collected(lists.iter().map(|list| list.terms.add))?,
                distance: nearest.last().map_or(0.0, |neighbour| neighbour.distance),
                norm: prepared.norm(),
            });
        }
        Ok((ranked, found_at))
    }

    /// Recall@10 of the sample at a number of lists, by distance, so that ties count as found.
    fn measure<S: PageStore>(&self, store: &S, meta: &Meta, probes: u32) -> Result<f64, IndexError> {
        let (mut found, mut total) = (0usize, 0usize);
        for (query, nearest) in self.queries.iter().zip(&self.nearest) {
            store.check_cancel()?;
            let Some(last) = nearest.last() else { continue };
            let limit = f64::from(last.distance);
            let params = ScanParams {
                probes,
                ..ScanParams::default()
            };
            let mut scan = Scan::with_meta(store.clone(), meta, &query.vector, params, false)?;
            total += nearest.len();
            let mut taken = 0;
            while taken < nearest.len() {
                let Some(hit) = scan.next()? else { break };
                if (hit.tid, hit.ordinal) == (query.tid, query.ordinal) {
                    continue;
                }
                taken += 1;
                let distance = match meta.options.metric {
                    Metric::L2 => hit.distance * hit.distance,
                    Metric::InnerProduct => hit.distance,
                    Metric::Cosine => 2.0 * hit.distance,
                };
                found += usize::from(distance <= limit + 1e-4 * limit.abs() + 1e-6);
            }
        }
        Ok(if total == 0 { 1.0 } else { found as f64 / total as f64 })
    }
}

/// A query of the sample among the lists.
struct RankedQuery {
    /// Distances of all lists, the nearest first.
    lists: Vec<f32>,
    /// The distance of the last true neighbour.
    distance: f32,
    norm: f32,
}

/// How far beyond the probes half of the queries go on for their ten nearest; far queries go on more.
fn slack(ranked: &[RankedQuery], metric: Metric, probes: usize) -> f32 {
    let slack = |query: &RankedQuery| {
        let next = query.lists.get(probes)?;
        let slack = match metric {
            Metric::InnerProduct => (next - query.distance) / query.norm,
            Metric::L2 | Metric::Cosine => next / query.distance,
        };
        slack.is_finite().then_some(slack)
    };
    let mut slacks: Vec<f32> = ranked.iter().filter_map(slack).collect();
    slacks.sort_unstable_by(f32::total_cmp);
    slacks.get(slacks.len() / 2).copied().unwrap_or(0.0)
}
