//! The measures of many queries: their values, their means with intervals, and two runs over the same queries.

use super::bootstrap::{self, Draws, Interval};
use super::measures::{average_precision, ndcg, recall, reciprocal_rank};
use super::significance;

/// One measure of a ranked list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// nDCG of the first so many results.
    Ndcg(usize),
    /// Average precision over the whole list.
    AveragePrecision,
    /// Reciprocal rank over the whole list.
    ReciprocalRank,
    /// Recall of the first so many results.
    Recall(usize),
}

impl Measure {
    /// The measures of a report: `ndcg@k`, `map`, `mrr` and `recall` at 1, `k` and `depth`, each once.
    pub fn all(k: usize, depth: usize) -> Vec<Measure> {
        let mut measures = vec![Measure::Ndcg(k), Measure::AveragePrecision, Measure::ReciprocalRank];
        for cut in [1, k, depth] {
            if !measures.contains(&Measure::Recall(cut)) {
                measures.push(Measure::Recall(cut));
            }
        }
        measures
    }

    /// Its name: `ndcg@10`, `map`, `mrr`, `recall@10`.
    pub fn name(self) -> String {
        match self {
            Measure::Ndcg(k) => format!("ndcg@{k}"),
            Measure::AveragePrecision => "map".to_owned(),
            Measure::ReciprocalRank => "mrr".to_owned(),
            Measure::Recall(k) => format!("recall@{k}"),
        }
    }

    /// The measure of that name.
    pub fn from_name(name: &str) -> Option<Measure> {
        let cut = |text: &str| text.parse().ok().filter(|&cut: &usize| cut > 0);
        match (name, name.split_once('@')) {
            ("map", _) => Some(Measure::AveragePrecision),
            ("mrr", _) => Some(Measure::ReciprocalRank),
            (_, Some(("ndcg", k))) => cut(k).map(Measure::Ndcg),
            (_, Some(("recall", k))) => cut(k).map(Measure::Recall),
            _ => None,
        }
    }

    /// How many results it looks at; `None` for all of them.
    pub fn cut(self) -> Option<usize> {
        match self {
            Measure::Ndcg(k) | Measure::Recall(k) => Some(k),
            Measure::AveragePrecision | Measure::ReciprocalRank => None,
        }
    }

    /// Its value for one query; `None` where the query has no relevant document.
    pub fn of(self, list: &Ranked) -> Option<f64> {
        match self {
            Measure::Ndcg(k) => ndcg(&list.grades, &list.judged, k),
            Measure::AveragePrecision => average_precision(&list.grades, &list.judged),
            Measure::ReciprocalRank => reciprocal_rank(&list.grades, &list.judged, list.grades.len()),
            Measure::Recall(k) => recall(&list.grades, &list.judged, k),
        }
    }
}

/// What one query got.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ranked {
    /// Grade of each result, best result first; 0 where it is not judged.
    pub grades: Vec<f64>,
    /// All judged grades of the query.
    pub judged: Vec<f64>,
}

/// A mean over queries with its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mean {
    pub value: f64,
    pub interval: Interval,
}

/// The second run of a comparison.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Compared {
    pub mean: Mean,
    /// Second minus first, query by query.
    pub difference: Mean,
    /// Second over first, minus 1; `None` where the first is 0.
    pub gain: Option<Mean>,
    /// p of the paired randomisation test.
    pub randomisation: f64,
    /// p of the paired t-test; `None` below two queries.
    pub t_test: Option<f64>,
}

/// One measure over all queries.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub measure: Measure,
    /// Number of queries with a relevant document; the means are over these.
    pub queries: usize,
    /// `None` where no query has a relevant document.
    pub mean: Option<Mean>,
    /// The second run, where there is one.
    pub compared: Option<Compared>,
}

/// Tosses of the randomisation test.
const TOSSES: usize = 10_000;

/// The report of a run, and of a second one over the same queries in the same order.
pub fn report(measures: &[Measure], run: &[Ranked], second: Option<&[Ranked]>, draws: Draws) -> Vec<Row> {
    let rows = measures.iter().map(|&measure| {
        let base = values(measure, run);
        let other = second.map(|second| values(measure, second));
        Row {
            measure,
            queries: base.len(),
            mean: mean_of(&base, draws),
            compared: other.and_then(|other| compared(&base, &other, draws)),
        }
    });
    rows.collect()
}

/// The values of the queries that have the measure.
pub fn values(measure: Measure, run: &[Ranked]) -> Vec<f64> {
    run.iter().filter_map(|list| measure.of(list)).collect()
}

/// Two runs' values of the same queries beside each other; `None` without queries.
pub fn compared(base: &[f64], other: &[f64], draws: Draws) -> Option<Compared> {
    let differences: Vec<f64> = base.iter().zip(other).map(|(base, other)| other - base).collect();
    Some(Compared {
        mean: mean_of(other, draws)?,
        difference: mean_of(&differences, draws)?,
        gain: gain_of(base, other, draws),
        randomisation: significance::randomisation(base, other, TOSSES, draws.seed),
        t_test: significance::t_test(base, other),
    })
}

fn gain_of(base: &[f64], other: &[f64], draws: Draws) -> Option<Mean> {
    let mean = |values: &[f64]| super::mean(values.iter().copied().map(Some));
    let start = mean(base).filter(|start| *start > 0.0)?;
    Some(Mean {
        value: mean(other)? / start - 1.0,
        interval: bootstrap::of_gain(base, other, draws)?,
    })
}

/// The mean of `values` with its interval; `None` without values.
pub fn mean_of(values: &[f64], draws: Draws) -> Option<Mean> {
    Some(Mean {
        value: super::mean(values.iter().copied().map(Some))?,
        interval: bootstrap::of_mean(values, draws)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(grades: &[f64], judged: &[f64]) -> Ranked {
        Ranked {
            grades: grades.to_vec(),
            judged: judged.to_vec(),
        }
    }

    #[test]
    fn names_go_both_ways() {
        for measure in Measure::all(10, 100) {
            assert_eq!(Measure::from_name(&measure.name()), Some(measure));
        }
        assert_eq!(Measure::all(1, 1).len(), 4, "a cut that is asked for twice stands once");
        for name in ["ndcg", "ndcg@0", "recall@x", "precision@3", ""] {
            assert_eq!(Measure::from_name(name), None, "{name}");
        }
    }

    #[test]
    fn a_report_by_hand() {
        let first = [list(&[1.0, 0.0], &[1.0]), list(&[0.0, 1.0], &[1.0]), list(&[1.0], &[])];
        let second = [list(&[1.0, 0.0], &[1.0]), list(&[1.0, 0.0], &[1.0]), list(&[], &[])];
        let rows = report(&Measure::all(2, 10), &first, Some(&second), Draws::default());
        let row = |name: &str| rows.iter().find(|row| row.measure.name() == name).expect("a row");
        // The third query has no relevant document and is left out.
        assert_eq!(row("mrr").queries, 2);
        assert_eq!(row("mrr").mean.expect("a mean").value, 0.75);
        assert_eq!(row("recall@1").mean.expect("a mean").value, 0.5);
        assert_eq!(row("recall@2").mean.expect("a mean").value, 1.0);
        let compared = row("mrr").compared.expect("a second run");
        assert_eq!((compared.mean.value, compared.difference.value), (1.0, 0.25));
        assert!((compared.gain.expect("a gain").value - 1.0 / 3.0).abs() < 1e-12);
        // One query differs, so either sign of its toss reaches the sum.
        assert_eq!(compared.randomisation, 1.0);
        let interval = row("mrr").mean.expect("a mean").interval;
        assert_eq!((interval.low, interval.high), (0.5, 1.0));
    }
}
