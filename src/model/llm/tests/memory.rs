//! Language models that find no memory: an error, and what was there before goes on.

use super::*;
use crate::compute::cpu::Level;
use crate::compute::memory::scarce::at_most;
use crate::compute::{ComputeError, Pool, Precision};
use crate::model::ModelError;
use crate::model::llm::Packing;
use crate::model::llm::cache::Cache;
use crate::model::llm::files::LlmFiles;
use crate::model::llm::hooks::Hooks;
use crate::model::llm::network::Network;
use crate::model::tests::families::{Sizes, qwen3};

const PACKING: Packing = Packing {
    level: Level::Portable,
    precision: Precision::F32,
    unpack: false,
};

fn short<T>(result: &Result<T, ModelError>) -> bool {
    matches!(result, Err(ModelError::Compute(ComputeError::Memory { .. })))
}

#[test]
fn weights_of_a_directory_that_find_no_memory_are_an_error() {
    let mut maker = qwen3(Sizes {
        hidden: 128,
        heads: 4,
        key_heads: 2,
        width: 32,
        intermediate: 256,
        layers: 2,
    });
    super::made::with_model_prefix(&mut maker);
    let dir = maker.write();
    let files = LlmFiles::open(dir.path()).unwrap();
    for (most, fits) in [(16 << 10, false), (64 << 10, false), (160 << 10, true)] {
        let loaded = at_most(most, || Network::load(&files, PACKING));
        assert_eq!(loaded.is_ok(), fits, "at most {most} bytes: {:?}", loaded.err());
        assert!(fits || short(&loaded), "at most {most} bytes");
    }
}

#[test]
fn a_whole_model_loads_or_says_that_memory_is_short() {
    let Some(file) = crate::fixtures::smollm() else { return };
    let mut failed = 0;
    for shift in 18..28 {
        let loaded = at_most(1 << shift, || Llm::open(&file));
        match loaded {
            Ok(_) => {}
            loaded => {
                assert!(short(&loaded), "at most 2^{shift} bytes: {:?}", loaded.err());
                failed += 1;
            }
        }
    }
    assert!((1..10).contains(&failed), "{failed} failed");
}

#[test]
fn a_pass_that_finds_no_memory_leaves_the_cache_as_it_was() {
    let Some(llm) = super::real::llm() else { return };
    let pool = Pool::new(1).unwrap();
    let words = llm.prompt(&[super::super::Piece::Text("word ".repeat(200))]).unwrap();
    let mut cache = Cache::new(llm.config());
    let read = |prompt: &Prompt, cache: &mut Cache| llm.read(&pool, prompt, cache, 1, &mut Hooks::default(), &|| false);
    read(&words, &mut cache).unwrap();
    let length = cache.len();
    let mut failed = 0;
    for shift in 13..24 {
        let result = at_most(1 << shift, || read(&words, &mut cache));
        match result {
            Ok(_) => cache.truncate(length),
            result => {
                assert!(short(&result), "at most 2^{shift} bytes: {:?}", result.err());
                failed += 1;
            }
        }
        assert_eq!(cache.len(), length);
    }
    assert!((1..11).contains(&failed), "{failed} failed");
    read(&words, &mut cache).unwrap();
}
