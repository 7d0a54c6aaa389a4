//! A small random Llama as GGUF files: whole, or in parts as the splitting tool writes them.

use crate::model::tests::families::byte_characters;
use crate::model::tests::maker::Random;
use std::path::Path;

const HIDDEN: usize = 16;
const WIDE: usize = 24;
const SPECIAL: [&str; 2] = ["<|im_start|>", "<|im_end|>"];
const TEMPLATE: &str =
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}";

/// A value's key, type and content.
pub type Entry = (String, u32, Vec<u8>);
/// A tensor's name, shape (rows first) and numbers.
pub type Matrix = (String, Vec<usize>, Vec<f32>);

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

pub fn text(key: &str, value: &str) -> Entry {
    (key.to_owned(), 8, string(value))
}

pub fn number(key: &str, value: u32) -> Entry {
    (key.to_owned(), 4, value.to_le_bytes().to_vec())
}

pub fn float(key: &str, value: f32) -> Entry {
    (key.to_owned(), 6, value.to_le_bytes().to_vec())
}

fn list(key: &str, kind: u32, values: &[Vec<u8>]) -> Entry {
    let head = [&kind.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
    (key.to_owned(), 9, [head, values.concat()].concat())
}

/// The marks of a part.
pub fn marks(no: u16, count: u16, tensors: u32) -> Vec<Entry> {
    let short = |key: &str, value: u16| (key.to_owned(), 2, value.to_le_bytes().to_vec());
    vec![
        short("split.no", no),
        short("split.count", count),
        number("split.tensors.count", tensors),
    ]
}

/// The metadata of the model.
pub fn metadata() -> Vec<Entry> {
    let mut tokens: Vec<String> = byte_characters().iter().map(char::to_string).collect();
    tokens.push("Ġt".to_owned());
    tokens.extend(SPECIAL.map(str::to_owned));
    let kinds = (0..tokens.len()).map(|id| if id < 257 { 1i32 } else { 3 });
    let kinds: Vec<Vec<u8>> = kinds.map(|kind| kind.to_le_bytes().to_vec()).collect();
    let tokens: Vec<Vec<u8>> = tokens.iter().map(|token| string(token)).collect();
    vec![
        text("general.architecture", "llama"),
        number("llama.block_count", 1),
        number("llama.context_length", 256),
        number("llama.embedding_length", HIDDEN as u32),
        number("llama.feed_forward_length", WIDE as u32),
        number("llama.attention.head_count", 2),
        number("llama.attention.head_count_kv", 2),
        float("llama.attention.layer_norm_rms_epsilon", 1e-5),
        text("tokenizer.ggml.model", "gpt2"),
        text("tokenizer.ggml.pre", "gpt-2"),
        list("tokenizer.ggml.tokens", 8, &tokens),
        list("tokenizer.ggml.token_type", 5, &kinds),
        list("tokenizer.ggml.merges", 8, &[string("Ġ t")]),
        number("tokenizer.ggml.eos_token_id", 258),
        text("tokenizer.chat_template", TEMPLATE),
    ]
}

/// The tensors of the model, in a fixed order.
pub fn tensors() -> Vec<Matrix> {
    let mut random = Random(41);
    let square = vec![HIDDEN, HIDDEN];
    let shapes = [
        ("token_embd", vec![259, HIDDEN]),
        ("output_norm", vec![HIDDEN]),
        ("output", vec![259, HIDDEN]),
        ("blk.0.attn_norm", vec![HIDDEN]),
        ("blk.0.ffn_norm", vec![HIDDEN]),
        ("blk.0.attn_q", square.clone()),
        ("blk.0.attn_k", square.clone()),
        ("blk.0.attn_v", square.clone()),
        ("blk.0.attn_output", square),
        ("blk.0.ffn_gate", vec![WIDE, HIDDEN]),
        ("blk.0.ffn_up", vec![WIDE, HIDDEN]),
        ("blk.0.ffn_down", vec![HIDDEN, WIDE]),
    ];
    let mut make = |(name, shape): (&str, Vec<usize>)| {
        let numbers = random.numbers(shape.iter().product(), 0.0, 0.5);
        (format!("{name}.weight"), shape, numbers)
    };
    shapes.into_iter().map(&mut make).collect()
}

/// Writes a file.
pub fn write(path: &Path, metadata: &[Entry], tensors: &[Matrix]) {
    let (mut head, mut data) = (b"GGUF".to_vec(), Vec::new());
    head.extend(3u32.to_le_bytes());
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend((metadata.len() as u64).to_le_bytes());
    for (key, kind, value) in metadata {
        head.extend(string(key));
        head.extend(kind.to_le_bytes());
        head.extend(value);
    }
    for (name, shape, numbers) in tensors {
        head.extend(string(name));
        head.extend((shape.len() as u32).to_le_bytes());
        shape
            .iter()
            .rev()
            .for_each(|length| head.extend((*length as u64).to_le_bytes()));
        head.extend(0u32.to_le_bytes());
        head.extend((data.len() as u64).to_le_bytes());
        data.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        data.resize(data.len().next_multiple_of(32), 0);
    }
    head.resize(head.len().next_multiple_of(32), 0);
    std::fs::write(path, [head, data].concat()).unwrap();
}
