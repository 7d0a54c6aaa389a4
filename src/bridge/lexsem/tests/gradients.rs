//! Gradients against finite differences.

use crate::bridge::lexsem::fuse::{self, Fusion};
use crate::bridge::lexsem::held_out::{Encoded, Reading};
use crate::bridge::lexsem::steps::{Steps, gradients};
use crate::bridge::lexsem::{LexSem, Options, Scheme, unit};
use crate::bridge::train::loss::Candidates;
use crate::compute::Pool;
use crate::random::Random;

const D: usize = 6;

fn numbers(random: &mut Random, count: usize) -> Vec<f32> {
    (0..count).map(|_| 2.0 * random.unit() as f32 - 1.0).collect()
}

fn units(random: &mut Random, count: usize) -> Vec<f32> {
    (0..count).flat_map(|_| unit(numbers(random, D))).collect()
}

/// Loss and gradient in f64, as the formula reads.
fn plain_loss(queries: &[f32], passages: &[f32], targets: &[u32], tau: f64) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    let each = queries.chunks(D).zip(targets).map(|(query, target)| {
        let scores: Vec<f64> = passages.chunks(D).map(|passage| dot(query, passage) / tau).collect();
        let sum: f64 = scores.iter().map(|score| score.exp()).sum();
        sum.ln() - scores[*target as usize]
    });
    each.sum::<f64>() / targets.len() as f64
}

#[test]
fn the_loss_is_the_formula_and_its_gradient_the_difference() {
    let mut random = Random::new(1);
    let pool = Pool::new(2).unwrap();
    for count in [3, 37, 300] {
        let passages = units(&mut random, count);
        let queries = units(&mut random, 9);
        let targets: Vec<u32> = (0..9).map(|_| random.below(count) as u32).collect();
        let candidates = Candidates::new(&pool, passages.clone(), D, 16).unwrap();
        let (loss, gradient) = candidates.loss(&pool, &queries, &targets, 0.2).unwrap();
        let wanted = plain_loss(&queries, &passages, &targets, 0.2);
        assert!((loss - wanted).abs() < 1e-4, "{loss} {wanted}");
        for place in 0..queries.len() {
            let moved = |by: f32| {
                let mut queries = queries.clone();
                queries[place] += by;
                plain_loss(&queries, &passages, &targets, 0.2)
            };
            let difference = (moved(1e-3) - moved(-1e-3)) / 2e-3;
            assert!(
                (difference - f64::from(gradient[place])).abs() < 2e-3,
                "{count} {place}"
            );
        }
        let ranks = candidates.ranks(&pool, &queries, &targets).unwrap();
        for ((query, target), rank) in queries.chunks(D).zip(&targets).zip(ranks) {
            let dot = |p: &[f32]| -> f32 { query.iter().zip(p).map(|(a, b)| a * b).sum() };
            let own = dot(&passages[*target as usize * D..][..D]);
            let above = passages.chunks(D).filter(|passage| dot(passage) > own + 1e-6).count();
            assert!(rank as usize >= above && rank as usize <= above + 1);
        }
        assert!(candidates.loss(&pool, &queries, &[count as u32; 9], 0.2).is_err());
        assert!(candidates.loss(&pool, &queries, &targets[..3], 0.2).is_err());
    }
}

#[test]
fn fusions_have_the_gradient_of_the_difference() {
    let mut random = Random::new(2);
    for fusion in [Fusion::Softmax, Fusion::Exp, Fusion::Sum] {
        let (e, z, g) = (units(&mut random, 1), numbers(&mut random, D), numbers(&mut random, D));
        let value = |z: &[f32]| -> f64 {
            let output = fuse::forward(fusion, &e, z).output;
            output.iter().zip(&g).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let gradient = fuse::backward(fusion, &fuse::forward(fusion, &e, &z), &g);
        for place in 0..D {
            let moved = |by: f32| {
                let mut z = z.clone();
                z[place] += by;
                value(&z)
            };
            let difference = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            assert!(
                (difference - f64::from(gradient[place])).abs() < 1e-3,
                "{fusion:?} {place}"
            );
        }
    }
}

/// Which numbers of a bridge are moved.
type Parameter = fn(&mut LexSem) -> &mut [f32];

#[test]
fn every_parameter_has_the_gradient_of_the_difference() {
    let mut random = Random::new(3);
    let pool = Pool::new(1).unwrap();
    let candidates = Candidates::new(&pool, units(&mut random, 20), D, 8).unwrap();
    let mut queries = Encoded {
        vectors: units(&mut random, 5),
        ..Encoded::default()
    };
    for query in 0..5 {
        let ids: Vec<u32> = (0..4).map(|_| random.below(6) as u32).collect();
        queries.readings.push(Reading {
            states: numbers(&mut random, ids.len() * D),
            vocabulary: vec![(1, 0.7), (4, 1.2)],
            ids,
        });
        queries.targets.push(query);
    }
    let options = Options {
        dropout: 0.0,
        tau: 0.2,
        ..Options::default()
    };
    let parameters: [(&str, Parameter); 6] = [
        ("map", |bridge| bridge.map.as_mut().unwrap()),
        ("rows", |bridge| &mut bridge.rows),
        ("bias", |bridge| &mut bridge.bias),
        ("scale", |bridge| std::slice::from_mut(&mut bridge.gate.scale)),
        ("projection", |bridge| &mut bridge.gate.projection),
        ("shift", |bridge| &mut bridge.gate.shift),
    ];
    for scheme in [Scheme::Bag, Scheme::Slr, Scheme::SlrPaper, Scheme::Llr, Scheme::Clr] {
        for fusion in [Fusion::Softmax, Fusion::Exp, Fusion::Sum] {
            let tokens: Vec<u32> = (0..5).collect();
            let mut bridge = LexSem::identity(scheme, fusion, D, tokens, numbers(&mut random, 5));
            bridge.rarity.iter_mut().for_each(|rarity| *rarity = rarity.abs());
            bridge.rows = numbers(&mut random, 5 * D);
            bridge.bias = numbers(&mut random, D);
            bridge.gate.scale = 0.8;
            bridge.gate.projection.iter_mut().for_each(|u| *u = 0.1);
            let mapped = fusion == Fusion::Sum;
            bridge.map = mapped.then(|| numbers(&mut random, D * D).iter().map(|x| 0.3 * x).collect());
            let run = |bridge: &LexSem| {
                let starts = queries.vectors.clone();
                let batch = [0, 1, 2, 3, 4];
                let mut random = Random::new(0);
                let steps = Steps {
                    pool: &pool,
                    candidates: &candidates,
                    queries: &queries,
                    starts: &starts,
                    options: &options,
                };
                gradients(steps, bridge, &batch, &mut random).unwrap()
            };
            let found = run(&bridge);
            for (name, parameter) in parameters {
                let used = match name {
                    "scale" => scheme == Scheme::Slr,
                    "projection" | "shift" => scheme == Scheme::Llr,
                    "map" => mapped,
                    _ => true,
                };
                for place in 0..if used { parameter(&mut bridge).len() } else { 0 } {
                    let moved = |by: f32| {
                        let mut bridge = bridge.clone();
                        parameter(&mut bridge)[place] += by;
                        run(&bridge).loss
                    };
                    let difference = (moved(5e-3) - moved(-5e-3)) / 1e-2;
                    let gradient = match name {
                        "rows" => found.rows.get(&(place / D)).map_or(0.0, |row| row[place % D]),
                        "bias" => found.bias[place],
                        "scale" => found.scale,
                        "projection" => found.projection[place],
                        "map" => found.map[place],
                        _ => found.shift[place],
                    };
                    let error = (difference - f64::from(gradient)).abs();
                    assert!(
                        error < 4e-3 * (1.0 + difference.abs()),
                        "{scheme:?} {fusion:?} {name} {place}"
                    );
                }
            }
        }
    }
}
