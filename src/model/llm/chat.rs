//! Chat templates: what a model's own file says, with messages that never become special tokens.
//!
//! The template (Jinja) is run over sentinels of private-use characters in the place of the messages' contents. What it
//! puts around them is cut at the literals of special tokens, which become those tokens; all the rest, contents above
//! all, is tokenised as plain text. So a user's "<|im_end|>" stays ten characters.
//!
//! A system text for which the template has no turn goes in front of the first user turn, as people do it by hand.

use super::super::ModelError;
use super::super::files::read_optional_json;
use super::super::gguf::Value;
use super::super::line::one_line;
use super::files::{Container, LlmFiles};
use super::piece::Piece;
use super::template::Template;
use super::tokenizer::LlmTokenizer;
use minijinja::context;
use std::sync::Arc;

/// Around the number of a content: private-use characters, which are taken out of texts of the template itself.
const OPEN: char = '\u{f8f0}';
const CLOSE: char = '\u{f8f1}';
/// Between a system text and the user's turn that it is put before.
const BETWEEN: &str = "\n\n";

/// A message of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// "system", "user", "assistant", or what else the template knows.
    pub role: String,
    pub pieces: Vec<Piece>,
}

/// A model's chat template.
pub struct Chat {
    template: Template,
    tokenizer: Arc<LlmTokenizer>,
    bos: String,
    eos: String,
    /// What is longer is not read to its end.
    positions: usize,
}

impl Chat {
    /// The template of a model's files; `None` where they have none.
    pub fn open(files: &LlmFiles, tokenizer: Arc<LlmTokenizer>) -> Result<Option<Chat>, ModelError> {
        let name = |id: Option<u32>| {
            let found = id.and_then(|id| tokenizer.specials().find(|(_, special)| *special == id));
            found.map(|(literal, _)| literal.to_owned()).unwrap_or_default()
        };
        let template = match files.container() {
            Container::Gguf(file) => match file.value("tokenizer.chat_template") {
                Some(Value::Text(template)) => Some(template.clone()),
                None => None,
                Some(_) => return Err(ModelError::Template("it is not a text".to_owned())),
            },
            Container::Directory { dir, .. } => {
                let own = dir.join("chat_template.jinja");
                match own.is_file() {
                    true => {
                        let text = String::from_utf8(super::super::files::read_bytes(&own)?);
                        Some(text.map_err(|_| ModelError::Template("it is not UTF-8".to_owned()))?)
                    }
                    false => {
                        let config = read_optional_json(&dir.join("tokenizer_config.json"))?;
                        config.get("chat_template").map(default_template).transpose()?.flatten()
                    }
                }
            }
        };
        let eos = name(files.config().end.first().copied());
        let bos = name(files.config().bos);
        Ok(template.map(|template| Chat {
            template: Template::new(&template),
            tokenizer,
            bos,
            eos,
            positions: files.config().positions,
        }))
    }

    /// Fails where the template cannot answer even a plain turn of a user, and says why.
    pub fn check(&self) -> Result<(), ModelError> {
        let turn = Message {
            role: "user".to_owned(),
            pieces: vec![Piece::Text("Hello".to_owned())],
        };
        match self.as_given(&[turn], true) {
            Ok(_) => Ok(()),
            Err(ModelError::Turns(what)) => Err(ModelError::Template(what)),
            Err(error) => Err(error),
        }
    }

    /// The pieces of a prompt: all text as [`Piece::Tokens`], vectors as they came. Where the template refuses a system
    /// turn or leaves its text out, the text goes in front of the first user turn.
    ///
    /// # Errors
    /// [`ModelError::Turns`] for messages that the template does not take, [`ModelError::Template`] for one that does not
    /// parse, fails, takes too long, or loses a message.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Vec<Piece>, ModelError> {
        let first = self.as_given(messages, add_generation_prompt);
        let (Err(ModelError::Turns(what) | ModelError::Template(what)), Some(turns)) =
            (&first, without_system(messages))
        else {
            return first;
        };
        match self.as_given(&turns, add_generation_prompt) {
            Err(ModelError::Turns(_) | ModelError::Template(_)) => Err(ModelError::Turns(what.clone())),
            other => other,
        }
    }

    fn as_given(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Vec<Piece>, ModelError> {
        let named = |role: &str| role.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        if let Some(message) = messages
            .iter()
            .find(|message| message.role.is_empty() || !named(&message.role))
        {
            return Err(ModelError::Template(format!(
                "\"{}\" is no name of a role",
                one_line(&message.role, 40)
            )));
        }
        let given: Vec<_> = messages
            .iter()
            .enumerate()
            .map(|(number, message)| context! { role => message.role.as_str(), content => format!("{OPEN}{number}{CLOSE}") })
            .collect();
        let text = self
            .template
            .run(&given, add_generation_prompt, [&self.bos, &self.eos])?;
        self.assemble(&text, messages)
    }

    fn assemble(&self, text: &str, messages: &[Message]) -> Result<Vec<Piece>, ModelError> {
        let mut parts = Parts {
            tokenizer: &self.tokenizer,
            positions: self.positions,
            text: String::new(),
            pieces: Vec::new(),
        };
        let mut seen = vec![false; messages.len()];
        let mut rest = text;
        while let Some((before, after)) = rest.split_once(OPEN) {
            let lost = || ModelError::Template("it changes the contents of messages".to_owned());
            let (number, after) = after.split_once(CLOSE).ok_or_else(lost)?;
            let number: usize = number.parse().map_err(|_| lost())?;
            let message = messages.get(number).ok_or_else(lost)?;
            if let Some(seen) = seen.get_mut(number) {
                *seen = true;
            }
            parts.template(before)?;
            for piece in &message.pieces {
                match piece {
                    Piece::Text(text) => parts.text.push_str(text),
                    other => {
                        parts.flush()?;
                        parts.pieces.push(other.clone());
                    }
                }
            }
            rest = after;
        }
        parts.template(rest)?;
        parts.flush()?;
        // Some templates move or drop a system message that they have no place for.
        match seen.iter().position(|seen| !seen) {
            Some(lost) => {
                let role = messages
                    .get(lost)
                    .map(|message| message.role.as_str())
                    .unwrap_or_default();
                Err(ModelError::Template(format!("it leaves out the {role} turn")))
            }
            None => Ok(parts.pieces),
        }
    }
}

/// The turns with the text of a system turn at their head in front of the first user turn; `None` without both.
fn without_system(messages: &[Message]) -> Option<Vec<Message>> {
    let (system, rest) = messages.split_first().filter(|(first, _)| first.role == "system")?;
    let mut turns = rest.to_vec();
    let user = turns.iter_mut().find(|turn| turn.role == "user")?;
    let mut pieces = system.pieces.clone();
    pieces.push(Piece::Text(BETWEEN.to_owned()));
    pieces.append(&mut user.pieces);
    user.pieces = pieces;
    Some(turns)
}

/// The template, or of several the one named `default`; `None` for null.
fn default_template(given: &serde_json::Value) -> Result<Option<String>, ModelError> {
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    let named = |one: &&serde_json::Value| one.get("name").and_then(|name| name.as_str()) == Some("default");
    let bad = |what: &str| ModelError::Template(what.to_owned());
    match given {
        serde_json::Value::Null => Ok(None),
        serde_json::Value::Array(several) => {
            let found = several.iter().find(named).and_then(|one| text(one.get("template")?));
            found
                .map(Some)
                .ok_or_else(|| bad("of several, none is named \"default\""))
        }
        one => text(one).map(Some).ok_or_else(|| bad("it is not a text")),
    }
}

/// Pieces under construction. Text is kept until something else comes, so that a token may reach over the border of a
/// template's text and a content, as where the whole is tokenised.
struct Parts<'a> {
    tokenizer: &'a LlmTokenizer,
    positions: usize,
    text: String,
    pieces: Vec<Piece>,
}

impl Parts<'_> {
    /// Text of the template: literals of special tokens become those.
    fn template(&mut self, mut text: &str) -> Result<(), ModelError> {
        while !text.is_empty() {
            let found = self
                .tokenizer
                .specials()
                .filter_map(|(literal, id)| Some((text.find(literal)?, literal.len(), id)));
            // The first; of several at one place the longest.
            let Some((at, length, id)) = found.min_by_key(|(at, length, _)| (*at, usize::MAX - length)) else {
                self.text.push_str(text);
                return Ok(());
            };
            self.text.push_str(text.get(..at).unwrap_or_default());
            self.flush()?;
            self.pieces.push(Piece::Tokens(vec![id]));
            text = text.get(at + length..).unwrap_or_default();
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), ModelError> {
        if !self.text.is_empty() {
            let read: usize = self.pieces.iter().map(Piece::positions).sum();
            // What is too long for the model is not read to its end.
            let enough = (self.positions + 1).saturating_sub(read);
            let ids = self.tokenizer.encode_up_to(&std::mem::take(&mut self.text), enough)?;
            self.pieces.push(Piece::Tokens(ids));
        }
        Ok(())
    }
}
