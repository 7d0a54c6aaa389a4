//! What a message repeats of a file: one line of bounded length, whatever the file holds.

/// `text` in one line of at most `most` characters: line ends and control characters, with the white space around them,
/// become single spaces, and what is cut off shows as "...".
pub fn one_line(text: &str, most: usize) -> String {
    let ends = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    let parts: Vec<&str> = text
        .split(ends)
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect();
    let line = parts.join(" ");
    match line.char_indices().nth(most) {
        None => line,
        Some(_) => {
            let kept: String = line.chars().take(most.saturating_sub(3)).collect();
            format!("{kept}...")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_joined_and_cut_between_characters() {
        assert_eq!(one_line("one\n  two\tthree\u{0}four ", 40), "one two three four");
        assert_eq!(one_line("a  path/with  spaces", 40), "a  path/with  spaces");
        assert_eq!(one_line("éééééé", 6), "éééééé");
        assert_eq!(one_line("ééééééé", 6), "ééé...");
        assert_eq!(one_line("", 6), "");
    }
}
