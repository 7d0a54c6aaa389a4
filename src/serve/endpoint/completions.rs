//! Answers of an OpenAI-compatible endpoint (vLLM, llama.cpp's server, Ollama) to prompts of text.
//!
//! A request runs on a thread of its own, which calls nothing of the server; the backend waits for its pieces in slices and
//! can be cancelled meanwhile. A request that found nobody, or was told to come back (429, 5xx), is sent again.

use super::http::{self, Address, Limits};
use crate::serve::ipc::threads::spawn;
use crate::serve::llm::wire::{Figures, Part, PromptForm, Sampling};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// Most bytes of an answer.
const MOST_BYTES: u64 = 64 << 20;
/// Pause before the first repetition, doubled with each.
const PAUSE: Duration = Duration::from_millis(200);

/// Where requests go, and how patiently.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub address: Address,
    /// Sent as a bearer token.
    pub key: Option<String>,
    /// The model's name there.
    pub model: String,
    pub timeout: Duration,
    /// How often a request is sent again.
    pub retries: u32,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    #[error("the LLM endpoint cannot be reached: {0}")]
    Unreachable(String),
    #[error("the LLM endpoint answered with status {status}: {message}")]
    Refused { status: u16, message: String },
    #[error("the LLM endpoint did not answer in time")]
    Timeout,
    #[error("the LLM endpoint's answer is not understood: {0}")]
    Malformed(String),
    #[error("vectors in a prompt need an LLM that is registered here")]
    Vectors,
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    Text(String),
    Done(Figures),
}

/// The request's path and body.
fn request(
    endpoint: &Endpoint,
    form: &PromptForm,
    sampling: &Sampling,
) -> Result<(&'static str, Value), EndpointError> {
    let mut turns = Vec::new();
    for turn in &form.turns {
        let mut content = String::new();
        for part in &turn.parts {
            match part {
                Part::Text(text) => content.push_str(text),
                Part::Vectors { .. } => return Err(EndpointError::Vectors),
            }
        }
        turns.push((turn.role.as_str(), content));
    }
    let mut body = json!({
        "model": endpoint.model,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    if sampling.top_k > 0 {
        // No part of the protocol, but understood by all three.
        body["top_k"] = sampling.top_k.into();
    }
    if !sampling.stop.is_empty() {
        body["stop"] = json!(sampling.stop);
    }
    if form.chat {
        let messages = turns
            .iter()
            .map(|(role, content)| json!({"role": role, "content": content}));
        body["messages"] = messages.collect();
        return Ok(("/chat/completions", body));
    }
    body["prompt"] = turns.into_iter().map(|(_, content)| content).collect::<String>().into();
    Ok(("/completions", body))
}

/// What one event of the stream adds.
fn read_event(event: &Value, figures: &mut Figures) -> String {
    let count = |at: &str| {
        event
            .pointer(at)
            .and_then(Value::as_u64)
            .and_then(|count| u32::try_from(count).ok())
    };
    let time = |at: &str| event.pointer(at).and_then(Value::as_f64);
    figures.prompt_tokens = count("/usage/prompt_tokens").unwrap_or(figures.prompt_tokens);
    figures.tokens = count("/usage/completion_tokens").unwrap_or(figures.tokens);
    figures.prefill_ms = time("/timings/prompt_ms").unwrap_or(figures.prefill_ms);
    figures.decode_ms = time("/timings/predicted_ms").unwrap_or(figures.decode_ms);
    let text = ["/choices/0/delta/content", "/choices/0/text"]
        .iter()
        .find_map(|at| event.pointer(at).and_then(Value::as_str));
    text.unwrap_or_default().to_owned()
}

/// What an endpoint says, without the key: some repeat it where they refuse it.
fn without_key(message: &str, key: Option<&str>) -> String {
    match key {
        Some(key) if !key.is_empty() => message.replace(key, "[key]"),
        _ => message.to_owned(),
    }
}

/// How an attempt failed, and whether another one may do better, because nothing was said yet.
type Attempted = (bool, EndpointError);

fn failed(error: std::io::Error, again: bool) -> Attempted {
    match error.kind() {
        std::io::ErrorKind::TimedOut => (false, EndpointError::Timeout),
        _ => (again, EndpointError::Unreachable(error.to_string())),
    }
}

/// One attempt.
fn attempt(
    endpoint: &Endpoint,
    (path, body): (&str, &[u8]),
    limits: &Limits<'_>,
    to: &Sender<Result<Piece, EndpointError>>,
) -> Result<(), Attempted> {
    let since = Instant::now();
    let key = endpoint.key.as_deref();
    let posted = http::post(&endpoint.address, path, key, body, limits);
    let (status, reply) = posted.map_err(|error| failed(error, true))?;
    let mut reply = BufReader::new(reply.take(MOST_BYTES));
    if status != 200 {
        let mut text = Vec::new();
        let _ = reply.take(4096).read_to_end(&mut text);
        let message = without_key(String::from_utf8_lossy(&text).trim(), key);
        let again = status == 429 || status >= 500;
        return Err((again, EndpointError::Refused { status, message }));
    }
    let mut figures = Figures::default();
    let mut first = None;
    while let Some(event) = next_event(&mut reply, first.is_none())? {
        if let Some(error) = event.get("error") {
            let message = without_key(&error.to_string(), key);
            return Err((false, EndpointError::Refused { status, message }));
        }
        let text = read_event(&event, &mut figures);
        if !text.is_empty() {
            first.get_or_insert_with(Instant::now);
            if to.send(Ok(Piece::Text(text))).is_err() {
                return Ok(());
            }
        }
    }
    // What the endpoint did not measure is what it looked like from here.
    if figures.prefill_ms == 0.0 && figures.decode_ms == 0.0 {
        let first = first.unwrap_or_else(Instant::now);
        figures.prefill_ms = (first - since).as_secs_f64() * 1e3;
        figures.decode_ms = first.elapsed().as_secs_f64() * 1e3;
    }
    let _ = to.send(Ok(Piece::Done(figures)));
    Ok(())
}

/// The next event of a stream; none at its end. `again` says what an error means for another attempt.
fn next_event(reply: &mut impl BufRead, again: bool) -> Result<Option<Value>, Attempted> {
    loop {
        let mut line = String::new();
        if reply.read_line(&mut line).map_err(|error| failed(error, again))? == 0 {
            return Err((again, EndpointError::Malformed("it ends too early".to_owned())));
        }
        match line.trim().strip_prefix("data:").map(str::trim) {
            None => {}
            Some("[DONE]") => return Ok(None),
            Some(data) => {
                let event = serde_json::from_str(data);
                let event = event.map_err(|error| (false, EndpointError::Malformed(error.to_string())))?;
                return Ok(Some(event));
            }
        }
    }
}

fn run(
    endpoint: &Endpoint,
    request: (&str, &[u8]),
    gone: &AtomicBool,
    to: &Sender<Result<Piece, EndpointError>>,
) -> Result<(), EndpointError> {
    let limits = Limits {
        until: Instant::now() + endpoint.timeout,
        gone,
    };
    let mut pause = PAUSE;
    let mut left = endpoint.retries;
    loop {
        match attempt(endpoint, request, &limits, to) {
            Err((true, _)) if left > 0 && !gone.load(Ordering::Relaxed) && Instant::now() + pause < limits.until => {
                left -= 1;
                std::thread::sleep(pause);
                pause *= 2;
            }
            result => return result.map_err(|(_, error)| error),
        }
    }
}

/// A request that is being answered. Dropping it ends the request.
pub struct Stream {
    from: Receiver<Result<Piece, EndpointError>>,
    gone: Arc<AtomicBool>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
    }
}

impl Stream {
    /// Sends a request.
    ///
    /// # Errors
    /// [`EndpointError::Vectors`] for prompts that are not only text.
    pub fn open(endpoint: &Endpoint, form: &PromptForm, sampling: &Sampling) -> Result<Stream, EndpointError> {
        let (path, body) = request(endpoint, form, sampling)?;
        let body = body.to_string().into_bytes();
        let (to, from) = channel();
        let gone = Arc::new(AtomicBool::new(false));
        let (endpoint, left) = (endpoint.clone(), gone.clone());
        let work = move || {
            if let Err(error) = run(&endpoint, (path, &body), &left, &to) {
                let _ = to.send(Err(error));
            }
        };
        spawn("situ endpoint", work).map_err(|error| EndpointError::Unreachable(error.to_string()))?;
        Ok(Stream { from, gone })
    }

    /// The next piece, waiting up to `most` for it; `None` where it is not there yet.
    ///
    /// # Errors
    /// That of the request.
    pub fn next_within(&self, most: Duration) -> Result<Option<Piece>, EndpointError> {
        match self.from.recv_timeout(most) {
            Ok(result) => result.map(Some),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(EndpointError::Malformed("the request ended".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests;
