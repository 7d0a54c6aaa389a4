//! What the encoder itself reads of a chunk's place before the bridge: the title, the end of the chunk before it and
//! its own beginning, in one short sequence, whose vector is mixed with that of the chunk alone.
//!
//! A chunk that begins with a pronoun is read behind the name that it stands for. Lengths are in words, so that texts
//! and chunks of an index are cut alike.

use super::linear::unit;

/// Words of the title.
const TITLE: usize = 8;
/// Words of the chunk before.
const BEFORE: usize = 10;
/// Words of the chunk.
const OWN: usize = 14;
/// Share of the place's vector.
pub const SHARE: f32 = 0.1;

/// The text that is read for the place of a chunk.
pub fn text(title: Option<&str>, before: Option<&str>, chunk: &str) -> String {
    let before = before.unwrap_or_default();
    let mut words: Vec<&str> = before.split_whitespace().rev().take(BEFORE).collect();
    words.extend(
        title
            .unwrap_or_default()
            .split_whitespace()
            .take(TITLE)
            .collect::<Vec<_>>()
            .iter()
            .rev(),
    );
    words.reverse();
    words.extend(chunk.split_whitespace().take(OWN));
    words.join(" ")
}

/// `normalize((1 - share) own + share place)`, in place.
pub fn mix(own: &mut [f32], place: &[f32]) {
    own.iter_mut()
        .zip(place)
        .for_each(|(own, place)| *own = (1.0 - SHARE) * *own + SHARE * place);
    unit(own);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_before_and_the_own_beginning_are_read() {
        let long = |letter: char| (0..40).map(|n| format!("{letter}{n}")).collect::<Vec<_>>().join(" \n");
        let words = text(Some("The  title"), Some(&long('a')), &long('b'));
        let before = (30..40).map(|n| format!("a{n}"));
        let own = (0..14).map(|n| format!("b{n}"));
        let title = ["The", "title"].map(str::to_owned).into_iter();
        let expected: Vec<String> = title.chain(before).chain(own).collect();
        assert_eq!(words, expected.join(" "));
        assert_eq!(text(None, None, " one  two "), "one two");
    }

    #[test]
    fn mixed_vectors_have_unit_length() {
        let mut own = [1.0, 0.0];
        mix(&mut own, &[0.0, 1.0]);
        let length = (0.9f32 * 0.9 + 0.1 * 0.1).sqrt();
        assert!((own[0] - 0.9 / length).abs() < 1e-6 && (own[1] - 0.1 / length).abs() < 1e-6);
    }
}
