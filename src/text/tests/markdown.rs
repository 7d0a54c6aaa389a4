//! Headings, code, rows and noise.

use super::*;

/// Heading paths and passages.
fn passages(text: &str, limit: usize) -> Vec<(String, String)> {
    let cut = chunks(text, &Place::default(), limit, &words(text));
    let of = |chunk: &Chunk| chunk.span.of(text).unwrap_or_default().to_owned();
    cut.iter()
        .map(|chunk| (chunk.headings.join(" > "), of(chunk)))
        .collect()
}

#[test]
fn a_fence_inside_a_fence_does_not_end_it() {
    let variants = [
        "````md\n```sh\n# install the tools\nmake\n```\n````",
        "```text\n~~~\n# not a heading\n```",
        "```make all``` builds the rest.",
        "- first\n\n  ```sh\n  # a comment\n  make\n  ```",
        "> ```\n> # quoted\n> ```",
        "~~~~\n~~~\n# not a heading\n~~~~~",
    ];
    for variant in variants {
        for end in ["\n", "\r\n", "\r"] {
            let text = format!("# Guide\n\nSee below.\n\n{variant}\n\n## Usage\n\nThe tool prints a report.\n");
            let text = text.replace('\n', end);
            let found = passages(&text, 64);
            let usage = format!("## Usage{end}{end}The tool prints a report.");
            assert_eq!(found.last(), Some(&("Guide > Usage".to_owned(), usage)), "{variant}");
            assert_eq!(found.len(), 2, "{variant}: {found:?}");
        }
    }
}

#[test]
fn a_byte_order_mark_and_carriage_returns_keep_the_first_heading() {
    for text in [
        "\u{feff}# A\n\nText.\n",
        "\u{feff}# A\r\rText.\r",
        "# A\r\rText.\r",
        "\u{feff}A\r\n===\r\n\r\nText.\r\n",
    ] {
        let found = passages(text, 64);
        assert_eq!(found.len(), 1, "{text:?}");
        assert_eq!(found[0].0, "A", "{text:?}");
        assert_eq!(found[0].1, text.trim_end(), "the mark belongs to the passage as well");
    }
    let dialogue = "# One\r\rText.\r\r# Two\r\rMore.\r";
    let paths: Vec<String> = passages(dialogue, 64).into_iter().map(|(path, _)| path).collect();
    assert_eq!(paths, ["One", "Two"]);
}

#[test]
fn front_matter_and_rules_are_no_headings() {
    let found = passages(
        "---\ntitle: Pumps\n---\n\n# A\n\nText one.\n\n---\n\nText two.\n-- \nJane\n",
        200,
    );
    let paths: Vec<&str> = found.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths, ["", "A"]);
}

/// A block of code that is longer than a segment: its later pieces are code, and what follows it is not.
#[test]
fn code_longer_than_a_segment_stays_code() {
    for (open, close) in [("```sh", "```"), ("~~~~", "~~~~"), ("- x\n\n  ```", "  ```")] {
        let indent = if open.starts_with('-') { "  " } else { "" };
        // Longer than the parser's window as well.
        for lines in [100, 40_000] {
            let code = format!("{indent}# step\n{indent}run it\n").repeat(lines);
            let text =
                format!("# A\n\n{open}\n{code}{close}\n\n## B\n\nUnder b.\n\n```\n# c\n```\n\n## D\n\nUnder d.\n");
            let pieces = segments(&text, 1 << 10);
            let mut paths = Vec::new();
            for piece in &pieces {
                let piece_text = piece.span.of(&text).unwrap_or_default();
                assert!(piece_text.len() <= 1 << 10);
                let cut = chunks(piece_text, &piece.place, 60, &words(piece_text));
                paths.extend(cut.into_iter().map(|chunk| chunk.headings.join(" > ")));
            }
            paths.dedup();
            assert_eq!(paths, ["A", "A > B", "A > D"], "{open}");
        }
    }
}

#[test]
fn a_long_list_and_a_long_paragraph_cross_the_window() {
    for unit in ["- item of a list\n", "Words without an end \n"] {
        let text = format!("# A\n\n{}\n# B\n\nEnd.\n", unit.repeat(30_000));
        let pieces = segments(&text, 32 << 10);
        assert_eq!(
            pieces.last().map(|piece| piece.place.headings.join("/")),
            Some("A".to_owned())
        );
        let last = pieces.last().and_then(|piece| piece.span.of(&text)).unwrap_or_default();
        assert_eq!(passages(last, 20).last().map(|(path, _)| path.as_str()), Some("B"));
    }
}

fn ends_at_lines(text: &str, limit: usize) {
    let cut = chunks(text, &Place::default(), limit, &words(text));
    assert!(cut.len() > 5);
    for chunk in cut {
        let (start, end) = (chunk.span.start as usize, chunk.span.end as usize);
        assert!(start == 0 || text[..start].ends_with('\n'), "{:?}", chunk.span.of(text));
        assert!(
            end == text.len() || text[end..].starts_with(['\n', '\r']),
            "{:?}",
            chunk.span.of(text)
        );
        assert!(chunk.tokens as usize <= limit);
    }
}

#[test]
fn rows_are_not_cut() {
    let table = |line: &dyn Fn(usize) -> String| (1..60).map(line).collect::<Vec<_>>();
    let markdown = table(&|i| format!("| bolt {i}. Zinc | aisle {} | {} pieces |", i % 9, i * 13));
    ends_at_lines(
        &format!("| Item | Shelf | Count |\n|---|---|---|\n{}", markdown.join("\n")),
        40,
    );
    // Without the rule that makes it a table of Markdown.
    ends_at_lines(&markdown.join("\r\n"), 40);
    let tabs = table(&|i| format!("bolt {i}\tDr. A. Smith. Zurich\t{} pieces", i * 13));
    ends_at_lines(&tabs.join("\n"), 40);
    let log = table(&|i| {
        format!(
            "2031-04-{:02} 10:{i:02}:00 pump {i} stopped. Valve {} open",
            i % 28 + 1,
            i % 7
        )
    });
    ends_at_lines(&log.join("\n"), 40);
    let log = table(&|i| format!("Nov {:2} 10:{i:02}:00 host pump: {i} stopped. Valve open", i % 28 + 1));
    ends_at_lines(&log.join("\n"), 40);
    let values = table(&|i| format!("{i},zinc bolt. Long,{},aisle {}", i * 13, i % 9));
    ends_at_lines(&values.join("\n"), 40);
    // Lines of no shape that is known: the end of a line is still where a long sentence is split.
    let plain = table(&|i| format!("pump number {i} with pressure {} in hall {}", i * 3, i % 7));
    ends_at_lines(&plain.join("\n"), 40);
    // Prose goes on over its line ends.
    let prose = "One line that is wrapped\nand goes on here. Another, with\na comma, and another\nend.";
    assert_eq!(sentences(prose).len(), 2);
}

/// Numbers that look like a digest's.
fn digits(seed: u64, count: usize, alphabet: &[u8]) -> String {
    let mut state = seed;
    let next = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        alphabet[(state >> 33) as usize % alphabet.len()] as char
    };
    (0..count).map(next).collect()
}

#[test]
fn noise_is_one_passage_and_words_beside_it_stay() {
    let hexadecimal = b"0123456789abcdef";
    let base64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let lines = |alphabet: &[u8], width: usize| {
        let line = |i: u64| digits(i, width, alphabet);
        (0..300).map(line).collect::<Vec<_>>().join("\n")
    };
    let dump = (0..300u64).map(|i| {
        let bytes = (0..8).map(|group| digits(i * 8 + group, 4, hexadecimal));
        format!("{:08x}: {}  .ELF....", i * 16, bytes.collect::<Vec<_>>().join(" "))
    });
    let script = (0..600).map(|i| format!("var a{i}=function(b){{return b?c[{}]:d(e,{i})}};", i * 7));
    let noises = [
        format!("![pump](data:image/png;base64,{})", digits(1, 20_000, base64)),
        lines(hexadecimal, 64),
        format!("```\n{}\n```", lines(base64, 76)),
        dump.collect::<Vec<_>>().join("\n"),
        format!("<script>{}</script>", script.collect::<String>()),
    ];
    // A token every three characters, as vocabularies of pieces make them.
    let pieces = |text: &str| -> Vec<Span> {
        let words = words(text);
        let split = |word: Span| {
            (word.start..word.end).step_by(3).map(move |start| Span {
                start,
                end: (start + 3).min(word.end),
            })
        };
        words.into_iter().flat_map(split).collect()
    };
    for noise in noises {
        let text = format!("The pump must be primed first.\n\n{noise}\n\nOil the bearing once a year.");
        let tokens = pieces(&text);
        let cut = chunks(&text, &Place::default(), 128, &tokens);
        assert!(cut.len() <= 6, "{} passages of {}", cut.len(), &noise[..60]);
        let with = |words: &str| {
            let chunk = cut.iter().find(|chunk| chunk.encoded(&text).contains(words));
            chunk.unwrap_or_else(|| panic!("\"{words}\" is in no passage"))
        };
        assert!(with("primed").tokens <= 128 && with("bearing").tokens <= 128);
        assert_eq!(
            cut.iter().map(|chunk| chunk.tokens as usize).sum::<usize>(),
            tokens.len()
        );
        for chunk in &cut {
            assert!(pieces(chunk.encoded(&text)).len() <= 128);
        }
    }
}

#[test]
fn what_only_looks_like_noise_is_text() {
    let table = (0..200).map(|i| {
        format!(
            "{:04} {:04} {:04} {:04} {:04} {:04} {:04} {:04} {:04}",
            i,
            i * 2,
            i * 3,
            i,
            i,
            i,
            i,
            i,
            i
        )
    });
    let code = "    if (!found) { return error(ERROR_CODE_THAT_IS_LONG, \"no such thing: %s\", name); }\n".repeat(100);
    let japanese = "日本語の長い文章は空白がないので続きます".repeat(200);
    let german = "Donaudampfschifffahrtsgesellschaftskapitän ".repeat(200);
    for text in [table.collect::<Vec<_>>().join("\n"), code, japanese, german] {
        let tokens: Vec<Span> = text
            .char_indices()
            .filter(|(_, c)| !c.is_whitespace())
            .map(|(at, c)| Span {
                start: at as u32,
                end: (at + c.len_utf8()) as u32,
            })
            .collect();
        let cut = chunks(&text, &Place::default(), 100, &tokens);
        assert!(
            cut.iter()
                .all(|chunk| chunk.tokens <= 100 && chunk.encoded_end == chunk.span.end)
        );
    }
}
