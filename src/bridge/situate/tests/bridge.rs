//! The bridge's formula against numbers computed here, its gradient against differences, and its file.

use crate::bridge::BridgeError;
use crate::bridge::situate::bridge::{Bridge, SOURCES, Shape, with_mean};
use crate::bridge::situate::gradient::{Rows, Target, loss};
use crate::random::Random;
use serde_json::Map;

fn numbers(count: usize, range: f32, random: &mut Random) -> Vec<f32> {
    (0..count)
        .map(|_| (random.below(2001) as f32 / 1000.0 - 1.0) * range)
        .collect()
}

fn bridge(shape: Shape, range: f32) -> Bridge {
    let numbers = numbers(shape.parameters(), range, &mut Random::new(3));
    Bridge {
        shape,
        numbers,
        share: 0.0,
    }
}

#[test]
fn without_weights_a_vector_is_only_normalised() {
    let shape = Shape { dimensions: 2, rank: 1 };
    let none = Bridge {
        shape,
        numbers: vec![0.0; shape.parameters()],
        share: 0.0,
    };
    assert_eq!(
        none.apply(&[&[3.0, 4.0], &[0.0, 0.0]]).unwrap(),
        [[0.6, 0.8], [0.0, 0.0]]
    );
    assert!(none.apply(&[]).unwrap().is_empty());
    assert!(matches!(
        none.apply(&[&[1.0]]),
        Err(BridgeError::Vectors { expected: 2, found: 1 })
    ));
}

/// The formula of the head comment in f64, written down again source by source.
#[test]
fn vectors_are_those_of_the_formula() {
    let shape = Shape { dimensions: 5, rank: 3 };
    let bridge = bridge(shape, 0.8);
    let rows = numbers(9 * 5, 1.0, &mut Random::new(8));
    let chunks: Vec<&[f32]> = rows.chunks_exact(5).collect();
    let found = bridge.apply(&chunks).unwrap();
    let [map, values, query, key, bias] = shape.ranges();
    let times = |range: &std::ops::Range<usize>, x: &[f64]| -> Vec<f64> {
        let rows = bridge.numbers[range.clone()].chunks_exact(x.len());
        rows.map(|row| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum())
            .collect()
    };
    let wide = |row: &[f32]| -> Vec<f64> { row.iter().map(|x| f64::from(*x)).collect() };
    let mut mean: Vec<f64> = (0..5)
        .map(|d| chunks.iter().map(|row| f64::from(row[d])).sum())
        .collect();
    let length = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
    mean.iter_mut().for_each(|x| *x /= length);
    for i in 0..9usize {
        let own = wide(chunks[i]);
        // Before: 1, 2, 3 back; behind: 1, 2, 3 on; then the mean.
        let places = [
            i.checked_sub(1),
            i.checked_sub(2),
            i.checked_sub(3),
            Some(i + 1),
            Some(i + 2),
            Some(i + 3),
        ];
        let mut sources: Vec<Option<Vec<f64>>> = places
            .iter()
            .map(|at| at.filter(|&at| at < 9).map(|at| wide(chunks[at])))
            .collect();
        sources.push(Some(mean.clone()));
        assert_eq!(sources.len(), SOURCES);
        let asked = times(&query, &own);
        let weight = |s: usize, x: &Vec<f64>| {
            let score: f64 = asked.iter().zip(times(&key, x)).map(|(a, b)| a * b).sum();
            (score / 3f64.sqrt() + f64::from(bridge.numbers[bias.start + s])).exp()
        };
        let weights: Vec<f64> = sources
            .iter()
            .enumerate()
            .map(|(s, x)| x.as_ref().map_or(0.0, |x| weight(s, x)))
            .collect();
        let sum = 1.0 + weights.iter().sum::<f64>();
        let mut context = vec![0.0; 5];
        for (x, weight) in sources.iter().zip(&weights) {
            if let Some(x) = x {
                context.iter_mut().zip(x).for_each(|(out, x)| *out += weight / sum * x);
            }
        }
        let (mapped, added) = (times(&map, &own), times(&values, &context));
        let expected: Vec<f64> = (0..5).map(|d| own[d] + mapped[d] + added[d]).collect();
        let length = expected.iter().map(|x| x * x).sum::<f64>().sqrt();
        for (found, expected) in found[i].iter().zip(&expected) {
            assert!((f64::from(*found) - expected / length).abs() < 1e-5, "chunk {i}");
        }
    }
}

#[test]
fn a_chunk_is_changed_by_its_own_document_alone() {
    let bridge = bridge(Shape { dimensions: 4, rank: 2 }, 0.5);
    let rows = numbers(3 * 4, 1.0, &mut Random::new(5));
    let chunks: Vec<&[f32]> = rows.chunks_exact(4).collect();
    let together = bridge.apply(&chunks).unwrap();
    let alone = bridge.apply(&chunks[..1]).unwrap();
    assert_ne!(together[0], alone[0]);
    assert_eq!(together, bridge.apply(&chunks).unwrap());
}

#[test]
fn gradients_are_those_of_differences() {
    let shape = Shape { dimensions: 5, rank: 3 };
    let mut bridge = bridge(shape, 0.4);
    let mut random = Random::new(11);
    let documents: Vec<(Vec<f32>, usize)> = [5usize, 1, 3]
        .map(|count| (with_mean(5, &numbers(count * 5, 1.0, &mut random)), count))
        .to_vec();
    let rows: Vec<Rows> = documents
        .iter()
        .map(|(rows, count)| Rows { rows, count: *count })
        .collect();
    let queries = numbers(4 * 5, 1.0, &mut random);
    let places = [0usize, 4, 5, 7];
    let targets: Vec<Target> = queries
        .chunks_exact(5)
        .zip(places)
        .map(|(query, passage)| Target { query, passage })
        .collect();
    for context in [true, false] {
        let mut gradient = vec![0.0; shape.parameters()];
        loss(shape, &bridge.numbers, &rows, &targets, 0.5, context, &mut gradient);
        let mut largest = 0.0f64;
        for (at, found) in gradient.into_iter().enumerate() {
            let kept = bridge.numbers[at];
            let mut at_distance = |step: f32| {
                bridge.numbers[at] = kept + step;
                let mut unused = vec![0.0; shape.parameters()];
                loss(shape, &bridge.numbers, &rows, &targets, 0.5, context, &mut unused)
            };
            let difference = (at_distance(0.01) - at_distance(-0.01)) / 0.02;
            bridge.numbers[at] = kept;
            largest = largest.max(difference.abs());
            let found = f64::from(found);
            assert!(
                (difference - found).abs() < 1e-3,
                "parameter {at}: {difference} {found}"
            );
        }
        assert!(largest > 0.05, "the gradients must be seen");
    }
}

#[test]
fn a_file_gives_the_bridge_back_and_others_are_refused() {
    let bridge = bridge(Shape { dimensions: 4, rank: 2 }, 0.5);
    let bytes = bridge.write(Map::new()).unwrap();
    assert_eq!(Bridge::read(&bytes).unwrap(), bridge);
    for end in [0, 7, 20, bytes.len() - 1] {
        assert!(matches!(Bridge::read(&bytes[..end]), Err(BridgeError::File(_))));
    }
    let mut broken = bridge.clone();
    broken.numbers[3] = f32::NAN;
    let bytes = broken.write(Map::new()).unwrap();
    assert!(matches!(Bridge::read(&bytes), Err(BridgeError::File(_))));
    let mut more = bridge.write(Map::new()).unwrap();
    let place = more.windows(7).position(|seven| seven == b"situate").unwrap();
    more[place..place + 7].copy_from_slice(b"unknown");
    assert!(matches!(Bridge::read(&more), Err(BridgeError::File(what)) if what.contains("unknown")));
}
