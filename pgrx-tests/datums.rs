//! pgvector's datums, read and written without pgvector's code.

use crate::pg::vector::{read_halfvec, read_vector, write_halfvec, write_vector};
use pgrx::prelude::*;

#[pg_extern(sql = false)]
fn test_vectors_survive_the_way_through_a_datum() {
    for numbers in [
        vec![0.0f32],
        vec![1.0, -2.5, 3.25e-20, f32::MAX],
        (0..16_000).map(|n| n as f32).collect(),
    ] {
        let datum = write_vector(&numbers).expect("a vector");
        // SAFETY: just made.
        assert_eq!(unsafe { read_vector(datum) }.expect("numbers"), numbers);
    }
    let halves = [1.0f32, -0.5, 2048.0, 6.1035156e-5];
    let datum = write_halfvec(&halves).expect("a halfvec");
    // SAFETY: just made.
    assert_eq!(unsafe { read_halfvec(datum) }.expect("numbers"), halves);
}

#[pg_extern(sql = false)]
fn test_vectors_that_pgvector_would_refuse_are_refused() {
    assert!(write_vector(&[1.0, f32::NAN]).is_err());
    assert!(write_vector(&[f32::INFINITY]).is_err());
    assert!(write_vector(&[]).is_err());
    assert!(write_vector(&vec![0.0; 16_001]).is_err());
    assert!(write_halfvec(&[70_000.0]).is_err(), "beyond the range of a half");
}
