//! Sentencepiece's table of characters (`Precompiled` in tokenizer.json), which XLM-RoBERTa and its descendants normalise texts
//! with: a small one made by hand.

use super::families::{MASK, PIECES, xlm_roberta};
use crate::model::{Encoder, ModelError};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The table in sentencepiece's form: bytes of a trie of 32-bit units, the units, then what texts become, ended by zeros.
///
/// A unit holds its own byte (8 bits), whether a text ends behind it (bit 8) and how far its children are (from bit 10 on).
/// Here the children of node n are around place 256 n; what a text becomes is said at that place itself.
fn table(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut nodes: BTreeMap<Vec<u8>, usize> = BTreeMap::from([(Vec::new(), 1)]);
    for (from, _) in pairs {
        for end in 1..=from.len() {
            let next = nodes.len() + 1;
            nodes.entry(from.as_bytes()[..end].to_vec()).or_insert(next);
        }
    }
    let mut units = vec![0u32; 256 * (nodes.len() + 1)];
    let mut becomes = Vec::new();
    let place = |path: &[u8]| match path.split_last() {
        None => 0,
        Some((byte, before)) => (256 * nodes[before]) ^ usize::from(*byte),
    };
    for (path, number) in &nodes {
        let byte = path.last().map_or(0, |byte| u32::from(*byte));
        units[place(path)] = byte | ((place(path) ^ (256 * number)) as u32) << 10;
    }
    for (from, to) in pairs {
        units[place(from.as_bytes())] |= 1 << 8;
        units[256 * nodes[from.as_bytes()]] = becomes.len() as u32;
        becomes.extend(to.as_bytes());
        becomes.push(0);
    }
    let mut bytes = (4 * units.len() as u32).to_le_bytes().to_vec();
    units.iter().for_each(|unit| bytes.extend(unit.to_le_bytes()));
    bytes.extend(becomes);
    bytes
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let number = three.iter().fold(0u32, |number, byte| number << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for letter in 0..4 {
            match letter <= three.len() {
                true => text.push(char::from(LETTERS[(number >> (18 - 6 * letter) & 63) as usize])),
                false => text.push('='),
            }
        }
    }
    text
}

fn open(normalizer: Value) -> Result<Encoder, ModelError> {
    let mut maker = xlm_roberta(514);
    maker.tokenizer["normalizer"] = normalizer;
    Encoder::open(maker.write().path())
}

fn charsmap(bytes: &[u8]) -> Value {
    json!({"type": "Precompiled", "precompiled_charsmap": base64(bytes)})
}

fn pieces(names: &[&str]) -> Vec<u32> {
    let place = |name: &&str| PIECES.iter().position(|piece| piece == name).unwrap() as u32;
    names.iter().map(place).collect()
}

const PAIRS: [(&str, &str); 8] = [
    ("ｒ", "r"),
    ("ｅ", "e"),
    ("ｄ", "d"),
    ("\u{3000}", " "),
    ("＜", "<"),
    ("＞", ">"),
    ("ｓ", "s"),
    ("\u{200b}", ""),
];

#[test]
fn texts_are_normalised_and_spans_are_those_of_the_text() {
    assert_eq!(base64(b"any carnal pleas"), "YW55IGNhcm5hbCBwbGVhcw==");
    for normalizer in [
        charsmap(&table(&PAIRS)),
        json!({"type": "Sequence", "normalizers": [charsmap(&table(&PAIRS))]}),
    ] {
        let encoder = open(normalizer).unwrap();
        let text = "ｒｅｄ\u{3000}gree\u{200b}ns";
        let tokens = encoder.tokenize(text).unwrap();
        assert_eq!(tokens.ids, pieces(&["▁red", "▁green", "s"]));
        let of: Vec<&str> = tokens.spans.iter().map(|span| span.of(text).unwrap()).collect();
        assert_eq!((of[0], of[2]), ("ｒｅｄ", "s"));
        assert!(of[1].ends_with("gree\u{200b}n"), "{of:?}");
        assert_eq!(tokens.ids, encoder.tokenize("red greens").unwrap().ids);
        // What only becomes a special token is none.
        for text in ["＜ｓ＞", "＜s>", "red ＜ｓ＞ red"] {
            let ids = encoder.tokenize(text).unwrap().ids;
            let special = |id: &u32| [0, 1, 2, MASK as u32].contains(id);
            assert!(!ids.is_empty() && !ids.iter().any(special), "{text}: {ids:?}");
        }
    }
}

#[test]
fn a_damaged_table_is_an_error() {
    let whole = table(&PAIRS);
    let mut outside = whole.clone();
    // The root's children are beyond the table.
    outside[4..8].copy_from_slice(&(5_000u32 << 10).to_le_bytes());
    for (what, normalizer) in [
        ("cut short", charsmap(&whole[..100])),
        ("empty", charsmap(&[0; 4])),
        ("children outside", charsmap(&outside)),
        (
            "not base64",
            json!({"type": "Precompiled", "precompiled_charsmap": "?"}),
        ),
        ("nothing", json!({"type": "Precompiled"})),
    ] {
        let error = open(normalizer).err();
        assert!(matches!(error, Some(ModelError::Tokenizer(_))), "{what}: {error:?}");
    }
}
