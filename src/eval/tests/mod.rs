//! TREC files against the numbers of trec_eval, and the tasks by hand.
//!
//! `run.txt` and `qrels.txt` were drawn at random, with graded judgements and tied scores; `expected.tsv` is what
//! pytrec_eval-terrier 0.5.11 (trec_eval 9.0) computes from them.

use super::report::{Measure, Ranked};
use super::tasks::{Cut, Frequencies, Task, make, white_space_words};
use super::trec::{self, Judgement, RunLine};
use super::{EvalError, mean};
use crate::random::Random;
use std::collections::HashMap;
use std::ops::Range;

const RUN: &str = include_str!("run.txt");
const QRELS: &str = include_str!("qrels.txt");

fn judged() -> HashMap<String, Ranked> {
    let rankings = trec::rankings(trec::read_run(RUN).expect("a run"));
    let mut grades: HashMap<String, HashMap<String, f64>> = HashMap::new();
    for line in trec::read_qrels(QRELS).expect("judgements") {
        grades.entry(line.query).or_default().insert(line.document, line.grade);
    }
    let lists = grades.into_iter().map(|(query, judged)| {
        let ranking = rankings.get(&query).map_or(&[][..], |ranking| &ranking[..]);
        let grade = |document: &String| judged.get(document).copied().unwrap_or_default();
        let list = Ranked {
            grades: ranking.iter().map(|(document, _)| grade(document)).collect(),
            judged: judged.values().copied().collect(),
        };
        (query, list)
    });
    lists.collect()
}

#[test]
fn measures_agree_with_trec_eval() {
    let lists = judged();
    let mut checked = 0;
    for line in include_str!("expected.tsv").lines() {
        let [query, measure, expected] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let measure = Measure::from_name(measure).expect("a measure");
        let found = measure.of(&lists[query]).expect("a judged query");
        let expected: f64 = expected.parse().expect("a number");
        assert!((found - expected).abs() < 1e-9, "{line}: {found}");
        checked += 1;
    }
    assert_eq!(checked, 48);
    // The means of ir_measures over all seven queries, of which one has no relevant document and counts 0 there.
    for (measure, expected) in [
        (Measure::Ndcg(10), 0.492_111_320_766_773_9),
        (Measure::AveragePrecision, 0.392_284_720_547_898_4),
        (Measure::ReciprocalRank, 0.857_142_857_142_857_1),
        (Measure::Recall(10), 0.344_104_308_390_022_65),
    ] {
        let mean = mean(lists.values().map(|list| measure.of(list))).expect("judged queries");
        assert!((mean * 6.0 / 7.0 - expected).abs() < 1e-9, "{measure:?}: {mean}");
    }
}

#[test]
fn what_is_written_is_read_again() {
    let lines = trec::read_run(RUN).expect("a run");
    assert_eq!(lines.len(), 242);
    let text: Vec<String> = lines
        .iter()
        .map(|line| trec::write_run_line(line).expect("a line"))
        .collect();
    assert_eq!(trec::read_run(&text.join("\n")).expect("a run"), lines);
    let lines = trec::read_qrels(QRELS).expect("judgements");
    let text: Vec<String> = lines
        .iter()
        .map(|line| trec::write_qrels_line(line).expect("a line"))
        .collect();
    assert_eq!(trec::read_qrels(&text.join("\n")).expect("judgements"), lines);
}

#[test]
fn spoilt_files_say_what_is_wrong() {
    let message = |text: &str| trec::read_run(text).expect_err("an error").to_string();
    assert_eq!(
        message("q Q0 d 1 0.5 tag\n\nq Q0 e 2 0.25"),
        "line 3 of the run has 5 fields, not 6 (query Q0 document rank score tag)"
    );
    assert_eq!(
        message("q Q0 d 1 high tag"),
        "line 1 of the run: score \"high\" is not a number"
    );
    assert_eq!(
        message("q Q0 d 1 NaN tag"),
        "line 1 of the run: score \"NaN\" is not a number"
    );
    assert_eq!(
        message("q Q0 d x 1 tag"),
        "line 1 of the run: rank \"x\" is not a number"
    );
    assert_eq!(
        message("q Q0 d 1 1 tag\nq Q0 d 2 1 tag"),
        "line 2 of the run: document \"d\" stands twice under query \"q\""
    );
    let message = |text: &str| trec::read_qrels(text).expect_err("an error").to_string();
    assert_eq!(
        message("q 0 d"),
        "line 1 of the qrels has 3 fields, not 4 (query 0 document grade)"
    );
    assert_eq!(
        message("q 0 d yes"),
        "line 1 of the qrels: grade \"yes\" is not a number"
    );
    let line = |document: &str| RunLine {
        query: "q".into(),
        document: document.into(),
        rank: 1,
        score: 0.1,
        tag: "t".into(),
    };
    assert_eq!(trec::write_run_line(&line("a b")), Err(EvalError::Blank("a b".into())));
    assert_eq!(trec::write_run_line(&line("a")).as_deref(), Ok("q Q0 a 1 0.1 t"));
    let judgement = Judgement {
        query: String::new(),
        document: "d".into(),
        grade: 1.0,
    };
    assert_eq!(trec::write_qrels_line(&judgement), Err(EvalError::Blank(String::new())));
}

#[test]
fn ties_are_broken_by_the_larger_document() {
    let run = "q Q0 a 1 1.0 t\nq Q0 c 2 1.0 t\nq Q0 b 3 2.0 t";
    let rankings = trec::rankings(trec::read_run(run).expect("a run"));
    let order: Vec<&str> = rankings["q"].iter().map(|(document, _)| &document[..]).collect();
    assert_eq!(order, ["b", "c", "a"]);
}

fn sentences(text: &str) -> Vec<Range<usize>> {
    let mut start = 0;
    let ends = text.match_indices(". ").map(|(at, _)| at + 1).chain([text.len()]);
    ends.map(|end| {
        let sentence = start..end;
        start = end + 1;
        sentence
    })
    .collect()
}

fn question(task: &str, text: &str, part: Range<f64>, frequencies: &Frequencies, seed: u64) -> Option<String> {
    let cut = Cut {
        words: &white_space_words,
        sentences: &sentences,
    };
    let task = task.parse().expect("a task");
    make(task, text, part, &cut, frequencies, &mut Random::new(seed))
}

const TEXT: &str = "The ferry left at noon. The old\nferryman whistled a tune about herring. Rain fell. \
                    Nobody on board had seen the lighthouse burn before.";

#[test]
fn spans_are_words_of_the_text_and_of_the_part() {
    let none = Frequencies::default();
    let line = TEXT.replace('\n', " ");
    let mut seen = std::collections::HashSet::new();
    for seed in 0..200 {
        let span = question("span8", TEXT, 0.0..1.0, &none, seed).expect("a span");
        assert_eq!(span.split(' ').count(), 8);
        assert!(line.contains(&span), "{span}");
        seen.insert(span);
    }
    assert_eq!(seen.len(), 24 - 8 + 1, "every place is drawn");
    for seed in 0..50 {
        // Words 12 to 23 of 24.
        let span = question("span4", TEXT, 0.5..1.0, &none, seed).expect("a span");
        assert!(
            "herring. Rain fell. Nobody on board had seen the lighthouse burn before.".contains(&span),
            "{span}"
        );
    }
    assert_eq!(question("span16", TEXT, 0.5..1.0, &none, 0), None, "12 words are left");
    assert_eq!(question("span8", "", 0.0..1.0, &none, 0), None);
    assert_eq!(
        question("span8", TEXT, 0.0..1.0, &none, 7),
        question("span8", TEXT, 0.0..1.0, &none, 7)
    );
}

#[test]
fn keywords_by_hand() {
    let mut frequencies = Frequencies::default();
    for text in [
        TEXT,
        "The old lighthouse and the old sea",
        "Herring and the sea",
        "The rain and the sea",
    ] {
        frequencies.add(text);
    }
    // idf = ln(5 / (1 + df)): the 0, sea ln(5/4), old, herring, rain, lighthouse ln(5/3), others ln(5/2).
    // "fish" twice: 2 ln 5 = 3.22; "old" three times: 3 ln(5/3) = 1.53; "ferry" ln(5/2) = 0.92; "gull" ln 5 = 1.61;
    // "sea" four times: 4 ln(5/4) = 0.89; "The" 0; "of" is too short and "1984" no word.
    let text = "The old sea of old ferry fish. Fish old sea sea sea gull the the of 1984.";
    assert_eq!(
        question("keyword", text, 0.0..1.0, &frequencies, 0).as_deref(),
        Some("fish gull old ferry")
    );
    assert_eq!(question("keyword", "too few words", 0.0..1.0, &frequencies, 0), None);
}

#[test]
fn sentences_of_the_part_that_are_long_enough() {
    let none = Frequencies::default();
    for seed in 0..30 {
        let sentence = question("sentence", TEXT, 0.0..1.0, &none, seed).expect("a sentence");
        assert_ne!(sentence, "Rain fell.");
        let sentence = question("sentence", TEXT, 0.6..1.0, &none, seed).expect("a sentence");
        assert_eq!(sentence, "Nobody on board had seen the lighthouse burn before.");
    }
    assert_eq!(question("sentence", "Rain fell.", 0.0..1.0, &none, 0), None);
}

#[test]
fn tasks_that_do_not_exist() {
    for name in ["", "span", "span1", "span257", "spanx", "word"] {
        assert_eq!(name.parse::<Task>(), Err(EvalError::Task(name.into())));
    }
    assert_eq!("span16".parse(), Ok(Task::Span(16)));
}
