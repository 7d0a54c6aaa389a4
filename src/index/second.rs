//! The second round of a scan: what the first round found moves the query, and the scan goes on with the moved one.
//!
//! There is one scan and one walk state. [`Scan::leading`] looks at the first rows without giving them out; the
//! caller makes a moved query of their vectors ([`Scan::vectors`], from pages that the round has just read); then
//! either [`Scan::follow`] aims the same scan at it, or [`Scan::reorder`] ranks the rows looked at anew. Without
//! either, the scan goes on as if nobody had looked.
//!
//! What comes out of [`Scan::follow`]: the rows that are to stay in front, in their order, then all others in the order
//! of their distance to the moved query, each row once. Every distance is the one to the moved query, and distances
//! ascend: a row that stays in front of nearer ones is reported just below the nearest of those.
//!
//! What comes out of [`Scan::reorder`]: the same over the rows looked at; rows after them come in the first round's
//! order, at their distance to the first query, but not below the last row before them.

use super::IndexError;
use super::page::{Place, Reader};
use super::scan::{Scan, Waiting};
use super::store::PageStore;
use super::types::{Hit, Metric, Tid};
use super::vector::{Exact, norm};
use std::collections::HashSet;

/// A row that a round found, not yet given out.
#[derive(Clone, Copy, Debug)]
pub struct Lead {
    /// The row with its distance to the round's query.
    pub hit: Hit,
    place: Place,
}

/// The largest number below `x` that differs from it visibly.
fn below(x: f64) -> f64 {
    x - 1e-9 * x.abs().max(1e-3)
}

/// Makes the distances of `first` ascend and stay below `next`.
fn lower(first: &mut [Hit], next: f64) {
    let mut limit = next;
    for hit in first.iter_mut().rev() {
        if hit.distance >= limit {
            hit.distance = below(limit);
        }
        limit = hit.distance;
    }
}

impl<S: PageStore> Scan<S> {
    /// Up to `total` rows from the nearest on, each row once: the first `certain` as [`Scan::next`] would give them, the
    /// rest by exact distance among what has been read so far. Nothing is given out by it.
    pub fn leading(&mut self, certain: usize, total: usize) -> Result<Vec<Lead>, IndexError> {
        let mut leads = Vec::with_capacity(total.min(1024));
        while leads.len() < certain.min(total) {
            let Some(Waiting { hit, place, .. }) = self.next_waiting()? else {
                break;
            };
            leads.push(Lead { hit, place });
        }
        let certain = leads.len();
        let mut rest = Vec::new();
        let mut steps = 0;
        while certain + rest.len() < total {
            let missing = total - certain - rest.len();
            let more = self.wait_for(missing + steps)?;
            rest = self.waiting_rows();
            // Several entries of one row wait as one: ask for more of them.
            steps += missing;
            if !more {
                break;
            }
        }
        rest.truncate(total - certain);
        self.ahead = leads.iter().map(|lead| lead.hit).collect();
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
    fn waiting_rows(&self) -> Vec<Lead> {
        let mut rows: Vec<Waiting> = self.waiting.iter().copied().collect();
        rows.sort_unstable_by(|a, b| b.cmp(a));
        let mut seen: HashSet<Tid> = HashSet::new();
        rows.retain(|row| {
            let out = self
                .returned
                .as_ref()
                .is_some_and(|returned| returned.contains(&row.hit.tid));
            !out && seen.insert(row.hit.tid)
        });
        rows.into_iter()
            .map(|Waiting { hit, place, .. }| Lead { hit, place })
            .collect()
    }

    /// The vectors of these rows as they are stored, under cosine their directions. A row that was deleted meanwhile is
    /// left out.
    pub fn vectors(&mut self, leads: &[Lead]) -> Result<Vec<Vec<f32>>, IndexError> {
        let (metric, element) = (self.meta.options.metric, self.meta.options.element);
        let mut vectors = Vec::with_capacity(leads.len());
        for Lead { hit, place } in leads {
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

    /// Starts the last round: `first` come out in front, then all others.
    pub fn follow(&mut self, query: &[f32], first: &[Lead]) -> Result<(), IndexError> {
        self.aim(query)?;
        // A row of an index over vectors has one entry, so that its address keeps it from coming twice there as well.
        self.returned = (self.meta.options.documents || !first.is_empty()).then(HashSet::new);
        let mut front = self.distances(first)?;
        if let Some(returned) = &mut self.returned {
            returned.extend(front.iter().map(|hit| hit.tid));
        }
        if front.is_empty() {
            return Ok(());
        }
        let next = self.next_waiting()?.map(|next| next.hit);
        lower(&mut front, next.map_or(f64::INFINITY, |next| next.distance));
        self.ahead = front.into_iter().chain(next).collect();
        Ok(())
    }

    /// Ranks `leads` (what [`Scan::leading`] found certain) by the moved query, the first `keep` staying in front; the
    /// rows after them follow as before.
    pub fn reorder(&mut self, query: &[f32], leads: &[Lead], keep: usize) -> Result<(), IndexError> {
        let mut front = self.distances_to(query, leads)?;
        let mut rest = front.split_off(keep.min(front.len()));
        rest.sort_by(|a, b| a.distance.total_cmp(&b.distance));
        lower(&mut front, rest.first().map_or(f64::INFINITY, |hit| hit.distance));
        front.append(&mut rest);
        self.floor = front.last().map_or(f64::NEG_INFINITY, |hit| hit.distance);
        self.ahead = front.into();
        Ok(())
    }

    /// `leads` in the order of their distance to another query; the scan stays where it is.
    pub fn sorted(&mut self, query: &[f32], leads: &[Lead]) -> Result<Vec<Lead>, IndexError> {
        let hits = self.distances_to(query, leads)?;
        let mut sorted: Vec<Lead> = hits
            .into_iter()
            .zip(leads)
            .map(|(hit, &Lead { place, .. })| Lead { hit, place })
            .collect();
        sorted.sort_by(|a, b| a.hit.distance.total_cmp(&b.hit.distance));
        Ok(sorted)
    }

    /// These rows at their distance to another query.
    fn distances_to(&mut self, query: &[f32], leads: &[Lead]) -> Result<Vec<Hit>, IndexError> {
        let other = Exact::new(query, self.meta.options.metric, self.meta.options.element);
        let own = std::mem::replace(&mut self.exact, other);
        let hits = self.distances(leads);
        self.exact = own;
        hits
    }

    /// These rows at their distance to the query that the scan is aimed at now; of a row with several entries, the entry
    /// that was found. A row that was deleted meanwhile keeps its place and its old distance.
    fn distances(&mut self, leads: &[Lead]) -> Result<Vec<Hit>, IndexError> {
        let mut hits = Vec::with_capacity(leads.len());
        for &Lead { hit, place } in leads {
            let reader: &mut Reader<S> = &mut self.reader;
            let found = self.exact.fetch(reader, &self.layout, place, hit.tid, hit.ordinal)?;
            hits.push(found.map_or(hit, |(hit, _)| hit));
        }
        Ok(hits)
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
