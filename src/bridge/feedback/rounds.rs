//! Feedback in a scan: the first round's rows move the question, the scan goes on with what became of it.
//!
//! Here the scan of the index (`index/feedback_round.rs`) and the formulas (`vectors.rs`) meet. Rows that stay in front
//! are given out as the plain scan finds them; the second round begins where the executor asks for a row behind them. A
//! search for no more rows than stay in front is plain search.
//!
//! Only rows count that the caller may see: an index holds more, and what a hidden row did to the question could be read
//! from what is found.
//!
//! How sharp the first round of the last such scan was is left for the calibration of gates
//! (`pg/sql/evaluate/feedback.rs`).

use super::{Mode, Plan, sharpness};
use crate::bridge::BridgeError;
use crate::index::store::PageStore;
use crate::index::{Hit, IndexError, RankedRow, Scan, Tid};
use std::cell::Cell;
use std::collections::HashMap;

/// What can go wrong in it.
#[derive(Debug, thiserror::Error)]
pub enum FeedbackError {
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error(transparent)]
    Bridge(#[from] BridgeError),
}

thread_local! {
    static SHARPNESS: Cell<f64> = const { Cell::new(0.0) };
}

/// The sharpness of the first round of this backend's last scan with feedback: that of its rows when the first
/// `depth` were certain, where no more than `depth` stay in front or a gate had to know it.
pub fn last_sharpness() -> f64 {
    SHARPNESS.get()
}

/// Says of each address in an index whether it rows to a row that the caller may see.
pub type Judge = Box<dyn FnMut(&[Tid]) -> Vec<bool>>;

/// What is found of the rows to come, those alone that the caller may see.
struct Seen {
    /// As many as were asked for, or all there are.
    list: Vec<RankedRow>,
    /// Certain ones that were found beyond them.
    rest: Vec<RankedRow>,
}

/// The rounds of one scan.
pub struct Rounds {
    /// The question that the scan was begun with.
    query: Vec<f32>,
    plan: Plan,
    /// What was given out of the first round, in its order.
    front: Vec<RankedRow>,
    /// Rows that stay in front, once it is known.
    keep: Option<usize>,
    /// The last round runs: there is nothing left to do but to read on.
    last: bool,
    judge: Judge,
    /// What was judged.
    known: HashMap<Tid, bool>,
}

impl Rounds {
    /// The rounds of a scan that begins with `query`.
    pub fn new(query: Vec<f32>, plan: Plan, judge: Judge) -> Rounds {
        Rounds {
            query,
            plan,
            front: Vec::new(),
            keep: plan.kept_always(),
            last: false,
            judge,
            known: HashMap::new(),
        }
    }

    /// Whether the caller may see the rows of `rows`.
    fn judge(&mut self, rows: &[RankedRow]) {
        let mut unknown: Vec<Tid> = rows.iter().map(|row| row.hit.tid).collect();
        unknown.retain(|tid| !self.known.contains_key(tid));
        if !unknown.is_empty() {
            let judged = (self.judge)(&unknown);
            self.known.extend(unknown.into_iter().zip(judged));
        }
    }

    fn sees(&self, row: &RankedRow) -> bool {
        self.known.get(&row.hit.tid).copied().unwrap_or_default()
    }

    /// [`Scan::leading`] over the rows that the caller may see: it looks further while too few of them were found.
    fn leading<S: PageStore>(
        &mut self,
        scan: &mut Scan<S>,
        certain: usize,
        total: usize,
    ) -> Result<Seen, FeedbackError> {
        let (mut sure, mut all) = (certain, total);
        loop {
            let rows = scan.leading(sure, all)?;
            self.judge(&rows);
            let whole = rows.len() < all;
            let sure_seen = rows.iter().take(sure).filter(|row| self.sees(row)).count();
            let seen: Vec<RankedRow> = rows.iter().filter(|row| self.sees(row)).copied().collect();
            if whole || (sure_seen >= certain.min(total) && seen.len() >= total) {
                let (list, rest) = seen.split_at(total.min(seen.len()));
                let rest = rest.iter().take(sure_seen.saturating_sub(list.len()));
                return Ok(Seen {
                    list: list.to_vec(),
                    rest: rest.copied().collect(),
                });
            }
            if sure_seen < certain.min(total) {
                sure = (sure * 2).max(8);
            }
            all = (all * 2).max(8).max(sure);
        }
    }

    /// The next row. An index with no more rows than stay in front has no second round.
    ///
    /// # Errors
    /// What reading the index fails with, and a moved question that it refuses.
    pub fn next<S: PageStore>(&mut self, scan: &mut Scan<S>) -> Result<Option<Hit>, FeedbackError> {
        if !self.last {
            let keep = match self.keep {
                Some(keep) => keep,
                None => self.gate(scan)?,
            };
            while self.front.len() < keep {
                let missing = keep - self.front.len();
                let next = scan.leading(missing, missing)?;
                self.judge(&next);
                let Some(row) = scan.lead()? else {
                    self.last = true;
                    return Ok(None);
                };
                if self.sees(&row) {
                    self.front.push(row);
                    return Ok(Some(row.hit));
                }
            }
            self.move_on(scan)?;
            self.last = true;
        }
        Ok(scan.next()?)
    }

    /// How many rows the gate keeps in front: seen before the first of them is given out.
    fn gate<S: PageStore>(&mut self, scan: &mut Scan<S>) -> Result<usize, FeedbackError> {
        let list = self.leading(scan, self.plan.depth, self.plan.list)?.list;
        let keep = self.plan.keep(self.sharpness(&list));
        self.keep = Some(keep);
        Ok(keep)
    }

    /// How sharp a list is, nearest first.
    fn sharpness(&self, list: &[RankedRow]) -> f64 {
        let distances: Vec<f64> = list.iter().map(|row| row.hit.distance).collect();
        let sharp = sharpness(&distances, self.plan.depth, self.plan.negative(distances.len()));
        SHARPNESS.set(sharp);
        sharp
    }

    /// Ends the first round: makes the moved question of its list and aims the scan at it.
    fn move_on<S: PageStore>(&mut self, scan: &mut Scan<S>) -> Result<(), FeedbackError> {
        let plan = self.plan;
        let certain = match plan.mode {
            Mode::Retrieve => plan.depth,
            Mode::Rerank => plan.list,
        };
        let given = self.front.len();
        let Seen { list: behind, rest } =
            self.leading(scan, certain.saturating_sub(given), plan.list.saturating_sub(given))?;
        let mut list: Vec<RankedRow> = self.front.iter().chain(&behind).copied().collect();
        // A row that came out a place late counts where it belongs.
        list.sort_by(|a, b| a.hit.distance.total_cmp(&b.hit.distance));
        list.truncate(plan.list);
        if given <= plan.depth {
            self.sharpness(&list);
        }
        let mut moved = scan.mixed(&self.query);
        for number in 0..plan.rounds {
            if number > 0 {
                match plan.mode {
                    Mode::Retrieve => {
                        scan.again(&moved)?;
                        list = self.leading(scan, plan.depth, plan.list)?.list;
                    }
                    Mode::Rerank => list = scan.sorted(&moved, &list)?,
                }
            }
            let positive = scan.vectors(&list[..plan.depth.min(list.len())])?;
            let negative = scan.vectors(list.get(plan.negative(list.len())).unwrap_or_default())?;
            moved = scan.mixed(&plan.moved(&moved, &positive, &negative)?);
        }
        match plan.mode {
            Mode::Retrieve => scan.follow(&self.query, &moved, &self.front)?,
            Mode::Rerank => scan.reorder(&moved, &self.front, &behind, &rest)?,
        }
        Ok(())
    }
}
