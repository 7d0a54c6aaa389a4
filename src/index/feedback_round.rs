//! The second round of a scan: what the first round found moves the query, and the scan goes on with the moved one.
//!
//! There is one scan and one walk state. [`Scan::lead`] gives rows out with their places, as [`Scan::next`] does;
//! [`Scan::leading`] looks at the rows after them without giving them out. The caller makes a moved query of their vectors
//! ([`Scan::vectors`], from pages that the round has just read); then either [`Scan::follow`] aims the same scan at it, or
//! [`Scan::reorder`] ranks the rows looked at anew. Rows that were given out before stay in front. Without either,
//! the scan goes on as if nobody had looked.
//!
//! What comes out of [`Scan::follow`]: all rows that were not given out, in the order of their distance to the moved query,
//! each once. What comes out of [`Scan::reorder`]: the same over the rows looked at; rows after them come in the first
//! round's order, at their distance to the first query, but not below the last row before them.
//!
//! Distances ascend over both rounds: rows in front have their distance to the first query, rows behind them their
//! distance to the moved one, all raised by the same amount where the first of them would be below the last row
//! in front ([`Behind`]). With nothing in front nothing is raised. A row behind that is nearer to the first query than the last row in front
//! was missed by the first round: it is reported at its distance to the first query, so that who sorts what came out
//! has in front what a search for as many rows puts there. Distances descend at such a row, as where any search finds a row late.

use super::IndexError;
use super::memory_limit::{collected, reserve, with_room};
use super::page::RecordPtr;
use super::scan::{Scan, Waiting};
use super::store::PageStore;
use super::types::{Hit, Metric, Tid};
use super::vector::{Exact, norm};
use std::collections::HashSet;

/// A row that a round found, not yet given out.
#[derive(Clone, Copy, Debug)]
pub struct RankedRow {
    /// The row with its distance to the round's query.
    pub hit: Hit,
    place: RecordPtr,
}

/// How rows behind those in front are reported.
pub(super) struct Behind {
    /// The largest distance of a row in front.
    last: f64,
    /// What is added to the distances to the moved query; the first row behind says it.
    raise: Option<f64>,
}

impl Behind {
    /// None where nothing is in front.
    fn those(front: &[RankedRow]) -> Option<Behind> {
        let last = front.iter().map(|lead| lead.hit.distance).reduce(f64::max)?;
        Some(Behind { last, raise: None })
    }

    /// What is reported of a row, by its distances to the first query (unless its record is gone) and to the moved one.
    fn reported(&mut self, first: Option<f64>, moved: f64) -> f64 {
        if let Some(first) = first.filter(|first| *first < self.last) {
            return first;
        }
        let least = above(self.last);
        let raise = *self.raise.get_or_insert_with(|| (least - moved).max(0.0));
        (moved + raise).max(least)
    }
}

/// The smallest number above `x` that differs from it visibly.
fn above(x: f64) -> f64 {
    x + 1e-9 * x.abs().max(1e-3)
}

impl<S: PageStore> Scan<S> {
    /// The next row, as [`Scan::next`] gives it, with its place.
    pub fn lead(&mut self) -> Result<Option<RankedRow>, IndexError> {
        if let Some(lead) = self.ahead.pop_front() {
            return Ok(Some(lead));
        }
        let Some(Waiting { mut hit, place, .. }) = self.next_waiting()? else {
            return Ok(None);
        };
        hit.distance = self.reported(hit, place)?;
        Ok(Some(RankedRow { hit, place }))
    }

    /// What is reported of a row of the walk.
    fn reported(&mut self, hit: Hit, place: RecordPtr) -> Result<f64, IndexError> {
        let Some((first, behind)) = &mut self.behind else {
            return Ok(hit.distance.max(self.floor));
        };
        let first = first.fetch(&mut self.reader, &self.layout, place, hit.tid, hit.ordinal)?;
        Ok(behind.reported(first.map(|(hit, _)| hit.distance), hit.distance))
    }

    /// Up to `total` of the rows that come next, each once: the first `certain` as [`Scan::next`] would give them, the
    /// rest by exact distance among what has been read so far. Nothing is given out by it.
    pub fn leading(&mut self, certain: usize, total: usize) -> Result<Vec<RankedRow>, IndexError> {
        // An exact walk finds rows in their order alone.
        let certain = if self.walk.is_some() { total } else { certain };
        let mut leads: Vec<RankedRow> = collected(self.ahead.iter().copied().take(total))?;
        while leads.len() < certain.min(total) {
            let Some(Waiting { hit, place, .. }) = self.next_waiting()? else {
                break;
            };
            reserve(&mut self.ahead, 1)?;
            reserve(&mut leads, 1)?;
            self.ahead.push_back(RankedRow { hit, place });
            leads.push(RankedRow { hit, place });
        }
        let certain = leads.len();
        let mut rest = Vec::new();
        let mut steps = 0;
        while certain + rest.len() < total {
            let missing = total - certain - rest.len();
            let more = self.wait_for(missing + steps)?;
            rest = self.waiting_rows()?;
            // Several entries of one row wait as one: ask for more of them.
            steps += missing;
            if !more {
                break;
            }
        }
        rest.truncate(total - certain);
        reserve(&mut leads, rest.len())?;
        leads.extend(rest);
        Ok(leads)
    }

    /// Goes on until `count` hits wait; false at the end of the index or of the memory.
    fn wait_for(&mut self, count: usize) -> Result<bool, IndexError> {
        while self.waiting.len() < count {
            if !self.advance()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The rows that wait, nearest first, each once and none that has come out.
    fn waiting_rows(&self) -> Result<Vec<RankedRow>, IndexError> {
        let mut rows: Vec<Waiting> = collected(self.waiting.iter().copied())?;
        rows.sort_unstable_by(|a, b| b.cmp(a));
        let mut seen: HashSet<Tid> = HashSet::new();
        reserve(&mut seen, rows.len())?;
        rows.retain(|row| {
            let out = self
                .returned
                .as_ref()
                .is_some_and(|returned| returned.contains(&row.hit.tid));
            !out && seen.insert(row.hit.tid)
        });
        collected(
            rows.into_iter()
                .map(|Waiting { hit, place, .. }| RankedRow { hit, place }),
        )
    }

    /// The vectors of these rows as they are stored, under cosine their directions. A row that was deleted meanwhile is
    /// left out.
    pub fn vectors(&mut self, leads: &[RankedRow]) -> Result<Vec<Vec<f32>>, IndexError> {
        let (metric, element) = (self.meta.options.metric, self.meta.options.element);
        let mut vectors = with_room(leads.len())?;
        for RankedRow { hit, place } in leads {
            if let Some(vector) = Exact::read(&mut self.reader, &self.layout, element, *place, hit)? {
                vectors.push(direction(vector, metric));
            }
        }
        Ok(vectors)
    }

    /// What a caller mixes with [`Scan::vectors`]: the query, under cosine its direction.
    pub fn mixed(&self, query: &[f32]) -> Vec<f32> {
        direction(query.to_vec(), self.meta.options.metric)
    }

    /// Starts the round of a moved query, in which every row comes again.
    pub fn again(&mut self, query: &[f32]) -> Result<(), IndexError> {
        self.aim(query)?;
        self.returned = self.meta.options.documents.then(HashSet::new);
        Ok(())
    }

    /// Starts the last round, by the query that `first` became. `front` has been given out.
    pub fn follow(&mut self, first: &[f32], moved: &[f32], front: &[RankedRow]) -> Result<(), IndexError> {
        self.again(moved)?;
        if let Some(behind) = Behind::those(front) {
            // A row of an index over vectors has one entry, so that its address keeps it from coming twice there as well.
            let returned = self.returned.get_or_insert_default();
            reserve(returned, front.len())?;
            returned.extend(front.iter().map(|lead| lead.hit.tid));
            let first = Exact::new(first, self.meta.options.metric, self.meta.options.element);
            self.behind = Some((first, behind));
        }
        Ok(())
    }

    /// Ranks `leads` (what [`Scan::leading`] found certain after `front`, which has been given out) by the moved query;
    /// `rest` (which was found certain after them) and the rows after it follow as before.
    pub fn reorder(
        &mut self,
        moved: &[f32],
        front: &[RankedRow],
        leads: &[RankedRow],
        rest: &[RankedRow],
    ) -> Result<(), IndexError> {
        let first = leads.iter().map(|lead| lead.hit.distance);
        let mut rows: Vec<(RankedRow, f64)> = self.at_distance_to(moved, leads)?.into_iter().zip(first).collect();
        rows.sort_by(|(a, _), (b, _)| a.hit.distance.total_cmp(&b.hit.distance));
        let mut rows: Vec<RankedRow> = match Behind::those(front) {
            None => rows.into_iter().map(|(lead, _)| lead).collect(),
            Some(mut behind) => {
                let reported = |(mut lead, first): (RankedRow, f64)| {
                    lead.hit.distance = behind.reported(Some(first), lead.hit.distance);
                    lead
                };
                rows.into_iter().map(reported).collect()
            }
        };
        rows.sort_by(|a, b| a.hit.distance.total_cmp(&b.hit.distance));
        self.floor = rows.last().map_or(f64::NEG_INFINITY, |lead| lead.hit.distance);
        rows.extend(rest.iter().map(|&RankedRow { mut hit, place }| {
            hit.distance = hit.distance.max(self.floor);
            RankedRow { hit, place }
        }));
        self.ahead = rows.into();
        Ok(())
    }

    /// `leads` in the order of their distance to another query; the scan stays where it is.
    pub fn sorted(&mut self, query: &[f32], leads: &[RankedRow]) -> Result<Vec<RankedRow>, IndexError> {
        let mut sorted = self.at_distance_to(query, leads)?;
        sorted.sort_by(|a, b| a.hit.distance.total_cmp(&b.hit.distance));
        Ok(sorted)
    }

    /// These rows at their distance to another query; of a row with several entries, the entry that was found. A row that
    /// was deleted meanwhile keeps its old distance.
    fn at_distance_to(&mut self, query: &[f32], leads: &[RankedRow]) -> Result<Vec<RankedRow>, IndexError> {
        let mut other = Exact::new(query, self.meta.options.metric, self.meta.options.element);
        let mut moved = with_room(leads.len())?;
        for &RankedRow { hit, place } in leads {
            let found = other.fetch(&mut self.reader, &self.layout, place, hit.tid, hit.ordinal)?;
            let hit = found.map_or(hit, |(hit, _)| hit);
            moved.push(RankedRow { hit, place });
        }
        Ok(moved)
    }
}

/// The vector as the metric sees it.
fn direction(mut vector: Vec<f32>, metric: Metric) -> Vec<f32> {
    let length = norm(&vector);
    if metric == Metric::Cosine && length > 0.0 {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
    vector
}
