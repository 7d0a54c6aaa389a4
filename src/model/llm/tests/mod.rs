//! The runtime over the real small model, and over made ones.

mod gguf_maker;
mod gradient;
mod hooks;
mod llama_tokens;
mod made;
mod memory;
mod parts;
mod real;
mod rotary;
mod templates;

use super::{Batcher, Event, Finish, Llm, Prompt, Request};
use std::sync::Arc;

/// What a request gave.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    ids: Vec<u32>,
    text: String,
    finish: Option<Finish>,
}

fn request(prompt: Prompt, max_tokens: usize) -> Request {
    Request {
        prompt,
        max_tokens,
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        seed: 1,
        stop: Vec::new(),
    }
}

/// Runs a batch to its end.
fn run(batcher: &mut Batcher, count: usize) -> Vec<Answer> {
    let mut answers: Vec<Answer> = (0..count).map(|_| Answer::default()).collect();
    let mut more = true;
    while more {
        more = batcher
            .step(&|| false, &mut |key, event| {
                let answer = &mut answers[key as usize];
                match event {
                    Event::Token { id, text } => {
                        answer.ids.push(id);
                        answer.text.push_str(&text);
                    }
                    Event::Rest(text) => answer.text.push_str(&text),
                    Event::Done { reason, .. } => answer.finish = Some(reason),
                    Event::Failed(error) => panic!("{error}"),
                }
            })
            .unwrap();
    }
    answers
}

fn alone(llm: &Arc<Llm>, request: Request) -> Answer {
    let mut batcher = Batcher::new(llm.clone(), 2, 1 << 30).unwrap();
    batcher.add(0, request).unwrap();
    run(&mut batcher, 1).remove(0)
}
