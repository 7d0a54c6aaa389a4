//! Where a long text is cut for a tokenizer: its memory is several hundred bytes a token, and it does not look up from a
//! piece, so no piece is long, whatever the text.

use unicode_segmentation::GraphemeCursor;

/// Characters before the end of a piece among which a border between graphemes is looked for.
const LOOKED_AT: usize = 64;

/// End of the piece of `text` that begins at `start`, of `bytes` to twice as many: before a single space between two words
/// of ASCII, where no tokenizer joins what is around it; else behind white space; else, in a word without end, between two
/// graphemes.
pub fn piece_end(text: &str, start: usize, bytes: usize) -> usize {
    let all = text.as_bytes();
    let (wanted, most) = (start.saturating_add(bytes), start.saturating_add(2 * bytes));
    let between = |three: &[u8]| matches!(three, [a, b' ', c] if a.is_ascii_alphanumeric() && c.is_ascii_alphabetic());
    let window = all.get(wanted.min(all.len())..most.min(all.len())).unwrap_or_default();
    if let Some(place) = window.windows(3).position(between) {
        return wanted + place + 1;
    }
    if most >= all.len() {
        return all.len();
    }
    match window.iter().position(u8::is_ascii_whitespace) {
        Some(place) => wanted + place + 1,
        None => border(text, start, most),
    }
}

/// The last border between graphemes at or shortly before `end`; one between characters where they are longer than that.
fn border(text: &str, start: usize, end: usize) -> usize {
    let end = text.floor_char_boundary(end);
    let piece = text.get(start..).unwrap_or_default();
    let last = text.get(start..end).unwrap_or_default().char_indices().rev();
    let places = std::iter::once(end).chain(last.take(LOOKED_AT).map(|(at, _)| start + at));
    let is_border = |place: &usize| {
        let mut cursor = GraphemeCursor::new(place - start, piece.len(), true);
        *place > start && cursor.is_boundary(piece, 0).unwrap_or(false)
    };
    places.into_iter().find(is_border).unwrap_or(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(text: &str, bytes: usize) -> Vec<&str> {
        let (mut found, mut start) = (Vec::new(), 0);
        while start < text.len() {
            let end = piece_end(text, start, bytes);
            found.push(&text[start..end]);
            start = end;
        }
        found
    }

    #[test]
    fn no_piece_is_long_whatever_the_text() {
        let words = "words without an end ".repeat(500);
        let texts = [
            "a".repeat(10_000),
            "漢字".repeat(3000),
            words.clone(),
            format!("{words}{}{words}", "x".repeat(5000)),
            format!("e{}", "\u{301}".repeat(5000)),
            "👩‍👩‍👧".repeat(500),
            "\u{1f1e9}\u{1f1ea}".repeat(2000),
            "a\n".repeat(4000),
            " ".repeat(5000),
        ];
        for text in &texts {
            let pieces = pieces(text, 512);
            assert_eq!(pieces.concat(), *text);
            assert!(pieces.iter().all(|piece| piece.len() <= 1024), "{}", &text[..20]);
            assert!(
                pieces
                    .iter()
                    .rev()
                    .skip(1)
                    .all(|piece| piece.len() >= 512 - 4 * LOOKED_AT)
            );
        }
        assert!(pieces(&words, 512).iter().skip(1).all(|piece| piece.starts_with(' ')));
        assert!(
            pieces(&texts[5], 512).iter().all(|piece| piece.starts_with('👩')),
            "families stay together"
        );
        assert!(
            pieces(&texts[6], 512).iter().all(|piece| piece.len().is_multiple_of(8)),
            "flags stay together"
        );
    }
}
