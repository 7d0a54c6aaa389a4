//! Segments: a document of any length in pieces that fit a request.

use super::blocks::{Kind, Path, blocks};
use super::sentences::block_sentences;
use super::{Segment, Span};

/// Cuts a document in segments of at most `max_bytes` bytes (at least 4): before a heading where the segment is at
/// least half full, else between blocks, sentences, words, and last between characters. A body that fits is one
/// segment; one of white space alone gives none.
pub fn segments(body: &str, max_bytes: usize) -> Vec<Segment> {
    let max = max_bytes.max(4);
    if body.trim().is_empty() {
        return Vec::new();
    }
    if body.len() <= max {
        return vec![Segment {
            span: Span {
                start: 0,
                end: body.len() as u32,
            },
            headings: Vec::new(),
        }];
    }
    let mut path = Path::default();
    let mut cutter = Cutter {
        body,
        max,
        start: 0,
        headings: Vec::new(),
        before_heading: None,
        found: Vec::new(),
    };
    for block in blocks(body) {
        let (from, to) = (block.span.start as usize, block.span.end as usize);
        if to - cutter.start > max {
            cutter.make_room(from, to, &path);
        }
        if let Kind::Heading { level, title } = &block.kind {
            if from > cutter.start && from - cutter.start >= max / 2 {
                cutter.before_heading = Some((from, path.titles()));
            }
            path.enter(*level, title);
        }
        if to - cutter.start > max {
            for sentence in block_sentences(body, &block) {
                cutter.sentence(sentence, &path);
            }
        }
    }
    cutter.cut(body.len(), Vec::new());
    cutter.found
}

struct Cutter<'a> {
    body: &'a str,
    max: usize,
    /// Where the open segment starts, and the path there.
    start: usize,
    headings: Vec<String>,
    /// The last heading past the open segment's half: a good place to cut, with the path there.
    before_heading: Option<(usize, Vec<String>)>,
    found: Vec<Segment>,
}

impl Cutter<'_> {
    /// Closes the open segment at `end`, without the white space around it; the next one starts there.
    fn cut(&mut self, end: usize, headings: Vec<String>) {
        let piece = &self.body[self.start..end];
        let words = piece.trim();
        if !words.is_empty() {
            let from = self.start + (piece.len() - piece.trim_start().len());
            let span = Span {
                start: from as u32,
                end: (from + words.len()) as u32,
            };
            self.found.push(Segment {
                span,
                headings: std::mem::take(&mut self.headings),
            });
        }
        self.start = end;
        self.headings = headings;
        self.before_heading = None;
    }

    /// Cuts before a block that does not fit any more.
    fn make_room(&mut self, from: usize, to: usize, path: &Path) {
        if let Some((at, headings)) = self.before_heading.take() {
            self.cut(at, headings);
        }
        if to - self.start > self.max {
            self.cut(from, path.titles());
        }
    }

    /// Cuts inside a block that alone is too long.
    fn sentence(&mut self, sentence: Span, path: &Path) {
        let (from, to) = (sentence.start as usize, sentence.end as usize);
        if to - self.start <= self.max {
            return;
        }
        self.cut(from, path.titles());
        while to - self.start > self.max {
            let mut end = self.start + self.max;
            while !self.body.is_char_boundary(end) {
                end -= 1;
            }
            let window = &self.body[self.start..end];
            let at = match window.rfind(char::is_whitespace) {
                Some(space) if space > 0 => self.start + space,
                _ => end,
            };
            self.cut(at, path.titles());
        }
    }
}
