//! The loss of a batch of documents and its gradient in the bridge's parameters.
//!
//! InfoNCE: for a query `q` of the batch and the passage `p` that answers it, `-log(exp(q.c_p / tau) / sum_j exp(q.c_j
//! / tau))` over all passages of the batch's documents, so that the other passages of the same document are negatives
//! as well as those of other documents. Backward through `c = u / |u|`: `du = (dc - c (c.dc)) / |u|`; through the
//! softmax with an empty source: `de_s = a_s (x_s.dy - sum_r a_r x_r.dy)`.

use super::bridge::{Document, Passed, SOURCES, Shape};
use super::linear::{add_outer, add_scaled, apply_transposed, dot};

/// A document of a batch, its rows with the mean behind them ([`super::bridge::with_mean`]).
pub struct Rows<'a> {
    pub rows: &'a [f32],
    pub count: usize,
}

/// A query's vector and the passage that answers it: its place among all passages of the batch.
pub struct Target<'a> {
    pub query: &'a [f32],
    pub passage: usize,
}

/// The mean loss of the targets; adds its gradient to `gradient`.
pub fn loss(
    shape: Shape,
    numbers: &[f32],
    documents: &[Rows],
    targets: &[Target],
    temperature: f32,
    context: bool,
    gradient: &mut [f32],
) -> f64 {
    let d = shape.dimensions;
    let documents: Vec<Document> = documents
        .iter()
        .map(|document| Document {
            shape,
            rows: document.rows,
            count: document.count,
        })
        .collect();
    let passed: Vec<Passed> = documents
        .iter()
        .map(|document| document.forward(numbers, context))
        .collect();
    let vectors: Vec<&[f32]> = passed
        .iter()
        .flat_map(|passed| passed.vectors.chunks_exact(d))
        .collect();
    let mut changes = vec![0.0f32; vectors.len() * d];
    let mut total = 0.0f64;
    let part = 1.0 / (targets.len().max(1) as f32 * temperature);
    for target in targets {
        let mut scores: Vec<f32> = vectors
            .iter()
            .map(|vector| dot(target.query, vector) / temperature)
            .collect();
        let largest = scores.iter().copied().fold(f32::MIN, f32::max);
        let own = scores[target.passage];
        let sum: f64 = scores.iter().map(|score| f64::from((score - largest).exp())).sum();
        total += sum.ln() - f64::from(own - largest);
        scores
            .iter_mut()
            .for_each(|score| *score = ((*score - largest).exp() as f64 / sum) as f32);
        scores[target.passage] -= 1.0;
        for (change, score) in changes.chunks_exact_mut(d).zip(&scores) {
            add_scaled(change, score * part, target.query);
        }
    }
    let mut start = 0;
    for (document, passed) in documents.iter().zip(&passed) {
        let end = start + document.count * d;
        backward(document, passed, numbers, &changes[start..end], context, gradient);
        start = end;
    }
    total / targets.len().max(1) as f64
}

fn backward(
    document: &Document,
    passed: &Passed,
    numbers: &[f32],
    changes: &[f32],
    context: bool,
    gradient: &mut [f32],
) {
    let (d, r) = (document.shape.dimensions, document.shape.rank);
    let [map, values, query, key, bias] = document.shape.ranges();
    let root = (r as f32).sqrt();
    let mut own = vec![0.0; d];
    let mut mixed = vec![0.0; d];
    let mut asked = vec![0.0; r];
    let mut keys = vec![0.0; passed.keys.len()];
    for (i, change) in changes.chunks_exact(d).enumerate() {
        if passed.norms[i] == 0.0 {
            continue;
        }
        let vector = &passed.vectors[i * d..(i + 1) * d];
        own.copy_from_slice(change);
        add_scaled(&mut own, -dot(vector, change), vector);
        own.iter_mut().for_each(|number| *number /= passed.norms[i]);
        add_outer(&mut gradient[map.clone()], &own, document.row(i));
        if !context {
            continue;
        }
        add_outer(&mut gradient[values.clone()], &own, &passed.context[i * d..(i + 1) * d]);
        apply_transposed(&numbers[values.clone()], &own, &mut mixed);
        let shares = &passed.shares[i * SOURCES..(i + 1) * SOURCES];
        let inner = |s: usize| document.source(i, s).map_or(0.0, |row| dot(document.row(row), &mixed));
        let mean: f32 = (0..SOURCES).map(|s| shares[s] * inner(s)).sum();
        asked.fill(0.0);
        let question = &passed.queries[i * r..(i + 1) * r];
        for s in 0..SOURCES {
            let Some(row) = document.source(i, s) else { continue };
            let slope = shares[s] * (inner(s) - mean);
            gradient[bias.start + s] += slope;
            add_scaled(&mut asked, slope / root, &passed.keys[row * r..(row + 1) * r]);
            add_scaled(&mut keys[row * r..(row + 1) * r], slope / root, question);
        }
        add_outer(&mut gradient[query.clone()], &asked, document.row(i));
    }
    if context {
        for (row, change) in keys.chunks_exact(r).enumerate() {
            add_outer(&mut gradient[key.clone()], change, document.row(row));
        }
    }
}
