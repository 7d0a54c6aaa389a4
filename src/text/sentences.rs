//! Sentence borders by rule: terminators, the quotes and brackets that close after them, abbreviations, CJK stops.

use super::Span;
use super::blocks::{Block, Kind, blocks};

/// Abbreviations that a full stop does not end a sentence after, lower-cased, without the stop.
const ABBREVIATIONS: &[&str] = &[
    "al", "approx", "apr", "art", "aug", "ave", "bros", "ca", "capt", "cf", "ch", "co", "col", "corp", "dec", "dept",
    "dr", "e.g", "ed", "eds", "eq", "esp", "est", "etc", "ex", "feb", "fig", "figs", "gen", "gov", "hon", "i.e", "inc",
    "jan", "jr", "jul", "jun", "lt", "ltd", "mar", "messrs", "mr", "mrs", "ms", "mt", "no", "nos", "nov", "oct", "op",
    "p", "para", "pp", "prof", "ref", "rev", "sec", "sen", "sep", "sept", "sgt", "sr", "st", "tab", "u.k", "u.s",
    "viz", "vol", "vols", "vs",
];

/// Trimmed sentence spans in order; every byte that is not white space belongs to exactly one. Headings, lines of code
/// and list items are sentences of their own; a blank line ends a sentence.
pub fn sentences(text: &str) -> Vec<Span> {
    blocks(text)
        .iter()
        .flat_map(|block| block_sentences(text, block))
        .collect()
}

/// The sentences of one block.
pub(super) fn block_sentences(text: &str, block: &Block) -> Vec<Span> {
    match block.kind {
        Kind::Paragraph => paragraph(text, block.span),
        Kind::Heading { .. } | Kind::Line => vec![block.span],
    }
}

fn is_closing(c: char) -> bool {
    matches!(
        c,
        '"' | '\'' | ')' | ']' | '}' | '\u{201d}' | '\u{2019}' | '\u{bb}' | '*' | '_'
    )
}

fn is_cjk_stop(c: char) -> bool {
    matches!(c, '\u{3002}' | '\u{ff01}' | '\u{ff1f}' | '\u{ff61}')
}

fn is_cjk_closing(c: char) -> bool {
    matches!(c, '\u{300d}' | '\u{300f}' | '\u{ff09}' | '\u{201d}' | '\u{2019}')
}

/// Whether the word before a full stop says that the sentence goes on.
fn is_abbreviation(before: &str) -> bool {
    let word_start = before.rfind(|c: char| c.is_whitespace() || matches!(c, '(' | '[' | '"' | '\u{201c}'));
    let word = match word_start {
        Some(at) => before[at..].trim_start_matches(|c: char| !c.is_alphanumeric()),
        None => before,
    };
    let mut characters = word.chars();
    match (characters.next(), characters.next()) {
        // An initial: one capital letter.
        (Some(first), None) => first.is_uppercase(),
        (None, _) => false,
        // The longest entry has six letters.
        _ if word.len() > 8 => false,
        _ => ABBREVIATIONS.contains(&word.to_lowercase().as_str()),
    }
}

fn paragraph(text: &str, span: Span) -> Vec<Span> {
    let base = span.start as usize;
    let Some(body) = span.of(text) else { return Vec::new() };
    let mut found = Vec::new();
    let mut start = 0;
    let mut characters = body.char_indices().peekable();
    while let Some((at, c)) = characters.next() {
        let end = if is_cjk_stop(c) {
            let mut end = at + c.len_utf8();
            while let Some(&(_, next)) = characters.peek() {
                if !is_cjk_stop(next) && !is_cjk_closing(next) {
                    break;
                }
                end += next.len_utf8();
                characters.next();
            }
            end
        } else if matches!(c, '.' | '!' | '?' | '\u{2026}') {
            let mut end = at + c.len_utf8();
            while let Some(&(_, next)) = characters.peek() {
                if !is_closing(next) && !matches!(next, '.' | '!' | '?' | '\u{2026}') {
                    break;
                }
                end += next.len_utf8();
                characters.next();
            }
            let rest = &body[end..];
            let Some(space) = rest.chars().next() else { continue };
            if !space.is_whitespace() {
                continue;
            }
            // Bounded look-ahead: white space inside a paragraph is short.
            let next = rest.chars().find(|c| !c.is_whitespace());
            if next.is_none_or(char::is_lowercase) {
                continue;
            }
            // At most the last bytes are looked at, so that a long paragraph stays linear.
            let mut from = at.saturating_sub(24).max(start);
            while !body.is_char_boundary(from) {
                from += 1;
            }
            if c == '.' && end == at + 1 && is_abbreviation(&body[from..at]) {
                continue;
            }
            end
        } else {
            continue;
        };
        push_trimmed(body, base, start, end, &mut found);
        start = end;
    }
    push_trimmed(body, base, start, body.len(), &mut found);
    found
}

fn push_trimmed(body: &str, base: usize, start: usize, end: usize, found: &mut Vec<Span>) {
    let piece = &body[start..end];
    let words = piece.trim();
    if !words.is_empty() {
        let front = piece.len() - piece.trim_start().len();
        let from = base + start + front;
        found.push(Span {
            start: from as u32,
            end: (from + words.len()) as u32,
        });
    }
}
