//! How much work reaches a recall: how many lists are read, and how far below its estimate a candidate is still re-ranked.
//!
//! A build draws sample queries, keeps their exact neighbours, and counts over the finished pages what each amount of work
//! would find and what it would cost. The cheapest that reaches each of [`TARGETS`] is kept in the meta page ([`Curve`]).
//! A scan that aims at a recall ([`super::ScanParams::recall`]) does so much, and no more until more rows are asked for.
//!
//! A neighbour is found where its list is among those read and its lower bound at the deviations chosen lies below the
//! distance of the last neighbour: the scan then re-ranks it before it gives that one out.

use super::IndexError;
use super::calibrate::Sample;
use super::lists::{RankedList, rank};
use super::memory_limit::filled;
use super::meta::Meta;
use super::page::{FIRST, Kind, Layout, NEXT, NONE, Reader, expect_kind, u32_at};
use super::rabitq::Prepared;
use super::store::PageStore;
use super::types::Tid;
use super::vector::prepare;
use crate::compute::vectors::rotation::Rotation;

/// Recalls@10 that a build finds the work for.
pub const TARGETS: [f32; 8] = [0.80, 0.90, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999];
/// The share of what a target leaves open that is aimed above it: real queries may lie between the indexed vectors.
const ABOVE: f64 = 0.25;
/// Deviations that are tried.
const STEP: f32 = 0.25;
const STEPS: usize = 17;
/// Costs in units of scoring one lane: opening a list, and one re-rank.
const LIST: f64 = 300.0;
const RERANK: f64 = 150.0;

/// What a scan does for a recall.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Effort {
    /// Lists read before the first hit.
    pub probes: u32,
    /// Standard deviations between an estimate and the bound that decides about its re-rank.
    pub deviations: f32,
    /// Re-ranks that ten rows took of the sample, on average.
    pub reranks: u32,
}

/// The effort for each of [`TARGETS`]; all zero where there was nothing to measure.
pub type Curve = [Effort; TARGETS.len()];

/// The effort for a recall, `None` where none was measured or more is asked for than was.
pub fn effort(curve: &Curve, recall: f32) -> Option<Effort> {
    let at = TARGETS.iter().position(|target| *target >= recall - 1e-6)?;
    (curve[at].probes > 0).then_some(curve[at])
}

/// One of a query's neighbours: what names it, and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    pub tid: Tid,
    pub ordinal: u32,
    pub list: u32,
}

/// What the sample's queries see of the first lists: lanes and neighbours by rank of their list and by the deviations that
/// they need to be re-ranked.
struct Counts {
    lanes: Vec<[u64; STEPS + 1]>,
    neighbours: Vec<[u64; STEPS + 1]>,
    queries: u64,
    /// All neighbours, also those that lie farther out.
    total: u64,
}

/// The step of deviations that reach: the last stands for none that does.
fn step(needed: f32) -> usize {
    match needed.is_nan() {
        // Beyond f32: always re-ranked.
        true => 0,
        false => (needed / STEP).ceil().clamp(0.0, STEPS as f32) as usize,
    }
}

impl Counts {
    fn new(depth: usize) -> Result<Counts, IndexError> {
        Ok(Counts {
            lanes: filled([0; STEPS + 1], depth)?,
            neighbours: filled([0; STEPS + 1], depth)?,
            queries: 0,
            total: 0,
        })
    }

    /// The cheapest effort that finds `share` of the neighbours.
    fn cheapest(&self, share: f64) -> Option<Effort> {
        let wanted = (self.total as f64 * share).ceil() as u64;
        let mut best: Option<(f64, Effort)> = None;
        let (mut lanes, mut reranks, mut found) = (0, [0; STEPS], [0; STEPS]);
        for (rank, (more, near)) in self.lanes.iter().zip(&self.neighbours).enumerate() {
            lanes += more.iter().sum::<u64>();
            let (mut within, mut near_within) = (0, 0);
            for step in 0..STEPS {
                within += more[step];
                near_within += near[step];
                reranks[step] += within;
                found[step] += near_within;
            }
            let Some(step) = found.iter().position(|found| *found >= wanted) else {
                continue;
            };
            let queries = self.queries.max(1) as f64;
            let a_query = |count: u64| count as f64 / queries;
            let cost = a_query(lanes) + LIST * (rank + 1) as f64 + RERANK * a_query(reranks[step]);
            if best.is_none_or(|(least, _)| cost < least) {
                let effort = Effort {
                    probes: rank as u32 + 1,
                    deviations: step as f32 * STEP,
                    reranks: a_query(reranks[step]).ceil() as u32,
                };
                best = Some((cost, effort));
            }
        }
        best.map(|(_, effort)| effort)
    }
}

/// Measures the curve of a finished index on sample queries with their exact neighbours, whose farthest lies at the given
/// distance on the bounds' scale. `depth`: lists that are looked into.
pub fn measure<'a, S: PageStore>(
    store: &S,
    meta: &Meta,
    depth: usize,
    queries: impl Iterator<Item = (&'a Sample, Vec<Known>, f32)>,
) -> Result<Curve, IndexError> {
    let layout = Layout::new(&meta.options);
    let rotation = Rotation::new(layout.dimensions, meta.seed);
    let mut reader = Reader::new(store.clone())?;
    let depth = depth.clamp(1, meta.lists.max(1) as usize);
    let mut counts = Counts::new(depth)?;
    let (mut direction, mut rotated) = (Vec::new(), Vec::new());
    for (sample, neighbours, farthest) in queries {
        if prepare(&sample.vector, meta.options.metric, &mut direction).is_none() {
            continue;
        }
        rotation.apply(&direction, &mut rotated);
        let prepared = Prepared::new(meta.options.metric, rotated.clone(), &meta.origin, &layout).with_deviations(1.0);
        let mut lists = rank(&mut reader, meta, &layout, &prepared.rotated, |product, norm| {
            prepared.list(product, norm)
        })?;
        let nearer = |a: &RankedList, b: &RankedList| a.terms.add.total_cmp(&b.terms.add).then(a.list.cmp(&b.list));
        if depth < lists.len() {
            lists.select_nth_unstable_by(depth, nearer);
            lists.truncate(depth);
        }
        lists.sort_unstable_by(nearer);
        counts.queries += 1;
        counts.total += neighbours.len() as u64;
        let mut looked = Looked {
            reader: &mut reader,
            layout: &layout,
            prepared: &prepared,
            estimates: Vec::new(),
            bounds: Vec::new(),
        };
        for (rank, list) in lists.iter().enumerate() {
            let has_neighbours = neighbours.iter().any(|known| known.list == list.list);
            looked.count(*list, farthest, &mut counts.lanes[rank], |tid, ordinal, step| {
                let is_neighbour = |known: &Known| (known.tid, known.ordinal) == (tid, ordinal);
                if has_neighbours && neighbours.iter().any(is_neighbour) {
                    counts.neighbours[rank][step] += 1;
                }
            })?;
        }
    }
    let mut curve = Curve::default();
    if counts.total > 0 {
        for (effort, target) in curve.iter_mut().zip(TARGETS) {
            let target = f64::from(target);
            *effort = counts.cheapest(target + (1.0 - target) * ABOVE).unwrap_or_default();
        }
    }
    Ok(curve)
}

/// A query that looks into lists.
struct Looked<'a, S: PageStore> {
    reader: &'a mut Reader<S>,
    layout: &'a Layout,
    /// With bounds one deviation below the estimates.
    prepared: &'a Prepared,
    estimates: Vec<f32>,
    bounds: Vec<f32>,
}

impl<S: PageStore> Looked<'_, S> {
    /// Counts the lanes of a list by the deviations that bring their bound below `farthest`, and tells of each.
    fn count(
        &mut self,
        list: RankedList,
        farthest: f32,
        lanes: &mut [u64; STEPS + 1],
        mut tell: impl FnMut(Tid, u32, usize),
    ) -> Result<(), IndexError> {
        self.reader.store.check_cancel()?;
        let mut estimated = list.terms;
        estimated.error = 0.0;
        let mut block = list.head;
        let mut pages = 0;
        while block != NONE {
            pages += 1;
            if pages > self.reader.blocks() {
                self.reader.check(pages)?;
            }
            let page = self.reader.read(block)?;
            expect_kind(&page, block, Kind::Codes)?;
            self.prepared.bounds(self.layout, &page, estimated, &mut self.estimates);
            self.prepared.bounds(self.layout, &page, list.terms, &mut self.bounds);
            let (estimates, bounds) = (&self.estimates, &self.bounds);
            self.layout.each_live(&page, |lane| {
                let (Some(estimate), Some(bound)) = (estimates.get(lane), bounds.get(lane)) else {
                    return;
                };
                let step = step((estimate - farthest) / (estimate - bound).max(f32::MIN_POSITIVE));
                lanes[step] += 1;
                let value = self.layout.lane(&page, lane);
                tell(value.tid, value.ordinal & !FIRST, step);
            });
            block = u32_at(&*page, NEXT);
        }
        Ok(())
    }
}
