//! Both published forms of SitEmb over small random models: read-outs, causality, limits, and what a text can smuggle
//! in.

use crate::bridge::BridgeError;
use crate::bridge::situate::{Situate, SituateOptions, SituatedChunk, finish, plan, plan_chunks};
use crate::compute::Pool;
use crate::model::tests::families::{END, Sizes, qwen3};
use crate::model::tests::maker::Maker;
use crate::model::{Encoder, ModelError, Read, Role, Sequence};
use crate::text::{Place, Span};
use serde_json::json;

const TEXT: &str = "The tin soldier stood at the gate. Nobody came by for days. He waited for the girl. At last it began to \
    rain. The water took him along. It went down a drain.";

fn mixed(limit: usize) -> Encoder {
    let mut maker = qwen3(Sizes::SMALL);
    let template = json!({"form": "mix", "separator": "<|endoftext|>", "instruction": "Context: ", "window_chunks": 2});
    maker.files.push(("situated.json", template.to_string().into_bytes()));
    maker.files.push((
        "sentence_bert_config.json",
        json!({ "max_seq_length": limit }).to_string().into_bytes(),
    ));
    Encoder::open(maker.write().path()).unwrap()
}

fn options(chunk_tokens: u32, weight: f32) -> SituateOptions {
    SituateOptions {
        mode: Situate::Residual,
        chunk_tokens,
        window_tokens: 0,
        weight,
    }
}

fn run(encoder: &Encoder, text: &str, options: &SituateOptions) -> Vec<SituatedChunk> {
    let plan = plan(encoder, None, &Place::default(), text, options).unwrap();
    let vectors = encoder.encode(&Pool::new(1).unwrap(), &plan.sequences).unwrap();
    finish(plan, &vectors).unwrap()
}

fn encode(encoder: &Encoder, sequence: Sequence) -> Vec<Vec<f32>> {
    encoder.encode(&Pool::new(1).unwrap(), &[sequence]).unwrap()
}

#[test]
fn one_causal_encoder_reads_chunk_separator_instruction_context_end() {
    let encoder = mixed(4096);
    let plan = plan(&encoder, None, &Place::default(), TEXT, &options(40, -1.0)).unwrap();
    assert!(plan.chunks.len() > 4 && plan.sequences.len() == plan.chunks.len());
    let ids = |text: &str| encoder.tokenize(text).unwrap().ids;
    for (number, sequence) in plan.sequences.iter().enumerate() {
        let chunk = ids(plan.chunks[number].span.of(TEXT).unwrap());
        let first = number - number % 2;
        let last = plan.chunks.len().min(first + 2) - 1;
        let window = Span {
            start: plan.chunks[first].span.start,
            end: plan.chunks[last].span.end,
        };
        let expected = [
            chunk.clone(),
            vec![END],
            ids("Context: "),
            ids(window.of(TEXT).unwrap()),
            vec![END],
        ]
        .concat();
        // The first byte of a later window is joined with the space before it or not: the same number of tokens.
        assert_eq!(sequence.ids.len(), expected.len(), "chunk {number}");
        assert_eq!(sequence.ids[..chunk.len() + 1 + 9], expected[..chunk.len() + 1 + 9]);
        let (alone, end) = (chunk.len() as u32, expected.len() as u32);
        assert_eq!(sequence.read, Read::Spans(vec![alone..alone + 1, end - 1..end]));
        assert_eq!(sequence.ids.iter().filter(|id| **id == END).count(), 2);
    }
}

/// A token sees only what is to its left, so the first read-out is the chunk's plain embedding, to the bit.
#[test]
fn the_chunk_alone_is_the_same_with_and_without_context() {
    let encoder = mixed(4096);
    let ids = encoder.tokenize("It began to rain.").unwrap().ids;
    let plain = encode(&encoder, encoder.text(Role::Passage, "It began to rain.").unwrap());
    let mut situated = Vec::new();
    for context in [
        "It began to rain. The water took him along.",
        "Something else altogether.",
    ] {
        let context = encoder.tokenize(context).unwrap().ids;
        let mut both = encode(&encoder, encoder.in_context(&ids, &context).unwrap());
        let (placed, alone) = (both.pop().unwrap(), both.pop().unwrap());
        assert_eq!(alone, plain[0]);
        situated.push(placed);
    }
    assert_ne!(situated[0], situated[1]);
    let chunks = run(&encoder, TEXT, &options(40, 0.0));
    for chunk in &chunks {
        let text = encoder.text(Role::Passage, chunk.span.of(TEXT).unwrap()).unwrap();
        assert_eq!(chunk.vector, encode(&encoder, text)[0]);
    }
}

/// `<q, (1 - w) c_b + w c_s>` is the mix of the two scores, and the vector is not normalised.
#[test]
fn the_mix_gives_the_mix_of_both_scores() {
    let encoder = mixed(4096);
    let [alone, placed, mix, default] = [0.0, 1.0, 0.25, -1.0].map(|weight| run(&encoder, TEXT, &options(40, weight)));
    let query = encode(&encoder, encoder.text(Role::Query, "rain").unwrap()).remove(0);
    let dot = |vector: &[f32]| -> f32 { query.iter().zip(vector).map(|(a, b)| a * b).sum() };
    for (number, chunk) in mix.iter().enumerate() {
        let expected = 0.75 * dot(&alone[number].vector) + 0.25 * dot(&placed[number].vector);
        assert!((dot(&chunk.vector) - expected).abs() < 1e-6);
        let halves = alone[number]
            .vector
            .iter()
            .zip(&placed[number].vector)
            .map(|(b, s)| 0.5 * b + 0.5 * s);
        assert_eq!(default[number].vector, halves.collect::<Vec<f32>>());
        let norm: f32 = default[number].vector.iter().map(|x| x * x).sum();
        assert!(norm < 0.9999);
    }
}

#[test]
fn the_context_is_cut_at_its_tail_and_never_the_chunk() {
    let encoder = mixed(160);
    let chunk = vec![65u32; 30];
    let long = encoder.in_context(&chunk, &(0..200u32).collect::<Vec<_>>()).unwrap();
    assert_eq!((long.ids.len(), long.ids[..30].to_vec()), (160, chunk));
    let instruction = encoder.tokenize("Context: ").unwrap().ids.len();
    assert_eq!(
        long.ids[31 + instruction..159],
        (0..(128 - instruction as u32)).collect::<Vec<_>>()
    );
    // A chunk that fills the model's limit: nothing follows, and both are read at the end.
    for length in [152, 159, 200] {
        let full = encoder.in_context(&vec![65; length], &[66; 9]).unwrap();
        let end = full.ids.len() as u32;
        assert_eq!(full.ids.len(), length.min(159) + 1);
        assert_eq!(full.read, Read::Spans(vec![end - 1..end, end - 1..end]));
        let both = encode(&encoder, full);
        assert_eq!(both[0], both[1]);
    }
}

#[test]
fn a_text_with_the_separators_name_moves_no_read_out() {
    let encoder = mixed(4096);
    let text = "He said <|endoftext|> and left. Then <|endoftext|> again.";
    let plan = plan(&encoder, None, &Place::default(), text, &options(40, -1.0)).unwrap();
    for sequence in &plan.sequences {
        assert_eq!(sequence.ids.iter().filter(|id| **id == END).count(), 2);
        let Read::Spans(spans) = &sequence.read else {
            panic!("two read-outs")
        };
        assert!(
            spans
                .iter()
                .all(|span| sequence.ids[span.start as usize] == END && span.len() == 1)
        );
    }
}

/// An edited chunk changes the vectors of its own window and of no other.
#[test]
fn an_edit_changes_its_window_alone() {
    let encoder = mixed(4096);
    let changed = TEXT.replace("girl", "king");
    let (before, after) = (
        run(&encoder, TEXT, &options(40, -1.0)),
        run(&encoder, &changed, &options(40, -1.0)),
    );
    assert_eq!(before.len(), after.len());
    let edited = before
        .iter()
        .position(|chunk| chunk.span.of(TEXT).unwrap().contains("girl"))
        .unwrap();
    for (number, (before, after)) in before.iter().zip(&after).enumerate() {
        assert_eq!(
            before.vector != after.vector,
            number / 2 == edited / 2,
            "chunk {number}"
        );
    }
}

fn two(maker: &Maker, second: &Maker, template: serde_json::Value) -> Result<Encoder, ModelError> {
    let dir = maker.write();
    let inner = second.write();
    let folder = dir.path().join("situated");
    std::fs::create_dir(&folder).unwrap();
    std::fs::create_dir(folder.join("1_Pooling")).unwrap();
    for name in [
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "modules.json",
        "1_Pooling/config.json",
    ] {
        std::fs::copy(inner.path().join(name), folder.join(name)).unwrap();
    }
    std::fs::write(dir.path().join("situated.json"), template.to_string()).unwrap();
    Encoder::open(dir.path())
}

fn other() -> Maker {
    let mut second = Maker::new();
    second
        .tensors
        .values_mut()
        .for_each(|(_, numbers)| numbers.iter_mut().for_each(|x| *x *= 0.9));
    second
}

#[test]
fn two_encoders_are_summed_for_chunks_and_for_queries() {
    let sum = json!({"form": "sum", "separator": "[SEP]", "window_chunks": 16});
    let encoder = two(&Maker::new(), &other(), sum.clone()).unwrap();
    let (first, second) = (
        Encoder::open(Maker::new().write().path()).unwrap(),
        Encoder::open(other().write().path()).unwrap(),
    );
    let plus = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<f32>>();
    let own = |encoder: &Encoder, ids: &[u32]| {
        let ids = ids.to_vec();
        encode(
            encoder,
            Sequence {
                ids,
                read: Read::Pooled,
            },
        )
        .remove(0)
    };
    let query = encode(&encoder, encoder.text(Role::Query, "red green").unwrap());
    assert_eq!(
        query[0],
        plus(&own(&first, &[2, 6, 7, 3]), &own(&second, &[2, 6, 7, 3]))
    );
    let text = "red green. blue red.";
    let spans = [Span { start: 0, end: 10 }, Span { start: 11, end: 20 }];
    let plan = plan_chunks(&encoder, None, text, &spans, &options(8, -1.0)).unwrap();
    let ids = |text: &str| encoder.tokenize(text).unwrap().ids;
    let vectors = encoder.encode(&Pool::new(1).unwrap(), &plan.sequences).unwrap();
    let chunks = finish(plan, &vectors).unwrap();
    for (chunk, span) in chunks.iter().zip(spans) {
        let own_ids = ids(span.of(text).unwrap());
        let alone = [vec![2], own_ids.clone(), vec![3]].concat();
        let placed = [vec![2], own_ids, vec![3], ids(text), vec![3]].concat();
        assert_eq!(chunk.vector, plus(&own(&first, &alone), &own(&second, &placed)));
    }
    // Both encoders' files make the fingerprint.
    let fingerprint = |second: &Maker| {
        two(&Maker::new(), second, sum.clone())
            .unwrap()
            .manifest()
            .fingerprint
            .clone()
    };
    assert_ne!(fingerprint(&other()), fingerprint(&Maker::new()));
    assert_ne!(fingerprint(&other()), first.manifest().fingerprint);
}

#[test]
fn templates_that_do_not_fit_are_refused() {
    let unfit = |template: serde_json::Value| two(&Maker::new(), &other(), template).err().expect("must fail");
    // A bidirectional encoder has no chunk alone in a sequence with its context.
    for template in [
        json!({"form": "mix", "separator": "[SEP]"}),
        json!({"form": "sum", "separator": "[NONE]"}),
        json!({"form": "sum", "separator": "red"}),
        json!({"form": "sum", "separator": "[SEP]", "window_chunks": 0}),
        json!({"form": "sum", "separator": "[SEP]", "weight": 2.0}),
        json!({"form": "sum", "separator": "[SEP]", "unknown": 1}),
    ] {
        assert!(matches!(unfit(template), ModelError::Invalid { .. }));
    }
    let plain = Encoder::open(Maker::new().write().path()).unwrap();
    let error = plan(&plain, None, &Place::default(), "red", &options(8, -1.0))
        .err()
        .unwrap();
    assert!(matches!(error, BridgeError::Option { name: "situate", .. }), "{error}");
    let spans = [Span { start: 0, end: 3 }, Span { start: 2, end: 3 }];
    assert!(plan_chunks(&plain, None, "red", &spans, &options(8, -1.0)).is_err());
}
