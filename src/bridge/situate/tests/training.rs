//! Training over a made-up encoder in which a passage's subject is known to its document alone.

use crate::bridge::BridgeError;
use crate::bridge::situate::bridge::Bridge;
use crate::bridge::situate::train;
use crate::bridge::train::data::{Encode, Monitor, Pair, Passage, Progress, Vectors};
use crate::bridge::train::run::Run;
use crate::model::Role;
use crate::random::Random;
use serde_json::json;

const D: usize = 48;

/// Words are fixed random directions, a text is their normalised sum.
struct Words;

impl Encode for Words {
    fn embed(&mut self, _role: Role, texts: &[&str]) -> Result<Vectors, BridgeError> {
        let mut values = Vec::new();
        for text in texts {
            let mut row = [0.0f32; D];
            for word in text.split_whitespace() {
                let seed = word
                    .bytes()
                    .fold(7u64, |hash, byte| hash.wrapping_mul(31) + u64::from(byte));
                let mut random = Random::new(seed);
                row.iter_mut()
                    .for_each(|x| *x += random.below(2001) as f32 / 1000.0 - 1.0);
            }
            let length = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-9);
            values.extend(row.iter().map(|x| x / length));
        }
        Ok(Vectors { dimensions: D, values })
    }

    fn tokens(&mut self, _texts: &[&str]) -> Result<Vec<Vec<u32>>, BridgeError> {
        Err(BridgeError::NoReading("tokens"))
    }
}

/// Keeps checkpoints, and stops after so many.
#[derive(Default)]
struct Keeper {
    checkpoints: Vec<Vec<u8>>,
    stop_after: Option<usize>,
    steps: u64,
}

impl Monitor for Keeper {
    fn step(&mut self, progress: &Progress) -> Result<(), BridgeError> {
        assert!(progress.step > self.steps && progress.step <= progress.steps);
        self.steps = progress.step;
        Ok(())
    }

    fn checkpoint(&mut self, bytes: &[u8]) -> Result<(), BridgeError> {
        self.checkpoints.push(bytes.to_vec());
        match self.stop_after == Some(self.checkpoints.len()) {
            true => Err(BridgeError::Stopped),
            false => Ok(()),
        }
    }
}

/// Documents of four passages. The first names the subject, the others say only what happens; a query names both.
fn corpus() -> (Vec<Passage>, Vec<Pair>) {
    let mut random = Random::new(2);
    let (mut passages, mut pairs) = (Vec::new(), Vec::new());
    for document in 0..160u32 {
        let name = format!("name{document}");
        for ordinal in 0..4u32 {
            let event = format!("event{}", random.below(12));
            let text = match ordinal {
                0 => format!("{name} {name} {event}"),
                _ => format!("{event} thing{}", random.below(30)),
            };
            if ordinal > 0 {
                pairs.push(Pair {
                    query: format!("{name} {event}"),
                    passage: passages.len() as u32,
                    answer: None,
                });
            }
            passages.push(Passage {
                key: format!("{document}.{ordinal}"),
                document,
                ordinal,
                text,
                vector: None,
            });
        }
    }
    (passages, pairs)
}

#[test]
fn what_only_the_document_knows_is_learned_and_a_resumed_training_ends_the_same() {
    let (passages, pairs) = corpus();
    let options = json!({"epochs": 12, "rate": 0.01, "decay": 1e-4, "rank": 8, "seed": 4});
    let mut whole = Keeper::default();
    let trained = train(Run::new(&passages, &pairs, &options, &mut Words, &mut whole, None)).unwrap();
    let figure = |name: &str| trained.figures[name].as_f64().unwrap();
    assert!(
        trained.verdict.accepts() && trained.figures["document"] == json!(true),
        "{}",
        trained.figures
    );
    assert!(figure("bridge") > 1.2 * figure("control"), "{}", trained.figures);
    assert!(figure("bridge") > 1.2 * figure("plain"), "{}", trained.figures);
    let over = &trained.figures["bridge_over_control"];
    let difference = figure("bridge") - figure("control");
    assert!((over["difference"].as_f64().unwrap() - difference).abs() < 1e-9);
    assert!(over["low"].as_f64().unwrap() > 0.0, "{over}");
    let stored = Bridge::read(&trained.weights).unwrap();
    assert_eq!(stored.shape.dimensions, D);
    // A source goes through the chunk's own map.
    let [map, values, ..] = stored.shape.ranges();
    for (place, (value, own)) in stored.numbers[values].iter().zip(&stored.numbers[map]).enumerate() {
        let own = own + f32::from(u8::from(place % (D + 1) == 0));
        assert!((value - 2.0 * own).abs() < 1e-5, "{place}: {value} {own}");
    }
    assert_eq!(whole.checkpoints.len(), 24);
    for stop_after in [5, 12, 17] {
        let mut first = Keeper {
            stop_after: Some(stop_after),
            ..Keeper::default()
        };
        let stopped = train(Run::new(&passages, &pairs, &options, &mut Words, &mut first, None));
        assert!(matches!(stopped, Err(BridgeError::Stopped)));
        let mut second = Keeper::default();
        let last = first.checkpoints.last().map(Vec::as_slice);
        let resumed = train(Run::new(&passages, &pairs, &options, &mut Words, &mut second, last)).unwrap();
        assert!(second.checkpoints.len() == 24 - stop_after);
        assert_eq!(resumed.weights, trained.weights);
    }
}

/// The control is a bridge of its own: it looks at nothing but the chunk.
#[test]
fn without_the_document_the_control_alone_is_trained() {
    let (passages, pairs) = corpus();
    let options = json!({"epochs": 2, "rate": 0.01, "rank": 8, "document": false});
    let mut monitor = Keeper::default();
    let trained = train(Run::new(&passages, &pairs, &options, &mut Words, &mut monitor, None)).unwrap();
    assert_eq!(monitor.checkpoints.len(), 2);
    assert_eq!(trained.figures["document"], json!(false));
    assert!(trained.figures["bridge"].is_null() && trained.figures["bridge_over_control"].is_null());
    let stored = Bridge::read(&trained.weights).unwrap();
    let rows: Vec<f32> = (0..3 * D).map(|place| ((place * 7 % 11) as f32) - 5.0).collect();
    let chunks: Vec<&[f32]> = rows.chunks_exact(D).collect();
    let together = stored.apply(&chunks).unwrap();
    for (chunk, found) in chunks.iter().zip(&together) {
        assert_eq!(stored.apply(&[chunk]).unwrap()[0], *found);
    }
}

#[test]
fn pairs_are_made_where_none_are_given() {
    let (mut passages, _) = corpus();
    for (number, passage) in passages.iter_mut().enumerate() {
        passage.text =
            format!("First word{number} came with four others. Then word{number} left them all behind there.");
    }
    let options = json!({"epochs": 1, "rank": 4});
    let trained = train(Run::new(
        &passages,
        &[],
        &options,
        &mut Words,
        &mut Keeper::default(),
        None,
    ))
    .unwrap();
    assert_eq!(trained.figures["pairs"], json!("synthetic"));
    let counted =
        ["trained_pairs", "validation_pairs", "held_out_pairs"].map(|part| trained.figures[part].as_u64().unwrap());
    assert_eq!(counted.iter().sum::<u64>(), 2 * passages.len() as u64);
}

#[test]
fn what_cannot_be_trained_is_an_error() {
    let (passages, pairs) = corpus();
    let run = |passages: &[Passage], pairs: &[Pair], options| {
        train(Run::new(
            passages,
            pairs,
            &options,
            &mut Words,
            &mut Keeper::default(),
            None,
        ))
        .unwrap_err()
    };
    assert!(matches!(
        run(&passages[..4], &pairs[..3], json!({})),
        BridgeError::TooLittle(_)
    ));
    assert!(matches!(
        run(&[], &[], json!({})),
        BridgeError::TooLittle(_) | BridgeError::Vectors { .. }
    ));
    for bad in [
        json!({"epochs": 0}),
        json!({"rate": -1.0}),
        json!({"rank": 0}),
        json!({"unknown": 1}),
    ] {
        assert!(matches!(run(&passages, &pairs, bad), BridgeError::Option { .. }));
    }
    let outside = [Pair {
        query: "a".to_owned(),
        passage: 1_000_000,
        answer: None,
    }];
    assert!(matches!(run(&passages, &outside, json!({})), BridgeError::Outside(_)));
}
