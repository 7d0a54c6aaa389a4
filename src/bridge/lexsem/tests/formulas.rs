//! What the formulas and the file promise.

use crate::bridge::lexsem::file::{self, Layout};
use crate::bridge::lexsem::fuse::{self, Fusion};
use crate::bridge::lexsem::{LexSem, Readings, Scheme, entries, unit, weigh};
use crate::bridge::train::eigen::Ask;
use crate::bridge::train::whiten::Spread;
use crate::random::Random;
use serde_json::{Map, json};

const FUSIONS: [Fusion; 3] = [Fusion::Softmax, Fusion::Exp, Fusion::Sum];

fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6)
}

fn random_unit(random: &mut Random, d: usize) -> Vec<f32> {
    unit((0..d).map(|_| random.unit() as f32 - 0.5).collect())
}

/// A bridge over tokens 3, 5 and 9 with numbers everywhere.
fn full(scheme: Scheme, fusion: Fusion, d: usize) -> LexSem {
    let mut random = Random::new(7);
    let mut bridge = LexSem::identity(scheme, fusion, d, vec![3, 5, 9], vec![0.25, 0.5, 1.0]);
    for numbers in [
        &mut bridge.rows,
        &mut bridge.bias,
        &mut bridge.gate.projection,
        &mut bridge.gate.shift,
    ] {
        numbers.iter_mut().for_each(|x| *x = random.unit() as f32 - 0.3);
    }
    let vectors: Vec<f32> = (0..60 * d).map(|_| random.unit() as f32).collect();
    bridge.metric = Spread::metric_of(&vectors, d, 0.5, 0.3, &mut || Ok(())).unwrap();
    bridge
}

#[test]
fn nothing_learned_changes_nothing() {
    let mut random = Random::new(3);
    for fusion in FUSIONS {
        let bridge = LexSem::identity(Scheme::Slr, fusion, 24, vec![1, 2], vec![0.5, 0.5]);
        let e = random_unit(&mut random, 24);
        let used = [(0usize, 1.0f32), (1, 1.0)];
        let found = bridge.apply(&e, used.iter().map(|(place, weight)| (bridge.row(*place), *weight)));
        assert_eq!(found.unwrap(), e, "{fusion:?}");
    }
}

#[test]
fn a_hand_computed_fusion() {
    let wanted = [3.0 / 10.0f32.sqrt(), 1.0 / 10.0f32.sqrt()];
    for fusion in [Fusion::Softmax, Fusion::Exp] {
        let mut bridge = LexSem::identity(Scheme::Slr, fusion, 2, Vec::new(), Vec::new());
        bridge.bias = vec![3.0f32.ln(), 0.0];
        assert!(close(&bridge.apply(&[1.0, 1.0], std::iter::empty()).unwrap(), &wanted));
        // The same through a row and a weight: 2 (ln 3) / 2.
        let row = [3.0f32.ln() / 2.0, 0.0];
        bridge.bias = vec![0.0; 2];
        let found = bridge.apply(&[1.0, 1.0], std::iter::once((&row[..], 2.0)));
        assert!(close(&found.unwrap(), &wanted));
    }
    let sum = LexSem::identity(Scheme::Bag, Fusion::Sum, 2, Vec::new(), Vec::new());
    let found = sum.apply(&[1.0, 1.0], std::iter::once((&[1.0f32, -0.5][..], 2.0)));
    assert!(close(&found.unwrap(), &[1.0, 0.0]));
    assert!(sum.apply(&[1.0], std::iter::empty()).is_err());
    assert!(sum.apply(&[1.0, 1.0], std::iter::once((&[1.0f32][..], 1.0))).is_err());
    let endless = sum.apply(&[1.0, 1.0], std::iter::once((&[f32::MAX, 1.0][..], 1e10)));
    assert!(endless.is_err());
}

#[test]
fn published_fusions_keep_every_sign_and_sum_does_not() {
    let mut random = Random::new(11);
    for _ in 0..50 {
        let e = random_unit(&mut random, 16);
        let z: Vec<f32> = (0..16).map(|_| 6.0 * (random.unit() as f32 - 0.5)).collect();
        for fusion in [Fusion::Softmax, Fusion::Exp] {
            let found = fuse::forward(fusion, &e, &z).output;
            assert!(found.iter().zip(&e).all(|(a, b)| a.signum() == b.signum()));
            assert!(found.iter().zip(&e).map(|(a, b)| a * b).sum::<f32>() > 0.0);
        }
        let softmax = fuse::forward(Fusion::Softmax, &e, &z).output;
        assert!(close(&softmax, &fuse::forward(Fusion::Exp, &e, &z).output));
    }
    assert!(fuse::forward(Fusion::Sum, &[1.0, 0.1], &[0.0, -0.5]).output[1] < 0.0);
}

#[test]
fn ranking_is_that_of_a_diagonal_metric() {
    let (d, mut random) = (12, Random::new(5));
    let passages: Vec<Vec<f32>> = (0..200).map(|_| random_unit(&mut random, d)).collect();
    let order = |score: &dyn Fn(&[f32]) -> f64| {
        let mut order: Vec<usize> = (0..passages.len()).collect();
        order.sort_by(|a, b| score(&passages[*b]).total_cmp(&score(&passages[*a])));
        order
    };
    for _ in 0..10 {
        let e = random_unit(&mut random, d);
        let z: Vec<f32> = (0..d).map(|_| 3.0 * random.unit() as f32).collect();
        let sum: f64 = z.iter().map(|z| f64::from(*z).exp()).sum();
        let diagonal = |p: &[f32]| -> f64 {
            let terms = z.iter().zip(&e).zip(p);
            terms
                .map(|((z, e), p)| f64::from(*z).exp() / sum * f64::from(*e) * f64::from(*p))
                .sum()
        };
        let output = fuse::forward(Fusion::Softmax, &e, &z).output;
        let cosine = |p: &[f32]| -> f64 { output.iter().zip(p).map(|(q, p)| f64::from(*q) * f64::from(*p)).sum() };
        assert_eq!(order(&cosine), order(&diagonal));
    }
}

#[test]
fn hand_computed_weights() {
    assert_eq!(weigh::slr(&[7, 2, 7], 1.5), [(2, 1.5), (7, 1.5)]);
    let paper = weigh::slr_paper(&[7, 2, 7]);
    assert!(paper.len() == 2 && paper.iter().all(|(_, w)| (w - 2.0f32.ln()).abs() < 1e-7));
    // a = ReLU(h . (1, -1) + 0.5) for h = (2, 1), (0, 3), (4, 0): 1.5, 0, 4.5; token 7 takes the larger of its two.
    let states = [2.0, 1.0, 0.0, 3.0, 4.0, 0.0];
    let found = weigh::llr(&[7, 2, 7], &states, &[1.0, -1.0], 0.5);
    assert_eq!(found, [(2, 0.0), (7, 4.5)]);
    assert_eq!(weigh::llr_positions(&[7, 2, 7], &states, &[1.0, -1.0], 0.5)[1].2, 2);
    // h = (1, 2): U rows (1, 1) and (0, -1), b = (1, 0): log 5 and 0.
    let found = weigh::llr_paper(&[1.0, 2.0], &[1.0, 1.0, 0.0, -1.0], &[1.0, 0.0]);
    assert!(close(&found, &[5.0f32.ln(), 0.0]));
    let e = std::f32::consts::E;
    let logits = [e - 1.0, -4.0, 0.0, e * e - 1.0, 0.5];
    let all = weigh::clr(&logits, 0);
    assert_eq!(all.iter().map(|entry| entry.0).collect::<Vec<_>>(), [0, 3, 4]);
    assert!((all[0].1 - 1.0).abs() < 1e-6 && (all[1].1 - 2.0).abs() < 1e-6);
    assert_eq!(weigh::clr(&logits, 2), [all[0], all[1]]);
    // Rarities 0.6 and 0.8 have length 1; with a third of 1 they are divided by sqrt 2. Unknown tokens have rarity 1.
    let rarity = |id| {
        [(1, 0.6f32), (2, 0.8)]
            .iter()
            .find(|entry| entry.0 == id)
            .map(|entry| entry.1)
    };
    assert!(close(
        &weigh::bag(&[2, 1], rarity).iter().map(|x| x.1).collect::<Vec<_>>(),
        &[0.6, 0.8]
    ));
    let longer: Vec<f32> = weigh::bag(&[9, 1, 2], rarity).iter().map(|x| x.1).collect();
    let root = 2.0f32.sqrt();
    assert!(close(&longer, &[0.6 / root, 0.8 / root, 1.0 / root]));
    assert_eq!(weigh::rarity(7, 7), 0.0);
    assert!((weigh::rarity(8, 2) - 0.5).abs() < 1e-6 && weigh::rarity(8, 0) == 1.0);
}

#[test]
fn entries_leave_unknown_tokens_out() {
    let bridge = full(Scheme::Bag, Fusion::Sum, 4);
    let readings = Readings {
        ids: &[9, 4, 3],
        ..Readings::default()
    };
    let found = entries(&bridge, readings).unwrap();
    // Token 4 has no row but counts in the length: sqrt(1 + 1 + 0.0625).
    let length = 2.0625f32.sqrt();
    assert_eq!(found.iter().map(|entry| entry.0).collect::<Vec<_>>(), [0, 2]);
    assert!((found[0].1 - 0.25 / length).abs() < 1e-6 && (found[1].1 - 1.0 / length).abs() < 1e-6);
    let states = [0.5; 4];
    let llr = Readings {
        ids: &[3],
        states: &states[..3],
        ..Readings::default()
    };
    assert!(entries(&full(Scheme::Llr, Fusion::Exp, 4), llr).is_err());
}

#[test]
fn a_metric_evens_the_spread_out() {
    let (d, mut random) = (6, Random::new(9));
    let rows: Vec<f32> = (0..5000)
        .flat_map(|_| {
            let common = 3.0 * random.unit() as f32;
            (0..d)
                .map(|i| random.unit() as f32 * (1.0 + i as f32) + common)
                .collect::<Vec<_>>()
        })
        .collect();
    let ask: Ask<'_> = &mut || Ok(());
    let spread = Spread::of(&rows, d, ask).unwrap().unwrap();
    let metric = spread.metric(0.5, 1e-6, ask).unwrap().unwrap();
    let moved: Vec<Vec<f64>> = rows
        .chunks(d)
        .map(|row| {
            let column = |j: usize| (0..d).map(|i| f64::from(row[i]) * f64::from(metric[i * d + j])).sum();
            (0..d).map(column).collect()
        })
        .collect();
    let mean = |j: usize| moved.iter().map(|row| row[j]).sum::<f64>() / moved.len() as f64;
    let covariance = |i: usize, j: usize| {
        let (a, b) = (mean(i), mean(j));
        moved.iter().map(|row| (row[i] - a) * (row[j] - b)).sum::<f64>() / moved.len() as f64
    };
    let variance = covariance(0, 0);
    for i in 0..d {
        for j in 0..d {
            let wanted = if i == j { variance } else { 0.0 };
            assert!((covariance(i, j) - wanted).abs() < 1e-3 * variance, "{i} {j}");
        }
    }
    assert!(spread.metric(0.0, 0.3, ask).unwrap().is_none());
    assert!(Spread::of(&rows[..d], d, ask).unwrap().is_none());
}

#[test]
fn a_file_gives_the_bridge_back_and_one_row_is_one_slice() {
    for (scheme, fusion) in [
        (Scheme::Bag, Fusion::Sum),
        (Scheme::Slr, Fusion::Exp),
        (Scheme::SlrPaper, Fusion::Exp),
        (Scheme::Llr, Fusion::Exp),
        (Scheme::LlrPaper, Fusion::Exp),
        (Scheme::Clr, Fusion::Exp),
    ] {
        let mut bridge = full(scheme, fusion, 5);
        bridge.map = (fusion == Fusion::Sum).then(|| (0..25u8).map(f32::from).collect());
        let bytes = file::write(&bridge, Map::from_iter([("note".to_owned(), json!("here"))])).unwrap();
        assert_eq!(file::read(&bytes).unwrap(), bridge);
        let first = Layout::header_bytes(&bytes[..8]).unwrap();
        let layout = Layout::parse(&bytes[..first]).unwrap();
        assert_eq!(layout.metadata["note"], "here");
        for place in 0..3 {
            let range = layout.row(place).unwrap();
            assert_eq!(Layout::numbers(&bytes[range]).unwrap(), bridge.row(place));
        }
        assert!(layout.row(3).is_none());
        for length in 0..bytes.len() {
            assert!(file::read(&bytes[..length]).is_err(), "{length}");
        }
    }
}

/// `e + e M` is what the words' part is added to: (1, 0) + (1, 0) (0 1; 2 0) + (0.5, 0) = (1.5, 1).
#[test]
fn the_map_by_hand() {
    let mut bridge = LexSem::identity(Scheme::Bag, Fusion::Sum, 2, Vec::new(), Vec::new());
    bridge.map = Some(vec![0.0; 4]);
    let e = unit(vec![0.3, -0.7]);
    assert_eq!(bridge.apply(&e, std::iter::empty()).unwrap(), e);
    bridge.map = Some(vec![0.0, 1.0, 2.0, 0.0]);
    let found = bridge.apply(&[1.0, 0.0], std::iter::once((&[0.5f32, 0.0][..], 1.0)));
    assert!(close(&found.unwrap(), &unit(vec![1.5, 1.0])));
}

#[test]
fn other_files_are_refused() {
    let bridge = full(Scheme::Llr, Fusion::Exp, 5);
    let refused = |change: &dyn Fn(&mut LexSem)| {
        let mut changed = bridge.clone();
        change(&mut changed);
        let bytes = file::write(&changed, Map::new());
        bytes.and_then(|bytes| file::read(&bytes)).is_err()
    };
    assert!(refused(&|bridge| bridge.tokens = vec![9, 3, 5]));
    assert!(refused(&|bridge| bridge.rarity.truncate(2)));
    assert!(refused(&|bridge| bridge.bias.truncate(4)));
    assert!(refused(&|bridge| bridge.rows[2] = f32::NAN));
    assert!(refused(&|bridge| bridge.gate.projection.clear()));
    assert!(refused(&|bridge| bridge.scheme = Scheme::LlrPaper));
    assert!(
        refused(&|bridge| bridge.map = Some(vec![0.0; 25])),
        "a map goes with sums alone"
    );
    assert!(refused(&|bridge| {
        (bridge.fusion, bridge.map) = (Fusion::Sum, Some(vec![0.0; 24]));
    }));
    assert!(!refused(&|_| ()));
    assert!(file::read(b"12345678").is_err());
    assert!(file::read(&u64::MAX.to_le_bytes()).is_err());
}
