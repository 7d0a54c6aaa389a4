//! Clustering and coding on a GPU (or the emulated one) against the processor's.

use crate::compute::cuda::rabitq::Coder;
use crate::compute::cuda::testing::bench;
use crate::compute::vectors::fastscan::put_row;
use crate::compute::vectors::nearest_centroid::Panels;
use crate::compute::vectors::rotation::Rotation;
use crate::index::rabitq::{Centroid, encode};
use crate::index::types::Metric;
use crate::random::splitmix64;

fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    (0..count)
        .map(|_| (splitmix64(&mut state) >> 40) as f32 / (1 << 24) as f32 - 0.5)
        .collect()
}

#[test]
fn nearest_centroids_are_those_of_the_processor() {
    let Some(bench) = bench() else { return };
    let coder = Coder::new(&bench.engine).unwrap();
    for (n, count, d) in [(1, 1, 1), (9, 3, 2), (65, 33, 50), (100, 200, 384)] {
        let (rows, mut centroids) = (random(n * d, 1), random(count * d, 2));
        if count > 2 {
            // Equally near: the first is taken.
            let first = centroids[..d].to_vec();
            centroids[d..2 * d].copy_from_slice(&first);
        }
        let mut expected = vec![(0, 0.0); n];
        Panels::new(&centroids, d).unwrap().nearest(&rows, 1, &mut expected);
        let found = coder.nearest(&coder.centroids(&centroids, d).unwrap(), &rows).unwrap();
        assert_eq!(found.len(), n);
        for (found, expected) in found.iter().zip(&expected) {
            assert!(found.0 == expected.0, "{n} {count} {d}: {found:?} {expected:?}");
            assert!(
                (found.1 - expected.1).abs() < 1e-4 * (1.0 + expected.1),
                "{found:?} {expected:?}"
            );
        }
    }
}

#[test]
fn codes_are_those_of_the_processor() {
    let Some(bench) = bench() else { return };
    let coder = Coder::new(&bench.engine).unwrap();
    for d in [50, 64, 100, 384] {
        let n = 21;
        let vectors = random(n * d, d as u64);
        let rotation = Rotation::new(d, 5);
        let rotated = coder.rotate(&rotation, &vectors, d).unwrap();
        let mut expected = Vec::new();
        for (vector, found) in vectors.chunks(d).zip(rotated.chunks(rotation.padded())) {
            rotation.apply(vector, &mut expected);
            assert!(expected == found, "rotation of {d}");
        }
        let padded = rotation.padded();
        let centers: Vec<Centroid> = random(3 * padded, 9).chunks(padded).map(Centroid::new).collect();
        let values: Vec<f32> = centers
            .iter()
            .flat_map(|center| center.values.iter().copied())
            .collect();
        let mut rotated = rotated;
        // One vector is its centroid: its residual is zero.
        rotated[padded..2 * padded].copy_from_slice(&centers[1].values);
        let lists: Vec<u32> = (0..n as u32).map(|i| i % 3).collect();
        for (metric, inner_product) in [(Metric::L2, false), (Metric::InnerProduct, true)] {
            let on_card = coder.centroids(&values, padded).unwrap();
            let codes = coder.encode(&on_card, &rotated, &lists, inner_product).unwrap();
            let mut residual = Vec::new();
            for (i, vector) in rotated.chunks(padded).enumerate() {
                let factors = encode(metric, vector, &centers[i % 3], &mut residual);
                let expected = [factors.add, factors.scale, factors.error];
                for (found, expected) in codes.factors[i].iter().zip(expected) {
                    assert!(
                        (found - expected).abs() <= 1e-6 * expected.abs(),
                        "{d} {metric:?} {i}: {found} {expected}"
                    );
                }
                let mut row = vec![0u8; padded / 8];
                put_row(&mut row, &residual);
                let words = &codes.words[i * padded / 32..(i + 1) * padded / 32];
                let found: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                assert!(found == row, "{d} {metric:?} {i}");
            }
        }
        assert!(
            coder
                .encode(&coder.centroids(&values, padded).unwrap(), &rotated, &vec![3; n], false)
                .is_err()
        );
    }
}
