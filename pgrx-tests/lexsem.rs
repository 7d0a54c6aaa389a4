//! Lexsem bridges over stored weights: the same vectors as with the whole file in memory, from few of its bytes.

use crate::bridge::lexsem::{Fusion, LexSem, Readings, Scheme, entries, write};
use crate::pg::bridges::lexsem;
use crate::pg::catalog::model_registry::model_by_name;
use crate::pg::error::OrRaise;
use crate::pg::service::{Lane, client, token_features};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::time::Instant;

/// Queries that are timed.
const ROUNDS: u32 = 200;
const TEXT: &str = "How does a standby server follow its primary when the archive of the write-ahead log is gone?";

/// Numbers in -0.1..0.1 with a fixed seed.
fn numbers(count: usize) -> Vec<f32> {
    let mut state = 5u64;
    let mut next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 * 0.1 - 0.1
    };
    (0..count).map(|_| next()).collect()
}

fn store(name: &str, hash: &str, bridge: &LexSem) {
    let bytes = write(bridge, Default::default()).or_raise();
    let stored = Spi::run_with_args(
        "INSERT INTO situ.bridges (name, kind, model, fingerprint, dimensions, owner, state, recipe, figures, hash, weights)
         VALUES ($1, 'lexsem', 'minilm', 'f', 384, current_user::regrole, 'accepted', '{}', '{}', $2, $3)",
        &[name.into(), hash.into(), bytes.into()],
    );
    stored.expect("a row");
}

#[pg_extern(sql = false)]
fn test_lexsem_reads_only_the_rows_of_the_query() {
    let model = model_by_name(Some("minilm")).or_raise();
    let plain = client::embed_query(&model, TEXT).or_raise();
    let ids = token_features::tokens(&model, Lane::Query, &[TEXT])
        .or_raise()
        .remove(0);
    let states = token_features::states(&model, Lane::Query, &[TEXT])
        .or_raise()
        .remove(0);
    assert_eq!(states.ids, ids);
    assert_eq!(states.values.len(), ids.len() * 384);
    // Rows for every token but one of the query's.
    let tokens: Vec<u32> = (0..30_522).filter(|token| *token != ids[2]).collect();
    let mut worst = 0.0f64;
    for (name, scheme, fusion) in [
        ("bag", Scheme::Bag, Fusion::Sum),
        ("slr", Scheme::Slr, Fusion::Softmax),
        ("llr", Scheme::Llr, Fusion::Exp),
    ] {
        let rarity = numbers(tokens.len()).iter().map(|x| x.abs() * 10.0).collect();
        let mut bridge = LexSem::identity(scheme, fusion, 384, tokens.clone(), rarity);
        bridge.rows = numbers(bridge.rows.len());
        bridge.metric = Some(numbers(384 * 384));
        store(name, name, &bridge);
        // SAFETY: a snapshot that sees the row, taken off again below.
        unsafe {
            pg_sys::CommandCounterIncrement();
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        }
        let found = lexsem::apply(name, &model, TEXT, &plain).or_raise();
        let used = entries(
            &bridge,
            Readings {
                ids: &ids,
                states: &states.values,
                vocabulary: &[],
            },
        )
        .or_raise();
        let parts = used.iter().map(|(place, weight)| (bridge.row(*place), *weight));
        assert_eq!(found, bridge.apply(&plain, parts).or_raise(), "{name}");
        assert_ne!(found, plain);
        let started = Instant::now();
        for _ in 0..ROUNDS {
            lexsem::apply(name, &model, TEXT, &plain).or_raise();
        }
        let each = started.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS);
        ereport!(
            PgLogLevel::LOG,
            PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
            format!("lexsem {name}: {} tokens, {each:.0} us a query", ids.len())
        );
        // SAFETY: the snapshot that was pushed above.
        unsafe { pg_sys::PopActiveSnapshot() };
        if name != "llr" {
            worst = worst.max(each);
        }
    }
    // Reading all of 47 MB takes longer than this by far.
    assert!(worst < 20_000.0, "{worst} us");
    assert!(lexsem::apply("none", &model, TEXT, &plain).is_err());
}
