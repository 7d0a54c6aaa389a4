//! `situate` over the real model: what each mode promises about its vectors, and chunks of real books.

use super::BridgeError;
use super::situate::{Situate, SituateOptions, SituatedChunk, finish, plan, plan_chunks};
use crate::compute::Pool;
use crate::fixtures;
use crate::model::{Encoder, Role};
use crate::text::{Place, Span};

fn encoder() -> Option<Encoder> {
    Some(Encoder::open(&fixtures::minilm()?).unwrap())
}

fn options(mode: Situate, weight: f32) -> SituateOptions {
    SituateOptions {
        mode,
        chunk_tokens: 24,
        window_tokens: 0,
        weight,
    }
}

fn run(encoder: &Encoder, title: Option<&str>, text: &str, options: &SituateOptions) -> Vec<SituatedChunk> {
    let pool = Pool::new(2).unwrap();
    let place = Place {
        headings: vec!["Setup".to_string()],
        code: false,
    };
    let plan = plan(encoder, title, &place, text, options).unwrap();
    let vectors = encoder.encode(&pool, &plan.sequences).unwrap();
    finish(plan, &vectors).unwrap()
}

fn embed(encoder: &Encoder, text: &str) -> Vec<f32> {
    let sequence = encoder.text(Role::Passage, text).unwrap();
    encoder.encode(&Pool::new(1).unwrap(), &[sequence]).unwrap().remove(0)
}

const TEXT: &str = "A standby follows its primary by reading the write-ahead log. It can answer queries while it \
    follows. To promote it, run pg_ctl promote or call the function. After that it takes writes.\n\n\
    # Cascading\n\nA standby can feed other standbys. This takes load off the primary. Each must be able to reach the \
    one before it. The chain may be as long as one likes.";

#[test]
fn none_and_late_without_weight_are_the_plain_embedding() {
    let Some(encoder) = encoder() else { return };
    for options in [options(Situate::None, 0.5), options(Situate::Late, 0.0)] {
        let chunks = run(&encoder, Some("Standby"), TEXT, &options);
        assert!(chunks.len() >= 3);
        for chunk in chunks {
            assert_eq!(chunk.vector, embed(&encoder, chunk.span.of(TEXT).unwrap()));
            assert!((1..=24).contains(&chunk.tokens));
        }
    }
}

#[test]
fn header_reads_title_and_path_before_the_chunk() {
    let Some(encoder) = encoder() else { return };
    let chunks = run(&encoder, Some("Standby"), TEXT, &options(Situate::Header, 0.5));
    let first = &chunks[0];
    let with = format!("Standby > Setup\n{}", first.span.of(TEXT).unwrap());
    assert_eq!(first.vector, embed(&encoder, &with));
    // A header longer than the model reads never cuts the chunk.
    let title = "word ".repeat(1000);
    let plan = plan(
        &encoder,
        Some(&title),
        &Place::default(),
        TEXT,
        &options(Situate::Header, 0.5),
    )
    .unwrap();
    for (chunk, sequence) in plan.chunks.iter().zip(&plan.sequences) {
        let own = encoder.tokenize(chunk.span.of(TEXT).unwrap()).unwrap().ids;
        let end = sequence.ids.len() - 1;
        assert_eq!(sequence.ids[end - own.len()..end], own);
        assert!(sequence.ids.len() <= 256 / 4 + own.len() + 2);
    }
}

#[test]
fn late_mixes_the_chunk_with_its_place() {
    let Some(encoder) = encoder() else { return };
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    let alone = run(&encoder, None, TEXT, &options(Situate::None, 0.0));
    let placed = run(&encoder, None, TEXT, &options(Situate::Late, 1.0));
    let mixed = run(&encoder, None, TEXT, &options(Situate::Late, 0.25));
    assert_eq!((alone.len(), alone.len()), (placed.len(), mixed.len()));
    for ((b, s), c) in alone.iter().zip(&placed).zip(&mixed) {
        let mix: Vec<f32> = b
            .vector
            .iter()
            .zip(&s.vector)
            .map(|(b, s)| 0.75 * b + 0.25 * s)
            .collect();
        let length = dot(&mix, &mix).sqrt();
        for (mix, c) in mix.iter().zip(&c.vector) {
            assert!((mix / length - c).abs() < 1e-5);
        }
        assert!((dot(&c.vector, &c.vector) - 1.0).abs() < 1e-5);
        assert!(dot(&b.vector, &s.vector) < 0.999, "the place must make a difference");
    }
}

#[test]
fn windows_read_about_twice_the_text_and_stay_in_the_limit() {
    let Some(encoder) = encoder() else { return };
    let text = TEXT.repeat(60);
    for window_tokens in [0, 100] {
        let options = SituateOptions {
            window_tokens,
            ..options(Situate::Late, 1.0)
        };
        let plan = plan(&encoder, None, &Place::default(), &text, &options).unwrap();
        let limit = if window_tokens == 0 {
            256
        } else {
            window_tokens as usize + 2
        };
        assert!(plan.sequences.iter().all(|sequence| sequence.ids.len() <= limit));
        let read: usize = plan.sequences.iter().map(|sequence| sequence.ids.len()).sum();
        let tokens = encoder.tokenize(&text).unwrap().ids.len();
        assert!(read >= tokens && read <= tokens * 5 / 2, "{read} tokens for {tokens}");
    }
}

#[test]
fn a_chunk_longer_than_the_model_reads_loses_its_tail_in_every_mode() {
    let Some(encoder) = encoder() else { return };
    let short = "The miller had three sons.";
    let text = format!(
        "{short} {}",
        "He left them his mill, his donkey and his cat. ".repeat(60)
    );
    let spans = [
        Span {
            start: 0,
            end: short.len() as u32,
        },
        Span {
            start: short.len() as u32,
            end: text.len() as u32,
        },
    ];
    let pool = Pool::new(2).unwrap();
    for mode in [Situate::None, Situate::Header, Situate::Late, Situate::Bridge] {
        let plan = plan_chunks(&encoder, Some("Puss in Boots"), &text, &spans, &options(mode, 0.25)).unwrap();
        let vectors = encoder.encode(&pool, &plan.sequences).unwrap();
        let chunks = finish(plan, &vectors).unwrap();
        assert_eq!(chunks.len(), 2, "{mode:?}");
        if mode == Situate::None {
            let alone = embed(&encoder, spans[1].of(&text).unwrap());
            assert_eq!(chunks[1].vector, alone);
        }
    }
}

#[test]
fn bad_options_and_wrong_vectors_are_errors() {
    let Some(encoder) = encoder() else { return };
    for bad in [-0.1, 1.5, f32::NAN] {
        let error = plan(&encoder, None, &Place::default(), TEXT, &options(Situate::Late, bad))
            .err()
            .unwrap();
        assert!(
            matches!(
                error,
                BridgeError::Option {
                    name: "situate_weight",
                    ..
                }
            ),
            "{error}"
        );
    }
    let empty = plan(
        &encoder,
        Some("T"),
        &Place::default(),
        " \n\t ",
        &options(Situate::Header, 0.5),
    )
    .unwrap();
    assert!(empty.chunks.is_empty() && empty.sequences.is_empty());
    let plan = plan(&encoder, None, &Place::default(), TEXT, &options(Situate::None, 0.5)).unwrap();
    assert!(matches!(finish(plan, &[]), Err(BridgeError::Vectors { found: 0, .. })));
}

/// Chunks of real books, cut with the real tokenizer: in order, without overlap, on character borders, within the
/// limit, and nothing but white space and headings between them.
#[test]
fn chunks_of_books() {
    let Some(encoder) = encoder() else { return };
    let Some(books) = fixtures::data("novels_pd") else {
        return;
    };
    let corpus = std::fs::read_to_string(books.join("corpus.jsonl")).unwrap();
    let mut books = 0;
    for line in corpus.lines().take(40) {
        let book: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = book["text"].as_str().unwrap();
        let text = &text[..text.floor_char_boundary(60_000)];
        let plan = plan(&encoder, None, &Place::default(), text, &options(Situate::None, 0.0)).unwrap();
        let mut end = 0;
        for chunk in &plan.chunks {
            let passage = chunk.span.of(text).expect("on character borders");
            assert!(!passage.trim().is_empty() && chunk.span.start >= end);
            let between = text[end as usize..chunk.span.start as usize].trim();
            assert!(between.is_empty() || between.starts_with('#'), "left out: {between:?}");
            assert!(chunk.tokens <= 24);
            end = chunk.span.end;
        }
        assert!(text[end as usize..].trim().is_empty());
        books += 1;
    }
    assert!(books > 0);
}
