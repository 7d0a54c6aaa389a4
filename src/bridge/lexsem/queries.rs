//! Queries made from passages: pieces of their text, keywords, whole sentences.
//!
//! Training draws from the first part of each document's words, what is held out from the rest: no word position is in
//! both. A word is what stands between white space; a document is all its passages in the order they are given.

use crate::bridge::train::data::Passage;
use crate::random::Random;
use crate::text::Span;
use std::collections::HashMap;

/// Words with fewer characters are no keywords.
const SHORTEST_KEYWORD: usize = 3;
/// Share of the passages above which a word is no keyword, and passages below which that is not asked.
const COMMON: f64 = 0.1;
const FEW_PASSAGES: usize = 20;
/// Share of the passages up to which a word is rare, and how many they are at least.
const RARE: f64 = 0.01;
const FEWEST_HOLDING: f64 = 2.0;

/// A synthetic query: made from a passage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntheticQuery {
    /// Position of the passage.
    pub passage: u32,
    pub text: String,
}

/// Which part of each passage queries are made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The first words.
    Trained,
    /// The others.
    HeldOut,
}

/// Makes queries from passages.
pub struct QueryMaker<'a> {
    passages: &'a [Passage],
    words: Vec<Vec<Span>>,
    /// Words of each passage that training sees.
    borders: Vec<usize>,
    /// Passages whose trained part holds the word.
    holding: HashMap<String, u32>,
}

/// A word as a keyword: lower case, without what is neither letter nor digit around it.
fn keyword(word: &str) -> Option<String> {
    let word = word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    (word.chars().count() >= SHORTEST_KEYWORD && word.chars().any(char::is_alphabetic)).then_some(word)
}

fn words(text: &str) -> Vec<Span> {
    let start = text.as_ptr() as usize;
    let place = |word: &str| word.as_ptr() as usize - start;
    text.split_whitespace()
        .map(|word| Span {
            start: place(word) as u32,
            end: (place(word) + word.len()) as u32,
        })
        .collect()
}

impl<'a> QueryMaker<'a> {
    /// `held_out` is the share of each document's words that training never sees: the last ones.
    pub fn new(passages: &'a [Passage], held_out: f64) -> QueryMaker<'a> {
        let words: Vec<Vec<Span>> = passages.iter().map(|passage| words(&passage.text)).collect();
        let mut lengths: HashMap<u32, usize> = HashMap::new();
        for (passage, words) in passages.iter().zip(&words) {
            *lengths.entry(passage.document).or_default() += words.len();
        }
        let mut left: HashMap<u32, usize> = lengths
            .into_iter()
            .map(|(document, words)| {
                let seen = words as f64 * (1.0 - held_out.clamp(0.0, 1.0));
                (document, seen.round() as usize)
            })
            .collect();
        let borders = passages.iter().zip(&words).map(|(passage, words)| {
            let left = left.entry(passage.document).or_default();
            let seen = words.len().min(*left);
            *left -= seen;
            seen
        });
        let mut maker = QueryMaker {
            borders: borders.collect(),
            holding: HashMap::new(),
            words,
            passages,
        };
        for passage in 0..passages.len() {
            let mut found = maker.keywords(passage, Part::Trained);
            found.sort_unstable();
            found.dedup();
            for word in found {
                *maker.holding.entry(word).or_default() += 1;
            }
        }
        maker
    }

    /// The words of a passage's part.
    fn part(&self, passage: usize, part: Part) -> &[Span] {
        let words = self.words.get(passage).map_or(&[][..], Vec::as_slice);
        let border = self.borders.get(passage).copied().unwrap_or(0);
        let (trained, held_out) = words.split_at(border.min(words.len()));
        match part {
            Part::Trained => trained,
            Part::HeldOut => held_out,
        }
    }

    fn text(&self, passage: usize) -> &str {
        self.passages.get(passage).map_or("", |passage| passage.text.as_str())
    }

    /// The text of a passage's part.
    pub fn part_text(&self, passage: usize, part: Part) -> &str {
        self.between(passage, self.part(passage, part))
    }

    fn between(&self, passage: usize, words: &[Span]) -> &str {
        match (words.first(), words.last()) {
            (Some(first), Some(last)) => self
                .text(passage)
                .get(first.start as usize..last.end as usize)
                .unwrap_or_default(),
            _ => "",
        }
    }

    fn query(passage: usize, text: String) -> Option<SyntheticQuery> {
        let passage = u32::try_from(passage).ok()?;
        (!text.is_empty()).then_some(SyntheticQuery { passage, text })
    }

    /// `length` words from any place of the part, or `None` where it has fewer.
    pub fn span(&self, passage: usize, part: Part, length: usize, random: &mut Random) -> Option<SyntheticQuery> {
        let words = self.part(passage, part);
        let room = words.len().checked_sub(length).filter(|_| length > 0)?;
        let start = random.below(room + 1);
        let text = self.between(passage, words.get(start..start + length)?);
        QueryMaker::query(passage, text.to_owned())
    }

    fn keywords(&self, passage: usize, part: Part) -> Vec<String> {
        let text = self.text(passage);
        let words = self.part(passage, part).iter();
        words.filter_map(|span| keyword(span.of(text)?)).collect()
    }

    /// `count` keywords of the part in any order: those of the highest tf-idf, or (`random_terms`) drawn with tf-idf as
    /// their chance. `None` where the part has fewer.
    pub fn keyword_query(
        &self,
        passage: usize,
        part: Part,
        count: usize,
        random_terms: bool,
        random: &mut Random,
    ) -> Option<SyntheticQuery> {
        let mut counts: HashMap<String, u32> = HashMap::new();
        for word in self.keywords(passage, part) {
            *counts.entry(word).or_default() += 1;
        }
        let passages = self.passages.len();
        let mut terms: Vec<(f64, String)> = counts
            .into_iter()
            .filter_map(|(word, count)| {
                let holding = f64::from(self.holding.get(&word).copied().unwrap_or(0));
                let common = passages >= FEW_PASSAGES && holding > COMMON * passages as f64;
                let score = (1.0 + f64::from(count).ln()) * ((passages as f64 + 1.0) / (holding + 1.0)).ln();
                (!common).then_some((score.max(1e-3), word))
            })
            .collect();
        // In a fixed order first: a hash map has none.
        terms.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        if random_terms {
            // Draws without putting back, each by its weight (Efraimidis and Spirakis 2006).
            for (score, _) in &mut terms {
                *score = random.unit().max(1e-12).ln() / *score;
            }
            terms.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        }
        terms.truncate(count);
        if terms.len() < count || count == 0 {
            return None;
        }
        random.shuffle(&mut terms);
        let words: Vec<String> = terms.into_iter().map(|(_, word)| word).collect();
        QueryMaker::query(passage, words.join(" "))
    }

    /// A whole sentence of the part, of at least `fewest` words.
    pub fn sentence(&self, passage: usize, part: Part, fewest: usize, random: &mut Random) -> Option<SyntheticQuery> {
        let text = self.text(passage);
        let ends = |span: &Span| span.of(text).is_some_and(|word| word.ends_with(['.', '!', '?', '。']));
        let words = self.part(passage, part);
        let mut sentences = Vec::new();
        let mut start = match part {
            Part::Trained => Some(0),
            // What the part begins with may be the end of a sentence.
            Part::HeldOut => None,
        };
        for (place, word) in words.iter().enumerate() {
            if ends(word) {
                if let Some(start) = start.filter(|start| place + 1 - start >= fewest) {
                    sentences.push(start..place + 1);
                }
                start = Some(place + 1);
            }
        }
        let chosen = sentences.get(random.below(sentences.len()))?;
        let text = self.between(passage, words.get(chosen.clone())?);
        QueryMaker::query(passage, text.to_owned())
    }

    /// A sentence of the part without its rare words, those of few passages: what is left is what a person would say
    /// who does not know the text's own words. Of at least `fewest` words, one of them a keyword.
    pub fn common_sentence(
        &self,
        passage: usize,
        part: Part,
        fewest: usize,
        random: &mut Random,
    ) -> Option<SyntheticQuery> {
        let sentence = self.sentence(passage, part, fewest, random)?;
        let few = (RARE * self.passages.len() as f64).max(FEWEST_HOLDING);
        let holding = |word: &str| f64::from(self.holding.get(word).copied().unwrap_or(0));
        let mut keywords = 0;
        let left = sentence.text.split_whitespace().filter(|word| match keyword(word) {
            None => true,
            Some(word) => {
                let common = holding(&word) > few;
                keywords += usize::from(common);
                common
            }
        });
        let left: Vec<&str> = left.collect();
        let enough = left.len() >= fewest && keywords > 0;
        QueryMaker::query(passage, left.join(" ")).filter(|_| enough)
    }

    /// Queries for training: of each passage `spans` pieces of 5 to 48 words, shorter ones more often, and `keywords`
    /// sets of 2 to 6 keywords.
    pub fn training(&self, spans: usize, keywords: usize, random: &mut Random) -> Vec<SyntheticQuery> {
        let mut made = Vec::new();
        for passage in 0..self.passages.len() {
            let room = self.part(passage, Part::Trained).len();
            for _ in 0..spans {
                let length = (5.0f64.ln() + random.unit() * (48.0f64 / 5.0).ln()).exp() as usize;
                made.extend(self.span(passage, Part::Trained, length.min(room), random));
            }
            for number in 0..keywords {
                let count = [2, 3, 4, 4, 5, 6][random.below(6)];
                made.extend(self.keyword_query(passage, Part::Trained, count, number > 0, random));
            }
        }
        made
    }
}
