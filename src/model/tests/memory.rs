//! Models that find no memory: an error of the load, whatever it was doing.

use super::families::{Sizes, modern_bert, qwen3};
use super::maker::Maker;
use crate::compute::cpu::{Level, has_bf16};
use crate::compute::memory::scarce::at_most;
use crate::compute::{ComputeError, Pool};
use crate::model::network::Network;
use crate::model::weights::Weights;
use crate::model::{Encoder, Manifest, ModelError, Precision, Role};
use std::io::Write;

/// Runs it with allocations of at most so many bytes each: how often memory was short. Any other error is none of it.
fn refused<R>(limits: &[usize], run: impl Fn() -> Result<R, ModelError>) -> usize {
    let short = |most: &usize| match at_most(*most, &run) {
        Ok(_) => false,
        Err(ModelError::Compute(ComputeError::Memory { .. })) => true,
        Err(other) => panic!("at most {most} bytes: {other}"),
    };
    limits.iter().filter(|most| short(most)).count()
}

fn precisions() -> Vec<Precision> {
    let mut all = vec![Precision::F32];
    all.extend(has_bf16().then_some(Precision::Bf16));
    all.extend(Precision::Int8.check().is_ok().then_some(Precision::Int8));
    all
}

#[test]
fn weights_that_find_no_memory_are_an_error() {
    let wide = Sizes {
        hidden: 128,
        heads: 4,
        key_heads: 2,
        width: 32,
        intermediate: 256,
        layers: 2,
    };
    for (name, maker, limits) in [
        ("bert", Maker::new(), [4 << 10, 5 << 10, 6 << 10, 1 << 20]),
        ("modern_bert", modern_bert(), [7 << 10, 8 << 10, 9 << 10, 1 << 20]),
        ("qwen3", qwen3(wide), [16 << 10, 64 << 10, 160 << 10, 4 << 20]),
    ] {
        let dir = maker.write();
        let manifest = Manifest::read(dir.path()).unwrap();
        let weights = Weights::open(dir.path()).unwrap();
        for precision in precisions() {
            let load = || Network::load(&manifest, &weights, Level::detect(), precision);
            let count = refused(&limits, load);
            assert!(
                (1..limits.len()).contains(&count),
                "{name} {precision:?}: {count} failed"
            );
        }
    }
}

#[test]
fn a_tensor_larger_than_all_memory_is_an_error() {
    const NUMBERS: u64 = 1 << 37;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let bytes = 4 * NUMBERS;
    let header = format!("{{\"huge\":{{\"dtype\":\"F32\",\"shape\":[{NUMBERS}],\"data_offsets\":[0,{bytes}]}}}}");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    // A sparse file: it takes no room on the disk.
    file.set_len(8 + header.len() as u64 + bytes).unwrap();
    let weights = crate::model::tensors::Tensors::open([path]).unwrap();
    let read = || weights.read("huge", &[NUMBERS as usize]);
    assert_eq!(refused(&[64 << 10, 1 << 30], read), 2);
}

#[test]
fn a_whole_model_loads_or_says_that_memory_is_short() {
    let Some(dir) = super::minilm() else { return };
    let limits: Vec<usize> = (18..28).map(|shift| 1 << shift).collect();
    for precision in precisions() {
        let count = refused(&limits, || Encoder::open_with(&dir, precision));
        assert!((1..limits.len()).contains(&count), "{precision:?}: {count} failed");
    }
}

#[test]
fn a_batch_that_finds_no_memory_is_an_error_and_the_next_one_runs() {
    let Some(dir) = super::minilm() else { return };
    let encoder = Encoder::open(&dir).unwrap();
    let pool = Pool::new(1).unwrap();
    let text = "A sentence that is read again and again. ".repeat(50);
    let batch = vec![encoder.text(Role::Passage, &text).unwrap(); 8];
    let expected = encoder.encode(&pool, &batch).unwrap();
    // What a batch leaves for the next would hide what is asked for.
    let fresh = Encoder::open(&dir).unwrap();
    let limits: Vec<usize> = (14..26).map(|shift| 1 << shift).collect();
    assert!(refused(&limits, || fresh.encode(&pool, &batch)) > 0);
    assert_eq!(fresh.encode(&pool, &batch).unwrap(), expected);
}
