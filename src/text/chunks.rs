//! Chunks: whole sentences packed up to a number of tokens.

use super::blocks::{Kind, Path, blocks};
use super::sentences::block_sentences;
use super::{Chunk, Place, Span, noise};
use std::ops::Range;
use unicode_segmentation::GraphemeCursor;

/// Cuts `text` in chunks of whole sentences, at most `chunk_tokens` tokens each (at least 1).
///
/// `tokens` are the byte spans of the text's tokens, ascending; `place` says what stands before the text. A sentence
/// that alone is longer is split between tokens, where possible at the end of a line, at white space or at least
/// between graphemes. A chunk does not cross a heading; a heading goes with the chunk that follows it. A run of noise
/// (see `noise.rs`) that would fill more than one chunk is one chunk, whatever its length. Text without tokens gives no
/// chunks.
pub fn chunks(text: &str, place: &Place, chunk_tokens: usize, tokens: &[Span]) -> Vec<Chunk> {
    let mut packer = Packer {
        text,
        limit: chunk_tokens.max(1),
        tokens,
        next_token: 0,
        path: Path::from_titles(&place.headings),
        open: None,
        open_is_heading: false,
        without_tokens: None,
        found: Vec::new(),
    };
    for block in blocks(text, place.code) {
        match &block.kind {
            Kind::Heading { level, title } => {
                if !packer.open_is_heading {
                    packer.close();
                }
                packer.path.enter(*level, title);
                packer.sentence(block.span);
                packer.open_is_heading = packer.open.is_some();
            }
            Kind::Noise => packer.noise(block.span),
            Kind::Paragraph | Kind::Line => {
                for sentence in block_sentences(text, &block) {
                    packer.sentence(sentence);
                }
            }
        }
    }
    packer.close();
    if let (Some(rest), Some(last)) = (packer.without_tokens, packer.found.last_mut()) {
        last.encoded_end = if last.encoded_end == last.span.end {
            rest.end
        } else {
            last.encoded_end
        };
        last.span.end = rest.end;
    }
    packer.found
}

struct Packer<'a> {
    text: &'a str,
    limit: usize,
    tokens: &'a [Span],
    /// First token that no sentence has taken yet.
    next_token: usize,
    path: Path,
    /// The chunk that is being filled: span and tokens.
    open: Option<(Span, usize)>,
    /// Whether it holds headings alone so far.
    open_is_heading: bool,
    /// Text that has no tokens, before what comes next: it goes with that.
    without_tokens: Option<Span>,
    found: Vec<Chunk>,
}

impl Packer<'_> {
    fn close(&mut self) {
        match self.open.take() {
            Some((span, 0)) => self.without_tokens = Some(span),
            Some((span, tokens)) => self.emit(span, tokens),
            None => {}
        }
        self.open_is_heading = false;
    }

    fn emit(&mut self, span: Span, tokens: usize) {
        self.found.push(Chunk {
            span,
            tokens: tokens as u32,
            encoded_end: span.end,
            headings: self.path.titles(),
        });
    }

    /// The span together with the text without tokens before it.
    fn with_rest(&mut self, span: Span) -> Span {
        Span {
            start: self.without_tokens.take().map_or(span.start, |rest| rest.start),
            end: span.end,
        }
    }

    /// Takes the tokens that begin before `end`.
    fn take(&mut self, end: u32) -> Range<usize> {
        let first = self.next_token;
        let rest = self.tokens.get(first..).unwrap_or_default();
        self.next_token += rest.iter().take_while(|token| token.start < end).count();
        first..self.next_token
    }

    fn sentence(&mut self, sentence: Span) {
        let range = self.take(sentence.end);
        if range.len() <= self.limit {
            self.add(sentence, range.len());
            return;
        }
        let words = sentence.of(self.text).map(noise::long_words).unwrap_or_default();
        if words.is_empty() {
            self.close();
            self.split(sentence, range);
            return;
        }
        self.next_token = range.start;
        let mut start = sentence.start;
        for word in words {
            let (from, to) = (sentence.start + word.start as u32, sentence.start + word.end as u32);
            self.part(start, from);
            self.noise(Span { start: from, end: to });
            start = to;
        }
        self.part(start, sentence.end);
    }

    /// What stands beside a run of noise in its sentence.
    fn part(&mut self, start: u32, end: u32) {
        let span = Span { start, end };
        let text = span.of(self.text).unwrap_or_default();
        let words = text.trim();
        if words.is_empty() {
            return;
        }
        let start = start + (text.len() - text.trim_start().len()) as u32;
        let span = Span {
            start,
            end: start + words.len() as u32,
        };
        let range = self.take(span.end);
        if range.len() <= self.limit {
            self.add(span, range.len());
        } else {
            self.close();
            self.split(span, range);
        }
    }

    /// A run of noise: text like any other where it fits a chunk.
    fn noise(&mut self, span: Span) {
        let range = self.take(span.end);
        if range.len() <= self.limit {
            self.add(span, range.len());
            return;
        }
        self.close();
        let span = self.with_rest(span);
        let border = self.tokens.get(range.start + self.limit).map(|token| token.start);
        let border = border.filter(|&border| border > span.start && self.text.is_char_boundary(border as usize));
        self.emit(span, range.len());
        if let (Some(chunk), Some(border)) = (self.found.last_mut(), border) {
            chunk.encoded_end = border.min(span.end);
        }
    }

    /// Adds a sentence of at most `limit` tokens.
    fn add(&mut self, sentence: Span, count: usize) {
        match &mut self.open {
            Some((span, tokens)) if *tokens + count <= self.limit => {
                span.end = sentence.end;
                *tokens += count;
            }
            _ => {
                self.close();
                let span = self.with_rest(sentence);
                self.open = Some((span, count));
            }
        }
        self.open_is_heading = false;
    }

    /// Splits a sentence of too many tokens; its last piece stays open for what follows.
    fn split(&mut self, sentence: Span, range: Range<usize>) {
        let mut start = self.with_rest(sentence).start;
        let mut first = range.start;
        while range.end - first > self.limit {
            let cut = self.cut_after(start, first, first + self.limit, range.end);
            if cut >= range.end {
                break;
            }
            let border = self.tokens[cut].start;
            let piece = self.text.get(start as usize..border as usize).unwrap_or_default();
            let end = start + piece.trim_end().len() as u32;
            self.emit(Span { start, end }, cut - first);
            start = border;
            first = cut;
        }
        self.open = Some((
            Span {
                start,
                end: sentence.end,
            },
            range.end - first,
        ));
    }

    /// The token at which the next piece starts: the last one at or before `last` that begins a line, looking back over
    /// half of the limit; else the last that follows white space, looking back over a quarter; else the nearest that
    /// begins a grapheme, and where none does, a character.
    fn cut_after(&self, start: u32, first: usize, last: usize, end: usize) -> usize {
        let border = |token: usize| self.tokens[token].start as usize;
        let possible = |token: usize| {
            border(token) > start as usize
                && self.tokens[token - 1].end as usize <= border(token)
                && self.text.is_char_boundary(border(token))
        };
        // The white space before a token.
        let gap = |token: usize| {
            let before = &self.text[start as usize..border(token)];
            &before[before.trim_end().len()..]
        };
        let graphemes = &self.text[start as usize..];
        let whole = |token: usize| {
            let mut cursor = GraphemeCursor::new(border(token) - start as usize, graphemes.len(), true);
            cursor.is_boundary(graphemes, 0).unwrap_or(false)
        };
        let back = |part: usize| (last - (self.limit / part)).max(first + 1)..=last;
        back(2)
            .rev()
            .find(|&token| possible(token) && gap(token).contains(['\n', '\r']))
            .or_else(|| back(4).rev().find(|&token| possible(token) && !gap(token).is_empty()))
            .or_else(|| (first + 1..=last).rev().find(|&token| possible(token) && whole(token)))
            .or_else(|| (first + 1..=last).rev().find(|&token| possible(token)))
            .or_else(|| (last + 1..end).find(|&token| possible(token)))
            .unwrap_or(end)
    }
}
