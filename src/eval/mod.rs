//! Evaluation of a ranking: measures, their uncertainty, comparisons, TREC files, and questions made from a corpus.
//!
//! Everything here is pure: lists of grades and texts in, numbers and texts out, and the same seed gives the same
//! result on every machine.
//!
//! * [`measures`]: nDCG, average precision, reciprocal rank, recall of one ranked list;
//! * [`report`]: the measures of many queries, their means and intervals, and two runs beside each other;
//! * [`bootstrap`], [`significance`]: percentile intervals, randomisation test and t-test;
//! * [`selection`]: choosing among candidates by few queries, and what the selection is worth on others;
//! * [`trec`]: runs and judgements in the format of TREC;
//! * [`tasks`]: questions that a corpus itself answers: spans, keywords, sentences.
#![forbid(unsafe_code)]

pub mod bootstrap;
pub mod measures;
pub mod report;
pub mod selection;
pub mod significance;
pub mod tasks;
pub mod trec;

pub use measures::{average_precision, mean, ndcg, recall, reciprocal_rank};

/// What can be wrong with what is to be judged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// A line of a TREC file has the wrong number of fields.
    #[error("line {line} of the {file} has {found} fields, not {expected} ({layout})")]
    Fields {
        file: &'static str,
        line: usize,
        found: usize,
        expected: usize,
        layout: &'static str,
    },
    /// A field of a TREC file is no number.
    #[error("line {line} of the {file}: {field} \"{value}\" is not a number")]
    Number {
        file: &'static str,
        line: usize,
        field: &'static str,
        value: String,
    },
    /// A document stands twice under one query.
    #[error("line {line} of the {file}: document \"{document}\" stands twice under query \"{query}\"")]
    Twice {
        file: &'static str,
        line: usize,
        query: String,
        document: String,
    },
    /// A name that a TREC file cannot hold.
    #[error("\"{0}\" cannot stand in a TREC file: its fields are separated by white space")]
    Blank(String),
    /// A task that is not known.
    #[error("task \"{0}\" does not exist")]
    Task(String),
}

#[cfg(test)]
mod tests;
