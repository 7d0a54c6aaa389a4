//! Sentences of other languages and scripts.

use super::*;

fn check(text: &str, expected: &[&str]) {
    assert_eq!(texts(text, &sentences(text)), expected);
}

#[test]
fn marks_of_other_scripts_end_sentences() {
    check(
        "नदी बढ़ती है। मैदान डूबता है॥ क्यों? ठीक।",
        &["नदी बढ़ती है।", "मैदान डूबता है॥", "क्यों?", "ठीक।"],
    );
    check(
        "هل يرتفع الماء؟ نعم، يرتفع. ثم يهبط!",
        &["هل يرتفع الماء؟", "نعم، يرتفع.", "ثم يهبط!"],
    );
    check("پانی بڑھتا ہے۔ میدان ڈوبتا ہے۔", &["پانی بڑھتا ہے۔", "میدان ڈوبتا ہے۔"]);
    check("ወንዙ ይሞላል። ሜዳም ይሸፈናል።", &["ወንዙ ይሞላል።", "ሜዳም ይሸፈናል።"]);
    check("Գետը բարձրանում է։ Ջուր է։", &["Գետը բարձրանում է։", "Ջուր է։"]);
    check("မြစ်ရေတက်ပြီး။ လယ်ကွင်း။", &["မြစ်ရေတက်ပြီး။", "လယ်ကွင်း။"]);
    check(
        "河水上涨。草地被淹没！为什么？好",
        &["河水上涨。", "草地被淹没！", "为什么？", "好"],
    );
    check(
        "彼は「はい。」と言った．次の日。",
        &["彼は「はい。」", "と言った．", "次の日。"],
    );
    check("การประชุมเริ่มเวลาเก้าโมง ที่ห้องใหญ่", &["การประชุมเริ่มเวลาเก้าโมง ที่ห้องใหญ่"]);
}

#[test]
fn abbreviations_of_other_languages_do_not() {
    check(
        "Am 3. Oktober kam Dr. Müller, d. h. Herr Müller. Es regnete, z. B. Hagel. Vgl. Abb. 3 und Nr. 7. Ende.",
        &[
            "Am 3. Oktober kam Dr. Müller, d. h. Herr Müller.",
            "Es regnete, z. B. Hagel.",
            "Vgl. Abb. 3 und Nr. 7.",
            "Ende.",
        ],
    );
    check(
        "¿Qué dijo la Sra. López? Dijo que no. ¡Hola! Véase pág. 5 y núm. 7. Fin.",
        &[
            "¿Qué dijo la Sra. López?",
            "Dijo que no.",
            "¡Hola!",
            "Véase pág. 5 y núm. 7.",
            "Fin.",
        ],
    );
    check(
        "It was 1999. He left. See No. 5. He said no. Then he left.",
        &["It was 1999.", "He left.", "See No. 5.", "He said no.", "Then he left."],
    );
    check(
        "**Stop.** Next one. _So._ (Yes.) Done",
        &["**Stop.**", "Next one.", "_So._", "(Yes.)", "Done"],
    );
    check(
        "He waits… Then he goes. It is 3.5 km to www.Example.com today",
        &["He waits…", "Then he goes.", "It is 3.5 km to www.Example.com today"],
    );
}

#[test]
fn composed_and_decomposed_letters_are_cut_alike() {
    let composed = "Véase pág. 5 y núm. 7. Am 3. März kam Ü. Öz. Café offen. Ángel vino.";
    let pairs = [
        ("é", "e\u{301}"),
        ("á", "a\u{301}"),
        ("ú", "u\u{301}"),
        ("ä", "a\u{308}"),
        ("Ü", "U\u{308}"),
        ("Ö", "O\u{308}"),
        ("Á", "A\u{301}"),
    ];
    let decomposed = pairs
        .iter()
        .fold(composed.to_owned(), |text, (from, to)| text.replace(from, to));
    let expected = [
        "Véase pág. 5 y núm. 7.",
        "Am 3. März kam Ü. Öz.",
        "Café offen.",
        "Ángel vino.",
    ];
    check(composed, &expected);
    let composed_again = |text: &str| {
        pairs
            .iter()
            .fold(text.to_owned(), |text, (to, from)| text.replace(from, to))
    };
    let found = texts(&decomposed, &sentences(&decomposed))
        .into_iter()
        .map(composed_again);
    assert_eq!(found.collect::<Vec<_>>(), expected);
}

#[test]
fn line_ends_tabs_marks_without_width_and_emoji() {
    check(
        "One line\r\nwraps here. Two\tends.\r\n\r\nThree!",
        &["One line\r\nwraps here.", "Two\tends.", "Three!"],
    );
    check(
        "Old line\rwraps. Next.\r\rBlock",
        &["Old line\rwraps.", "Next.", "Block"],
    );
    check(
        "\u{feff}Begin. Go\u{200b}on.\u{200b} Next\u{200d}one.",
        &["\u{feff}Begin.", "Go\u{200b}on.\u{200b}", "Next\u{200d}one."],
    );
    check(
        "Met 👩\u{200d}💻. Then 🍜\u{fe0f}! Ends 🇨🇭.",
        &["Met 👩\u{200d}💻.", "Then 🍜\u{fe0f}!", "Ends 🇨🇭."],
    );
}

/// A border near the end of what is looked at together is found as anywhere else.
#[test]
fn sentences_longer_than_the_window_keep_their_borders() {
    for length in 1000..1060 {
        let text = format!(
            "{} Dr. Smith came. He left. {} end. Next",
            "w".repeat(length),
            "Long words ".repeat(300)
        );
        let found = sentences(&text);
        let ends: Vec<&str> = texts(&text, &found).iter().map(|s| &s[s.len() - 4..]).collect();
        assert_eq!(ends, ["ame.", "eft.", "end.", "Next"], "{length}");
    }
}
