//! Texts as they are sent: cut where no model could read more.

use crate::text::Place;

/// Most bytes of one text to embed. No model reads as far; what lies behind is not sent.
pub(super) const MOST_TEXT: usize = 256 << 10;

/// Most bytes of a title and of a heading: each goes with every piece of its document.
const MOST_TITLE: usize = 16 << 10;

const MOST_HEADING: usize = 4 << 10;

/// A text without what lies behind `most` bytes.
pub(super) fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// A title as it is sent.
pub(super) fn title_of(title: Option<&str>) -> Option<String> {
    title.map(|title| cut(title, MOST_TITLE).to_owned())
}

/// What stands before a piece, as it is sent.
pub(super) fn place_of(place: &Place) -> Place {
    let headings = place.headings.iter();
    Place {
        headings: headings.map(|heading| cut(heading, MOST_HEADING).to_owned()).collect(),
        code: place.code,
    }
}
