//! Attention against its formula in f64, alone and in batches.

use super::*;

/// Numbers in -2..2 from a small generator.
pub fn elements(count: usize) -> Vec<f32> {
    (0..count)
        .map(|i| ((i * 7919 % 2003) as f32 - 1001.0) / 500.0)
        .collect()
}

/// One head's row in f64.
pub fn expected(shape: Shape, qkv: &[f32], start: usize, length: usize, head: usize, row: usize) -> Vec<f64> {
    let width = shape.width;
    let key_head = head / (shape.heads / shape.key_heads);
    let at = |token: usize, head: usize, i: usize| qkv[(start + token) * shape.row() + head * width + i] as f64;
    let seen: Vec<usize> = (0..length)
        .filter(|key| match (shape.causal, shape.window) {
            (true, window) => *key <= row && window.is_none_or(|window| row - key < window),
            (false, window) => window.is_none_or(|window| row.abs_diff(*key) <= window),
        })
        .collect();
    let score = |key: usize| {
        let product = |i: usize| at(row, head, i) * at(key, shape.heads + key_head, i);
        (0..width).map(product).sum::<f64>() / (width as f64).sqrt()
    };
    let scores: Vec<f64> = seen.iter().map(|key| score(*key)).collect();
    let largest = scores.iter().cloned().fold(f64::MIN, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let value_head = shape.heads + shape.key_heads + key_head;
    let out = |i: usize| {
        seen.iter()
            .zip(&weights)
            .map(|(key, w)| w / sum * at(*key, value_head, i))
            .sum()
    };
    (0..width).map(out).collect()
}

fn run(level: Level, threads: usize, shape: Shape, qkv: &[f32], starts: &[usize]) -> Vec<f32> {
    run_in(level, threads, shape, Elements::F32(qkv), shape.by_rows(), starts)
}

pub fn run_in(level: Level, threads: usize, shape: Shape, qkv: Elements, places: Places, starts: &[usize]) -> Vec<f32> {
    let pool = Pool::new(threads).unwrap();
    let longest = starts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    let scratches: Vec<Mutex<Scratch>> = (0..threads)
        .map(|_| Mutex::new(Scratch::new(level, shape, longest).unwrap()))
        .collect();
    let mut out = vec![f32::NAN; starts.last().unwrap() * shape.out_row()];
    let attention = Attention {
        level,
        shape,
        scratches: &scratches,
        qkv,
        places,
        starts,
    };
    attention.run(&pool, &mut out, &|| false).unwrap();
    out
}

pub fn shape(heads: usize, key_heads: usize, width: usize, causal: bool, window: Option<usize>) -> Shape {
    Shape {
        heads,
        key_heads,
        width,
        causal,
        window,
    }
}

#[test]
fn equals_the_formula_in_f64() {
    let cases = [
        (shape(2, 2, 8, false, None), vec![1, 5, 33]),
        (shape(1, 1, 32, false, None), vec![128, 31]),
        (shape(3, 3, 64, false, None), vec![17]),
        (shape(2, 2, 20, false, None), vec![70, 2]),
        (shape(1, 1, 4, false, None), vec![1300, 511, 513]),
        (shape(4, 2, 16, true, None), vec![1, 2, 17, 100]),
        (shape(4, 1, 4, true, None), vec![1030, 512, 600]),
        (shape(2, 1, 8, true, Some(1)), vec![40]),
        (shape(2, 2, 8, true, Some(20)), vec![70, 7]),
        (shape(2, 1, 4, true, Some(700)), vec![1300, 690]),
        (shape(2, 2, 8, false, Some(0)), vec![30]),
        (shape(2, 1, 8, false, Some(9)), vec![70, 5, 1100]),
        (shape(1, 1, 4, false, Some(600)), vec![1300]),
    ];
    for level in Level::available() {
        for (shape, lengths) in &cases {
            let mut starts = vec![0];
            lengths
                .iter()
                .for_each(|length| starts.push(starts[starts.len() - 1] + length));
            let qkv = elements(starts[lengths.len()] * shape.row());
            let out = run(level, 2, *shape, &qkv, &starts);
            for (start, length) in starts.iter().zip(lengths) {
                for row in (0..*length).filter(|row| *length < 200 || row % 83 == 1 || row + 1 == *length) {
                    for head in 0..shape.heads {
                        let want = expected(*shape, &qkv, *start, *length, head, row);
                        let at = (start + row) * shape.out_row() + head * shape.width;
                        for (found, want) in out[at..].iter().zip(want) {
                            let error = (*found as f64 - want).abs();
                            assert!(error < 2e-5, "{level:?} {shape:?} {length} {row}: {found} {want}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_depends_on_its_sequence_alone() {
    let shape = shape(4, 2, 12, true, None);
    let lengths = [700usize, 90, 1];
    let starts: Vec<usize> = std::iter::once(0)
        .chain(lengths.iter().scan(0, |at, n| {
            *at += n;
            Some(*at)
        }))
        .collect();
    let qkv = elements(starts[3] * shape.row());
    let together = run(Level::detect(), 3, shape, &qkv, &starts);
    for (start, length) in starts.iter().zip(lengths) {
        let alone = run(Level::detect(), 1, shape, &qkv[start * shape.row()..], &[0, length]);
        assert_eq!(alone, together[start * shape.out_row()..][..length * shape.out_row()]);
    }
    // A causal row is the same whatever follows it.
    let shorter = run(Level::detect(), 2, shape, &qkv, &[0, 530]);
    assert_eq!(shorter, together[..530 * shape.out_row()]);
}

#[test]
fn scratch_memory_does_not_grow_with_the_sequence() {
    let shape = shape(8, 2, 64, true, None);
    let elements = |length: usize| {
        let scratch = Scratch::new(Level::detect(), shape, length).unwrap();
        scratch.keys.len() + scratch.values.len() + scratch.scores.len() + scratch.states.len()
    };
    assert_eq!(elements(8192), elements(32_768));
    assert!(elements(32_768) * 4 < 512 << 10, "{}", elements(32_768) * 4);
}
