//! Feedback: the nearest passages of a first round move the question's vector before a second one.
//!
//! Formulas (Li et al. 2021, "Pseudo Relevance Feedback with Deep Language Models and Dense Retrievers", and the
//! implementation in Pyserini): with q the question and p_1..p_n the vectors of the first round, nearest first,
//! * average: `q' = (q + p_1 + ... + p_depth) / (depth + 1)`;
//! * Rocchio: `q' = alpha q + beta mean(p_1..p_depth) - gamma mean(the last bottom of p_1..p_list)`.
//!
//! Nothing is scaled to a length of one here: who searches by cosine gives directions in. Without a passage q stays.
//!
//! What is ours: `keep` rows of the first round stay in front (the measures of the top then cannot change, and a search
//! for no more rows has no second round), and the gate, which keeps fewer of them where the first round was sharp
//! ([`sharpness`]).

use crate::bridge::BridgeError;
use crate::bridge::text_feedback::MOST_PASSAGES;
use serde::{Deserialize, Serialize};

/// Most rows of a first round that are looked at.
pub const MOST_ROWS: usize = 1000;
/// Most rounds of feedback.
const MOST_ROUNDS: usize = 10;

/// Rows in front of the negative passages where the list's length is not said.
const BETWEEN: usize = 10;

/// How the question is moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    #[default]
    None,
    Average,
    Rocchio,
    /// Rocchio with a calibrated number of rows that stay in front.
    Gated,
    /// A trained model reads the query with the passages' texts (`bridge/text_feedback`).
    Text,
}

/// What the second round ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The whole index.
    #[default]
    Retrieve,
    /// The first rows of the first round.
    Rerank,
}

/// What a query says of feedback; what it leaves out has a default that depends on the method.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    pub method: Method,
    /// Nearest passages that count as relevant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta: Option<f32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gamma: Option<f32>,
    /// Passages at the end of the list that count as not relevant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bottom: Option<i32>,
    /// Rows of the first round that are looked at; in mode rerank, those that are ranked anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounds: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Rows of the first round that stay in front.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<i32>,
    /// Of `text`: the bridge or registered model that reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

/// A calibrated gate: how strong the feedback is, and how much of the first round stays in front.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    /// Beta and gamma.
    pub strength: f32,
    /// Least [`sharpness`] of a sharp first round.
    pub threshold: f64,
    /// Rows kept in front after a sharp round, and after any other.
    pub sharp: usize,
    pub blunt: usize,
    /// No feedback at all: it helped nothing when it was calibrated.
    pub off: bool,
}

impl Default for Gate {
    /// Of an index that was never calibrated: the first ten rows stay, so that no measure of the first ten changes.
    /// Strength, depth and bottom are those that gained on scifact and fairytaleqa (docs/FEEDBACK.md).
    fn default() -> Gate {
        Gate {
            strength: 0.3,
            threshold: 0.0,
            sharp: 10,
            blunt: 10,
            off: false,
        }
    }
}

/// Feedback as it is carried out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    pub method: Method,
    pub depth: usize,
    pub alpha: f32,
    pub beta: f32,
    pub gamma: f32,
    pub bottom: usize,
    pub list: usize,
    pub rounds: usize,
    pub mode: Mode,
    gate: Gate,
}

/// A number of rows in its range.
fn number(
    name: &'static str,
    value: Option<i32>,
    default: usize,
    least: usize,
    most: usize,
    range: &'static str,
) -> Result<usize, BridgeError> {
    let Some(value) = value else { return Ok(default) };
    usize::try_from(value)
        .ok()
        .filter(|value| (least..=most).contains(value))
        .ok_or_else(|| BridgeError::Option {
            name,
            value: value.to_string(),
            range,
        })
}

fn weight(name: &'static str, value: Option<f32>, default: f32) -> Result<f32, BridgeError> {
    let value = value.unwrap_or(default);
    if (0.0..=100.0).contains(&value) {
        return Ok(value);
    }
    Err(BridgeError::Option {
        name,
        value: value.to_string(),
        range: "it may be 0 to 100",
    })
}

impl Options {
    /// What is to be done: `None` without feedback. `gate` is the index's own, used by `gated` alone.
    /// That of texts is done before the scan that this is for.
    pub fn plan(&self, gate: Option<Gate>) -> Result<Option<Plan>, BridgeError> {
        if self.method == Method::Text {
            return self.check_text().map(|()| None);
        }
        if let Some(model) = &self.model {
            return Err(BridgeError::Option {
                name: "feedback_model",
                value: model.clone(),
                range: "it is an option of feedback => 'text'",
            });
        }
        // What a method takes for what is not said: depth, alpha, beta, gamma, bottom.
        let gate = gate.unwrap_or_default();
        let (depth, alpha, beta, gamma, bottom) = match self.method {
            Method::None | Method::Text => return Ok(None),
            Method::Average => (3, 1.0, 1.0, 0.0, 0),
            Method::Rocchio => (5, 0.4, 0.6, 0.1, 0),
            Method::Gated => (2, 1.0, gate.strength, gate.strength, 32),
        };
        if self.method == Method::Gated && gate.off {
            return Ok(None);
        }
        let depth = number("feedback_depth", self.depth, depth, 1, 100, "it may be 1 to 100")?;
        let bottom = number("feedback_bottom", self.bottom, bottom, 0, 500, "it may be 0 to 500")?;
        let mode = self.mode.unwrap_or_default();
        let list = self.list_of(depth, bottom, mode)?;
        let gate = self.kept(gate)?;
        Ok(Some(Plan {
            method: self.method,
            depth,
            alpha: weight("feedback_alpha", self.alpha, alpha)?,
            beta: weight("feedback_beta", self.beta, beta)?,
            gamma: weight("feedback_gamma", self.gamma, gamma)?,
            bottom,
            list,
            rounds: number("feedback_rounds", self.rounds, 1, 1, MOST_ROUNDS, "it may be 1 to 10")?,
            mode,
            gate,
        }))
    }

    /// Rows of the first round that are looked at.
    fn list_of(&self, depth: usize, bottom: usize, mode: Mode) -> Result<usize, BridgeError> {
        let usual = match (bottom, mode) {
            (_, Mode::Rerank) => depth.max(100).max(bottom + BETWEEN),
            (0, _) => depth,
            _ => depth.max(BETWEEN) + bottom,
        };
        let range = "it may be feedback_depth to 1000";
        let list = number("feedback_list", self.list, usual, depth, MOST_ROWS, range)?;
        match bottom > list {
            true => Err(BridgeError::Option {
                name: "feedback_bottom",
                value: bottom.to_string(),
                range: "it may not be more than feedback_list",
            }),
            false => Ok(list),
        }
    }

    /// The gate with the rows that are said to stay in front; where none are said, `gated` keeps its own, others none.
    fn kept(&self, gate: Gate) -> Result<Gate, BridgeError> {
        if self.keep.is_none() && self.method == Method::Gated {
            return Ok(gate);
        }
        let keep = number("feedback_keep", self.keep, 0, 0, 100, "it may be 0 to 100")?;
        Ok(Gate {
            sharp: keep,
            blunt: keep,
            ..gate
        })
    }

    /// What `text` says: a depth and a model, nothing else.
    fn check_text(&self) -> Result<(), BridgeError> {
        let most = MOST_PASSAGES as i32;
        number(
            "feedback_depth",
            self.depth,
            1,
            1,
            MOST_PASSAGES,
            "it may be 1 to 20 with feedback => 'text'",
        )?;
        let own = Options {
            method: Method::Text,
            depth: self.depth.filter(|depth| *depth <= most),
            model: self.model.clone(),
            ..Options::default()
        };
        match own == *self {
            true => Ok(()),
            false => Err(BridgeError::Option {
                name: "feedback",
                value: "text".to_owned(),
                range: "it takes feedback_depth and feedback_model alone",
            }),
        }
    }
}

impl Plan {
    /// Rows that stay in front whatever the first round is like; none where its sharpness decides.
    pub fn kept_always(&self) -> Option<usize> {
        (self.gate.sharp == self.gate.blunt).then_some(self.gate.sharp)
    }

    /// Rows that stay in front, by the distances of the first round's list.
    pub fn keep(&self, sharpness: f64) -> usize {
        if sharpness >= self.gate.threshold {
            self.gate.sharp
        } else {
            self.gate.blunt
        }
    }

    /// Places in a list of `found` rows of those that count as not relevant.
    pub fn negative(&self, found: usize) -> std::ops::Range<usize> {
        // A list that is shorter than was asked for has no far end: what is left beyond the positives is nearer than
        // what was to be pushed away, but never a positive itself.
        let end = found.min(self.list);
        let start = end.saturating_sub(self.bottom);
        let start = if found < self.list {
            start.max(self.depth).min(end)
        } else {
            start
        };
        start..end
    }

    /// The moved question. `positive` and `negative` are vectors of as many components as the question.
    pub fn moved(&self, query: &[f32], positive: &[Vec<f32>], negative: &[Vec<f32>]) -> Result<Vec<f32>, BridgeError> {
        match self.method {
            Method::Average => average(query, positive),
            _ => rocchio(query, positive, negative, self.alpha, self.beta, self.gamma),
        }
    }
}

/// How far the far rows of a first round lie behind its near ones: mean distance of the last `bottom` less mean
/// distance of the first `depth`, in the index's own distance. Zero without far rows.
pub fn sharpness(distances: &[f64], depth: usize, negative: std::ops::Range<usize>) -> f64 {
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let near = &distances[..depth.min(distances.len())];
    match distances.get(negative) {
        Some(far) if !far.is_empty() && !near.is_empty() => mean(far) - mean(near),
        _ => 0.0,
    }
}

/// Adds `scale * mean(vectors)` to `sum`, in f64.
fn add_mean(sum: &mut [f64], vectors: &[Vec<f32>], scale: f64) -> Result<(), BridgeError> {
    for vector in vectors {
        if vector.len() != sum.len() {
            return Err(BridgeError::Option {
                name: "feedback",
                value: format!("a vector of {} dimensions", vector.len()),
                range: "it must have as many dimensions as the query",
            });
        }
        let scale = scale / vectors.len() as f64;
        sum.iter_mut()
            .zip(vector)
            .for_each(|(sum, &x)| *sum += scale * f64::from(x));
    }
    Ok(())
}

fn narrow(sum: Vec<f64>) -> Vec<f32> {
    sum.into_iter().map(|x| x as f32).collect()
}

/// `(q + sum of p) / (number of p + 1)`; the question itself where there is no passage.
pub fn average(query: &[f32], feedback: &[Vec<f32>]) -> Result<Vec<f32>, BridgeError> {
    let count = feedback.len() as f64;
    let mut sum: Vec<f64> = query.iter().map(|&x| f64::from(x) / (count + 1.0)).collect();
    add_mean(&mut sum, feedback, count / (count + 1.0))?;
    Ok(narrow(sum))
}

/// `alpha q + beta mean(positive) - gamma mean(negative)`; the question itself where there is no positive passage.
pub fn rocchio(
    query: &[f32],
    positive: &[Vec<f32>],
    negative: &[Vec<f32>],
    alpha: f32,
    beta: f32,
    gamma: f32,
) -> Result<Vec<f32>, BridgeError> {
    if positive.is_empty() {
        return Ok(query.to_vec());
    }
    let mut sum: Vec<f64> = query.iter().map(|&x| f64::from(alpha) * f64::from(x)).collect();
    add_mean(&mut sum, positive, f64::from(beta))?;
    add_mean(&mut sum, negative, -f64::from(gamma))?;
    Ok(narrow(sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// q = (1, 0), p = (0, 1) and (0, 3).
    #[test]
    fn the_formulas_give_the_numbers_computed_by_hand() {
        let (query, feedback) = ([1.0, 0.0], [vec![0.0, 1.0], vec![0.0, 3.0]]);
        let close = |a: &[f32], b: [f32; 2]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(close(&average(&query, &feedback).unwrap(), [1.0 / 3.0, 4.0 / 3.0]));
        assert!(close(
            &rocchio(&query, &feedback, &[], 0.4, 0.6, 0.1).unwrap(),
            [0.4, 1.2]
        ));
        let away = [vec![4.0, 0.0], vec![0.0, 2.0]];
        // 0.4 (1, 0) + 0.6 (0, 2) - 0.1 (2, 1)
        assert!(close(
            &rocchio(&query, &feedback, &away, 0.4, 0.6, 0.1).unwrap(),
            [0.2, 1.1]
        ));
        assert_eq!(average(&query, &[]).unwrap(), query);
        assert_eq!(rocchio(&query, &[], &away, 0.4, 0.6, 0.1).unwrap(), query);
        assert!(average(&query, &[vec![1.0]]).is_err());
    }

    fn options(method: Method) -> Options {
        Options {
            method,
            ..Options::default()
        }
    }

    #[test]
    fn a_plan_has_the_published_defaults() {
        assert_eq!(options(Method::None).plan(None).unwrap(), None);
        let average = options(Method::Average).plan(None).unwrap().unwrap();
        assert_eq!((average.depth, average.list, average.keep(1.0)), (3, 3, 0));
        let rocchio = options(Method::Rocchio).plan(None).unwrap().unwrap();
        assert_eq!(
            (rocchio.depth, rocchio.alpha, rocchio.beta, rocchio.bottom),
            (5, 0.4, 0.6, 0)
        );
        let gated = options(Method::Gated).plan(None).unwrap().unwrap();
        assert_eq!((gated.depth, gated.list, gated.negative(42)), (2, 42, 10..42));
        assert_eq!(
            (gated.keep(0.5), gated.keep(-0.5), gated.kept_always()),
            (10, 10, Some(10))
        );
    }

    #[test]
    fn a_gate_decides_by_sharpness_and_is_overruled_by_the_query() {
        let gate = Gate {
            strength: 0.2,
            threshold: 0.1,
            sharp: 3,
            blunt: 10,
            off: false,
        };
        let plan = options(Method::Gated).plan(Some(gate)).unwrap().unwrap();
        assert_eq!(
            (plan.beta, plan.gamma, plan.keep(0.2), plan.keep(0.05)),
            (0.2, 0.2, 3, 10)
        );
        assert_eq!(plan.kept_always(), None, "the round decides");
        let own = Options {
            keep: Some(1),
            ..options(Method::Gated)
        };
        assert_eq!(own.plan(Some(gate)).unwrap().unwrap().keep(0.05), 1);
        assert_eq!(
            options(Method::Gated).plan(Some(Gate { off: true, ..gate })).unwrap(),
            None
        );
        let distances: Vec<f64> = (0..42).map(|at| if at < 2 { 0.25 } else { 0.75 }).collect();
        assert_eq!(sharpness(&distances, 2, plan.negative(42)), 0.5);
        assert_eq!(sharpness(&distances[..2], 2, plan.negative(2)), 0.0);
    }

    #[test]
    fn options_out_of_range_are_errors() {
        for bad in [
            Options {
                depth: Some(0),
                ..options(Method::Average)
            },
            Options {
                keep: Some(-1),
                ..options(Method::Gated)
            },
            Options {
                alpha: Some(f32::NAN),
                ..options(Method::Rocchio)
            },
            Options {
                beta: Some(-0.1),
                ..options(Method::Rocchio)
            },
            Options {
                rounds: Some(11),
                ..options(Method::Rocchio)
            },
            Options {
                list: Some(3),
                ..options(Method::Rocchio)
            },
            Options {
                bottom: Some(30),
                list: Some(20),
                ..options(Method::Gated)
            },
        ] {
            assert!(matches!(bad.plan(None), Err(BridgeError::Option { .. })), "{bad:?}");
        }
    }

    /// A short first round has no far end; the positives are never pushed away.
    #[test]
    fn few_rows_have_few_negatives() {
        let gated = options(Method::Gated).plan(None).unwrap().unwrap();
        assert_eq!(gated.negative(5), 2..5);
        assert_eq!(gated.negative(1), 1..1);
        assert_eq!(gated.negative(0), 0..0);
        let plan = Options {
            bottom: Some(2),
            list: Some(5),
            ..options(Method::Rocchio)
        };
        assert_eq!(
            plan.plan(None).unwrap().unwrap().negative(5),
            3..5,
            "as published: the end of the list"
        );
    }
}
