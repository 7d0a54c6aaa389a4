//! Feedback in a scan: the first round's rows move the question, the scan goes on with what became of it.
//!
//! Here the scan of the index (`index/second.rs`) and the formulas (`bridge/feedback.rs`) meet. Rows that stay in front
//! are given out as the plain scan finds them; the second round begins where the executor asks for a row behind them. A
//! search for no more rows than stay in front is plain search.
//!
//! How sharp the first round of the last such scan was is left for the calibration of gates
//! (`pg/sql/evaluate/feedback.rs`).

use crate::bridge::BridgeError;
use crate::bridge::feedback::{Mode, Plan, sharpness};
use crate::index::store::PageStore;
use crate::index::{Hit, IndexError, Lead, Scan};
use std::cell::Cell;

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

/// The rounds of one scan.
pub struct Rounds {
    /// The question that the scan was begun with.
    query: Vec<f32>,
    plan: Plan,
    /// What was given out of the first round, in its order.
    front: Vec<Lead>,
    /// Rows that stay in front, once it is known.
    keep: Option<usize>,
    /// The last round runs: there is nothing left to do but to read on.
    last: bool,
}

impl Rounds {
    /// The rounds of a scan that begins with `query`.
    pub fn new(query: Vec<f32>, plan: Plan) -> Rounds {
        Rounds {
            query,
            plan,
            front: Vec::new(),
            keep: plan.kept_always(),
            last: false,
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
            if self.front.len() < keep {
                let lead = scan.lead()?;
                self.last = lead.is_none();
                self.front.extend(lead);
                return Ok(lead.map(|lead| lead.hit));
            }
            self.move_on(scan)?;
            self.last = true;
        }
        Ok(scan.next()?)
    }

    /// How many rows the gate keeps in front: seen before the first of them is given out.
    fn gate<S: PageStore>(&mut self, scan: &mut Scan<S>) -> Result<usize, FeedbackError> {
        let list = scan.leading(self.plan.depth, self.plan.list)?;
        let keep = self.plan.keep(self.sharpness(&list));
        self.keep = Some(keep);
        Ok(keep)
    }

    /// How sharp a list is, nearest first.
    fn sharpness(&self, list: &[Lead]) -> f64 {
        let distances: Vec<f64> = list.iter().map(|lead| lead.hit.distance).collect();
        let sharp = sharpness(&distances, self.plan.depth, self.plan.negative(distances.len()));
        SHARPNESS.set(sharp);
        sharp
    }

    /// Ends the first round: makes the moved question of its list and aims the scan at it.
    fn move_on<S: PageStore>(&self, scan: &mut Scan<S>) -> Result<(), FeedbackError> {
        let plan = &self.plan;
        let certain = match plan.mode {
            Mode::Retrieve => plan.depth,
            Mode::Rerank => plan.list,
        };
        let given = self.front.len();
        let behind = scan.leading(certain.saturating_sub(given), plan.list.saturating_sub(given))?;
        let mut list: Vec<Lead> = self.front.iter().chain(&behind).copied().collect();
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
                        list = scan.leading(plan.depth, plan.list)?;
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
            Mode::Rerank => scan.reorder(&moved, &self.front, &behind)?,
        }
        Ok(())
    }
}
