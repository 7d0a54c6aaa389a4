//! What is done to passages and pairs between reading and training: long passages cut in chunks, those of an index
//! beside those of a relation, and one passage for each pair.

use super::data::{Encode, Pair, Passage};
use crate::bridge::BridgeError;
use crate::model::Role;
use std::collections::{HashMap, HashSet};

/// A piece of a passage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub ordinal: u32,
    pub text: String,
}

/// Passages that are longer than the model reads, cut in the chunks that `cut` makes of a text of more than `room`
/// bytes; they keep their key. In an index, too, a long text is found at one of its chunks. A passage that comes with
/// its vector is that vector, and is not cut. Ordinals are counted anew.
pub fn cut_long(passages: Vec<Passage>, room: usize, mut cut: impl FnMut(&str) -> Vec<Piece>) -> Vec<Passage> {
    let mut found: Vec<Passage> = Vec::with_capacity(passages.len());
    for passage in passages {
        let ordinal = match found.last() {
            Some(last) if last.document == passage.document => last.ordinal + 1,
            _ => 0,
        };
        let pieces = match passage.text.len() <= room || passage.vector.is_some() {
            true => Vec::new(),
            false => cut(&passage.text),
        };
        if pieces.len() < 2 {
            found.push(Passage { ordinal, ..passage });
            continue;
        }
        found.extend(pieces.into_iter().map(|piece| Passage {
            ordinal: ordinal + piece.ordinal,
            text: piece.text,
            ..passage.clone()
        }));
    }
    found
}

/// The chunks of those rows of an index that are not passages as well: a passage's own text must not stand against it.
/// A row is one where its first chunk begins the passage.
pub fn unknown(searched: Vec<Passage>, passages: &[Passage]) -> Vec<Passage> {
    let mut texts: Vec<&str> = passages.iter().map(|passage| passage.text.trim_start()).collect();
    texts.sort_unstable();
    let begins_one = |chunk: &str| {
        let at = texts.partition_point(|text| *text < chunk);
        texts.get(at).is_some_and(|text| text.starts_with(chunk))
    };
    let known: HashSet<u32> = searched
        .iter()
        .filter(|chunk| chunk.ordinal == 0 && begins_one(chunk.text.trim_start()))
        .map(|chunk| chunk.document)
        .collect();
    searched
        .into_iter()
        .filter(|chunk| !known.contains(&chunk.document))
        .collect()
}

/// Adds the passages of the index that will be searched, which no pair speaks of.
pub fn beside(mut passages: Vec<Passage>, searched: Vec<Passage>) -> Vec<Passage> {
    let first = passages.iter().map(|passage| passage.document + 1).max().unwrap_or(0);
    passages.extend(searched.into_iter().map(|passage| Passage {
        // No text of the server holds a zero byte, so no pair names it.
        key: format!("\0{}", passage.key),
        document: first + passage.document,
        ..passage
    }));
    passages
}

/// A key that two passages have, so that a pair would not say which is meant.
pub fn key_twice(passages: &[Passage]) -> Option<&str> {
    let mut known = HashSet::new();
    let twice = passages.iter().find(|passage| !known.insert(&passage.key))?;
    Some(&twice.key)
}

/// A pair as it was read: the query, and the passages of the row that it names, which may have been cut.
#[derive(Debug)]
pub struct Named {
    pub query: String,
    pub passages: Vec<u32>,
    pub answer: Option<String>,
}

/// One passage a pair: of several the one nearest to the query, the first of equals.
///
/// # Errors
/// What `encode` fails with.
pub fn nearest(named: Vec<Named>, passages: &[Passage], encode: &mut dyn Encode) -> Result<Vec<Pair>, BridgeError> {
    let open = || named.iter().filter(|pair| pair.passages.len() > 1);
    let among: HashSet<u32> = open().flat_map(|pair| pair.passages.iter().copied()).collect();
    let vectors = vectors_of(among, passages, encode)?;
    let texts: Vec<&str> = open().map(|pair| pair.query.as_str()).collect();
    let queries = encode.embed(Role::Query, &texts)?;
    let mut queries = queries.values.chunks_exact(queries.dimensions.max(1));
    let mut pairs = Vec::with_capacity(named.len());
    for pair in &named {
        let passage = match pair.passages[..] {
            [only] => Some(only),
            _ => queries
                .next()
                .and_then(|query| nearest_of(&pair.passages, query, &vectors)),
        };
        pairs.extend(passage.map(|passage| Pair {
            query: pair.query.clone(),
            passage,
            answer: pair.answer.clone(),
        }));
    }
    Ok(pairs)
}

/// The vectors of passages: those that they came with, and the encoder's.
fn vectors_of(
    among: HashSet<u32>,
    passages: &[Passage],
    encode: &mut dyn Encode,
) -> Result<HashMap<u32, Vec<f32>>, BridgeError> {
    let mut among: Vec<u32> = among.into_iter().collect();
    among.sort_unstable();
    let without = among.iter().filter(|place| passages[**place as usize].vector.is_none());
    let texts: Vec<&str> = without.map(|place| passages[*place as usize].text.as_str()).collect();
    let encoded = encode.embed(Role::Passage, &texts)?;
    let mut encoded = encoded.values.chunks_exact(encoded.dimensions.max(1));
    let vector = |place: u32| {
        let own = passages[place as usize].vector.as_deref();
        Some((place, own.or_else(|| encoded.next())?.to_vec()))
    };
    Ok(among.into_iter().filter_map(vector).collect())
}

fn nearest_of(among: &[u32], query: &[f32], vectors: &HashMap<u32, Vec<f32>>) -> Option<u32> {
    let score = |place: u32| -> f32 {
        let vector = vectors.get(&place).map(Vec::as_slice).unwrap_or_default();
        vector.iter().zip(query).map(|(a, b)| a * b).sum()
    };
    let scored = among.iter().map(|place| (score(*place), *place));
    let best = scored.reduce(|best, next| if next.0 > best.0 { next } else { best });
    best.map(|best| best.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::train::data::Vectors;

    fn passage(key: &str, document: u32, ordinal: u32, text: &str) -> Passage {
        Passage {
            key: key.to_owned(),
            document,
            ordinal,
            text: text.to_owned(),
            vector: None,
        }
    }

    /// Encodes a text as the numbers of its letters a and b.
    struct Letters;

    impl Encode for Letters {
        fn embed(&mut self, _role: Role, texts: &[&str]) -> Result<Vectors, BridgeError> {
            let count = |text: &str, letter: char| text.chars().filter(|c| *c == letter).count() as f32;
            Ok(Vectors {
                dimensions: 2,
                values: texts
                    .iter()
                    .flat_map(|text| [count(text, 'a'), count(text, 'b')])
                    .collect(),
            })
        }

        fn tokens(&mut self, _texts: &[&str]) -> Result<Vec<Vec<u32>>, BridgeError> {
            Err(BridgeError::NoReading("tokens"))
        }
    }

    #[test]
    fn long_passages_are_cut_and_counted_anew() {
        let words = |text: &str| {
            let pieces = text.split(' ').zip(0..);
            pieces
                .map(|(text, ordinal)| Piece {
                    ordinal,
                    text: text.to_owned(),
                })
                .collect()
        };
        let given = Passage {
            vector: Some(vec![1.0]),
            ..passage("c", 0, 2, "long given text")
        };
        let all = vec![
            passage("a", 0, 0, "one two three"),
            passage("b", 0, 1, "four"),
            given,
            passage("d", 1, 0, "x"),
        ];
        let found = cut_long(all, 5, words);
        let shown: Vec<(&str, u32, u32, &str)> = found
            .iter()
            .map(|passage| (&*passage.key, passage.document, passage.ordinal, &*passage.text))
            .collect();
        let expected = [
            ("a", 0, 0, "one"),
            ("a", 0, 1, "two"),
            ("a", 0, 2, "three"),
            ("b", 0, 3, "four"),
            ("c", 0, 4, "long given text"),
            ("d", 1, 0, "x"),
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn passages_of_the_index_that_are_given_already_are_left_out() {
        let given = [
            passage("a", 0, 0, "The house is red. It stands."),
            passage("b", 4, 0, "Other"),
        ];
        let index = vec![
            passage("1", 0, 0, "The house is red."),
            passage("1", 0, 1, "It stands."),
            passage("2", 1, 0, "A ship sails."),
        ];
        let left = unknown(index, &given);
        assert_eq!(left, [passage("2", 1, 0, "A ship sails.")]);
        let all = beside(given.to_vec(), left);
        assert_eq!((all.len(), all[2].document, &*all[2].key), (3, 6, "\x002"));
    }

    #[test]
    fn a_pair_means_the_nearest_of_its_passages() {
        let passages = [
            passage("k", 0, 0, "a"),
            passage("k", 0, 1, "bb"),
            Passage {
                vector: Some(vec![0.0, 5.0]),
                ..passage("k", 0, 2, "a")
            },
            passage("l", 1, 0, "ab"),
        ];
        assert_eq!(key_twice(&passages), Some("k"));
        assert_eq!(key_twice(&passages[2..]), None);
        let named = |query: &str, passages: &[u32]| Named {
            query: query.to_owned(),
            passages: passages.to_vec(),
            answer: None,
        };
        let named = vec![
            named("a", &[0, 1, 2]),
            named("b", &[0, 1, 2]),
            named("b", &[3]),
            named("", &[0, 1]),
        ];
        let pairs = nearest(named, &passages, &mut Letters).unwrap();
        let found: Vec<u32> = pairs.iter().map(|pair| pair.passage).collect();
        assert_eq!(found, [0, 2, 3, 0]);
    }
}
