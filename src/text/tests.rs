use super::*;

mod any;
mod markdown;
mod scripts;

/// Tokens for tests: runs of letters and digits, and single other characters.
fn words(text: &str) -> Vec<Span> {
    let mut found: Vec<Span> = Vec::new();
    let mut joined = false;
    for (at, c) in text.char_indices() {
        let end = (at + c.len_utf8()) as u32;
        if c.is_whitespace() {
            joined = false;
        } else if c.is_alphanumeric() {
            match found.last_mut() {
                Some(last) if joined => last.end = end,
                _ => found.push(Span { start: at as u32, end }),
            }
            joined = true;
        } else {
            found.push(Span { start: at as u32, end });
            joined = false;
        }
    }
    found
}

fn under(heading: &str) -> Place {
    Place {
        headings: vec![heading.to_owned()],
        code: false,
    }
}

fn texts<'a>(text: &'a str, spans: &[Span]) -> Vec<&'a str> {
    spans
        .iter()
        .map(|span| span.of(text).expect("on character borders"))
        .collect()
}

#[test]
fn sentences_end_at_terminators_but_not_at_abbreviations() {
    let text = "Dr. Smith paid 3.5 dollars, e.g. in coins. He left! \"Why?\" she asked. See Fig. 3. J. Doe came.";
    assert_eq!(
        texts(text, &sentences(text)),
        [
            "Dr. Smith paid 3.5 dollars, e.g. in coins.",
            "He left!",
            "\"Why?\" she asked.",
            "See Fig. 3.",
            "J. Doe came."
        ]
    );
}

#[test]
fn blank_lines_lists_code_and_cjk_end_sentences() {
    let text = "One line\nwrapped here\n\n- first item\n- second item\n\nThen:\n\n    code(1);\n    code(2);\n\n今日は。元気？はい";
    assert_eq!(
        texts(text, &sentences(text)),
        [
            "One line\nwrapped here",
            "- first item",
            "- second item",
            "Then:",
            "code(1);",
            "code(2);",
            "今日は。",
            "元気？",
            "はい"
        ]
    );
}

#[test]
fn headings_of_both_kinds_give_the_path() {
    let text =
        "# A\n\nIntro text.\n\n## B\n\nUnder b.\n\nC\n---\n\nUnder c.\n\n# D\n\nUnder d.\n```\n# no heading\n```\n";
    let cut = chunks(text, &under("Book"), 100, &words(text));
    let paths: Vec<String> = cut.iter().map(|chunk| chunk.headings.join(" > ")).collect();
    assert_eq!(paths, ["A", "A > B", "A > C", "D"]);
    assert!(cut[1].span.of(text).is_some_and(|chunk| chunk.starts_with("## B")));
    assert!(cut[3].span.of(text).is_some_and(|chunk| chunk.contains("# no heading")));
}

#[test]
fn chunks_pack_sentences_up_to_the_limit() {
    let text = "a b c. d e f. g h i. j k l.";
    let cut = chunks(text, &Place::default(), 8, &words(text));
    assert_eq!(
        texts(text, &cut.iter().map(|chunk| chunk.span).collect::<Vec<_>>()),
        ["a b c. d e f.", "g h i. j k l."]
    );
    assert!(cut.iter().all(|chunk| chunk.tokens == 8));
}

#[test]
fn a_long_sentence_is_split_at_white_space() {
    let text = "one two three four five six seven";
    let cut = chunks(text, &Place::default(), 4, &words(text));
    assert_eq!(
        texts(text, &cut.iter().map(|chunk| chunk.span).collect::<Vec<_>>()),
        ["one two three four", "five six seven"]
    );
}

#[test]
fn nothing_gives_nothing() {
    for text in ["", " ", "\r\n\t \u{3000}\n"] {
        assert!(sentences(text).is_empty());
        assert!(segments(text, 100).is_empty());
        assert!(chunks(text, &Place::default(), 10, &words(text)).is_empty());
    }
}

#[test]
fn segments_carry_the_path_at_their_start() {
    let text = format!(
        "# A\n\n{}\n\n## B\n\n{}",
        "Words here. ".repeat(20),
        "More words. ".repeat(20)
    );
    let cut = segments(&text, 200);
    assert!(cut.len() > 2);
    assert!(cut[0].place.headings.is_empty());
    assert_eq!(
        cut.last().map(|segment| segment.place.headings.join("/")),
        Some("A/B".to_owned())
    );
}

#[test]
fn ten_megabytes_take_linear_time() {
    let started = std::time::Instant::now();
    for text in [
        "x".repeat(10 << 20),
        "word ".repeat(2 << 20),
        "a. B".repeat(2 << 20),
        "# h\n".repeat(2 << 20),
    ] {
        assert!(!segments(&text, 32 << 10).is_empty());
        assert!(!sentences(&text).is_empty());
    }
    assert!(started.elapsed().as_secs() < 60, "far more than linear");
}
