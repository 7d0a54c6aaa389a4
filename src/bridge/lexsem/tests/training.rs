//! Training over a made-up language, whose encoder hears some words less than it should.

use crate::bridge::BridgeError;
use crate::bridge::lexsem::queries::{Part, QueryMaker};
use crate::bridge::lexsem::{Fusion, LexSem, Scheme, file, train, unit};
use crate::bridge::train::acceptance::Verdict;
use crate::bridge::train::data::{Encode, Monitor, Pair, Passage, Progress, TokenStates, Trained, Vectors};
use crate::bridge::train::run::Run;
use crate::model::Role;
use crate::random::Random;
use serde_json::{Map, Value, json};

const D: usize = 24;
const VOCABULARY: usize = 400;

/// The word with a number, and back.
fn word(number: usize) -> String {
    format!("w{number:03}x")
}

fn number(word: &str) -> usize {
    word.trim_matches(['w', 'x', '.']).parse().unwrap()
}

/// Sums random word vectors; a query's words are mixed with a fixed vector, which a bridge can learn to undo.
struct Made {
    words: Vec<Vec<f32>>,
    noise: Vec<Vec<f32>>,
}

impl Made {
    fn new() -> Made {
        let mut random = Random::new(17);
        let mut table = || -> Vec<Vec<f32>> {
            let mut row = || (0..D).map(|_| random.unit() as f32 - 0.5).collect();
            (0..VOCABULARY).map(|_| row()).collect()
        };
        Made {
            words: table(),
            noise: table(),
        }
    }
}

impl Encode for Made {
    fn embed(&mut self, role: Role, texts: &[&str]) -> Result<Vectors, BridgeError> {
        let mut values = Vec::new();
        for text in texts {
            let mut sum = vec![0.0f32; D];
            for id in text.split_whitespace().map(number) {
                let noise = if role == Role::Query { 1.2 } else { 0.0 };
                for ((sum, x), y) in sum.iter_mut().zip(&self.words[id]).zip(&self.noise[id]) {
                    *sum += x + noise * y;
                }
            }
            values.extend(unit(sum));
        }
        Ok(Vectors { dimensions: D, values })
    }

    fn tokens(&mut self, texts: &[&str]) -> Result<Vec<Vec<u32>>, BridgeError> {
        let ids = |text: &&str| text.split_whitespace().map(|word| number(word) as u32).collect();
        Ok(texts.iter().map(ids).collect())
    }

    fn states(&mut self, texts: &[&str]) -> Result<Vec<TokenStates>, BridgeError> {
        let ids = self.tokens(texts)?;
        let states = |ids: Vec<u32>| TokenStates {
            values: ids.iter().flat_map(|id| self.words[*id as usize].clone()).collect(),
            ids,
        };
        Ok(ids.into_iter().map(states).collect())
    }
}

/// Counts; stops after some epochs and keeps their checkpoint.
#[derive(Default)]
struct Ends {
    after: Option<usize>,
    checkpoints: Vec<Vec<u8>>,
    steps: u64,
}

impl Monitor for Ends {
    fn step(&mut self, progress: &Progress) -> Result<(), BridgeError> {
        self.steps = self.steps.max(progress.step);
        match self.after {
            Some(epochs) if self.checkpoints.len() >= epochs => Err(BridgeError::TooLittle("stopped here".to_owned())),
            _ => Ok(()),
        }
    }

    fn checkpoint(&mut self, bytes: &[u8]) -> Result<(), BridgeError> {
        self.checkpoints.push(bytes.to_vec());
        Ok(())
    }
}

/// Passages of 60 words, each of them one of so many that are the passage's own.
fn passages_of(count: usize, own: usize) -> Vec<Passage> {
    let mut random = Random::new(23);
    let text = |random: &mut Random| {
        let own: Vec<usize> = (0..own).map(|_| random.below(VOCABULARY)).collect();
        let words: Vec<String> = (0..60)
            .map(|place| {
                let end = if place % 10 == 9 { "." } else { "" };
                format!("{}{end}", word(own[random.below(own.len())]))
            })
            .collect();
        words.join(" ")
    };
    let passage = |place: usize, random: &mut Random| Passage {
        key: place.to_string(),
        document: place as u32,
        ordinal: 0,
        text: text(random),
        vector: None,
    };
    (0..count).map(|place| passage(place, &mut random)).collect()
}

fn passages(count: usize) -> Vec<Passage> {
    passages_of(count, 10)
}

fn run(options: &Value, monitor: &mut Ends, checkpoint: Option<&[u8]>) -> Result<Trained, BridgeError> {
    train(Run::new(
        &passages(150),
        &[],
        options,
        &mut Made::new(),
        monitor,
        checkpoint,
    ))
}

fn small(scheme: &str) -> Value {
    json!({"scheme": scheme, "epochs": 4, "batch": 64, "rate": 0.01, "whiten": 0.0, "threads": 2})
}

#[test]
fn every_scheme_learns_what_the_encoder_mixes_up() {
    for scheme in ["bag", "slr", "slr_paper", "llr"] {
        let mut options = small(scheme);
        options["fusion"] = json!("sum");
        options["unseen"] = json!(0.0);
        options["strength"] = json!(1.0);
        let trained = run(&options, &mut Ends::default(), None).unwrap();
        assert!(trained.verdict.accepts(), "{scheme}: {}", trained.figures);
        assert!(
            trained.figures["gain"].as_f64().unwrap() > 0.05,
            "{scheme}: {}",
            trained.figures
        );
        let bridge = file::read(&trained.weights).unwrap();
        assert_eq!(bridge.scheme, Scheme::from_name(scheme).unwrap());
        assert!(bridge.rows.iter().any(|x| *x != 0.0));
    }
}

#[test]
fn a_bridge_that_only_harms_is_not_accepted() {
    let mut options = small("bag");
    options["rate"] = json!(1.0);
    options["epochs"] = json!(1);
    // Words of any passage say nothing of where they stand next.
    let passages = passages_of(150, 4000);
    let trained = train(Run::new(
        &passages,
        &[],
        &options,
        &mut Made::new(),
        &mut Ends::default(),
        None,
    ))
    .unwrap();
    assert!(!trained.verdict.accepts());
    assert_eq!(trained.figures["epoch"], 0);
    let bridge = file::read(&trained.weights).unwrap();
    assert!(bridge.rows.iter().all(|x| *x == 0.0), "the best is the beginning");
}

#[test]
fn a_training_that_goes_on_ends_as_one_that_was_not_interrupted() {
    let options = small("bag");
    let whole = run(&options, &mut Ends::default(), None).unwrap();
    let mut monitor = Ends {
        after: Some(2),
        ..Ends::default()
    };
    assert!(matches!(
        run(&options, &mut monitor, None),
        Err(BridgeError::TooLittle(_))
    ));
    let checkpoint = monitor.checkpoints.last().unwrap().clone();
    let mut rest = Ends::default();
    let resumed = run(&options, &mut rest, Some(&checkpoint)).unwrap();
    assert!(rest.checkpoints.len() <= 2);
    assert_eq!(resumed.weights, whole.weights);
    assert_eq!(resumed.figures, whole.figures);
    for damaged in [&checkpoint[..checkpoint.len() - 1], &checkpoint[..20], b"".as_slice()] {
        assert!(run(&options, &mut Ends::default(), Some(damaged)).is_err());
    }
}

#[test]
fn the_seed_decides_the_bytes() {
    let mut options = small("bag");
    options["epochs"] = json!(1);
    let first = run(&options, &mut Ends::default(), None).unwrap();
    assert_eq!(
        run(&options, &mut Ends::default(), None).unwrap().weights,
        first.weights
    );
    options["seed"] = json!(2);
    assert_ne!(
        run(&options, &mut Ends::default(), None).unwrap().weights,
        first.weights
    );
}

#[test]
fn pairs_are_trained_on_and_some_kept() {
    let passages = passages(150);
    let pair = |passage: usize| Pair {
        query: passages[passage].text.split(' ').take(8).collect::<Vec<_>>().join(" "),
        passage: passage as u32,
        answer: None,
    };
    let pairs: Vec<Pair> = (0..150).map(pair).collect();
    let mut options = small("bag");
    options["unseen"] = json!(0.2);
    let trained = train(Run::new(
        &passages,
        &pairs,
        &options,
        &mut Made::new(),
        &mut Ends::default(),
        None,
    ))
    .unwrap();
    let tasks = &trained.figures["tasks"];
    assert!(tasks["pairs"]["queries"].as_u64().unwrap() > 0, "{tasks}");
    assert!(tasks["unseen_span16"]["queries"].as_u64().unwrap() > 0, "{tasks}");
    assert!(trained.figures["passages"].as_u64().unwrap() < 150);
}

#[test]
fn bad_options_and_too_few_passages_are_errors() {
    let mut encode = Made::new();
    for options in [
        json!({"spans": 101}),
        json!({"tau": 0}),
        json!({"scheme": "llr_paper"}),
        json!({"scheme": "other"}),
        json!({"unknown": 1}),
        json!([1]),
        json!({"batch": 0}),
    ] {
        let found = run(&options, &mut Ends::default(), None);
        assert!(matches!(found, Err(BridgeError::Option { .. })), "{options}");
    }
    let few = train(Run::new(
        &passages(3),
        &[],
        &Value::Null,
        &mut encode,
        &mut Ends::default(),
        None,
    ));
    assert!(matches!(few, Err(BridgeError::TooLittle(_))));
    assert!(matches!(
        run(&json!({"scheme": "clr"}), &mut Ends::default(), None),
        Err(BridgeError::NoReading(_))
    ));
}

#[test]
fn the_border_is_the_documents() {
    let mut passages = passages(6);
    for (place, passage) in passages.iter_mut().enumerate() {
        (passage.document, passage.ordinal) = (place as u32 / 3, place as u32 % 3);
    }
    let maker = QueryMaker::new(&passages, 0.5);
    let trained = |place: usize| maker.part_text(place, Part::Trained).split_whitespace().count();
    assert_eq!((0..6).map(trained).collect::<Vec<_>>(), [60, 30, 0, 60, 30, 0]);
}

#[test]
fn half_the_strength_goes_half_the_way() {
    let mut bridge = LexSem::identity(Scheme::Bag, Fusion::Sum, 2, vec![7], vec![1.0]);
    let row = [0.0f32, 2.0];
    let moved = |bridge: &LexSem| {
        bridge
            .apply(&[2.0, 0.0], std::iter::once((row.as_slice(), 1.0)))
            .unwrap()
    };
    let root = std::f32::consts::FRAC_1_SQRT_2;
    let close = |found: Vec<f32>, wanted: Vec<f32>| found.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-6);
    assert!(close(moved(&bridge), vec![root, root]));
    bridge.strength = 0.5;
    // Between the query's direction (1, 0) and (1, 1) / sqrt 2.
    assert!(close(moved(&bridge), unit(vec![1.0 + root, root])));
    let written = file::write(&bridge, Map::new()).unwrap();
    assert_eq!(file::read(&written).unwrap().strength, 0.5);
    for strength in [0.0, -1.0, 1.5, f32::NAN] {
        bridge.strength = strength;
        let written = file::write(&bridge, Map::new()).unwrap();
        assert!(matches!(file::read(&written), Err(BridgeError::File(_))), "{strength}");
    }
}

#[test]
fn without_pairs_a_bridge_is_weakened_and_says_what_judged_it() {
    let mut options = small("bag");
    options["fusion"] = json!("sum");
    let trained = run(&options, &mut Ends::default(), None).unwrap();
    assert_eq!(trained.verdict, Verdict::AcceptedSynthetic, "{}", trained.figures);
    assert_eq!(trained.figures["strength"], 0.5);
    let tasks = &trained.figures["tasks"];
    // A fifth of the documents is left out, of one topic.
    assert_eq!(trained.figures["passages"], 120);
    assert!(tasks["unseen_keyword"]["queries"].as_u64() > Some(0), "{tasks}");
    assert!(tasks["sentence_common"]["queries"].as_u64() > Some(0), "{tasks}");
    options["strength"] = json!(1.0);
    options["unseen"] = json!(0.0);
    let whole = run(&options, &mut Ends::default(), None).unwrap();
    assert_eq!(
        (&whole.figures["strength"], &whole.figures["passages"]),
        (&json!(1.0), &json!(150))
    );
    options["strength"] = json!(0.0);
    assert!(matches!(
        run(&options, &mut Ends::default(), None),
        Err(BridgeError::Option { .. })
    ));
}

#[test]
fn rare_words_are_taken_out_of_sentences() {
    let passage = |n: usize| Passage {
        key: n.to_string(),
        document: n as u32,
        ordinal: 0,
        text: format!("Filler words go first in here. Then the king of place{n} went to his own old castle."),
        vector: None,
    };
    let passages: Vec<Passage> = (0..40).map(passage).collect();
    // Everything is trained on, so that all words are counted.
    let maker = QueryMaker::new(&passages, 0.0);
    let mut random = Random::new(3);
    let found: Vec<String> = (0..40)
        .filter_map(|place| maker.common_sentence(place, Part::Trained, 6, &mut random))
        .map(|made| made.text)
        .collect();
    assert!(
        found.contains(&"Then the king of went to his own old castle.".to_owned()),
        "{found:?}"
    );
    assert!(found.iter().all(|text| !text.contains("place")), "{found:?}");
    // Nothing but rare words leaves nothing to ask.
    let rare: Vec<Passage> = (0..3)
        .map(|n| Passage {
            text: format!("alpha{n} beta{n} gamma{n} delta{n} epsilon{n} zeta{n}."),
            ..passage(n)
        })
        .collect();
    let maker = QueryMaker::new(&rare, 0.0);
    assert!(maker.common_sentence(0, Part::Trained, 4, &mut random).is_none());
}

#[test]
fn no_made_query_crosses_the_border() {
    let passages = passages(40);
    let maker = QueryMaker::new(&passages, 0.4);
    let mut random = Random::new(5);
    for (place, passage) in passages.iter().enumerate() {
        let (trained, held_out) = (
            maker.part_text(place, Part::Trained),
            maker.part_text(place, Part::HeldOut),
        );
        assert_eq!(format!("{trained} {held_out}"), passage.text);
        assert_eq!(held_out.split(' ').count(), 24);
        for (part, text) in [(Part::Trained, trained), (Part::HeldOut, held_out)] {
            let span = maker.span(place, part, 12, &mut random).unwrap();
            assert!(text.contains(&span.text) && span.text.split(' ').count() == 12);
            let sentence = maker.sentence(place, part, 6, &mut random).unwrap();
            assert!(text.contains(&sentence.text) && sentence.text.ends_with('.'));
            for random_terms in [false, true] {
                let keywords = maker.keyword_query(place, part, 4, random_terms, &mut random);
                let keywords = keywords.unwrap().text;
                assert!(keywords.split(' ').all(|word| text.contains(word)), "{keywords}");
            }
            assert!(maker.span(place, part, 100, &mut random).is_none());
        }
    }
}
