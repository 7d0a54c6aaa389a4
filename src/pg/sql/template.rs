//! Templates of prompts: a text with places for the question and for documents.
//!
//! `{question}` is the question; `{documents}` all documents with a separator between them; `<xRAG>` the next document. A
//! template with documents has either one `{documents}` or as many `<xRAG>` as there are documents.

use super::prompt::PromptPiece;
use crate::pg::ereport::fail_with_hint;
use pgrx::PgSqlErrorCode;

/// The templates where none is given: those that answers are trained in.
pub use crate::bridge::xrag::{PLAIN, WITH_DOCUMENTS};

const QUESTION: &str = "{question}";
const DOCUMENTS: &str = "{documents}";
const ONE: &str = "<xRAG>";

/// A piece of a template.
enum Part<'a> {
    Text(&'a str),
    Question,
    Documents,
    One,
}

fn parse(template: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut rest = template;
    loop {
        let places = [QUESTION, DOCUMENTS, ONE];
        let next = places
            .into_iter()
            .filter_map(|place| rest.find(place).map(|at| (at, place)));
        let Some((at, place)) = next.min() else {
            parts.push(Part::Text(rest));
            return parts;
        };
        let (before, after) = rest.split_at(at);
        parts.push(Part::Text(before));
        parts.push(match place {
            QUESTION => Part::Question,
            DOCUMENTS => Part::Documents,
            _ => Part::One,
        });
        rest = after.get(place.len()..).unwrap_or_default();
    }
}

fn bad(message: String, hint: &str) -> ! {
    fail_with_hint(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message, hint)
}

/// The template with the question and the documents in their places. What a question or a document says is never a place.
/// Raises an error where places and documents do not fit each other.
pub fn fill(template: &str, question: &str, documents: Vec<PromptPiece>, separator: &str) -> Vec<PromptPiece> {
    let parts = parse(template);
    let ones = parts.iter().filter(|part| matches!(part, Part::One)).count();
    let all = parts.iter().filter(|part| matches!(part, Part::Documents)).count();
    let count = documents.len();
    match (all, ones) {
        (0, 0) if count > 0 => bad(
            format!("the template has no place for {count} documents"),
            "Put {documents} into it, or <xRAG> once for each document.",
        ),
        (0, ones) if ones != count => bad(
            format!("the template has {ones} places <xRAG> for {count} documents"),
            "Put <xRAG> into it once for each document, or {documents} for all of them.",
        ),
        (0, _) | (1, 0) => {}
        _ => bad(
            "the template has several places for the same documents".to_owned(),
            "Use {documents} once, or <xRAG> once for each document.",
        ),
    }
    let mut pieces: Vec<PromptPiece> = Vec::new();
    let mut add = |piece: PromptPiece| match (pieces.last_mut(), piece) {
        (_, PromptPiece::Text(text)) if text.is_empty() => {}
        (Some(PromptPiece::Text(before)), PromptPiece::Text(text)) => before.push_str(&text),
        (_, piece) => pieces.push(piece),
    };
    let mut documents = documents.into_iter();
    for part in parts {
        match part {
            Part::Text(text) => add(PromptPiece::Text(text.to_owned())),
            Part::Question => add(PromptPiece::Text(question.to_owned())),
            Part::One => documents.by_ref().take(1).for_each(&mut add),
            Part::Documents => {
                for (at, document) in documents.by_ref().enumerate() {
                    if at > 0 {
                        add(PromptPiece::Text(separator.to_owned()));
                    }
                    add(document);
                }
            }
        }
    }
    pieces
}
