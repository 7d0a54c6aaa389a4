//! The Jinja of a chat template, with what the library that defines chat templates adds to the language: `raise_exception`,
//! `strftime_now` and the marks `{% generation %}` around what a training learns.
//!
//! An error is one short line: never the template's source, and never what the messages say.

use super::super::ModelError;
use super::super::line::one_line;
use jiff::Zoned;
use minijinja::{Environment, Error, ErrorKind, Value, context};

/// Steps that a template may take.
const FUEL: u64 = 1_000_000;
/// Characters of an error's message.
const MOST: usize = 160;
/// The marks, and blocks that do as much as they: nothing but keep names that are set inside to themselves.
const MARKS: [(&str, &str); 2] = [("generation", "with"), ("endgeneration", "endwith")];

/// What a template said with `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// A chat template.
pub(super) struct Template {
    source: String,
}

impl Template {
    pub fn new(source: &str) -> Template {
        let source = without_marks(source);
        Template { source }
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// [`ModelError::Turns`] where the template refuses the messages, [`ModelError::Template`] where it does not parse,
    /// asks for what is not there, or takes too long.
    pub fn run(&self, messages: &[Value], add_generation_prompt: bool, ends: [&str; 2]) -> Result<String, ModelError> {
        let [bos, eos] = ends;
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        let syntax = minijinja::syntax::SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(said)?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, "raised").with_source(Raised(message)))
        });
        environment.add_function("strftime_now", |format: String| date(&format, &Zoned::now()));
        environment.add_template("chat", &self.source).map_err(said)?;
        let template = environment.get_template("chat").map_err(said)?;
        // Tools and documents are none, not undefined, as where nobody gives any.
        let given = context! {
            messages, add_generation_prompt, bos_token => bos, eos_token => eos, tools => (), documents => (),
        };
        template.render(given).map_err(said)
    }
}

/// A moment as `strftime` writes it, in English.
fn date(format: &str, moment: &Zoned) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, moment)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}")))
}

/// An error as one line: what `raise_exception` was given, or what is wrong and where.
fn said(error: Error) -> ModelError {
    let mut inner: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(one) = inner {
        if let Some(Raised(message)) = one.downcast_ref::<Raised>() {
            return ModelError::Turns(one_line(message, MOST));
        }
        inner = one.source();
    }
    let kind = error.kind();
    let detail = match error.detail() {
        Some(detail) => one_line(&format!("{kind}: {detail}"), MOST),
        None => kind.to_string(),
    };
    ModelError::Template(match error.line() {
        Some(line) => format!("{detail} (line {line})"),
        None => detail,
    })
}

/// The template with blocks that the engine knows in the place of the marks, with the same control of white space.
fn without_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = opening(rest) {
        let (text, behind) = rest.split_at(at);
        out.push_str(text);
        let end = match behind.as_bytes().get(1) {
            Some(b'#') => behind.find("#}").map(|at| at + 2),
            Some(b'%') if name(behind) == "raw" => end_of_raw(behind),
            _ => end_of_tag(behind),
        };
        let (tag, after) = behind.split_at(end.unwrap_or(behind.len()));
        match MARKS
            .iter()
            .find(|(mark, _)| tag.starts_with("{%") && name(tag) == *mark)
        {
            Some((mark, block)) => out.push_str(&tag.replacen(mark, block, 1)),
            None => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Where the next expression, statement or comment begins.
fn opening(text: &str) -> Option<usize> {
    let mut pairs = text.as_bytes().windows(2);
    pairs.position(|pair| matches!(pair, [b'{', b'{' | b'%' | b'#']))
}

/// What stands in the statement that `text` begins with, without signs and white space around it.
fn name(text: &str) -> &str {
    let inside = text.get(2..).and_then(|inside| inside.split("%}").next());
    inside.unwrap_or_default().trim_matches(['-', '+']).trim()
}

/// The end of an expression or statement, past its own strings and braces.
fn end_of_tag(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let statement = bytes.get(1) == Some(&b'%');
    let (mut at, mut depth) = (2, 0usize);
    while let Some(byte) = bytes.get(at) {
        let next = bytes.get(at + 1);
        match byte {
            b'\'' | b'"' => at = end_of_string(bytes, at),
            b'%' if statement && next == Some(&b'}') => return Some(at + 2),
            b'}' if !statement && depth == 0 && next == Some(&b'}') => return Some(at + 2),
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    None
}

/// The closing quote of the string that begins at `start`, or the last byte.
fn end_of_string(bytes: &[u8], start: usize) -> usize {
    let quote = bytes.get(start);
    let mut at = start + 1;
    while at < bytes.len() && bytes.get(at) != quote {
        at += if bytes.get(at) == Some(&b'\\') { 2 } else { 1 };
    }
    at
}

/// The end of a raw block, whose content is text.
fn end_of_raw(text: &str) -> Option<usize> {
    let mut from = text.find("%}")? + 2;
    loop {
        let at = from + text.get(from..)?.find("{%")?;
        let end = at + text.get(at..)?.find("%}")? + 2;
        if name(text.get(at..end)?) == "endraw" {
            return Some(end);
        }
        from = at + 2;
    }
}

#[cfg(test)]
mod tests;
