//! What Markdown makes of the lines of a text. Inline marks are left alone: passages are what the author wrote.
//!
//! Texts that are no Markdown come here as well. So an underline makes a heading of one line alone, and dashes only
//! where there are three (an e-mail's signature begins with two); headings inside quotes and list items are not the
//! document's own.

use super::lines::Line;
use pulldown_cmark::{CodeBlockKind, Event, HeadingLevel, Options, Parser, Tag};
use std::borrow::Cow;
use std::ops::Range;

/// What a line belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Class {
    #[default]
    Prose,
    /// Code, its fences included.
    Code,
    /// A row of a table, a rule, a line of front matter: it stands for itself.
    Row,
    /// A heading of the document with its underline, of this level (from 1).
    Heading(usize),
}

/// A line's class, and whether something begins with it (a paragraph, a list item, a block of code).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark {
    pub class: Class,
    pub begins: bool,
}

/// A fence of code that has not been closed: its character and how many of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fence {
    character: u8,
    count: usize,
}

impl Fence {
    /// The fence that a line opens, behind the marks of quotes and list items.
    fn opened_by(line: &str) -> Option<Fence> {
        let at = line.bytes().position(|byte| matches!(byte, b'`' | b'~'))?;
        let character = line.as_bytes()[at];
        let count = line.bytes().skip(at).take_while(|byte| *byte == character).count();
        (count >= 3).then_some(Fence { character, count })
    }

    /// Whether a line closes it. Marks of quotes before it are passed over.
    pub fn closed_by(self, line: &str) -> bool {
        let line = line.trim_start_matches([' ', '\t', '>']).trim_end();
        line.len() >= self.count && line.bytes().all(|byte| byte == self.character)
    }
}

/// What was found in a part of a text.
pub(super) struct Marks {
    /// One a line.
    pub lines: Vec<Mark>,
    /// Lines before the last block that no other block holds: what stands before it does not depend on what follows.
    pub settled: usize,
    /// The fence that is open at the end.
    pub open: Option<Fence>,
}

/// A copy in which every line ends as the parser expects, of the same length.
fn with_line_feeds(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let lone = |at: usize| bytes[at] == b'\r' && bytes.get(at + 1) != Some(&b'\n');
    if !(0..bytes.len()).any(lone) {
        return Cow::Borrowed(text);
    }
    let mut copy = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        copy.push(if c == '\r' && characters.peek() != Some(&'\n') {
            '\n'
        } else {
            c
        });
    }
    Cow::Owned(copy)
}

/// The marks of `lines`, which are those of `text` (their starts count from `base`).
pub(super) fn marks(text: &str, base: usize, lines: &[Line<'_>]) -> Marks {
    let mark = if text.starts_with('\u{feff}') {
        '\u{feff}'.len_utf8()
    } else {
        0
    };
    let source = with_line_feeds(&text[mark..]);
    let options = Options::ENABLE_TABLES | Options::ENABLE_YAML_STYLE_METADATA_BLOCKS;
    let mut marker = Marker {
        lines,
        base: base + mark,
        marks: vec![Mark::default(); lines.len()],
        containers: 0,
        fence: None,
    };
    let mut depth = 0usize;
    let mut settled = 0;
    for (event, range) in Parser::new_ext(&source, options).into_offset_iter() {
        if depth == 0 && !matches!(event, Event::End(_)) {
            settled = marker.line_at(range.start);
        }
        match event {
            Event::Start(tag) => {
                depth += 1;
                marker.start(&tag, range);
            }
            Event::End(tag) => {
                depth = depth.saturating_sub(1);
                if is_container(&tag) {
                    marker.containers = marker.containers.saturating_sub(1);
                }
            }
            Event::Rule => marker.set(range, Class::Row),
            _ => {}
        }
    }
    let last = lines.iter().rposition(|line| !line.is_blank());
    let open = marker
        .fence
        .filter(|(_, line)| last.is_some_and(|last| last <= *line))
        .map(|(fence, _)| fence);
    Marks {
        lines: marker.marks,
        settled,
        open,
    }
}

fn is_container(end: &pulldown_cmark::TagEnd) -> bool {
    use pulldown_cmark::TagEnd;
    matches!(end, TagEnd::BlockQuote(_) | TagEnd::List(_) | TagEnd::Item)
}

struct Marker<'a> {
    lines: &'a [Line<'a>],
    /// What ranges of the source count from.
    base: usize,
    marks: Vec<Mark>,
    /// Quotes, lists and items that are open.
    containers: usize,
    /// The last block of fenced code that nothing closed, and its last line.
    fence: Option<(Fence, usize)>,
}

impl Marker<'_> {
    /// The line that holds a byte of the source.
    fn line_at(&self, at: usize) -> usize {
        let at = self.base + at;
        self.lines.partition_point(|line| line.start <= at).saturating_sub(1)
    }

    /// The lines that a range of the source touches.
    fn lines_of(&self, range: &Range<usize>) -> Range<usize> {
        let first = self.line_at(range.start);
        let end = self.base + range.end;
        first
            ..self
                .lines
                .partition_point(|line| line.start < end)
                .max(first + 1)
                .min(self.lines.len())
    }

    fn begin(&mut self, at: usize) {
        let line = self.line_at(at);
        if let Some(mark) = self.marks.get_mut(line) {
            mark.begins = true;
        }
    }

    fn set(&mut self, range: Range<usize>, class: Class) {
        let lines = self.lines_of(&range);
        if let Some(marks) = self.marks.get_mut(lines) {
            marks.iter_mut().for_each(|mark| mark.class = class);
        }
        self.begin(range.start);
    }

    fn start(&mut self, tag: &Tag<'_>, range: Range<usize>) {
        match tag {
            Tag::BlockQuote(_) | Tag::List(_) | Tag::Item => {
                self.containers += 1;
                self.begin(range.start);
            }
            Tag::Paragraph => self.begin(range.start),
            Tag::Heading { level, .. } => self.heading(*level, range),
            Tag::CodeBlock(kind) => self.code(kind, range),
            Tag::Table(_) | Tag::MetadataBlock(_) => self.set(range, Class::Row),
            Tag::HtmlBlock => self.html(range),
            _ => {}
        }
    }

    fn heading(&mut self, level: HeadingLevel, range: Range<usize>) {
        let lines = self.lines_of(&range);
        let of = |number: usize| self.lines.get(number).map_or("", |line| line.text);
        let hashes = of(lines.start).trim_start_matches(['\u{feff}', ' ']).starts_with('#');
        let underline = of(lines.end - 1).trim();
        let underlined = lines.len() == 2 && (underline.starts_with('=') || underline.len() >= 3);
        if self.containers == 0 && (hashes || underlined) {
            self.set(range, Class::Heading(level as usize));
        } else {
            self.begin(range.start);
        }
    }

    fn code(&mut self, kind: &CodeBlockKind<'_>, range: Range<usize>) {
        let lines = self.lines_of(&range);
        if let (CodeBlockKind::Fenced(_), Some(first), Some(rest)) = (
            kind,
            self.lines.get(lines.start),
            self.lines.get(lines.start + 1..lines.end),
        ) {
            let fence = Fence::opened_by(first.text);
            let closed = |fence: &Fence| rest.iter().any(|line| fence.closed_by(line.text));
            self.fence = fence.filter(|fence| !closed(fence)).map(|fence| (fence, lines.end - 1));
        }
        self.set(range, Class::Code);
    }

    /// Blocks of HTML are prose between tags, but for those whose content is kept as it is written.
    fn html(&mut self, range: Range<usize>) {
        let first = self.lines.get(self.line_at(range.start)).map_or("", |line| line.text);
        let first = first.trim_start_matches(['\u{feff}', ' ', '>']).as_bytes();
        let begins = |name: &&str| {
            let tag = first.get(..name.len());
            tag.is_some_and(|tag| tag.eq_ignore_ascii_case(name.as_bytes()))
        };
        if ["<script", "<style", "<pre", "<textarea"].iter().any(begins) {
            self.set(range, Class::Code);
        } else {
            self.begin(range.start);
        }
    }
}
