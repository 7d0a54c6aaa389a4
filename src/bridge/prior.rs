//! What the figures of a training say of a bridge's gain, as a prior for choosing among bridges.
//!
//! Figures are of held-out queries, with a relative gain of nDCG@10: those of adapters and readers of texts under
//! `ndcg@10`, those of lexsem by task, of which the user's pairs count, and without them sentences.

use crate::eval::selection::Prior;
use serde_json::Value;

/// Standard deviation that is assumed of the differences of nDCG query by query, where figures bring no interval.
const SPREAD: f64 = 0.3;
/// Standard errors to either side of a mean that a 95 % interval reaches.
const REACH: f64 = 1.96;

/// The gain that a bridge is believed to have over plain search where plain search has the mean `plain`; none where the
/// figures do not say.
///
/// Of held-out pairs the gain is believed, with a quarter of it as doubt beside its standard error: the questions that
/// are measured now are others. Of queries made of the passages half is believed, with as much doubt; of lexsem's the
/// smaller of the gains of sentences, as they stand and without their rare words, which people do not know.
pub fn prior(figures: &Value, plain: f64) -> Option<Prior> {
    let (whole, tasks) = (&figures["ndcg@10"], &figures["tasks"]);
    let (score, given) = if whole.is_object() {
        (whole, figures["queries"] == "given")
    } else if tasks["pairs"].is_object() {
        (&tasks["pairs"], true)
    } else {
        let gain = |task: &Value| task["gain"].as_f64().unwrap_or(f64::INFINITY);
        let (whole, common) = (&tasks["sentence"], &tasks["sentence_common"]);
        (if gain(common) < gain(whole) { common } else { whole }, false)
    };
    let gain = score["gain"].as_f64()?;
    let error = match (score["low"].as_f64(), score["high"].as_f64()) {
        (Some(low), Some(high)) => (high - low) / (2.0 * REACH),
        _ => SPREAD / score["queries"].as_f64()?.sqrt() / score["plain"].as_f64()?,
    };
    let (believed, doubt) = if given { (1.0, 0.25) } else { (0.5, 0.5) };
    let error = error.hypot(doubt * gain) * plain;
    let gain = believed * gain * plain;
    (gain.is_finite() && error.is_finite() && error > 0.0).then_some(Prior { gain, error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn close(found: Option<Prior>, gain: f64, error: f64) {
        let found = found.expect("a prior");
        assert!(
            (found.gain - gain).abs() < 1e-12 && (found.error - error).abs() < 1e-12,
            "{found:?}"
        );
    }

    #[test]
    fn figures_of_pairs_and_of_synthetic_queries() {
        // A gain of 12 % with an interval of 3.92 times 3 %: 0.12 x 0.5, and the root of 0.03^2 + 0.03^2 times 0.5.
        let adapter = |queries: &str| {
            json!({ "queries": queries,
                "ndcg@10": { "plain": 0.4, "bridge": 0.448, "gain": 0.12, "low": 0.0612, "high": 0.1788 } })
        };
        close(prior(&adapter("given"), 0.5), 0.06, 0.015 * 2f64.sqrt());
        close(prior(&adapter("synthetic"), 0.5), 0.03, 0.5 * 0.03f64.hypot(0.06));
        // Without an interval: 0.3 / sqrt(900) / 0.8 = 0.0125.
        let score = json!({ "plain": 0.8, "gain": 0.04, "queries": 900 });
        let mut lexsem = json!({ "tasks": { "span16": { "gain": 1.0 }, "sentence": score } });
        close(prior(&lexsem, 1.0), 0.02, 0.0125f64.hypot(0.02));
        let common = json!({ "plain": 0.5, "gain": 0.02, "queries": 900 });
        lexsem["tasks"]["sentence_common"] = common;
        close(prior(&lexsem, 1.0), 0.01, 0.02f64.hypot(0.01));
        lexsem["tasks"]["pairs"] = json!({ "plain": 0.8, "gain": 0.02, "queries": 900 });
        close(prior(&lexsem, 1.0), 0.02, 0.0125f64.hypot(0.005));
    }

    #[test]
    fn figures_that_say_nothing_are_no_prior() {
        for figures in [
            json!(null),
            json!({}),
            json!({ "ndcg@10": { "plain": 0.4 } }),
            json!({ "ndcg@10": { "gain": 0.1, "plain": 0.0, "queries": 0 } }),
            json!({ "tasks": { "sentence": { "gain": 0.1 } } }),
        ] {
            assert_eq!(prior(&figures, 0.5), None, "{figures}");
        }
    }
}
