//! Training over a small random model: the loss falls, checkpoints go on bit by bit, files are checked.

use super::train::verdict;
use super::{KIND, Reading, TextFeedback, train};
use crate::bridge::BridgeError;
use crate::bridge::train::acceptance::Verdict;
use crate::bridge::train::data::{Encode, Monitor, Pair, Passage, Progress, Vectors};
use crate::bridge::train::run::Run;
use crate::compute::Pool;
use crate::model::tests::maker::Maker;
use crate::model::{Encoder, Role};
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// A random model on disk.
struct Model {
    dir: PathBuf,
    encoder: Encoder,
    pool: Pool,
}

impl Encode for Model {
    fn embed(&mut self, role: Role, texts: &[&str]) -> Result<Vectors, BridgeError> {
        let sequences: Result<Vec<_>, _> = texts.iter().map(|text| self.encoder.text(role, text)).collect();
        let vectors = self.encoder.encode(&self.pool, &sequences?)?;
        Ok(Vectors {
            dimensions: self.encoder.manifest().dimensions,
            values: vectors.concat(),
        })
    }

    fn tokens(&mut self, _texts: &[&str]) -> Result<Vec<Vec<u32>>, BridgeError> {
        Err(BridgeError::NoReading("tokens"))
    }

    fn directory(&mut self) -> Result<PathBuf, BridgeError> {
        Ok(self.dir.clone())
    }
}

#[derive(Default)]
struct Keeper {
    checkpoints: Vec<Vec<u8>>,
    stop_after: Option<usize>,
    losses: Vec<(u64, f64)>,
}

impl Monitor for Keeper {
    fn step(&mut self, progress: &Progress) -> Result<(), BridgeError> {
        if progress.loss > 0.0 {
            self.losses.push((progress.step, progress.loss));
        }
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

/// Passages of three colours in some order, and for each a query of the first and last of them.
fn material() -> (Vec<Passage>, Vec<Pair>) {
    let words = ["red", "green", "blue", "a", "passage"];
    let passages: Vec<Passage> = (0..125)
        .map(|n: u32| Passage {
            key: n.to_string(),
            document: n,
            ordinal: 0,
            text: [n % 5, n / 5 % 5, n / 25].map(|word| words[word as usize]).join(" "),
            vector: None,
        })
        .collect();
    let pairs = (0..250u32)
        .map(|n| Pair {
            query: format!("{} {}", words[(n % 125 % 5) as usize], words[(n % 125 / 25) as usize]),
            passage: n % 125,
            answer: None,
        })
        .collect();
    (passages, pairs)
}

fn options() -> Value {
    json!({"layers": 1, "rate": 2e-2, "epochs": 6, "batch": 8, "round_steps": 8, "held_out": 0.5, "passages": 2,
        "negatives": 8, "threads": 1})
}

fn run(
    dir: &tempfile::TempDir,
    monitor: &mut Keeper,
    checkpoint: Option<&[u8]>,
) -> Result<super::super::train::data::Trained, BridgeError> {
    let mut model = Model {
        dir: dir.path().to_path_buf(),
        encoder: Encoder::open(dir.path()).unwrap(),
        pool: Pool::new(1).unwrap(),
    };
    let (passages, pairs) = material();
    train(Run::new(&passages, &pairs, &options(), &mut model, monitor, checkpoint))
}

#[test]
fn the_loss_falls_and_a_checkpoint_goes_on_bit_by_bit() {
    let maker = Maker {
        normalize: true,
        ..Maker::new()
    };
    let dir = maker.write();
    let mut whole = Keeper::default();
    let trained = run(&dir, &mut whole, None).unwrap();
    let (first, last) = (whole.losses[0].1, whole.losses[whole.losses.len() - 1].1);
    assert!(last < 0.93 * first, "{first} {last}");
    assert!(whole.checkpoints.len() >= 2);

    let mut stopped = Keeper {
        stop_after: Some(1),
        ..Keeper::default()
    };
    assert!(matches!(run(&dir, &mut stopped, None), Err(BridgeError::Stopped)));
    assert_eq!(stopped.checkpoints[0], whole.checkpoints[0]);
    let resumed = run(&dir, &mut Keeper::default(), Some(&stopped.checkpoints[0])).unwrap();
    assert_eq!(resumed.weights, trained.weights);
    assert_eq!(resumed.figures, trained.figures);

    let read = TextFeedback::read(&trained.weights).unwrap();
    assert_eq!(read.reading.passages, 2);
    assert_eq!(read.replaced.len(), 16);
    assert!(read.replaced.keys().all(|name| name.starts_with("encoder.layer.1.")));
    assert_eq!(trained.figures["queries"], "given");
    let score = &trained.figures["ndcg@10"];
    assert!(score["plain"].as_f64().unwrap() > 0.0);
    assert_eq!(
        trained.verdict.accepts(),
        score["low"].as_f64().unwrap() > 0.0 && trained.figures["best_round"].as_u64() > Some(0)
    );
    assert!(matches!(
        run(&dir, &mut Keeper::default(), Some(&trained.weights)),
        Err(BridgeError::File(_))
    ));
}

#[test]
fn a_gain_within_chance_is_rejected() {
    // Two hundred queries: gains and losses of a half, a few more gains.
    let plain = vec![0.5; 200];
    let better = |gains: usize| -> Vec<f64> { (0..200).map(|n| if n % 40 < gains { 1.0 } else { 0.0 }).collect() };
    let (found, verdict) = verdict(&plain, &better(21), 1, false, 1);
    assert!(found.gain > 0.0 && verdict == Verdict::Rejected, "{}", found.gain);
    assert_eq!(
        super::train::verdict(&plain, &better(30), 1, false, 1).1,
        Verdict::Accepted
    );
    assert_eq!(
        super::train::verdict(&plain, &better(30), 1, true, 1).1,
        Verdict::AcceptedSynthetic
    );
    // A copy that was never changed.
    assert_eq!(
        super::train::verdict(&plain, &better(30), 0, false, 1).1,
        Verdict::Rejected
    );
}

#[test]
fn options_out_of_range_and_too_few_pairs_are_errors() {
    let dir = Maker::new().write();
    let mut model = Model {
        dir: dir.path().to_path_buf(),
        encoder: Encoder::open(dir.path()).unwrap(),
        pool: Pool::new(1).unwrap(),
    };
    let (passages, pairs) = material();
    for bad in [
        json!({"passages": 0}),
        json!({"rate": -1.0}),
        json!({"unknown": 1}),
        json!({"epochs": 0}),
        json!({"held_out": 1.0}),
    ] {
        let found = train(Run::new(
            &passages,
            &pairs,
            &bad,
            &mut model,
            &mut Keeper::default(),
            None,
        ));
        assert!(
            matches!(found, Err(BridgeError::Option { name: "options", .. })),
            "{bad}"
        );
    }
    let found = train(Run::new(
        &passages[..30],
        &pairs[..30],
        &json!({}),
        &mut model,
        &mut Keeper::default(),
        None,
    ));
    assert!(matches!(found, Err(BridgeError::TooLittle(_))));
}

#[test]
fn what_was_written_is_read_and_other_bytes_are_refused() {
    let bridge = TextFeedback {
        reading: Reading {
            passages: 3,
            passage_tokens: 64,
        },
        replaced: [("x".to_owned(), (vec![2], vec![1.0, 2.0]))].into(),
    };
    let bytes = bridge.write(4, Map::new()).unwrap();
    let read = TextFeedback::read(&bytes).unwrap();
    assert_eq!((read.reading, read.replaced), (bridge.reading, bridge.replaced));
    for cut in 0..bytes.len() {
        assert!(TextFeedback::read(&bytes[..cut]).is_err(), "{cut}");
    }
    let other = crate::bridge::file::write(KIND, 4, Map::new(), &[("x", vec![1], &[1.0])]).unwrap();
    assert!(matches!(TextFeedback::read(&other), Err(BridgeError::File(_))));
}
