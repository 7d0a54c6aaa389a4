//! Feedback in a scan: the first round's rows move the question, the scan goes on with what became of it.
//!
//! Here the scan of the index (`index/second.rs`) and the formulas (`bridge/feedback.rs`) meet. How sharp the first
//! round of the last such scan was is left for the calibration of gates (`pg/sql/evaluate/feedback.rs`).

use crate::bridge::BridgeError;
use crate::bridge::feedback::{Mode, Plan, sharpness};
use crate::index::store::PageStore;
use crate::index::{IndexError, Lead, Scan};
use std::cell::Cell;

/// What can go wrong in it.
#[derive(Debug, thiserror::Error)]
pub enum FeedbackError {
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error(transparent)]
    Bridge(#[from] BridgeError),
}

/// Rows of the first round that are certain where some of them stay in front: what stands in front is then what a plain
/// search for as many rows puts there. A search for fewer rows reads fewer lists and may miss one of them.
const CERTAIN: usize = 100;

thread_local! {
    static SHARPNESS: Cell<f64> = const { Cell::new(0.0) };
}

/// The sharpness of the first round of this backend's last scan with feedback.
pub fn last_sharpness() -> f64 {
    SHARPNESS.get()
}

/// Runs the first rounds of a scan that was begun with `query`, and aims it at the moved question. An index with
/// fewer rows than are kept in front is left as it is.
pub fn feed_back<S: PageStore>(scan: &mut Scan<S>, query: &[f32], plan: &Plan) -> Result<(), FeedbackError> {
    let looked_at = plan.list.max(plan.certain());
    let certain = match plan.mode {
        Mode::Retrieve if plan.keeps() => looked_at.max(CERTAIN),
        Mode::Retrieve => plan.certain(),
        Mode::Rerank => looked_at,
    };
    let mut found = scan.leading(certain, looked_at.max(certain))?;
    // A row that came out a place late goes where it belongs, as where the caller sorts what a plain search found.
    found.sort_by(|a, b| a.hit.distance.total_cmp(&b.hit.distance));
    let distances: Vec<f64> = found.iter().take(plan.list).map(|lead| lead.hit.distance).collect();
    let negative = plan.negative(distances.len());
    let sharp = sharpness(&distances, plan.depth, negative);
    SHARPNESS.set(sharp);
    let keep = plan.keep(sharp).min(found.len());
    if keep == found.len() {
        return Ok(());
    }
    let mut moved = scan.mixed(query);
    let mut round: Vec<Lead> = found.clone();
    for number in 0..plan.rounds {
        if number > 0 {
            match plan.mode {
                Mode::Retrieve => {
                    scan.again(&moved)?;
                    round = scan.leading(plan.depth, plan.list)?;
                }
                Mode::Rerank => round = scan.sorted(&moved, &found)?,
            }
        }
        let list = round.get(..plan.list).unwrap_or(&round);
        let positive = scan.vectors(&list[..plan.depth.min(list.len())])?;
        let negative = scan.vectors(list.get(plan.negative(list.len())).unwrap_or_default())?;
        moved = scan.mixed(&plan.moved(&moved, &positive, &negative)?);
    }
    match plan.mode {
        Mode::Retrieve => scan.follow(&moved, &found[..keep])?,
        Mode::Rerank => scan.reorder(&moved, &found, keep)?,
    }
    Ok(())
}
