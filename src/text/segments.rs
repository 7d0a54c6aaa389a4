//! Segments: a document of any length in pieces that fit a request.

use super::blocks::{Block, Kind, Path, blocks};
use super::sentences::block_sentences;
use super::{Place, Segment, Span};
use unicode_segmentation::GraphemeCursor;

/// Cuts a document in segments of at most `max_bytes` bytes (at least 4): before a heading where the segment is at
/// least half full, else between blocks, sentences, words, and last between graphemes. A segment that begins inside
/// code ends with it. A body that fits is one segment; one of white space alone gives none.
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
            place: Place::default(),
        }];
    }
    let mut path = Path::default();
    let mut cutter = Cutter {
        body,
        max,
        start: 0,
        place: Place::default(),
        before_heading: None,
        found: Vec::new(),
    };
    for block in blocks(body, false) {
        let (from, to) = (block.span.start as usize, block.span.end as usize);
        if cutter.place.code && !block.continues {
            cutter.cut(from, place(&path, false));
        }
        if to - cutter.start > max {
            cutter.make_room(&block, &path);
        }
        if let Kind::Heading { level, title } = &block.kind {
            if from > cutter.start && from - cutter.start >= max / 2 {
                cutter.before_heading = Some((from, path.titles()));
            }
            path.enter(*level, title);
        }
        if to - cutter.start > max {
            for sentence in block_sentences(body, &block) {
                cutter.sentence(sentence, &block, &path);
            }
        }
    }
    cutter.cut(body.len(), Place::default());
    cutter.found
}

fn place(path: &Path, code: bool) -> Place {
    Place {
        headings: path.titles(),
        code,
    }
}

struct Cutter<'a> {
    body: &'a str,
    max: usize,
    /// Where the open segment starts, and its place.
    start: usize,
    place: Place,
    /// The last heading past the open segment's half: a good place to cut, with the path there.
    before_heading: Option<(usize, Vec<String>)>,
    found: Vec<Segment>,
}

impl Cutter<'_> {
    /// Closes the open segment at `end`, without the white space around it; the next one starts there.
    fn cut(&mut self, end: usize, next: Place) {
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
                place: std::mem::take(&mut self.place),
            });
        }
        self.start = end;
        self.place = next;
        self.before_heading = None;
    }

    /// Cuts before a block that does not fit any more.
    fn make_room(&mut self, block: &Block, path: &Path) {
        if let Some((at, headings)) = self.before_heading.take() {
            self.cut(at, Place { headings, code: false });
        }
        if block.span.end as usize - self.start > self.max {
            self.cut(block.span.start as usize, place(path, block.continues));
        }
    }

    /// Cuts inside a block that alone is too long.
    fn sentence(&mut self, sentence: Span, block: &Block, path: &Path) {
        let (from, to) = (sentence.start as usize, sentence.end as usize);
        if to - self.start <= self.max {
            return;
        }
        let code = block.code && (block.continues || sentence.start > block.span.start);
        self.cut(from, place(path, code));
        while to - self.start > self.max {
            let end = self.start + border_before(&self.body[self.start..to], self.max);
            let window = &self.body[self.start..end];
            let at = match window.rfind(char::is_whitespace) {
                Some(space) if space > 0 => self.start + space,
                _ => end,
            };
            self.cut(at, place(path, block.code));
        }
    }
}

/// The last border of graphemes in `text` that is not behind `most` bytes; where the first grapheme is longer than that,
/// the last border of characters.
fn border_before(text: &str, most: usize) -> usize {
    let end = text.floor_char_boundary(most);
    let mut cursor = GraphemeCursor::new(end, text.len(), true);
    let border = match cursor.is_boundary(text, 0) {
        Ok(true) => Some(end),
        Ok(false) => cursor.prev_boundary(text, 0).ok().flatten(),
        Err(_) => None,
    };
    border.filter(|border| *border > 0).unwrap_or(end)
}
