//! Chat templates: what a model's own file says, with messages that never become special tokens.
//!
//! The template (Jinja) is run over sentinels of private-use characters in the place of the messages' contents. What it
//! puts around them is cut at the literals of special tokens, which become those tokens; all the rest, contents above
//! all, is tokenised as plain text. So a user's "<|im_end|>" stays ten characters.

use super::super::ModelError;
use super::super::files::read_optional_json;
use super::super::gguf::Value;
use super::files::{Container, LlmFiles};
use super::piece::Piece;
use super::tokenizer::LlmTokenizer;
use minijinja::{Environment, context};
use std::sync::Arc;

/// Around the number of a content: private-use characters, which are taken out of texts of the template itself.
const OPEN: char = '\u{f8f0}';
const CLOSE: char = '\u{f8f1}';
/// Steps that a template may take.
const FUEL: u64 = 1_000_000;

/// A message of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// "system", "user", "assistant", or what else the template knows.
    pub role: String,
    pub pieces: Vec<Piece>,
}

/// A model's chat template.
pub struct Chat {
    template: String,
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
                _ => None,
            },
            Container::Directory { dir, .. } => {
                let own = dir.join("chat_template.jinja");
                match own.is_file() {
                    true => {
                        let bytes = super::super::files::read_bytes(&own)?;
                        Some(String::from_utf8(bytes).map_err(|error| ModelError::Template(error.to_string()))?)
                    }
                    false => {
                        let config = read_optional_json(&dir.join("tokenizer_config.json"))?;
                        config.get("chat_template").and_then(default_template)
                    }
                }
            }
        };
        let eos = name(files.config().end.first().copied());
        let bos = name(files.config().bos);
        Ok(template.map(|template| Chat {
            template,
            tokenizer,
            bos,
            eos,
            positions: files.config().positions,
        }))
    }

    /// The pieces of a prompt: all text as [`Piece::Tokens`], vectors as they came.
    ///
    /// # Errors
    /// [`ModelError::Template`] for a template that does not parse, fails, takes too long, or loses a message.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Vec<Piece>, ModelError> {
        let failed = |error: minijinja::Error| ModelError::Template(format!("{error:#}"));
        let named = |role: &str| role.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        if let Some(message) = messages
            .iter()
            .find(|message| message.role.is_empty() || !named(&message.role))
        {
            return Err(ModelError::Template(format!(
                "\"{}\" is no name of a role",
                message.role
            )));
        }
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        let syntax = minijinja::syntax::SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(failed)?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<String, minijinja::Error> {
                Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message))
            },
        );
        environment.add_template("chat", &self.template).map_err(failed)?;
        let given: Vec<_> = messages
            .iter()
            .enumerate()
            .map(|(number, message)| context! { role => message.role.as_str(), content => format!("{OPEN}{number}{CLOSE}") })
            .collect();
        let template = environment.get_template("chat").map_err(failed)?;
        let text = template
            .render(context! {
                messages => given, add_generation_prompt => add_generation_prompt, bos_token => self.bos.as_str(),
                eos_token => self.eos.as_str(),
            })
            .map_err(failed)?;
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
            Some(lost) => Err(ModelError::Template(format!("it leaves out message {lost}"))),
            None => Ok(parts.pieces),
        }
    }
}

/// The template, or of several the one named `default`.
fn default_template(given: &serde_json::Value) -> Option<String> {
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    let named = |one: &&serde_json::Value| one.get("name").and_then(|name| name.as_str()) == Some("default");
    match given.as_array() {
        Some(several) => several.iter().find(named).and_then(|one| text(one.get("template")?)),
        None => text(given),
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
