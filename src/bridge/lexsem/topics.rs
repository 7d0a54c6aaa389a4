//! Documents that are left out of a training because of what they are about.
//!
//! Words that were never trained on are still of a topic that was: documents that lie beside each other share them.
//! Documents of one neighbourhood, left out together, tell what a bridge does to questions about something else.

use crate::bridge::train::data::Passage;
use crate::compute::rowwise::pooling::normalize;
use crate::random::Random;
use std::collections::HashMap;

/// Fewest documents of which some are left out.
const FEWEST_DOCUMENTS: usize = 10;

/// Whether each passage is of a document that is left out: about `share` of the documents, the nearest to one that the
/// seed draws, by the means of their passages' vectors (row-major, of unit length).
pub fn left_out(passages: &[Passage], vectors: &[f32], dimensions: usize, share: f64, seed: u64) -> Vec<bool> {
    let mut places: HashMap<u32, usize> = HashMap::new();
    let mut means: Vec<f32> = Vec::new();
    let d = dimensions.max(1);
    let mut documents = Vec::with_capacity(passages.len());
    for (passage, vector) in passages.iter().zip(vectors.chunks_exact(d)) {
        let next = places.len();
        let place = *places.entry(passage.document).or_insert(next);
        means.resize(places.len() * d, 0.0);
        let sum = means[place * d..(place + 1) * d].iter_mut();
        sum.zip(vector).for_each(|(sum, x)| *sum += x);
        documents.push(place);
    }
    let count = places.len();
    let wanted = (share * count as f64).round() as usize;
    if wanted == 0 || count < FEWEST_DOCUMENTS {
        return vec![false; passages.len()];
    }
    means.chunks_exact_mut(d).for_each(normalize);
    let start = Random::new(seed ^ 0x0070_71c5).below(count);
    let mean = |place: usize| &means[place * d..(place + 1) * d];
    let near = |place: usize| -> f32 { mean(start).iter().zip(mean(place)).map(|(a, b)| a * b).sum() };
    let mut order: Vec<(f32, usize)> = (0..count).map(|place| (near(place), place)).collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut out = vec![false; count];
    order
        .iter()
        .take(wanted.min(count - 1))
        .for_each(|(_, place)| out[*place] = true);
    documents.into_iter().map(|place| out[place]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passage(document: u32) -> Passage {
        Passage {
            key: document.to_string(),
            document,
            ordinal: 0,
            text: String::new(),
            vector: None,
        }
    }

    #[test]
    fn what_is_left_out_lies_together() {
        // Twenty documents on a circle, two passages each.
        let passages: Vec<Passage> = (0..40).map(|place| passage(place / 2)).collect();
        let angle = |document: u32| f64::from(document) * std::f64::consts::TAU / 20.0;
        let vectors: Vec<f32> = passages
            .iter()
            .flat_map(|passage| {
                [
                    angle(passage.document).cos() as f32,
                    angle(passage.document).sin() as f32,
                ]
            })
            .collect();
        for seed in 0..5 {
            let out = left_out(&passages, &vectors, 2, 0.25, seed);
            let documents: Vec<usize> = (0..20).filter(|document| out[document * 2]).collect();
            assert_eq!(documents.len(), 5, "{documents:?}");
            assert!((0..20).all(|document| out[document * 2] == out[document * 2 + 1]));
            // Neighbours on the circle: one run of five.
            let runs = documents
                .iter()
                .filter(|document| !documents.contains(&((**document + 1) % 20)));
            assert_eq!(runs.count(), 1, "{documents:?}");
            assert_eq!(out, left_out(&passages, &vectors, 2, 0.25, seed));
        }
        assert!(!left_out(&passages, &vectors, 2, 0.0, 1).contains(&true));
        assert!(
            !left_out(&passages[..18], &vectors[..36], 2, 0.5, 1).contains(&true),
            "nine documents"
        );
        assert!(left_out(&passages, &vectors, 2, 0.99, 1).contains(&false));
    }
}
