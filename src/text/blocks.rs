//! Lines and blocks: headings (Markdown's `# ..` and underlined ones), code, and paragraphs between blank lines.

use super::Span;

/// What a block is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A heading of level 1 (outermost) to 6 with its words.
    Heading { level: usize, title: String },
    /// Lines of prose that belong together.
    Paragraph,
    /// One line that stands for itself: code, a list item's first line continues as a paragraph.
    Line,
}

/// A run of lines. Blocks come in order, do not overlap and hold every byte that is not white space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub kind: Kind,
    /// Trimmed at both ends.
    pub span: Span,
}

/// A line without its line end.
struct Line<'a> {
    start: usize,
    text: &'a str,
}

fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    let mut start = 0;
    text.split_inclusive('\n').map(move |line| {
        let begin = start;
        start += line.len();
        Line {
            start: begin,
            text: line.trim_end_matches(['\n', '\r']),
        }
    })
}

/// The level and words of an ATX heading.
fn atx_heading(line: &str) -> Option<(usize, &str)> {
    let unindented = line.trim_start_matches(' ');
    if line.len() - unindented.len() > 3 {
        return None;
    }
    let words = unindented.trim_start_matches('#');
    let level = unindented.len() - words.len();
    if !(1..=6).contains(&level) || !words.starts_with([' ', '\t']) {
        return None;
    }
    let words = words.trim();
    let words = match words.trim_end_matches('#') {
        closed if closed.ends_with([' ', '\t']) => closed.trim_end(),
        _ => words,
    };
    (!words.is_empty()).then_some((level, words))
}

/// The level of the heading that this underline makes of the line before it.
fn underline(line: &str) -> Option<usize> {
    let line = line.trim_end();
    if line.len() < 3 {
        return None;
    }
    if line.bytes().all(|byte| byte == b'=') {
        Some(1)
    } else if line.bytes().all(|byte| byte == b'-') {
        Some(2)
    } else {
        None
    }
}

fn is_fence(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("```") || line.starts_with("~~~")
}

fn is_code(line: &str) -> bool {
    line.starts_with("    ") || line.starts_with('\t')
}

fn starts_item(line: &str) -> bool {
    let line = line.trim_start();
    if let Some(rest) = line.strip_prefix(['-', '*', '+', '\u{2022}']) {
        return rest.starts_with([' ', '\t']);
    }
    let rest = line.trim_start_matches(|c: char| c.is_ascii_digit());
    let digits = line.len() - rest.len();
    (1..=3).contains(&digits) && (rest.starts_with(". ") || rest.starts_with(") "))
}

fn trimmed(line: &Line) -> Span {
    let front = line.text.len() - line.text.trim_start().len();
    Span {
        start: (line.start + front) as u32,
        end: (line.start + front + line.text.trim().len()) as u32,
    }
}

/// The blocks of a text.
pub(super) fn blocks(text: &str) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    // Whether the last block may take a further line in, and how many lines it has.
    let mut open = false;
    let mut open_lines = 0;
    let mut fenced = false;
    for line in lines(text) {
        if line.text.trim().is_empty() {
            open = false;
            continue;
        }
        let span = trimmed(&line);
        if is_fence(line.text) {
            fenced = !fenced;
            open = false;
            found.push(Block { kind: Kind::Line, span });
            continue;
        }
        if fenced || (is_code(line.text) && !open) {
            open = false;
            found.push(Block { kind: Kind::Line, span });
            continue;
        }
        if let Some((level, words)) = atx_heading(line.text) {
            open = false;
            found.push(Block {
                kind: Kind::Heading {
                    level,
                    title: words.to_owned(),
                },
                span,
            });
            continue;
        }
        if let (Some(level), true, 1) = (underline(line.text), open, open_lines)
            && let Some(last) = found.last_mut()
        {
            let title = last.span.of(text).unwrap_or_default().to_owned();
            *last = Block {
                kind: Kind::Heading { level, title },
                span: Span {
                    start: last.span.start,
                    end: span.end,
                },
            };
            open = false;
            continue;
        }
        match found.last_mut() {
            Some(last) if open && !starts_item(line.text) => {
                last.span.end = span.end;
                open_lines += 1;
            }
            _ => {
                found.push(Block {
                    kind: Kind::Paragraph,
                    span,
                });
                open = true;
                open_lines = 1;
            }
        }
    }
    found
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
