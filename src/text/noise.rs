//! Runs that hold no words: base64, dumps of bytes, minified code.
//!
//! They are found by shape alone, in lines (`lines`) and inside lines (`long_words`). What is short stays text: the
//! packer takes a run for noise only where it would fill more than one chunk.

use std::ops::Range;

/// Bytes of ASCII without white space that no word has.
const WORD: usize = 256;
/// Bytes of a line from which on it may be minified.
const LINE: usize = 512;
/// Bytes of a line of encoded bytes, the last of a run excepted.
const ENCODED: usize = 40;
/// Lines of encoded bytes from which on they are a run.
const RUN: usize = 4;

/// Which of these lines, trimmed, are noise.
pub(super) fn lines(lines: &[&str]) -> Vec<bool> {
    let mut noise: Vec<bool> = lines.iter().map(|line| is_minified(line)).collect();
    let mut first = 0;
    while first < lines.len() {
        let length = lines[first..].iter().take_while(|line| is_encoded(line)).count();
        if length >= RUN {
            let rest = first + length;
            // The last line of encoded bytes is shorter.
            let tail = lines.get(rest).is_some_and(|line| is_base64(line));
            noise[first..rest + usize::from(tail)].fill(true);
        }
        first += length.max(1);
    }
    noise
}

/// A long line of ASCII with next to no white space and many marks and digits.
fn is_minified(line: &str) -> bool {
    if line.len() < LINE {
        return false;
    }
    let (mut spaces, mut letters, mut others) = (0, 0, 0);
    for byte in line.bytes() {
        match byte {
            b' ' | b'\t' => spaces += 1,
            b'a'..=b'z' | b'A'..=b'Z' => letters += 1,
            0x80.. => others += 1,
            _ => {}
        }
    }
    let marks = line.len() - spaces - letters - others;
    others * 10 < line.len() && spaces * 14 < line.len() && marks * 6 >= line.len()
}

fn is_base64(line: &str) -> bool {
    !line.is_empty()
        && line
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'='))
}

/// A line of base64 or of hexadecimal digits, in one run or in groups as `xxd` and `hexdump` print them.
fn is_encoded(line: &str) -> bool {
    if line.len() < ENCODED {
        return false;
    }
    if is_base64(line) {
        return line.bytes().any(|byte| byte.is_ascii_digit());
    }
    let hexadecimal = |word: &&str| {
        let word = word.trim_end_matches(':');
        matches!(word.len(), 2 | 4 | 7 | 8 | 16) && word.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let groups: Vec<&str> = line.split_ascii_whitespace().take_while(hexadecimal).collect();
    // A row of a table of numbers has no letters, and no address before them.
    let letters = groups
        .iter()
        .any(|word| word.bytes().any(|byte| byte.is_ascii_alphabetic()));
    let address = groups.first().is_some_and(|word| word.len() >= 7);
    (letters || address) && groups.iter().map(|word| word.len()).sum::<usize>() >= 32
}

/// The runs of ASCII without white space in `text` that are longer than any word.
pub(super) fn long_words(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let bytes = text.as_bytes();
    let mut start = 0;
    for at in 0..=bytes.len() {
        if bytes.get(at).is_some_and(u8::is_ascii_graphic) {
            continue;
        }
        // What follows may be a mark on the last character: that one is left outside.
        let end = match bytes.get(at) {
            Some(0x80..) => at.saturating_sub(1),
            _ => at,
        };
        if end > start && end - start >= WORD {
            found.push(start..end);
        }
        start = at + 1;
    }
    found
}
