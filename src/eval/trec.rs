//! Runs and judgements as text in the format of TREC, one line a document:
//!
//! * run: `query Q0 document rank score tag`; the second field is not used. Where a run is judged, its order is that
//!   of the scores, ties broken by the larger document identifier, and ranks are not read: trec_eval does so too.
//! * judgements (qrels): `query iteration document grade`; the second field is not used.
//!
//! Fields are separated by white space; empty lines are skipped.

use super::EvalError;
use std::collections::{HashMap, HashSet};

/// One line of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct RunLine {
    pub query: String,
    pub document: String,
    /// As the line has it.
    pub rank: i64,
    pub score: f64,
    pub tag: String,
}

/// One line of judgements.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    pub query: String,
    pub document: String,
    pub grade: f64,
}

/// Reads a run.
pub fn read_run(text: &str) -> Result<Vec<RunLine>, EvalError> {
    const FILE: &str = "run";
    let mut seen = HashSet::new();
    let mut lines = Vec::new();
    for (line, fields) in fields(text) {
        let [query, _, document, rank, score, tag] = fields[..] else {
            return Err(EvalError::Fields {
                file: FILE,
                line,
                found: fields.len(),
                expected: 6,
                layout: "query Q0 document rank score tag",
            });
        };
        once(&mut seen, FILE, line, query, document)?;
        lines.push(RunLine {
            query: query.to_owned(),
            document: document.to_owned(),
            rank: rank.parse().map_err(|_| number(FILE, line, "rank", rank))?,
            score: finite(score).ok_or_else(|| number(FILE, line, "score", score))?,
            tag: tag.to_owned(),
        });
    }
    Ok(lines)
}

/// Reads judgements.
pub fn read_qrels(text: &str) -> Result<Vec<Judgement>, EvalError> {
    const FILE: &str = "qrels";
    let mut seen = HashSet::new();
    let mut lines = Vec::new();
    for (line, fields) in fields(text) {
        let [query, _, document, grade] = fields[..] else {
            return Err(EvalError::Fields {
                file: FILE,
                line,
                found: fields.len(),
                expected: 4,
                layout: "query 0 document grade",
            });
        };
        once(&mut seen, FILE, line, query, document)?;
        lines.push(Judgement {
            query: query.to_owned(),
            document: document.to_owned(),
            grade: finite(grade).ok_or_else(|| number(FILE, line, "grade", grade))?,
        });
    }
    Ok(lines)
}

/// One line of a run, without its end of line. The score keeps all its digits.
pub fn write_run_line(line: &RunLine) -> Result<String, EvalError> {
    let (query, document, tag) = (word(&line.query)?, word(&line.document)?, word(&line.tag)?);
    Ok(format!("{query} Q0 {document} {} {} {tag}", line.rank, line.score))
}

/// One line of judgements, without its end of line.
pub fn write_qrels_line(line: &Judgement) -> Result<String, EvalError> {
    let (query, document) = (word(&line.query)?, word(&line.document)?);
    Ok(format!("{query} 0 {document} {}", line.grade))
}

/// The documents of each query in the order in which a run is judged.
pub fn rankings(run: Vec<RunLine>) -> HashMap<String, Vec<(String, f64)>> {
    let mut rankings: HashMap<String, Vec<(String, f64)>> = HashMap::new();
    for line in run {
        rankings
            .entry(line.query)
            .or_default()
            .push((line.document, line.score));
    }
    for ranking in rankings.values_mut() {
        ranking.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| b.0.cmp(&a.0)));
    }
    rankings
}

/// The lines that hold something, with their numbers from 1.
fn fields(text: &str) -> impl Iterator<Item = (usize, Vec<&str>)> {
    let lines = text.lines().enumerate();
    lines
        .map(|(place, line)| (place + 1, line.split_whitespace().collect::<Vec<_>>()))
        .filter(|(_, fields)| !fields.is_empty())
}

fn once<'a>(
    seen: &mut HashSet<(&'a str, &'a str)>,
    file: &'static str,
    line: usize,
    query: &'a str,
    document: &'a str,
) -> Result<(), EvalError> {
    match seen.insert((query, document)) {
        true => Ok(()),
        false => Err(EvalError::Twice {
            file,
            line,
            query: query.to_owned(),
            document: document.to_owned(),
        }),
    }
}

fn finite(text: &str) -> Option<f64> {
    text.parse().ok().filter(|value: &f64| value.is_finite())
}

fn number(file: &'static str, line: usize, field: &'static str, value: &str) -> EvalError {
    EvalError::Number {
        file,
        line,
        field,
        value: value.to_owned(),
    }
}

fn word(text: &str) -> Result<&str, EvalError> {
    match text.is_empty() || text.contains(char::is_whitespace) {
        true => Err(EvalError::Blank(text.to_owned())),
        false => Ok(text),
    }
}
