//! Blocks of a text: headings, lines that stand for themselves, runs of noise, and paragraphs.
//!
//! A text is read in windows of whole lines, so that memory does not grow with it: a window ends before the last block of
//! Markdown that no other holds, and a fence of code that is open at a window's end is looked for in the next one.

use super::Span;
use super::lines::{Line, first_line, lines};
use super::markdown::{self, Class, Fence, Mark};
use super::{noise, rows};
use std::collections::VecDeque;

/// Bytes of a window. A line that alone is longer is no Markdown.
const WINDOW: usize = 256 << 10;

/// What a block is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A heading of level 1 (outermost) to 6 with its words.
    Heading { level: usize, title: String },
    /// Lines of prose that belong together.
    Paragraph,
    /// One line that stands for itself: of code, a row of a table, of a log.
    Line,
    /// Lines that hold no words.
    Noise,
}

/// A run of lines. Blocks come in order, do not overlap and hold every byte that is not white space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub kind: Kind,
    /// Trimmed at both ends.
    pub span: Span,
    /// Whether it is code, and goes on with the code of the block before it.
    pub code: bool,
    pub continues: bool,
}

/// The words of a heading that begins with `#`.
fn atx_words(line: &str) -> &str {
    let words = line
        .trim_start_matches(['\u{feff}', ' '])
        .trim_start_matches('#')
        .trim();
    match words.trim_end_matches('#') {
        "" => "",
        closed if closed.ends_with([' ', '\t']) => closed.trim_end(),
        _ => words,
    }
}

/// The blocks of a text. Where it begins inside code (`code`), it is code to its end.
pub(super) fn blocks(text: &str, code: bool) -> Blocks<'_> {
    Blocks {
        text,
        at: 0,
        all_code: code,
        fence: None,
        found: VecDeque::new(),
        code_before: code,
    }
}

/// See [`blocks`].
pub(super) struct Blocks<'a> {
    text: &'a str,
    /// Start of the next window.
    at: usize,
    all_code: bool,
    /// The fence that is open there.
    fence: Option<Fence>,
    found: VecDeque<Block>,
    /// Whether the last line before the next one was code of the same block.
    code_before: bool,
}

impl Iterator for Blocks<'_> {
    type Item = Block;

    fn next(&mut self) -> Option<Block> {
        while self.found.is_empty() && self.at < self.text.len() {
            self.read_window();
        }
        self.found.pop_front()
    }
}

impl<'a> Blocks<'a> {
    /// The end of the window that starts at `at`, after a line.
    fn window_end(&self) -> usize {
        let rest = &self.text[self.at..];
        if rest.len() <= WINDOW {
            return self.text.len();
        }
        let bytes = rest.as_bytes();
        // Not between the two characters of one line end.
        let last = (0..WINDOW)
            .rev()
            .find(|at| bytes[*at] == b'\n' || (bytes[*at] == b'\r' && bytes[*at + 1] != b'\n'));
        match last {
            Some(last) => self.at + last + 1,
            None => self.at + first_line(rest),
        }
    }

    fn read_window(&mut self) {
        let end = self.window_end();
        let window = &self.text[self.at..end];
        let all: Vec<Line<'a>> = lines(window, self.at).collect();
        let plain = |class| vec![Mark { class, begins: false }; all.len()];
        if let Some(fence) = self.fence {
            let closing = all.iter().position(|line| fence.closed_by(line.text));
            let count = closing.map_or(all.len(), |line| line + 1);
            self.at = all.get(count).map_or(end, |line| line.start);
            self.assemble(&all[..count], &plain(Class::Code)[..count]);
            if closing.is_some() {
                self.fence = None;
                self.code_before = false;
            }
            return;
        }
        if self.all_code || window.len() > WINDOW {
            let class = if self.all_code { Class::Code } else { Class::Prose };
            self.at = end;
            self.assemble(&all, &plain(class));
            return;
        }
        let marks = markdown::marks(window, self.at, &all);
        let whole = end == self.text.len() || marks.settled == 0;
        let count = if whole { all.len() } else { marks.settled };
        self.at = all.get(count).map_or(end, |line| line.start);
        self.assemble(&all[..count], &marks.lines[..count]);
        self.fence = marks.open.filter(|_| whole && end < self.text.len());
    }

    /// Puts lines together to blocks.
    fn assemble(&mut self, lines: &[Line<'a>], marks: &[Mark]) {
        let texts: Vec<&str> = lines.iter().map(|line| line.text.trim()).collect();
        let noise = noise::lines(&texts);
        let mut at = 0;
        while at < lines.len() {
            let mark = marks[at];
            if texts[at].is_empty() {
                at += 1;
                continue;
            }
            let mut end = at + 1;
            if mark.class != Class::Code {
                self.code_before = false;
            }
            if let Class::Heading(level) = mark.class {
                while end < lines.len() && marks[end].class == mark.class && !marks[end].begins {
                    end += 1;
                }
                self.heading(level, &lines[at..end]);
            } else if noise[at] {
                while end < lines.len() && noise[end] && marks[end].class == mark.class {
                    end += 1;
                }
                self.push(Kind::Noise, &lines[at..end], mark);
            } else if mark.class == Class::Prose {
                let goes_on = |line: usize| {
                    marks[line].class == Class::Prose
                        && !marks[line].begins
                        && !noise[line]
                        && !texts[line].is_empty()
                        && !texts[line].starts_with("\u{2022} ")
                };
                while end < lines.len() && goes_on(end) {
                    end += 1;
                }
                self.prose(&lines[at..end], &texts[at..end]);
            } else {
                self.push(Kind::Line, &lines[at..end], mark);
            }
            at = end;
        }
    }

    fn push(&mut self, kind: Kind, lines: &[Line<'_>], mark: Mark) {
        let (Some(first), Some(last)) = (lines.first(), lines.last()) else {
            return;
        };
        let code = mark.class == Class::Code;
        self.found.push_back(Block {
            kind,
            span: Span {
                start: first.trimmed().start,
                end: last.trimmed().end,
            },
            code,
            continues: code && self.code_before && !mark.begins,
        });
        self.code_before = code;
    }

    fn heading(&mut self, level: usize, lines: &[Line<'_>]) {
        let first = lines.first().map_or("", |line| line.text);
        let title = match lines.len() {
            1 => atx_words(first),
            _ => first.trim_start_matches('\u{feff}').trim(),
        };
        let kind = match title.is_empty() {
            true => Kind::Line,
            false => Kind::Heading {
                level,
                title: title.to_owned(),
            },
        };
        self.push(kind, lines, Mark::default());
    }

    fn prose(&mut self, lines: &[Line<'_>], texts: &[&str]) {
        if rows::are_rows(texts) {
            for line in lines {
                self.push(Kind::Line, std::slice::from_ref(line), Mark::default());
            }
        } else {
            self.push(Kind::Paragraph, lines, Mark::default());
        }
    }
}

/// The heading path while walking a document's blocks.
#[derive(Clone, Debug, Default)]
pub(super) struct Path {
    /// Level and words, outermost first. Level 0 stands for headings that were given from outside.
    entries: Vec<(usize, String)>,
}

impl Path {
    /// A path that begins with these headings, which later headings do not close, whatever their level: their levels
    /// are not known here. The innermost of equal words is not repeated.
    pub fn from_titles(titles: &[String]) -> Path {
        Path {
            entries: titles
                .iter()
                .enumerate()
                .map(|(depth, title)| (depth + 1, title.clone()))
                .collect(),
        }
    }

    /// Enters a heading: those of its level and below it end.
    pub fn enter(&mut self, level: usize, title: &str) {
        while self.entries.last().is_some_and(|(last, _)| *last >= level) {
            self.entries.pop();
        }
        self.entries.push((level, title.to_owned()));
    }

    /// The words, outermost first.
    pub fn titles(&self) -> Vec<String> {
        self.entries.iter().map(|(_, title)| title.clone()).collect()
    }
}
