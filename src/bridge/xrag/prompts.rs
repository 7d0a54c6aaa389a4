//! What the LLM is told around a passage's vectors: thirteen instructions of our own wording, in the model's own chat
//! template, ready as token ids.

use crate::bridge::BridgeError;
use crate::model::ModelError;
use crate::model::llm::{Chat, LlmTokenizer, Message, Piece};

/// Instructions; `{}` stands for the passage.
const TEMPLATES: [&str; 13] = [
    "Background: {}\nSay in words what the background tells.",
    "{}\nWrite out the text that stands above.",
    "The passage is {}. Tell what it says.",
    "Read this: {}\nNow give the same in plain words.",
    "Here is a document: {}\nWhat does it say?",
    "What follows is a passage in short form: {}\nExpand it.",
    "Passage: {}\nRestate the passage.",
    "Note: {}\nPut the note into full sentences.",
    "Given {}, recount its content.",
    "{} is all you know. Write it down.",
    "Source: {}\nRetell the source from the beginning.",
    "Unfold this into text: {}",
    "Content: {}\nWhich text is this?",
];

/// One instruction as ids before and behind the passage.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    pub before: Vec<u32>,
    pub after: Vec<u32>,
}

/// All instructions, in the chat template where the model has one.
///
/// # Errors
/// [`BridgeError::Model`] where the template fails.
pub fn prompts(tokenizer: &LlmTokenizer, chat: Option<&Chat>) -> Result<Vec<Prompt>, BridgeError> {
    TEMPLATES
        .iter()
        .map(|template| prompt(tokenizer, chat, template))
        .collect()
}

fn prompt(tokenizer: &LlmTokenizer, chat: Option<&Chat>, template: &str) -> Result<Prompt, BridgeError> {
    let (before, after) = template.split_once("{}").unwrap_or((template, ""));
    // A vector marks the place; its numbers are nobody's.
    let pieces = vec![
        Piece::Text(before.to_owned()),
        Piece::Vectors(Vec::new()),
        Piece::Text(after.to_owned()),
    ];
    let pieces = match chat {
        None => pieces,
        Some(chat) => {
            let turn = Message {
                role: "user".to_owned(),
                pieces,
            };
            chat.render(&[turn], true)?
        }
    };
    let mut sides: [Vec<u32>; 2] = Default::default();
    let mut side = 0;
    for piece in pieces {
        match piece {
            Piece::Text(text) => sides[side].extend(tokenizer.encode(&text)?),
            Piece::Tokens(ids) => sides[side].extend(ids),
            Piece::Vectors(_) => side = 1,
        }
    }
    if side == 0 {
        return Err(ModelError::Template("it loses the passage's place".to_owned()).into());
    }
    let [before, after] = sides;
    Ok(Prompt { before, after })
}
