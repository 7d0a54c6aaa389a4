//! Lines of prose that are rows: of a table without Markdown's rule, of values between tabs or commas, of a log.

/// Whether consecutive lines are rows, each of which stands for itself.
pub(super) fn are_rows(lines: &[&str]) -> bool {
    let Some(first) = lines.first() else { return false };
    if lines.len() < 2 {
        return false;
    }
    // Of a log some lines may go on with the one before.
    let rows = lines.iter().filter(|line| is_row(line)).count();
    if is_row(first) && rows * 2 > lines.len() {
        return true;
    }
    lines.len() >= 3 && [',', ';'].iter().any(|mark| same_number(lines, *mark))
}

/// Whether every line has the same number of a mark, at least two. The last line alone tells most prose apart.
fn same_number(lines: &[&str], mark: char) -> bool {
    let count = |line: &&str| line.matches(mark).count();
    let Some(first) = lines.first().map(count) else {
        return false;
    };
    first >= 2 && lines.iter().rev().all(|line| count(line) == first)
}

fn is_row(line: &str) -> bool {
    let line = line.trim();
    line.starts_with('|') || line.contains('\t') || begins_with_time(line)
}

/// The shape of a line's beginning: every digit `0`, every letter `a`.
fn shape(line: &str) -> String {
    let character = |c: char| match c {
        '0'..='9' => '0',
        'a'..='z' | 'A'..='Z' => 'a',
        other => other,
    };
    line.chars().take(16).map(character).collect()
}

/// Whether a line begins with a date or a time of day, as logs do.
fn begins_with_time(line: &str) -> bool {
    let line = line.trim_start_matches(['[', '(', '"']);
    let shape = shape(line);
    let dates = [
        "0000-00-00",
        "0000/00/00",
        "00/00/0000",
        "00.00.0000",
        "00/aaa/0000",
        "00:00:00",
    ];
    if dates.iter().any(|date| shape.starts_with(date)) {
        return true;
    }
    // The system log's: `Nov  3 10:15:00`.
    shape.strip_prefix("aaa ").is_some_and(|rest| {
        let rest = rest.trim_start();
        rest.starts_with("0 00:00:") || rest.starts_with("00 00:00:")
    })
}
