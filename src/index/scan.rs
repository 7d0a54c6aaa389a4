//! Answering a query.
//!
//! A scan is a best-first search over four kinds of things, each with a lower bound on the distance of what it can still
//! give: *hits* (exact distance known), *candidates* (a lane's lower bound), *partial lists* (lists of which the farthest
//! candidates were dropped for want of memory: the least dropped bound) and *unread lists* (a probable bound from the distance of
//! the centroid and the slack that the build calibrated). The least goes first: a hit is returned, a candidate
//! re-ranked, a partial list read again from where it was cut, unread lists read. Before the first hit the calibrated
//! number of lists is read; when all that was read has come out, lists are read in growing rounds until none is left.
//!
//! Memory: candidates and waiting hits together stay below the caller's bound. Over it, the half of the candidates with
//! the highest bounds is dropped, and their lists become partial. Candidates are ordered by (bound, block, lane) and leave
//! in that order, so "everything of this list from here on" is one key, and reading the list again from there brings
//! back exactly what was dropped. If hits alone fill the memory (bounds that tell nothing), the best is returned unproven.
//! The table of lists and, for documents, the set of tids already returned are kept beside that bound.
//!
//! A scan that is asked to be exact follows no bounds at all (`exhaustive.rs`).
//!
//! Locks: at most one page is held at a time, none between calls.

use super::IndexError;
use super::candidates::{Candidate, Key, Least, Partial};
use super::exhaustive::Walk;
use super::feedback_round::{Behind, RankedRow};
use super::lists::{RankedList, rank};
use super::memory_limit::{reserve, with_room};
use super::meta::Meta;
use super::page::{HEAD, Kind, LIST, Layout, NEXT, NONE, Reader, RecordPtr, corrupted, expect_kind, u32_at};
use super::rabitq::{EPSILON, Prepared};
use super::recall;
use super::store::PageStore;
use super::types::{Hit, Metric, ScanParams};
use super::vector::{Exact, Exactly, check, prepare};
use crate::compute::vectors::rotation::Rotation;
use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashSet, VecDeque};

/// Candidates that fit even the smallest memory.
const MIN_HELD: usize = 256;
/// Candidates that are kept at least where a recall says how many are likely to be needed.
const ROOM: usize = 1024;
/// Hits that are looked for together at least: a recall is measured of so many.
const SETTLED: usize = 10;

/// A hit that waits for its proof.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub bound: f32,
    pub hit: Hit,
    /// Where its vector lies.
    pub place: RecordPtr,
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> Ordering {
        let place = |w: &Waiting| (w.hit.tid, w.hit.ordinal);
        other
            .bound
            .total_cmp(&self.bound)
            // Distances that are told apart in 64 bits alone.
            .then_with(|| other.hit.distance.total_cmp(&self.hit.distance))
            .then_with(|| place(other).cmp(&place(self)))
    }
}

/// A running scan. Holds no page between calls.
pub struct Scan<S: PageStore> {
    pub(super) reader: Reader<S>,
    pub(super) layout: Layout,
    pub(super) meta: Meta,
    rotation: Rotation,
    prepared: Prepared,
    pub(super) exact: Exact,
    /// Where an exact walk is; none where the scan follows bounds.
    pub(super) walk: Option<Walk>,
    pub(super) lists: Vec<RankedList>,
    /// Lists at the front of `lists` that are in order of rank.
    sorted: usize,
    /// Lists read so far.
    read: usize,
    probes: usize,
    metric: Metric,
    slack: f32,
    pub(super) held: usize,
    /// Candidates that are kept now: fewer than may be, where a recall says how many are likely to be needed.
    room: usize,
    /// Deviations between estimates and bounds, where they follow a recall.
    deviations: Option<f32>,
    /// Whether lists are read on until the bounds prove a hit.
    proves: bool,
    /// Hits that have come out, and those that were looked for together.
    given: usize,
    settled: usize,
    candidates: BinaryHeap<Candidate>,
    pub(super) waiting: BinaryHeap<Waiting>,
    /// Rows that come out before anything else.
    pub(super) ahead: VecDeque<RankedRow>,
    /// Least distance that is reported of a row that was not ahead.
    pub(super) floor: f64,
    /// Behind rows in front: the query of the first round, and how distances follow theirs.
    pub(super) behind: Option<(Exact, Behind)>,
    /// What was dropped, or not even taken.
    partial: Partial,
    /// Tids already returned, where each may come out once.
    pub(super) returned: Option<HashSet<u64>>,
    bounds: Vec<f32>,
    since_check: usize,
}

/// A query, prepared, and the lists with their ranks for it.
fn aim<S: PageStore>(
    reader: &mut Reader<S>,
    meta: &Meta,
    layout: &Layout,
    rotation: &Rotation,
    query: &[f32],
    deviations: Option<f32>,
) -> Result<(Prepared, Vec<RankedList>), IndexError> {
    let metric = meta.options.metric;
    check(query, meta.options.dimensions as usize)?;
    let mut direction = Vec::new();
    if prepare(query, metric, &mut direction).is_none() {
        direction = query.to_vec();
    }
    let mut rotated = Vec::new();
    rotation.apply(&direction, &mut rotated);
    let mut prepared = Prepared::new(metric, rotated, &meta.origin, layout);
    if let Some(deviations) = deviations {
        prepared = prepared.with_deviations(deviations);
    }
    let lists = rank(reader, meta, layout, &prepared.rotated, |product, norm| {
        prepared.list(product, norm)
    })?;
    Ok((prepared, lists))
}

impl<S: PageStore> Scan<S> {
    /// Prepares a scan: ranks the lists, reads none yet.
    ///
    /// Fails on a query of another number of dimensions, and on NaN and infinity. A zero query under cosine is at
    /// distance NaN from everything, as in pgvector; every entry then comes out in no particular order.
    pub fn new(store: S, query: &[f32], params: ScanParams) -> Result<Scan<S>, IndexError> {
        let meta = Meta::open(&store)?;
        Scan::with_meta(store, &meta, query, params, meta.options.documents)
    }

    /// Like [`Scan::new`]; `once` returns every tid once.
    pub(super) fn with_meta(
        store: S,
        meta: &Meta,
        query: &[f32],
        params: ScanParams,
        once: bool,
    ) -> Result<Scan<S>, IndexError> {
        let layout = Layout::new(&meta.options);
        let rotation = Rotation::new(layout.dimensions, meta.seed);
        let mut reader = Reader::new(store)?;
        let effort = recall::effort(&meta.curve, params.recall).filter(|_| params.recall < 1.0 && !params.exact);
        // A document comes out once: what its best passage is has to be surer than whether it is found.
        let least = if layout.documents { EPSILON } else { 0.0 };
        let deviations = effort.map(|effort| effort.deviations.max(least));
        let (prepared, lists) = aim(&mut reader, meta, &layout, &rotation, query, deviations)?;
        let probes = match (params.probes, effort) {
            (0, Some(effort)) => effort.probes,
            (0, None) => meta.probes,
            (probes, _) => probes,
        };
        let one = size_of::<Candidate>() + size_of::<Waiting>();
        Ok(Scan {
            reader,
            layout,
            meta: meta.clone(),
            rotation,
            exact: Exact::new(query, meta.options.metric, meta.options.element),
            walk: params.exact.then(Walk::default),
            sorted: 0,
            read: 0,
            probes: (probes as usize).clamp(1, lists.len().max(1)),
            metric: meta.options.metric,
            // A list never bounds its entries from nearer than its centroid's own distance.
            slack: if meta.slack.is_finite() { meta.slack } else { 0.0 },
            held: (params.memory_bytes / one).max(MIN_HELD),
            room: effort.map_or(usize::MAX, |effort| (effort.reranks as usize * 4).max(ROOM)),
            deviations,
            proves: effort.is_none(),
            given: 0,
            settled: 0,
            candidates: BinaryHeap::new(),
            waiting: BinaryHeap::new(),
            ahead: VecDeque::new(),
            floor: f64::NEG_INFINITY,
            behind: None,
            partial: Partial::default(),
            returned: once.then(HashSet::new),
            bounds: Vec::new(),
            since_check: 0,
            lists,
            prepared,
        })
    }

    /// The next hit, in order of distance; `None` when every live entry has come out.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Hit>, IndexError> {
        Ok(self.lead()?.map(|lead| lead.hit))
    }

    /// Restarts the scan with another query.
    pub(super) fn aim(&mut self, query: &[f32]) -> Result<(), IndexError> {
        (self.prepared, self.lists) = {
            let (layout, rotation) = (&self.layout, &self.rotation);
            aim(&mut self.reader, &self.meta, layout, rotation, query, self.deviations)?
        };
        self.exact = Exact::new(query, self.metric, self.meta.options.element);
        self.walk = self.walk.take().map(|_| Walk::default());
        (self.sorted, self.read) = (0, 0);
        (self.given, self.settled) = (0, 0);
        self.candidates.clear();
        self.waiting.clear();
        self.partial.clear();
        self.ahead.clear();
        Ok(())
    }

    /// The next hit of the walk itself.
    pub(super) fn next_waiting(&mut self) -> Result<Option<Waiting>, IndexError> {
        if self.walk.is_some() {
            return self.next_exactly();
        }
        if self.read == 0 {
            self.read_lists(self.probes)?;
        }
        if !self.proves && self.given >= self.settled {
            self.settle()?;
        }
        loop {
            let waiting = self.waiting.peek().map_or(f32::INFINITY, |w| w.bound);
            let next = self.least_unranked();
            let proven = !self.waiting.is_empty() && next.is_none_or(|(bound, _)| waiting <= bound);
            let full = self.waiting.len() >= self.held;
            if proven || full {
                if !full && self.unread_may_beat(waiting) {
                    self.read_lists(1)?;
                    continue;
                }
                if let Some(next) = self.pop_waiting()? {
                    return Ok(Some(next));
                }
                continue;
            }
            match next {
                Some((_, true)) => self.read_partial()?,
                Some((_, false)) => _ = self.rerank()?,
                None if self.read < self.lists.len() => self.read_lists(self.probes.max(self.read / 2))?,
                None => return Ok(None),
            }
        }
    }

    /// The least bound of what was read and not re-ranked, and whether it is that of a list that was read in part.
    fn least_unranked(&self) -> Option<(f32, bool)> {
        let candidate = self.candidates.peek().map(|c| c.key);
        let partial = self.partial.first().map(|(key, _)| key);
        match (candidate, partial) {
            (Some(c), Some(p)) if p < c => Some((p.bound(), true)),
            (Some(c), _) => Some((c.bound(), false)),
            (None, Some(p)) => Some((p.bound(), true)),
            (None, None) => None,
        }
    }

    /// Re-ranks for several hits before the first of them is given out. Bounds that follow a recall are narrow, and one by
    /// one a hit would often be found after a farther one; so the first ten, and then as many again as have come out,
    /// come in their order among all that is re-ranked for them.
    fn settle(&mut self) -> Result<(), IndexError> {
        // No more hits than those wait at a time.
        let count = self.given.max(SETTLED).min(self.held);
        let mut nearest = Least::new(count)?;
        self.waiting.iter().for_each(|waiting| nearest.show(waiting.bound));
        while let Some((bound, of_list)) = self.least_unranked() {
            if nearest.are_within(bound) || self.waiting.len() >= self.held {
                break;
            }
            match of_list {
                true => self.read_partial()?,
                false => self.rerank()?.into_iter().for_each(|bound| nearest.show(bound)),
            }
        }
        self.settled = self.given + count;
        Ok(())
    }

    fn pop_waiting(&mut self) -> Result<Option<Waiting>, IndexError> {
        // Before it is taken: after an error it waits on.
        self.returned.as_mut().map_or(Ok(()), |returned| reserve(returned, 1))?;
        let next = self.waiting.pop();
        self.given += 1;
        Ok(match &mut self.returned {
            Some(returned) => next.filter(|next| returned.insert(next.hit.tid)),
            None => next,
        })
    }

    /// Brings one step's more hits to wait, proven or not; false at the end of the index.
    pub(super) fn advance(&mut self) -> Result<bool, IndexError> {
        if self.waiting.len() >= self.held {
            return Ok(false);
        }
        let partial_first = match (self.candidates.peek(), self.partial.first()) {
            (Some(candidate), Some((key, _))) => key < candidate.key,
            (None, Some(_)) => true,
            _ => false,
        };
        if partial_first {
            self.read_partial()?;
        } else if !self.candidates.is_empty() {
            self.rerank()?;
        } else if self.read < self.lists.len() {
            self.read_lists(self.probes.max(self.read / 2))?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// Whether the nearest unread list may hold something nearer than `distance`.
    fn unread_may_beat(&mut self, distance: f32) -> bool {
        if !self.proves || self.read >= self.lists.len() {
            return false;
        }
        self.sort_to(self.read + 1);
        let add = self.lists[self.read].terms.add;
        let bound = match self.metric {
            Metric::L2 | Metric::Cosine => add - self.slack.max(0.0) * distance,
            Metric::InnerProduct => add - self.slack * self.prepared.norm() - distance,
        };
        bound < 0.0
    }

    /// Brings the nearest `n` lists to the front, in order.
    fn sort_to(&mut self, n: usize) {
        let n = n.min(self.lists.len());
        if n <= self.sorted {
            return;
        }
        // Sorting ahead in growing steps keeps the work linear in the lists that are read.
        let end = (n.max(self.sorted * 2)).min(self.lists.len());
        let rest = &mut self.lists[self.sorted..];
        let order = |a: &RankedList, b: &RankedList| a.terms.add.total_cmp(&b.terms.add).then(a.list.cmp(&b.list));
        let take = end - self.sorted;
        if take < rest.len() {
            rest.select_nth_unstable_by(take, order);
        }
        rest[..take].sort_unstable_by(order);
        self.sorted = end;
    }

    /// Reads the next `n` lists.
    fn read_lists(&mut self, n: usize) -> Result<(), IndexError> {
        let end = (self.read + n.max(1)).min(self.lists.len());
        self.sort_to(end);
        let mut found = with_room(self.layout.lanes * 2 * (end - self.read).min(64))?;
        while self.read < end {
            let position = self.read;
            // Counted as read first: after an error the scan goes on without it, and does not read it twice.
            self.read += 1;
            if let Err(error) = self.read_list(position, Key::START, &mut found) {
                self.hold(&mut found)?;
                return Err(error);
            }
        }
        // Once for all lists: making a heap of many is cheaper than adding a few to it many times.
        self.hold(&mut found)?;
        Ok(())
    }

    fn read_partial(&mut self) -> Result<(), IndexError> {
        if let Some((from, list)) = self.partial.take_first() {
            // More is asked for than was expected.
            self.room = self.room.saturating_mul(2);
            let mut found = Vec::new();
            self.read_list(list as usize, from, &mut found)?;
            self.hold(&mut found)?;
        }
        Ok(())
    }

    /// Adds the candidates of one list from `from` on to `found`.
    fn read_list(&mut self, position: usize, from: Key, found: &mut Vec<Candidate>) -> Result<(), IndexError> {
        self.reader.store.check_cancel()?;
        self.since_check = 0;
        self.partial.grow(position)?;
        let RankedList { terms, head, list } = self.lists[position];
        let mut block = head;
        let mut pages = 0u32;
        // What lies from here on is left to a later reading: what other lists were cut at, when this one is read first, and
        // where memory runs out in the midst of it.
        let mut cut = match from == Key::START {
            true => self.partial.first().map(|(key, _)| key),
            false => None,
        };
        let mut left: Option<Key> = None;
        while block != NONE {
            pages += 1;
            if pages > self.reader.blocks() {
                self.reader.check(pages)?;
            }
            if pages.is_multiple_of(64) {
                self.reader.store.check_cancel()?;
            }
            reserve(found, self.layout.lanes)?;
            let page = self.reader.read(block)?;
            expect_kind(&page, block, Kind::Codes)?;
            if u32_at(&*page, LIST) != list || u32_at(&*page, HEAD) != head {
                return Err(corrupted(block, format!("not a page of list {list}")));
            }
            self.prepared.bounds(&self.layout, &page, terms, &mut self.bounds);
            self.layout.each_live(&page, |lane| {
                let bound = self.bounds.get(lane).copied().unwrap_or(f32::NEG_INFINITY);
                // A bound that is no number bounds nothing.
                let bound = if bound.is_nan() { f32::NEG_INFINITY } else { bound };
                let key = Key::new(bound, block, lane as u16);
                if cut.is_some_and(|cut| key >= cut) {
                    left = Some(left.map_or(key, |left| left.min(key)));
                } else if key >= from {
                    found.push(Candidate::new(key, position as u32, &self.layout.lane(&page, lane)));
                }
            });
            block = u32_at(&*page, NEXT);
            drop(page);
            if found.len() > self.held.min(self.room) {
                // Nothing that is kept is as far as what was dropped just now.
                let dropped = self.hold(found)?;
                cut = [cut, dropped].into_iter().flatten().min();
            }
        }
        if let Some(left) = left {
            self.partial.leave(position as u32, left);
        }
        Ok(())
    }

    /// Takes what was found into the heap. Where that is too much, the farthest are dropped, and the least key of them is
    /// given back.
    fn hold(&mut self, found: &mut Vec<Candidate>) -> Result<Option<Key>, IndexError> {
        if found.is_empty() {
            return Ok(None);
        }
        reserve(&mut self.candidates, found.len())?;
        let room = self
            .held
            .saturating_sub(self.waiting.len())
            .min(self.room)
            .max(MIN_HELD);
        if self.candidates.len() + found.len() <= room {
            self.candidates.extend(found.drain(..));
            return Ok(None);
        }
        let keep = room / 2;
        let mut all = std::mem::take(&mut self.candidates).into_vec();
        all.append(found);
        all.select_nth_unstable_by(keep, |a, b| a.key.cmp(&b.key));
        for dropped in &all[keep..] {
            self.partial.leave(dropped.list, dropped.key);
        }
        let least = all[keep].key;
        all.truncate(keep);
        self.candidates = all.into();
        Ok(Some(least))
    }

    /// Re-ranks the nearest candidate; gives its bound where it was added to the hits that wait.
    fn rerank(&mut self) -> Result<Option<f32>, IndexError> {
        self.since_check += 1;
        if self.since_check >= 64 {
            self.since_check = 0;
            self.reader.store.check_cancel()?;
        }
        let Some(Candidate {
            slot,
            vector,
            ordinal,
            tid,
            ..
        }) = self.candidates.pop()
        else {
            return Ok(None);
        };
        if self.returned.as_ref().is_some_and(|returned| returned.contains(&tid)) {
            return Ok(None);
        }
        let place = RecordPtr { block: vector, slot };
        let found = self.exact.fetch(&mut self.reader, &self.layout, place, tid, ordinal)?;
        let Some((hit, Exactly { bound, .. })) = found else {
            return Ok(None);
        };
        let bound = if bound.is_nan() { f32::NEG_INFINITY } else { bound };
        reserve(&mut self.waiting, 1)?;
        self.waiting.push(Waiting { bound, hit, place });
        Ok(Some(bound))
    }
}
