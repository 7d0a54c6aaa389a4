//! What a scan keeps between its calls, and how hits become an order that the executor can believe.

use super::kind::KeyKind;
use super::returned_distances::Returned;
use crate::bridge::feedback::rounds::{FeedbackError, Rounds};
use crate::index::{Hit, Metric, Ordered, Rounding, Scan};
use crate::pg::store::RelationStore;
use pgrx::pg_sys;

/// Strategy number of `text <=> situ.query`; 1 is the class's first operator. `situ.search` uses it over vectors too,
/// with a query that brings its vector, though no operator of those classes has it.
pub const QUERY_STRATEGY: u16 = 2;

/// Rows beside near ties that wait in the executor together: many rows may be at one distance, and few may be asked for.
const MOST_NEAR: u32 = 100;

/// What a scan keeps between calls, owned by the scan's memory context through a callback-free raw pointer that
/// `amendscan` (or, after an error, the reset callback) gives back.
pub struct ScanState {
    pub(super) kind: KeyKind,
    pub(super) running: Option<Scan<RelationStore>>,
    /// The rounds of feedback of a running scan that has some.
    pub(super) rounds: Option<Rounds>,
    /// Identifies the operand for [`super::returned_distances`]; none for vectors.
    pub(super) question: Option<u64>,
    /// The row returned last: where its evidence lies.
    pub hit: Option<Hit>,
    /// Where its distance is left for the operator.
    pub(super) returned: Returned,
    /// The scan is one of `situ.search`, over the table whose privileges and policies decide.
    pub(super) search: Option<Option<pg_sys::Oid>>,
    pub(super) order: Order,
    /// Rows are still to be counted as one scan of the index.
    pub(super) counted: bool,
}

/// How hits become an order that the executor can believe.
#[derive(Default)]
pub(super) struct Order {
    pub(super) ordered: Ordered,
    /// Rows are looked at one ahead, so that near ties are known as such.
    look_ahead: bool,
    ahead: Option<Hit>,
    /// The row returned last may differ from the next by rounding alone.
    near: bool,
    /// Rows in a row that stood beside a near tie.
    run: u32,
    rounding: Rounding,
    /// Distances are NULL.
    pub(super) null: bool,
}

impl Order {
    /// The order of a scan of that kind for `query`.
    pub(super) fn new(kind: KeyKind, metric: Metric, query: &[f32], executor: bool) -> Order {
        let rounding = Rounding::of(metric, query);
        Order {
            ordered: Ordered::new(kind == KeyKind::Text, rounding),
            look_ahead: executor && kind != KeyKind::Text,
            rounding,
            ..Order::default()
        }
    }

    /// The next hit of `pull`, and whether it stands beside a near tie.
    pub(super) fn next(
        &mut self,
        mut pull: impl FnMut() -> Result<Option<Hit>, FeedbackError>,
    ) -> Result<Option<(Hit, bool)>, FeedbackError> {
        let hit = match self.ahead.take() {
            Some(hit) => Some(hit),
            None => self.ordered.next(&mut pull)?,
        };
        let Some(hit) = hit.filter(|_| self.look_ahead) else {
            return Ok(hit.map(|hit| (hit, false)));
        };
        self.ahead = self.ordered.next(&mut pull)?;
        let before = self.near;
        self.near = self
            .ahead
            .is_some_and(|next| self.rounding.near(hit.distance, next.distance));
        self.run = match before || self.near {
            true => (self.run + 1) % MOST_NEAR,
            false => 0,
        };
        Ok(Some((hit, self.run > 0)))
    }
}

impl ScanState {
    /// Makes the scan one of `situ.search` or of what stands on it. `relation` is the table whose privileges and policies
    /// decide; `None` chooses as for a scan of the executor.
    pub fn search_of(&mut self, relation: Option<pg_sys::Oid>) {
        self.search = Some(relation);
    }
}
