//! Properties that hold for any text.

use super::*;

/// The properties that hold for any text.
fn check(text: &str, limit: usize, max_bytes: usize) {
    let covered = |spans: &[Span]| {
        let mut last = 0;
        for span in spans {
            assert!(span.start as usize >= last, "overlap");
            assert!(text[last..span.start as usize].trim().is_empty(), "text between spans");
            assert!(span.of(text).is_some_and(|piece| !piece.trim().is_empty()));
            last = span.end as usize;
        }
        assert!(text[last..].trim().is_empty(), "text after the last span");
    };
    covered(&sentences(text));
    let tokens = words(text);
    let cut = chunks(text, &Place::default(), limit, &tokens);
    covered(&cut.iter().map(|chunk| chunk.span).collect::<Vec<_>>());
    assert_eq!(
        cut.iter().map(|chunk| chunk.tokens as usize).sum::<usize>(),
        tokens.len()
    );
    for chunk in &cut {
        // Only a run of noise is longer than a chunk, and of that no more than a chunk is encoded.
        assert!(chunk.tokens as usize <= limit || chunk.encoded_end < chunk.span.end);
        let encoded = tokens
            .iter()
            .filter(|token| token.start >= chunk.span.start && token.start < chunk.encoded_end);
        assert!(encoded.count() <= limit);
        let inside = tokens
            .iter()
            .filter(|token| token.start >= chunk.span.start && token.start < chunk.span.end)
            .count();
        assert_eq!(inside, chunk.tokens as usize);
    }
    let pieces = segments(text, max_bytes);
    covered(&pieces.iter().map(|segment| segment.span).collect::<Vec<_>>());
    assert!(pieces.iter().all(|segment| segment.span.len() <= max_bytes));
}

#[test]
fn any_text_is_covered_without_overlap() {
    let pieces = [
        "Hello world. ",
        "\r\n",
        "\n\n",
        "# Head\n",
        "naïve café! ",
        "日本語。",
        "😀👩\u{200d}👩\u{200d}👧 ",
        "e\u{301}e\u{301} ",
        "    code # x\n",
        "T\n===\n",
        "```\n",
        "[SEP] ",
        "a.b.c ",
        "...",
        "\u{a0}",
        "- item\n",
        "1. item\n",
        "x",
        "\t",
    ];
    let mut state = 7u64;
    for _ in 0..400 {
        let mut text = String::new();
        for _ in 0..40 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            text.push_str(pieces[(state >> 33) as usize % pieces.len()]);
        }
        for limit in [1, 3, 17] {
            check(&text, limit, 16 + (state >> 40) as usize % 100);
        }
    }
}

/// A character of any plane, more often one that means something to the rules.
fn character(random: u32) -> char {
    const FREQUENT: &[char] = &[
        ' ',
        '\n',
        '\r',
        '\t',
        '.',
        '!',
        '?',
        '#',
        '`',
        '~',
        '>',
        '-',
        '*',
        '|',
        '=',
        ')',
        '"',
        '0',
        'a',
        'Z',
        '\u{feff}',
        '\u{200b}',
        '\u{200d}',
        '\u{301}',
        '\u{85}',
        '\u{2028}',
        '\u{2029}',
        '\u{3000}',
        '\u{3002}',
        '\u{964}',
        '\u{6d4}',
        '\u{1f1e8}',
        '\u{1f468}',
        '\u{e0067}',
        '\u{0}',
    ];
    let number = random >> 3;
    match random % 8 {
        0..4 => FREQUENT[number as usize % FREQUENT.len()],
        4 => char::from_u32(number % 0x80).unwrap_or('x'),
        5 => char::from_u32(number % 0x3000).unwrap_or('x'),
        _ => char::from_u32(number % 0x11_0000).unwrap_or('\u{fffd}'),
    }
}

#[test]
fn every_byte_of_any_unicode_belongs_to_a_chunk() {
    let mut state = 11u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    for round in 0..3000 {
        let length = 1 + next() as usize % 400;
        let mut text = String::new();
        while text.len() < length {
            let c = character(next());
            // Runs of one character too, now and then as long as what is taken for noise.
            let times = match next() % 16 {
                0 => next() % 6,
                1 if round % 8 == 0 => next() % 700,
                _ => 1,
            };
            (0..times).for_each(|_| text.push(c));
        }
        check(&text, 1 + next() as usize % 20, 4 + next() as usize % 100);
    }
}

#[test]
fn text_without_tokens_goes_with_its_neighbours() {
    let text = "\u{200b}\u{200b}\n\n# A\n\n\u{2060}\n\n# B\n\nWords here.\n\n# C\n\nEnd.\n\n# \u{feff}\n\n\u{200b}";
    let tokens: Vec<Span> = words(text)
        .into_iter()
        .filter(|token| {
            token
                .of(text)
                .is_some_and(|token| token.chars().all(char::is_alphanumeric))
        })
        .collect();
    let cut = chunks(text, &Place::default(), 3, &tokens);
    let spans: Vec<Span> = cut.iter().map(|chunk| chunk.span).collect();
    let mut last = 0;
    for span in &spans {
        assert!(text[last..span.start as usize].trim().is_empty(), "{spans:?}");
        last = span.end as usize;
    }
    assert_eq!(last, text.len(), "{spans:?}");
    assert!(chunks("\u{200b}\u{feff}", &Place::default(), 3, &[]).is_empty());
}

/// A word of a megabyte comes out in segments and chunks that end between graphemes.
#[test]
fn a_word_of_a_megabyte_is_cut_between_graphemes() {
    use unicode_segmentation::UnicodeSegmentation;
    let unit = [
        "e\u{301}",
        "\u{1f469}\u{200d}\u{1f4bb}",
        "\u{0e01}\u{0e33}",
        "\u{1f1e8}\u{1f1ed}",
    ];
    for unit in unit {
        let text = unit.repeat((1 << 20) / unit.len());
        let pieces = segments(&text, 32 << 10);
        assert!(pieces.len() >= 32);
        for piece in pieces {
            let piece = piece.span.of(&text).expect("on character borders");
            assert_eq!(piece.len() % unit.len(), 0, "{unit}");
            // One token a character.
            let tokens: Vec<Span> = piece
                .char_indices()
                .map(|(at, c)| Span {
                    start: at as u32,
                    end: (at + c.len_utf8()) as u32,
                })
                .collect();
            for chunk in chunks(piece, &Place::default(), 100, &tokens) {
                assert_eq!(chunk.span.start as usize % unit.len(), 0, "{unit}");
                assert!(chunk.tokens <= 100);
            }
        }
        assert_eq!(unit.graphemes(true).count(), 1);
    }
}

#[test]
fn what_would_be_quadratic_is_not() {
    let started = std::time::Instant::now();
    let mut texts = Vec::new();
    for unit in [
        ")", "\"", " .", "*a", "> ", "- ", "`", "[", "_a ", "<a ", "|\n", "\r", "\u{301}", "1. ",
    ] {
        texts.push(format!("a. {}", unit.repeat((1 << 20) / unit.len())));
    }
    texts.push(format!("{}{}", "- ".repeat(100_000), "\n".repeat(300_000)));
    texts.push("a\n- b\n".repeat(100_000));
    for text in &texts {
        assert!(!sentences(text).is_empty());
        assert!(!segments(text, 32 << 10).is_empty());
    }
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
}

/// Megabytes a second of all of it, on a text like a manual: `cargo test --no-default-features --lib speed -- --ignored --nocapture`.
#[test]
#[ignore = "measures"]
fn speed_of_cutting() {
    let section = "## Reading the log\n\nA standby follows its primary by reading the write-ahead log. It can answer \
                   queries while\nit does so (see Fig. 3), e.g. for reports. Is it behind? Then a session waits!\n\n\
                   - first, `stop` the server\n- then copy the files\n\n```sh\n# start it\npg_ctl start\n```\n\n";
    let text = section.repeat((8 << 20) / section.len());
    let started = std::time::Instant::now();
    let pieces = segments(&text, 32 << 10);
    let cut = started.elapsed();
    let tokens: Vec<Vec<Span>> = pieces
        .iter()
        .map(|piece| words(piece.span.of(&text).unwrap_or_default()))
        .collect();
    let started = std::time::Instant::now();
    let mut count = 0;
    for (piece, tokens) in pieces.iter().zip(&tokens) {
        count += chunks(piece.span.of(&text).unwrap_or_default(), &piece.place, 128, tokens).len();
    }
    let rate = |time: std::time::Duration| text.len() as f64 / 1e6 / time.as_secs_f64();
    println!(
        "segments {:.0} MB/s, chunks {:.0} MB/s, {count} chunks",
        rate(cut),
        rate(started.elapsed())
    );
}
