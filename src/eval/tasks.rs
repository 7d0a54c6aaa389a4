//! Questions that a corpus answers itself, so that a ranking can be judged without judgements: the text of a document
//! becomes the question, and the document is what has to be found.
//!
//! * `spanN`: N consecutive words of the document (part of passage; LexSemBridge, section 2 of its paper, names the
//!   task and leaves the unit open: words here);
//! * `keyword`: its four words of largest tf-idf, `count * ln((1 + documents) / (1 + documents with the word))`
//!   (Spärck Jones 1972, smoothed), in the order of their weight;
//! * `sentence`: one of its sentences.
//!
//! A part of the text can be kept apart for the questions, so that what was trained on the rest is judged on words
//! that it never saw.

use super::EvalError;
use crate::random::Random;
use std::collections::HashMap;
use std::ops::Range;

/// Words of a keyword question.
const KEYWORDS: usize = 4;
/// Least words of a sentence that becomes a question.
const SENTENCE_WORDS: usize = 5;
/// Least letters of a keyword.
const KEYWORD_LETTERS: usize = 3;

/// What a question is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// So many consecutive words.
    Span(usize),
    /// The words that say most.
    Keyword,
    /// One sentence.
    Sentence,
}

impl std::str::FromStr for Task {
    type Err = EvalError;

    /// `span2` to `span256`, `keyword` or `sentence`.
    fn from_str(name: &str) -> Result<Task, EvalError> {
        let span = name.strip_prefix("span").and_then(|words| words.parse().ok());
        match (name, span) {
            ("keyword", _) => Ok(Task::Keyword),
            ("sentence", _) => Ok(Task::Sentence),
            (_, Some(words @ 2..=256)) => Ok(Task::Span(words)),
            _ => Err(EvalError::Task(name.to_owned())),
        }
    }
}

/// How a text is cut: both give byte ranges of the text, in order.
pub struct Cut<'a> {
    /// The units that spans are counted in.
    pub words: &'a dyn Fn(&str) -> Vec<Range<usize>>,
    pub sentences: &'a dyn Fn(&str) -> Vec<Range<usize>>,
}

/// Ranges between white space: the usual words of [`Cut`].
pub fn white_space_words(text: &str) -> Vec<Range<usize>> {
    let start = text.as_ptr() as usize;
    let words = text.split_whitespace();
    words
        .map(|word| {
            let from = word.as_ptr() as usize - start;
            from..from + word.len()
        })
        .collect()
}

/// In how many documents each term stands.
#[derive(Clone, Debug, Default)]
pub struct Frequencies {
    documents: f64,
    counts: HashMap<String, f64>,
}

impl Frequencies {
    /// Counts a document.
    pub fn add(&mut self, text: &str) {
        self.documents += 1.0;
        let mut terms: Vec<String> = terms(text).map(|(_, term)| term).collect();
        terms.sort_unstable();
        terms.dedup();
        for term in terms {
            *self.counts.entry(term).or_default() += 1.0;
        }
    }

    fn weight(&self, term: &str) -> f64 {
        let count = self.counts.get(term).copied().unwrap_or_default();
        ((1.0 + self.documents) / (1.0 + count)).ln()
    }
}

/// The question about a document, from the part of its words that `part` (shares of the text, 0 to 1) allows; `None`
/// where that part is too short for the task.
pub fn make(
    task: Task,
    text: &str,
    part: Range<f64>,
    cut: &Cut<'_>,
    frequencies: &Frequencies,
    random: &mut Random,
) -> Option<String> {
    let words = (cut.words)(text);
    let place = |share: f64| ((words.len() as f64 * share).round().max(0.0) as usize).min(words.len());
    let words = words.get(place(part.start)..place(part.end))?;
    let bytes = words.first()?.start..words.last()?.end;
    match task {
        Task::Span(length) => {
            let starts = (words.len() + 1).checked_sub(length).filter(|&starts| starts > 0)?;
            let first = random.below(starts);
            let span = words.get(first)?.start..words.get(first + length - 1)?.end;
            Some(one_line(text.get(span)?))
        }
        Task::Keyword => keywords(text.get(bytes)?, frequencies),
        Task::Sentence => {
            let mut sentences = (cut.sentences)(text);
            sentences.retain(|sentence| {
                let inside = sentence.start >= bytes.start && sentence.end <= bytes.end;
                let long = |text: &str| text.split_whitespace().count() >= SENTENCE_WORDS;
                inside && text.get(sentence.clone()).is_some_and(long)
            });
            let chosen = random.below(sentences.len());
            Some(one_line(text.get(sentences.get(chosen)?.clone())?))
        }
    }
}

/// The words of largest tf-idf, as they stand first in the text; `None` where there are fewer than four.
fn keywords(text: &str, frequencies: &Frequencies) -> Option<String> {
    // Term -> (occurrences, place of the first, the word itself).
    let mut found: HashMap<String, (f64, usize, &str)> = HashMap::new();
    for (place, (word, term)) in terms(text).enumerate() {
        found.entry(term).or_insert((0.0, place, word)).0 += 1.0;
    }
    let mut ranked: Vec<(f64, usize, &str)> = found
        .iter()
        .map(|(term, (count, place, word))| (count * frequencies.weight(term), *place, *word))
        .collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    ranked.truncate(KEYWORDS);
    let words: Vec<&str> = ranked.iter().map(|(_, _, word)| *word).collect();
    (words.len() == KEYWORDS).then(|| words.join(" "))
}

/// The words that can be keywords, with the lower-case form that they are counted under.
fn terms(text: &str) -> impl Iterator<Item = (&str, String)> {
    let words = text.split(|c: char| !c.is_alphanumeric());
    words
        .filter(|word| word.chars().count() >= KEYWORD_LETTERS && word.chars().any(char::is_alphabetic))
        .map(|word| (word, word.to_lowercase()))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
