//! What was asked as the runtime takes it: prompts of tokens and vectors, and errors the other way.

use super::runtime::{Llm, Message, Piece, Prompt, Request};
use super::wire::{Part, PromptForm, Sampling};
use crate::compute::memory::room_for;
use crate::model::ModelError;
use crate::serve::ipc::failure::{Failure, Kind};
use crate::serve::ipc::wire::MAX_MESSAGE;

/// An error of the runtime as the sender gets it.
pub fn fail(error: ModelError) -> Failure {
    match &error {
        // What is wrong with a sequence here is the caller's: its length, or its vectors.
        ModelError::Sequence { what, .. } => {
            Failure::new(Kind::Argument, what.clone()).hint("Shorten the prompt or lower max_tokens.")
        }
        other => Failure::from(other),
    }
}

/// Fails where so many rows are more than a reply can hold.
pub fn check_size(rows: usize, columns: u32) -> Result<(), Failure> {
    let bytes = rows.saturating_mul(columns as usize).saturating_mul(4);
    if bytes < MAX_MESSAGE / 2 {
        return Ok(());
    }
    let message = format!("the input vectors of {rows} tokens take {bytes} bytes, more than can be sent");
    Err(Failure::new(Kind::Argument, message).hint("Shorten the prompt."))
}

/// What the batch is asked for.
pub fn request(prompt: Prompt, sampling: Sampling) -> Request {
    Request {
        prompt,
        max_tokens: sampling.max_tokens as usize,
        temperature: sampling.temperature,
        top_k: sampling.top_k as usize,
        top_p: sampling.top_p,
        seed: sampling.seed,
        stop: sampling.stop,
    }
}

/// The prompt as tokens and vectors, in the chat template where it is a conversation.
pub fn assemble(llm: &Llm, form: PromptForm) -> Result<Prompt, Failure> {
    let (hidden, width) = (llm.config().hidden, form.width as usize);
    if form.rows() > 0 && width != hidden {
        let message = format!("the prompt's vectors have {width} dimensions, the LLM takes {hidden}");
        return Err(Failure::new(Kind::Argument, message)
            .hint("Vectors of a prompt come from situ.xrag_token with a bridge that was trained for this LLM."));
    }
    room_for(form.values.len() * size_of::<f32>())?;
    let mut rows = form.values.chunks_exact(width.max(1)).map(<[f32]>::to_vec);
    let turns: Vec<Message> = form
        .turns
        .into_iter()
        .map(|turn| Message {
            role: turn.role,
            pieces: turn
                .parts
                .into_iter()
                .map(|part| match part {
                    Part::Text(text) => Piece::Text(text),
                    Part::Vectors { rows: count } => Piece::Vectors(rows.by_ref().take(count as usize).collect()),
                })
                .collect(),
        })
        .collect();
    let pieces = match form.chat {
        true => llm.render(&turns).map_err(fail)?,
        false => turns.into_iter().flat_map(|turn| turn.pieces).collect(),
    };
    llm.prompt(&pieces).map_err(fail)
}
