//! Texts from prompts: `situ.generate`, `situ.generate_stream`, and the same for prompts with vectors,
//! `situ.xrag_generate`, `situ.xrag_generate_stream`: names of their own, because a parameter that a client sends
//! without a type would always be text.

use super::prompt::{MOST_TEXT, Prompt};
use crate::pg::ereport::{fail_full, fail_with_hint};
use crate::pg::llm::target::Target;
use crate::pg::service::ModelRef;
use crate::serve::llm::wire::{Part, PromptForm, Sampling, Turn};
use pgrx::PgSqlErrorCode;
use pgrx::prelude::*;

/// Limits of the arguments.
const MOST_TOKENS: i64 = 1 << 20;
const MOST_STOPS: usize = 16;
const MOST_STOP_BYTES: usize = 1024;

fn bad(message: String, hint: &str) -> ! {
    fail_with_hint(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message, hint)
}

/// The options of an answer as SQL gives them, NULL for the default.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub max_tokens: Option<i64>,
    pub temperature: Option<f32>,
    pub top_k: Option<i64>,
    pub top_p: Option<f32>,
    pub seed: Option<i64>,
    pub stop: Vec<String>,
    pub system: Option<String>,
    pub chat: Option<bool>,
}

impl Options {
    /// Checked; what is out of range raises an error.
    pub fn sampling(&self) -> Sampling {
        let max_tokens = self.max_tokens.unwrap_or(256);
        if !(1..=MOST_TOKENS).contains(&max_tokens) {
            bad(
                format!("max_tokens = {max_tokens} is out of range"),
                "It may be 1 to 1048576; 256 is the default.",
            )
        }
        let temperature = self.temperature.unwrap_or(0.0);
        if !(0.0..=100.0).contains(&temperature) {
            bad(
                format!("temperature = {temperature} is out of range"),
                "It may be 0 (the likeliest token always) to 100.",
            )
        }
        let top_k = self.top_k.unwrap_or(0);
        let Ok(top_k) = u32::try_from(top_k) else {
            bad(
                format!("top_k = {top_k} is out of range"),
                "It may be 0, which is for all tokens, to 4294967295.",
            )
        };
        let top_p = self.top_p.unwrap_or(1.0);
        if !(top_p > 0.0 && top_p <= 1.0) {
            bad(
                format!("top_p = {top_p} is out of range"),
                "It may be above 0 and up to 1, which is for all tokens.",
            )
        }
        let fits = |stop: &String| !stop.is_empty() && stop.len() <= MOST_STOP_BYTES;
        if self.stop.len() > MOST_STOPS || !self.stop.iter().all(fits) {
            bad(
                "stop has too many strings, or an empty or very long one".to_owned(),
                "It may have 16 strings of 1 to 1024 bytes.",
            )
        }
        Sampling {
            // At most MOST_TOKENS.
            max_tokens: max_tokens as u32,
            temperature,
            top_k,
            top_p,
            seed: self.seed.unwrap_or(0).cast_unsigned(),
            stop: self.stop.clone(),
        }
    }

    /// The prompt as the worker takes it: the user's turn, after the system's where there is one.
    /// `llm`: none for the endpoint's, which takes text alone.
    pub fn form(&self, llm: Option<&ModelRef>, prompt: &Prompt) -> PromptForm {
        if let (Some(fingerprint), Some(llm)) = (&prompt.llm, llm)
            && *fingerprint != llm.fingerprint
        {
            fail_full(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("the prompt's vectors are not for LLM \"{}\"", llm.name),
                format!(
                    "They are for fingerprint {fingerprint}, the LLM has {}.",
                    llm.fingerprint
                ),
                "Use the LLM that the bridge was trained for: SELECT name, recipe FROM situ.bridges.".into(),
            )
        }
        let chat = self.chat.unwrap_or(true);
        if !chat && self.system.is_some() {
            bad(
                "a system text needs the chat template".to_owned(),
                "Leave out chat => false, or write the instructions into the prompt.",
            )
        }
        let (parts, values) = prompt.parts(llm);
        let texts = parts.iter().map(|part| match part {
            Part::Text(text) => text.len(),
            Part::Vectors { .. } => 0,
        });
        let bytes = texts.sum::<usize>() + self.system.as_ref().map_or(0, String::len);
        if bytes > MOST_TEXT {
            fail_with_hint(
                PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
                format!("a prompt of {bytes} bytes with its system text is too long"),
                "Both together may have 4 MB of text.",
            )
        }
        let turn = |role: &str, parts| Turn {
            role: role.to_owned(),
            parts,
        };
        let system = self.system.iter();
        let system = system.map(|text| turn("system", vec![Part::Text(text.clone())]));
        PromptForm {
            chat,
            turns: system.chain([turn("user", parts)]).collect(),
            width: llm.map_or(0, |llm| llm.dimensions) as u32,
            values,
        }
    }
}

/// The strings of an argument `stop`, NULLs left out.
pub fn stops(stop: Option<Array<'_, &str>>) -> Vec<String> {
    let stops = stop.map(|stop| stop.iter().flatten().map(str::to_owned).collect());
    stops.unwrap_or_default()
}

fn answer(prompt: Option<Prompt>, model: Option<&str>, options: &Options) -> Option<String> {
    let prompt = prompt?;
    let target = Target::by_name(model);
    let form = options.form(target.local(), &prompt);
    Some(target.ask(form, options.sampling()).finish().0)
}

fn stream(prompt: Option<Prompt>, model: Option<&str>, options: &Options) -> SetOfIterator<'static, String> {
    let Some(prompt) = prompt else {
        return SetOfIterator::new(Vec::new());
    };
    let target = Target::by_name(model);
    let form = options.form(target.local(), &prompt);
    let mut talk = target.ask(form, options.sampling());
    SetOfIterator::new(std::iter::from_fn(move || talk.next_text()))
}

macro_rules! generating {
    ($($(#[$doc:meta])* $name:ident: $prompt:ty => $result:ty, $body:path;)*) => {$(
        $(#[$doc])*
        #[pg_extern(sql = false)]
        #[allow(clippy::too_many_arguments)] // the arguments of the SQL function
        fn $name(
            prompt: Option<$prompt>,
            model: Option<&str>,
            max_tokens: Option<i64>,
            temperature: Option<f32>,
            top_k: Option<i64>,
            top_p: Option<f32>,
            seed: Option<i64>,
            stop: Option<Array<'_, &str>>,
            system: Option<String>,
            chat: Option<bool>,
        ) -> $result {
            let options = Options {
                max_tokens,
                temperature,
                top_k,
                top_p,
                seed,
                stop: stops(stop),
                system,
                chat,
            };
            $body(prompt.map(Prompt::from), model, &options)
        }
    )*};
}

generating! {
    /// `situ.generate(prompt, model, ...)`.
    generate_text: String => Option<String>, answer;
    /// `situ.xrag_generate(situ.prompt, model, ...)`.
    generate_prompt: Prompt => Option<String>, answer;
    /// `situ.generate_stream(prompt, model, ...)`.
    generate_stream_text: String => SetOfIterator<'static, String>, stream;
    /// `situ.xrag_generate_stream(situ.prompt, model, ...)`.
    generate_stream_prompt: Prompt => SetOfIterator<'static, String>, stream;
}
