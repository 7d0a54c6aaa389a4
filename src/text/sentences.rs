//! Sentence borders: those of Unicode (UAX #29), less those behind abbreviations, inside a sentence that goes on in small
//! letters, and where no white space follows a full stop.

use super::Span;
use super::blocks::{Block, Kind, blocks};
use unicode_segmentation::UnicodeSegmentation;

/// Abbreviations that a full stop does not end a sentence after, lower-cased, without the stop and without accents.
const ABBREVIATIONS: &[&str] = &[
    // English, and what most languages share.
    "al", "approx", "ave", "bros", "ca", "capt", "cf", "co", "col", "corp", "dept", "dr", "e.g", "ed", "eds", "esp",
    "est", "etc", "ex", "gen", "gov", "hon", "i.e", "inc", "jr", "lt", "ltd", "messrs", "mr", "mrs", "ms", "mt",
    "prof", "rev", "sen", "sgt", "sr", "st", "u.k", "u.s", "viz", "vs", // German.
    "bspw", "bzgl", "bzw", "d.h", "evtl", "fr", "ggf", "hr", "hrsg", "inkl", "o.a", "sog", "str", "u.a", "usw", "vgl",
    "z.b", "zzgl", // Spanish, French, Italian, Portuguese.
    "av", "avda", "dra", "excmo", "mme", "mlle", "p.ej", "p.ex", "pto", "sra", "srta", "sres", "ud", "uds", "vd",
];

/// Words with a full stop that stands before a number: elsewhere they end a sentence like any other.
const BEFORE_NUMBERS: &[&str] = &[
    "abb", "abs", "apr", "art", "aug", "bd", "cap", "ch", "dec", "eq", "feb", "fig", "figs", "jan", "jul", "jun",
    "kap", "mar", "no", "nos", "nov", "nr", "num", "oct", "op", "p", "pag", "para", "pp", "ref", "s", "sec", "sep",
    "sept", "tab", "tel", "vol", "vols",
];

/// Months before which a number with a full stop is a day.
const MONTHS: &[&str] = &[
    "januar",
    "janner",
    "februar",
    "marz",
    "april",
    "mai",
    "juni",
    "juli",
    "august",
    "september",
    "oktober",
    "november",
    "dezember",
];

/// Bytes that are looked at on either side of a mark: what UAX #29 looks ahead is not bounded.
const WINDOW: usize = 80;

/// Trimmed sentence spans in order; every byte that is not white space belongs to exactly one. Headings, lines of code,
/// rows and list items are sentences of their own; a blank line ends a sentence.
pub fn sentences(text: &str) -> Vec<Span> {
    let found = blocks(text, false);
    found.flat_map(|block| block_sentences(text, &block)).collect()
}

/// The sentences of one block.
pub(super) fn block_sentences(text: &str, block: &Block) -> Vec<Span> {
    match block.kind {
        Kind::Paragraph => paragraph(text, block.span),
        Kind::Heading { .. } | Kind::Line | Kind::Noise => vec![block.span],
    }
}

/// A copy of the same length in which line ends are spaces, marks of Markdown close as brackets do, and an ellipsis may
/// end a sentence.
fn prepared(body: &str) -> String {
    let character = |c: char| match c {
        '\n' | '\r' => ' ',
        '*' | '_' | '`' | '~' => ')',
        '\u{2026}' => '\u{fe52}',
        other => other,
    };
    body.chars().map(character).collect()
}

/// White space, and what has no width.
fn is_gap(c: char) -> bool {
    c.is_whitespace()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

fn is_closing(c: char) -> bool {
    matches!(
        c,
        '"' | '\'' | ')' | ']' | '}' | '\u{201c}' | '\u{201d}' | '\u{2019}' | '\u{ab}' | '\u{bb}'
    )
}

/// Whether a border of UAX #29 ends a sentence. `before` is the sentence up to it, `after` what follows, both prepared.
fn ends(before: &str, after: &str) -> bool {
    let words = before.trim_end_matches(is_gap);
    let gap = &before[words.len()..];
    let open = words.trim_end_matches(|c| is_closing(c) || is_gap(c));
    let Some(mark) = open.chars().next_back() else {
        return false;
    };
    if !matches!(mark, '.' | '!' | '?' | '\u{fe52}') {
        // Marks of other scripts, and line and paragraph separators.
        return true;
    }
    if !gap.contains(char::is_whitespace) {
        return false;
    }
    let after = after.trim_start_matches(is_gap);
    let next = after.chars().next();
    if next.is_none_or(char::is_lowercase) {
        return false;
    }
    let word = &open[..open.len() - mark.len_utf8()];
    mark != '.' || open.len() < words.len() || word.ends_with('.') || !goes_on(word, after)
}

/// A letter without its accent, lower-cased; of a combining mark nothing.
fn folded(c: char) -> Option<char> {
    Some(match c.to_lowercase().next().unwrap_or(c) {
        '\u{300}'..='\u{36f}' => return None,
        '\u{e0}'..='\u{e5}' => 'a',
        '\u{e7}' => 'c',
        '\u{e8}'..='\u{eb}' => 'e',
        '\u{ec}'..='\u{ef}' => 'i',
        '\u{f1}' => 'n',
        '\u{f2}'..='\u{f6}' => 'o',
        '\u{f9}'..='\u{fc}' => 'u',
        other => other,
    })
}

/// Whether a full stop behind the last word of `before` says that the sentence goes on with `after`.
fn goes_on(before: &str, after: &str) -> bool {
    // The longest entry has nine letters, each of at most three bytes with its accent.
    let tail = &before[before.ceil_char_boundary(before.len().saturating_sub(36))..];
    let word = match tail.rfind(|c: char| is_gap(c) || matches!(c, '(' | ')' | '[' | '"' | '\u{201c}' | '\u{201e}')) {
        Some(at) => tail[at..].trim_start_matches(|c: char| !c.is_alphanumeric()),
        None if tail.len() < before.len() => return false,
        None => tail.trim_start_matches(|c: char| !c.is_alphanumeric()),
    };
    let word: String = word.chars().filter_map(folded).collect();
    let next = after.trim_start_matches(|c: char| !c.is_alphanumeric());
    let mut characters = word.chars();
    match (characters.next(), characters.next()) {
        (None, _) => false,
        // A number: in German the day of a month.
        (Some('0'..='9'), _) if word.len() <= 2 && word.bytes().all(|byte| byte.is_ascii_digit()) => {
            let next = next
                .split(|c: char| !c.is_alphanumeric() && !matches!(c, '\u{300}'..='\u{36f}'))
                .next();
            let next: String = next.unwrap_or_default().chars().take(16).filter_map(folded).collect();
            MONTHS.contains(&next.as_str())
        }
        // An initial: one letter of a script with capitals.
        (Some(first), None) if first != 's' && first != 'p' => first.is_lowercase(),
        _ if ABBREVIATIONS.contains(&word.as_str()) => true,
        _ => BEFORE_NUMBERS.contains(&word.as_str()) && is_number(next),
    }
}

/// Whether a text begins with a number in Arabic or Roman digits.
fn is_number(text: &str) -> bool {
    let word = text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    word.starts_with(|c: char| c.is_numeric())
        || (!word.is_empty()
            && word
                .bytes()
                .all(|byte| matches!(byte, b'I' | b'V' | b'X' | b'L' | b'C')))
}

/// Whether a character may end a sentence: letters, digits and most white space cannot.
fn may_end(c: char) -> bool {
    match c {
        '.' | '!' | '?' => true,
        '\u{85}' | '\u{2028}' | '\u{2029}' => true,
        _ => !c.is_ascii() && !c.is_alphanumeric() && !c.is_whitespace(),
    }
}

fn paragraph(text: &str, span: Span) -> Vec<Span> {
    let base = span.start as usize;
    let Some(body) = span.of(text) else { return Vec::new() };
    let mut found = Vec::new();
    let (mut start, mut at) = (0, 0);
    while let Some((mark, c)) = body[at..].char_indices().find(|(_, c)| may_end(*c)) {
        let mark = at + mark;
        let behind = mark + c.len_utf8();
        at = behind;
        if c.is_ascii() && body.as_bytes().get(behind).is_some_and(u8::is_ascii_alphanumeric) {
            continue;
        }
        let from = body.ceil_char_boundary(mark.saturating_sub(WINDOW)).max(start);
        let to = body.floor_char_boundary(behind + WINDOW);
        let window = prepared(&body[from..to]);
        // From the beginning of the word on: what stands before it changes nothing.
        let word = window[..mark - from].char_indices().rev().find(|(_, c)| is_gap(*c));
        let word = word.map_or(0, |(gap, _)| gap);
        let pieces = window[word..].split_sentence_bound_indices();
        let mut borders = pieces.map(|(first, piece)| word + first + piece.len());
        let border = borders.find(|border| from + border >= behind).unwrap_or(window.len());
        if from + border == to {
            // What closes a sentence is short.
            at = body.floor_char_boundary(behind + WINDOW / 2).max(behind);
            continue;
        }
        if ends(&window[..border], &window[border..]) {
            push_trimmed(body, base, start, from + border, &mut found);
            start = from + border;
        }
        at = from + border;
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
