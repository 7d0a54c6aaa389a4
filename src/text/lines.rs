//! Lines of a text, whichever of `\n`, `\r\n` and `\r` ends them.

use super::Span;

/// A line without its line end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line<'a> {
    pub start: usize,
    pub text: &'a str,
}

impl Line<'_> {
    pub fn is_blank(&self) -> bool {
        self.text.trim().is_empty()
    }

    /// The line without white space around it.
    pub fn trimmed(&self) -> Span {
        let front = self.text.len() - self.text.trim_start().len();
        Span {
            start: (self.start + front) as u32,
            end: (self.start + front + self.text.trim().len()) as u32,
        }
    }
}

/// Bytes of the line that `text` begins with, its end included.
pub(super) fn first_line(text: &str) -> usize {
    let bytes = text.as_bytes();
    match bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
        Some(at) if bytes[at..].starts_with(b"\r\n") => at + 2,
        Some(at) => at + 1,
        None => bytes.len(),
    }
}

/// The lines of `text`, whose first byte is number `base` of the whole.
pub(super) fn lines(text: &str, base: usize) -> impl Iterator<Item = Line<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = text.get(at..).filter(|rest| !rest.is_empty())?;
        let start = base + at;
        let length = first_line(rest);
        at += length;
        Some(Line {
            start,
            text: rest[..length].trim_end_matches(['\n', '\r']),
        })
    })
}
