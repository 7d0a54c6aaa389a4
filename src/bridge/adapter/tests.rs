use super::fit::{by_map, mapped, passage_loss};
use super::options::Queries;
use super::*;
use crate::bridge::train::data::{Encode, Monitor, Pair, Passage, Progress, Vectors};
use crate::bridge::train::loss::{Candidates, Groups};
use crate::bridge::train::run::Run;
use crate::compute::Pool;
use crate::model::Role;
use crate::random::Random;

fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..count)
        .map(|_| (random.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
        .collect()
}

fn units(count: usize, dimensions: usize, seed: u64) -> Vec<f32> {
    let mut vectors = numbers(count * dimensions, seed);
    vectors.chunks_exact_mut(dimensions).for_each(normalize);
    vectors
}

#[test]
fn the_formula_by_hand() {
    // (1, 0) + (1, 0) (0 1; 0 0) = (1, 1), with unit length (0.7071, 0.7071).
    let mut adapter = Adapter::identity(Side::Query, 2);
    let mut vector = [0.6f32, 0.8];
    adapter.apply(&mut vector).unwrap();
    assert_eq!(vector, [0.6, 0.8]);
    adapter.map = vec![0.0, 1.0, 0.0, 0.0];
    let mut vector = [1.0f32, 0.0];
    adapter.apply(&mut vector).unwrap();
    assert!((vector[0] - 0.5f32.sqrt()).abs() < 1e-6 && (vector[1] - 0.5f32.sqrt()).abs() < 1e-6);
    assert!(matches!(adapter.apply(&mut [1.0]), Err(BridgeError::Vectors { .. })));
    let read = Adapter::read(&adapter.write(Map::new()).unwrap()).unwrap();
    assert_eq!(read, adapter);
}

/// The gradients on both sides against differences of the loss.
#[test]
fn gradients_are_the_slopes_of_the_loss() {
    let (d, pool) = (6, Pool::new(2).unwrap());
    let (queries, passages) = (units(5, d, 1), units(9, d, 2));
    // Nine passages, the second to fourth of which are chunks of one.
    let groups = Groups::of(9, |_, next| [2, 3].contains(&next));
    let targets = [1u32, 0, 6, 1, 3];
    let tau = 0.3;
    let candidates = Candidates::grouped(&pool, passages.clone(), d, 8, groups.clone()).unwrap();
    let batch = Queries {
        vectors: queries.clone(),
        targets: targets.to_vec(),
    };
    let query_side = |map: &[f32]| {
        let (units, lengths) = mapped(&pool, map, &queries, d).unwrap();
        let (loss, by_units) = candidates.loss(&pool, &units, &targets, tau).unwrap();
        (loss, by_map(&pool, &queries, &units, &lengths, by_units, d).unwrap())
    };
    let passage_side = |map: &[f32]| {
        let (units, lengths) = mapped(&pool, map, &passages, d).unwrap();
        let (loss, by_units) = passage_loss(&pool, &batch, &units, &groups, tau, d).unwrap();
        (loss, by_map(&pool, &passages, &units, &lengths, by_units, d).unwrap())
    };
    type Slopes<'a> = &'a dyn Fn(&[f32]) -> (f64, Vec<f32>);
    let sides: [Slopes; 2] = [&query_side, &passage_side];
    for (side, loss) in sides.into_iter().enumerate() {
        let map: Vec<f32> = numbers(d * d, 3).iter().map(|number| number * 0.3).collect();
        let (_, gradient) = loss(&map);
        let mut largest = 0.0f64;
        for place in 0..d * d {
            let at = |change: f32| {
                let mut map = map.clone();
                map[place] += change;
                loss(&map).0
            };
            let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
            largest = largest.max(slope.abs());
            assert!(
                (slope - f64::from(gradient[place])).abs() < 2e-3,
                "{side} {place}: {slope} {}",
                gradient[place]
            );
        }
        assert!(largest > 0.05, "{largest}");
    }
}

/// Texts are numbers of vectors: "p<n>" and "q<n>". Queries are the passages' vectors turned by a fixed map.
struct Turned {
    dimensions: usize,
}

impl Encode for Turned {
    fn embed(&mut self, role: Role, texts: &[&str]) -> Result<Vectors, BridgeError> {
        let mut values = Vec::new();
        for text in texts {
            let number: u64 = text[1..].parse().unwrap();
            let mut vector = units(1, self.dimensions, number + 10);
            if role == Role::Query {
                vector.rotate_left(1);
            }
            values.extend(vector);
        }
        Ok(Vectors {
            dimensions: self.dimensions,
            values,
        })
    }

    fn tokens(&mut self, _texts: &[&str]) -> Result<Vec<Vec<u32>>, BridgeError> {
        Err(BridgeError::NoReading("tokens"))
    }
}

#[derive(Default)]
struct Seen {
    checkpoints: Vec<Vec<u8>>,
    stop_after: Option<usize>,
    steps: usize,
}

impl Monitor for Seen {
    fn step(&mut self, _progress: &Progress) -> Result<(), BridgeError> {
        self.steps += 1;
        match self.stop_after {
            Some(most) if self.checkpoints.len() >= most => Err(BridgeError::Stopped),
            _ => Ok(()),
        }
    }

    fn checkpoint(&mut self, bytes: &[u8]) -> Result<(), BridgeError> {
        self.checkpoints.push(bytes.to_vec());
        Ok(())
    }
}

fn material() -> (Vec<Passage>, Vec<Pair>) {
    let passages: Vec<Passage> = (0..600u32)
        .map(|number| Passage {
            key: number.to_string(),
            document: number / 2,
            ordinal: number % 2,
            text: format!("p{number}"),
            vector: None,
        })
        .collect();
    let pairs = (0..600u32).map(|number| Pair {
        query: format!("q{number}"),
        passage: number,
        answer: None,
    });
    (passages, pairs.collect())
}

/// A turn is what a map can learn: held-out queries that found nothing find their passage.
#[test]
fn a_turn_is_learned_on_both_sides_and_resumed_to_the_same_bytes() {
    let (passages, pairs) = material();
    for side in ["query", "passage"] {
        let options = json!({"side": side, "rate": 0.004, "epochs": 6, "threads": 2});
        let mut encode = Turned { dimensions: 16 };
        let mut seen = Seen::default();
        let whole = train(Run::new(&passages, &pairs, &options, &mut encode, &mut seen, None)).unwrap();
        let measured = &whole.figures["ndcg@10"];
        let (plain, bridge) = (
            measured["plain"].as_f64().unwrap(),
            measured["bridge"].as_f64().unwrap(),
        );
        println!("{side}: {plain} -> {bridge}");
        assert!(
            whole.verdict.accepts() && plain < 0.2 && bridge > 0.8,
            "{side}: {plain} {bridge}"
        );
        assert_eq!(whole.figures["queries"], "given");

        // Stopped in the second epoch, and after the first of the training on everything.
        let evaluated = whole.figures["epochs"].as_u64().unwrap() as usize;
        for stop_after in [2, evaluated + 1] {
            let mut seen = Seen {
                stop_after: Some(stop_after),
                ..Seen::default()
            };
            let stopped = train(Run::new(&passages, &pairs, &options, &mut encode, &mut seen, None));
            assert!(matches!(stopped, Err(BridgeError::Stopped)));
            let checkpoint = seen.checkpoints.last().unwrap();
            let rest = &mut Seen::default();
            let resumed = train(Run::new(
                &passages,
                &pairs,
                &options,
                &mut encode,
                rest,
                Some(checkpoint),
            ))
            .unwrap();
            assert_eq!(resumed.weights, whole.weights, "{side}");
            assert_eq!(resumed.figures, whole.figures, "{side}");
        }
        let checkpoint = seen.checkpoints.first().unwrap();
        let other = train(Run::new(
            &passages,
            &pairs[..500],
            &options,
            &mut encode,
            &mut Seen::default(),
            Some(checkpoint),
        ));
        assert!(matches!(other, Err(BridgeError::File(_))));
    }
}

/// Queries that have nothing to do with their passages teach nothing: the bridge is refused.
#[test]
fn noise_is_rejected() {
    let (passages, mut pairs) = material();
    let count = pairs.len() as u32;
    let mut random = Random::new(4);
    for pair in &mut pairs {
        pair.passage = random.below(count as usize) as u32;
    }
    let options = json!({"rate": 0.02, "threads": 2});
    let mut encode = Turned { dimensions: 16 };
    let trained = train(Run::new(
        &passages,
        &pairs,
        &options,
        &mut encode,
        &mut Seen::default(),
        None,
    ))
    .unwrap();
    assert!(!trained.verdict.accepts(), "{}", trained.figures);
    assert!(trained.figures["ndcg@10"]["bridge"].as_f64().unwrap() < 0.1);
}

#[test]
fn bad_options_and_too_little_are_errors() {
    let (passages, pairs) = material();
    let mut encode = Turned { dimensions: 16 };
    for options in [
        json!({"rate": 0}),
        json!({"unknown": 1}),
        json!({"batch": 1}),
        json!({"held_out": 2}),
        json!(3),
    ] {
        let result = train(Run::new(
            &passages,
            &pairs,
            &options,
            &mut encode,
            &mut Seen::default(),
            None,
        ));
        assert!(matches!(result, Err(BridgeError::Option { .. })), "{options}");
    }
    let result = train(Run::new(
        &passages,
        &pairs[..30],
        &json!({}),
        &mut encode,
        &mut Seen::default(),
        None,
    ));
    assert!(matches!(result, Err(BridgeError::TooLittle(_))));
}
