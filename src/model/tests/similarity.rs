//! How a directory says that its vectors are compared.

use super::maker::Maker;
use crate::model::{Manifest, ModelError, Similarity};
use serde_json::json;

#[test]
fn the_files_say_how_vectors_are_compared() {
    let says = |function: serde_json::Value| {
        let config = json!({"similarity_fn_name": function}).to_string();
        ("config_sentence_transformers.json", config.into_bytes())
    };
    let read = |normalize: bool, file: Option<(&'static str, Vec<u8>)>, listed: bool| {
        let mut maker = Maker::new();
        maker.normalize = normalize;
        maker.files.extend(file);
        let dir = maker.write();
        if !listed {
            std::fs::remove_file(dir.path().join("modules.json")).unwrap();
        }
        Manifest::read(dir.path()).map(|manifest| manifest.similarity)
    };
    // Where nothing is said: sentence-transformers' default in its layout, else by the length of the vectors.
    assert_eq!(read(true, None, true).unwrap(), Similarity::Cosine);
    assert_eq!(read(false, None, true).unwrap(), Similarity::Cosine);
    assert_eq!(read(false, None, false).unwrap(), Similarity::Dot);
    assert_eq!(read(false, Some(says(json!(null))), true).unwrap(), Similarity::Cosine);
    for (function, raw, unit) in [
        ("cosine", Some(Similarity::Cosine), Some(Similarity::Cosine)),
        ("dot", Some(Similarity::Dot), Some(Similarity::Cosine)),
        ("euclidean", None, Some(Similarity::Cosine)),
        ("manhattan", None, None),
        ("", None, None),
    ] {
        for (normalize, expected) in [(false, raw), (true, unit)] {
            let found = read(normalize, Some(says(json!(function))), true);
            match expected {
                Some(expected) => assert_eq!(found.unwrap(), expected, "{function} {normalize}"),
                None => assert!(
                    matches!(
                        found,
                        Err(ModelError::Unsupported {
                            what: "similarity_fn_name",
                            ..
                        })
                    ),
                    "{function} {normalize}"
                ),
            }
        }
    }
}
