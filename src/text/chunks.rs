//! Chunks: whole sentences packed up to a number of tokens.

use super::blocks::{Kind, Path, blocks};
use super::sentences::block_sentences;
use super::{Chunk, Span};

/// Cuts `text` in chunks of whole sentences, at most `chunk_tokens` tokens each (at least 1).
///
/// `tokens` are the byte spans of the text's tokens, ascending; `headings` the path in force at its start. A sentence
/// that alone is longer is split between tokens, where possible at white space. A chunk does not cross a heading; a
/// heading goes with the chunk that follows it. Text without tokens gives no chunks.
pub fn chunks(text: &str, headings: &[String], chunk_tokens: usize, tokens: &[Span]) -> Vec<Chunk> {
    let mut packer = Packer {
        text,
        limit: chunk_tokens.max(1),
        tokens,
        next_token: 0,
        path: Path::from_titles(headings),
        open: None,
        open_is_heading: false,
        found: Vec::new(),
    };
    for block in blocks(text) {
        match &block.kind {
            Kind::Heading { level, title } => {
                if !packer.open_is_heading {
                    packer.close();
                }
                packer.path.enter(*level, title);
                packer.sentence(block.span);
                packer.open_is_heading = packer.open.is_some();
            }
            Kind::Paragraph | Kind::Line => {
                for sentence in block_sentences(text, &block) {
                    packer.sentence(sentence);
                }
            }
        }
    }
    packer.close();
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
    found: Vec<Chunk>,
}

impl Packer<'_> {
    fn close(&mut self) {
        if let Some((span, tokens)) = self.open.take() {
            self.emit(span, tokens);
        }
        self.open_is_heading = false;
    }

    fn emit(&mut self, span: Span, tokens: usize) {
        if tokens > 0 {
            self.found.push(Chunk {
                span,
                tokens: tokens as u32,
                headings: self.path.titles(),
            });
        }
    }

    fn sentence(&mut self, sentence: Span) {
        let first = self.next_token;
        while self
            .tokens
            .get(self.next_token)
            .is_some_and(|token| token.start < sentence.end)
        {
            self.next_token += 1;
        }
        let count = self.next_token - first;
        if count > self.limit {
            self.close();
            self.split(sentence, first..self.next_token);
            return;
        }
        match &mut self.open {
            Some((span, tokens)) if *tokens + count <= self.limit => {
                span.end = sentence.end;
                *tokens += count;
            }
            _ => {
                self.close();
                self.open = Some((sentence, count));
            }
        }
        self.open_is_heading = false;
    }

    /// Splits a sentence of too many tokens; its last piece stays open for what follows.
    fn split(&mut self, sentence: Span, range: std::ops::Range<usize>) {
        let mut start = sentence.start;
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

    /// The token at which the next piece starts: the last one at or before `last` that follows white space, looking
    /// back over a quarter of the limit; else the nearest at which the text can be cut at all.
    fn cut_after(&self, start: u32, first: usize, last: usize, end: usize) -> usize {
        let possible = |token: usize| {
            let border = self.tokens[token].start;
            border > start && self.tokens[token - 1].end <= border && self.text.is_char_boundary(border as usize)
        };
        let after_space = |token: usize| {
            let border = self.tokens[token].start as usize;
            possible(token) && self.text[..border].ends_with(char::is_whitespace)
        };
        let earliest = (last - (self.limit / 4)).max(first + 1);
        (earliest..=last)
            .rev()
            .find(|&token| after_space(token))
            .or_else(|| (first + 1..=last).rev().find(|&token| possible(token)))
            .or_else(|| (last + 1..end).find(|&token| possible(token)))
            .unwrap_or(end)
    }
}
