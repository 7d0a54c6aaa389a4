//! What the LLM is told around a passage: thirteen instructions of our own wording to say the passage, and the template
//! in which questions are answered; in the model's own chat template, ready as token ids.

use crate::bridge::BridgeError;
use crate::model::ModelError;
use crate::model::llm::{Chat, LlmConfig, LlmTokenizer, Message, Piece};
use std::sync::Arc;

/// Instructions; `{}` stands for the passage.
pub(super) const TEMPLATES: [&str; 13] = [
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

/// What a question with documents, and one without, is asked in where no template is given. `{documents}` and
/// `{question}` are their places.
pub const WITH_DOCUMENTS: &str =
    "Use the background to answer the question.\n\nBackground: {documents}\n\nQuestion: {question}";
pub const PLAIN: &str = "Answer the question.\n\nQuestion: {question}";

/// A prompt as ids before and behind the passage.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    pub before: Vec<u32>,
    pub after: Vec<u32>,
}

/// A model's tokenizer and chat template.
pub struct Wording {
    pub tokenizer: Arc<LlmTokenizer>,
    pub chat: Option<Chat>,
    /// What a prompt begins with, where the model wants it.
    bos: Option<u32>,
}

impl Wording {
    /// For a model.
    pub fn new(tokenizer: Arc<LlmTokenizer>, chat: Option<Chat>, config: &LlmConfig) -> Wording {
        Wording {
            tokenizer,
            chat,
            bos: config.bos.filter(|_| config.add_bos),
        }
    }

    /// The first `count` instructions to say a passage.
    ///
    /// # Errors
    /// [`BridgeError::Model`] where the template fails.
    pub fn instructions(&self, count: usize) -> Result<Vec<Prompt>, BridgeError> {
        let instruction = |template: &&str| {
            let (before, after) = template.split_once("{}").unwrap_or((template, ""));
            self.around(before, after)
        };
        TEMPLATES.iter().take(count).map(instruction).collect()
    }

    /// The prompt of a question with a passage's vectors, as it is asked where they are used.
    ///
    /// # Errors
    /// As [`Wording::instructions`].
    pub fn question(&self, question: &str) -> Result<Prompt, BridgeError> {
        let (before, rest) = WITH_DOCUMENTS.split_once("{documents}").unwrap_or_default();
        self.around(before, &asked(rest, question))
    }

    /// The prompt of a question with the passage's text, as ids.
    ///
    /// # Errors
    /// As [`Wording::instructions`].
    pub fn question_with_text(&self, text: &str, question: &str) -> Result<Vec<u32>, BridgeError> {
        let (before, rest) = WITH_DOCUMENTS.split_once("{documents}").unwrap_or_default();
        self.whole(format!("{before}{text}{}", asked(rest, question)))
    }

    /// The prompt of a question alone, as ids.
    ///
    /// # Errors
    /// As [`Wording::instructions`].
    pub fn question_alone(&self, question: &str) -> Result<Vec<u32>, BridgeError> {
        self.whole(asked(PLAIN, question))
    }

    /// The tokens of an answer, at most `most` of them, with the one that ends it where all of it is there.
    ///
    /// # Errors
    /// [`BridgeError::Model`] where the tokenizer fails.
    pub fn answer(&self, answer: &str, most: usize) -> Result<Vec<u32>, BridgeError> {
        let mut ids = self.tokenizer.encode(answer.trim())?;
        match ids.len() < most {
            true if !ids.is_empty() => ids.extend(self.end()?),
            _ => ids.truncate(most),
        }
        Ok(ids)
    }

    /// What follows an answer: the first token behind it in the chat template, else the model's own end.
    fn end(&self) -> Result<Option<u32>, BridgeError> {
        let Some(chat) = &self.chat else {
            return Ok(self.tokenizer.end().first().copied());
        };
        let turn = |role: &str| Message {
            role: role.to_owned(),
            pieces: vec![Piece::Vectors(Vec::new())],
        };
        let pieces = chat.render(&[turn("user"), turn("assistant")], false)?;
        let last = pieces.iter().rposition(|piece| matches!(piece, Piece::Vectors(_)));
        let behind = pieces.into_iter().skip(last.map_or(0, |last| last + 1));
        let first = behind.filter_map(|piece| match piece {
            Piece::Tokens(ids) => ids.first().copied(),
            _ => None,
        });
        let found = first.take(1).find(|id| self.tokenizer.end().contains(id));
        Ok(found.or(self.tokenizer.end().first().copied()))
    }

    fn around(&self, before: &str, after: &str) -> Result<Prompt, BridgeError> {
        // A vector marks the place; its numbers are nobody's.
        let pieces = vec![
            Piece::Text(before.to_owned()),
            Piece::Vectors(Vec::new()),
            Piece::Text(after.to_owned()),
        ];
        let mut sides: [Vec<u32>; 2] = Default::default();
        let mut side = 0;
        for piece in self.user(pieces)? {
            match piece {
                Piece::Text(text) => sides[side].extend(self.tokenizer.encode(&text)?),
                Piece::Tokens(ids) => sides[side].extend(ids),
                Piece::Vectors(_) => side = 1,
            }
        }
        if side == 0 {
            return Err(ModelError::Template("it loses the passage's place".to_owned()).into());
        }
        let [before, after] = sides;
        Ok(Prompt {
            before: self.begun(before),
            after,
        })
    }

    fn whole(&self, text: String) -> Result<Vec<u32>, BridgeError> {
        let mut ids = Vec::new();
        for piece in self.user(vec![Piece::Text(text)])? {
            match piece {
                Piece::Text(text) => ids.extend(self.tokenizer.encode(&text)?),
                Piece::Tokens(more) => ids.extend(more),
                Piece::Vectors(_) => {}
            }
        }
        Ok(self.begun(ids))
    }

    /// With the beginning of a text, where the model wants it and the template has not given it.
    fn begun(&self, mut ids: Vec<u32>) -> Vec<u32> {
        if let Some(bos) = self.bos.filter(|bos| ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        ids
    }

    /// A turn of the user's with the beginning of an answer behind it.
    fn user(&self, pieces: Vec<Piece>) -> Result<Vec<Piece>, BridgeError> {
        let Some(chat) = &self.chat else { return Ok(pieces) };
        let turn = Message {
            role: "user".to_owned(),
            pieces,
        };
        Ok(chat.render(&[turn], true)?)
    }
}

/// A template with the question in its place. What the question says is never a place.
fn asked(template: &str, question: &str) -> String {
    match template.split_once("{question}") {
        Some((before, after)) => format!("{before}{question}{after}"),
        None => template.to_owned(),
    }
}
