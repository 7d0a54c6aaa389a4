//! Both ways of the attention against the formulas in f64.

use super::*;

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count)
        .map(|i| (((i + seed) * 7919 % 2003) as f32 - 1001.0) / 700.0)
        .collect()
}

/// What comes out, and the gradients by queries, keys and values, of one head in f64. `rows` are queries behind `past`
/// keys.
fn expected(
    q: &[Vec<f64>],
    k: &[Vec<f64>],
    v: &[Vec<f64>],
    dout: &[Vec<f64>],
    window: Option<usize>,
) -> [Vec<Vec<f64>>; 4] {
    let width = q[0].len();
    let scale = 1.0 / (width as f64).sqrt();
    let past = k.len() - q.len();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut out = vec![vec![0.0; width]; q.len()];
    let [mut dq, mut dk, mut dv] = [q.len(), k.len(), k.len()].map(|count| vec![vec![0.0; width]; count]);
    for i in 0..q.len() {
        let place = past + i;
        let seen = window.map_or(0, |window| (place + 1).saturating_sub(window))..place + 1;
        let most = seen.clone().map(|j| dot(&q[i], &k[j]) * scale).fold(f64::MIN, f64::max);
        let weights: Vec<f64> = seen.clone().map(|j| (dot(&q[i], &k[j]) * scale - most).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let p: Vec<f64> = weights.iter().map(|w| w / sum).collect();
        let dp: Vec<f64> = seen.clone().map(|j| dot(&dout[i], &v[j])).collect();
        let along = dot(&p, &dp);
        for (at, j) in seen.enumerate() {
            let ds = p[at] * (dp[at] - along) * scale;
            for c in 0..width {
                out[i][c] += p[at] * v[j][c];
                dv[j][c] += p[at] * dout[i][c];
                dq[i][c] += ds * k[j][c];
                dk[j][c] += ds * q[i][c];
            }
        }
    }
    [out, dq, dk, dv]
}

#[test]
fn forward_and_backward_equal_the_formulas_in_f64() {
    for (heads, key_heads, width, window, lengths) in [
        (4, 2, 8, None, vec![(0, 5), (3, 1), (7, 70)]),
        (3, 1, 12, Some(9), vec![(20, 30), (0, 60)]),
        (2, 2, 64, None, vec![(30, 115)]),
        (1, 1, 20, Some(1), vec![(2, 3)]),
    ] {
        let shape = Shape {
            heads,
            key_heads,
            width,
            causal: true,
            window,
        };
        let rows: usize = lengths.iter().map(|(_, rows)| rows).sum();
        let qkv = numbers(rows * shape.row(), 1);
        let dout = numbers(rows * shape.out_row(), 77);
        let pasts: Vec<Vec<f32>> = lengths
            .iter()
            .map(|(past, _)| numbers(past * 2 * key_heads * width, 5))
            .collect();
        let mut spans = Vec::new();
        let mut first = 0;
        for ((_, rows), past) in lengths.iter().zip(&pasts) {
            spans.push(Span {
                first,
                rows: *rows,
                past,
            });
            first += rows;
        }
        let longest = lengths.iter().map(|(past, rows)| past + rows).max().unwrap();
        for level in Level::available() {
            let pool = Pool::new(2).unwrap();
            // The same memory for both ways, so that what one leaves behind does not matter to the other.
            let memories: Vec<_> = (0..2)
                .map(|_| Mutex::new(Memory::new(level, shape, longest).unwrap()))
                .collect();
            let attention = Attention {
                level,
                shape,
                qkv: &qkv,
                spans: &spans,
                memories: &memories,
            };
            let mut out = vec![f32::NAN; rows * shape.out_row()];
            let mut dqkv = vec![f32::NAN; qkv.len()];
            attention.backward(&pool, &dout, &mut dqkv).unwrap();
            attention.forward(&pool, &mut out).unwrap();
            let close = |found: &[f32], want: &[f64], what: &str| {
                for (found, want) in found.iter().zip(want) {
                    let error = (f64::from(*found) - want).abs();
                    assert!(error < 2e-4 * want.abs().max(1.0), "{level:?} {what}: {found} {want}");
                }
            };
            let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|x| f64::from(*x)).collect() };
            for span in &spans {
                let own = |place: usize, column: usize| {
                    wide(&qkv[(span.first + place) * shape.row() + column * width..][..width])
                };
                let before = span.past.len() / (2 * key_heads * width);
                for key_head in 0..key_heads {
                    let old = |value: usize| {
                        let at = move |key: usize| (key * 2 * key_heads + value * key_heads + key_head) * width;
                        (0..before).map(move |key| wide(&span.past[at(key)..][..width]))
                    };
                    let all = |value: usize| -> Vec<Vec<f64>> {
                        let column = heads + value * key_heads + key_head;
                        old(value)
                            .chain((0..span.rows).map(|place| own(place, column)))
                            .collect()
                    };
                    let (k, v) = (all(0), all(1));
                    let [mut dk, mut dv] = [(); 2].map(|()| vec![vec![0.0; width]; k.len()]);
                    let group = heads / key_heads;
                    for head in key_head * group..(key_head + 1) * group {
                        let q: Vec<_> = (0..span.rows).map(|place| own(place, head)).collect();
                        let at = |place: usize| (span.first + place) * shape.out_row() + head * width;
                        let d: Vec<_> = (0..span.rows).map(|place| wide(&dout[at(place)..][..width])).collect();
                        let [o, dq, more_k, more_v] = expected(&q, &k, &v, &d, window);
                        for place in 0..span.rows {
                            close(&out[at(place)..], &o[place], "out");
                            close(
                                &dqkv[(span.first + place) * shape.row() + head * width..],
                                &dq[place],
                                "queries",
                            );
                        }
                        for (sums, more) in [(&mut dk, more_k), (&mut dv, more_v)] {
                            for (sum, more) in sums.iter_mut().flatten().zip(more.iter().flatten()) {
                                *sum += more;
                            }
                        }
                    }
                    for place in 0..span.rows {
                        let at = (span.first + place) * shape.row() + (heads + key_head) * width;
                        close(&dqkv[at..], &dk[before + place], "keys");
                        close(&dqkv[at + key_heads * width..], &dv[before + place], "values");
                    }
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let shape = Shape {
        heads: 2,
        key_heads: 1,
        width: 4,
        causal: true,
        window: None,
    };
    let pool = Pool::new(1).unwrap();
    let memories = [Mutex::new(Memory::new(Level::Portable, shape, 8).unwrap())];
    let run = |rows: usize, past: &[f32], dout: usize| {
        let attention = Attention {
            level: Level::Portable,
            shape,
            qkv: &numbers(4 * shape.row(), 1),
            spans: &[Span { first: 0, rows, past }],
            memories: &memories,
        };
        attention.backward(&pool, &vec![0.0; dout], &mut vec![0.0; 4 * shape.row()])
    };
    assert!(run(4, &[], 4 * 8).is_ok());
    assert!(run(5, &[], 5 * 8).is_err());
    assert!(run(4, &[0.0; 8 * 5], 4 * 8).is_err());
    assert!(run(4, &[0.0; 3], 4 * 8).is_err());
    assert!(run(4, &[], 3 * 8).is_err());
}
