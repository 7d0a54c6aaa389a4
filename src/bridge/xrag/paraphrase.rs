//! Stage 1 of xRAG: the frozen LLM is given a passage's vectors in one of thirteen instructions and has to reconstruct
//! the passage; the loss is `-log p` of its tokens.
//!
//! What is held out is measured in bits a token: given nothing, the passage's own vectors, another passage's, and the
//! beginning of its text. The stage has succeeded where its own vectors beat another's by an interval without zero.

use super::fit::Trainee;
use super::options::XragOptions;
use super::pass::Factors;
use super::prompts::Prompt;
use super::steps::{Fitted, Objective, Put, Stage, Task, Training, facts};
use crate::bridge::BridgeError;
use crate::bridge::train::acceptance::{Evaluation, Verdict};
use crate::bridge::train::data::{Monitor, Progress};
use crate::bridge::train::early_stopping::mean;
use crate::random::Random;
use serde_json::{Map, Value, json};

/// Tokens of the text that is given in the place of vectors, for comparison.
const TEXT_TOKENS: usize = 32;

/// The passages as an objective; items are passages.
pub struct Paraphrase<'a> {
    pub options: &'a XragOptions,
    pub prompts: Vec<Prompt>,
    /// The tokens of each passage, as many as are ever to be reconstructed.
    pub texts: Vec<Vec<u32>>,
}

impl Paraphrase<'_> {
    fn prompt(&self, place: usize) -> &Prompt {
        let bits = Random::new(self.options.seed ^ (place as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)).bits();
        &self.prompts[(bits % self.prompts.len() as u64) as usize]
    }
}

impl Objective for Paraphrase<'_> {
    fn name(&self) -> &'static str {
        "paraphrase"
    }

    fn passage(&self, item: usize) -> usize {
        item
    }

    fn task(&self, item: usize, place: Option<usize>) -> Result<Task, BridgeError> {
        // What an item is measured with does not depend on the training's places.
        let (prompt, most) = match place {
            Some(place) => (self.prompt(place + (1 << 32)), self.options.text_tokens),
            None => (self.prompt(item), self.options.measured_tokens),
        };
        Ok(Task {
            prompt: prompt.clone(),
            text: self.texts[item].iter().take(most).copied().collect(),
            teacher: None,
        })
    }

    fn plan(&self) -> (f32, usize, Factors) {
        (self.options.rate, self.options.epochs, Factors { nll: 1.0, kl: 0.0 })
    }
}

/// What is saved over something else, from each item's bits.
pub fn saved(over: &[f64], own: &[f64], seed: u64) -> Evaluation {
    Evaluation::of(own, over, seed)
}

/// A saving as figures: its mean and 95 % interval.
pub fn figure(saved: &Evaluation) -> Value {
    let ends = saved.difference;
    json!({"value": saved.with - saved.base, "low": ends.map(|ends| ends.low), "high": ends.map(|ends| ends.high)})
}

/// The figures of passages that were never seen, and the verdict on the stage.
pub fn evaluate(
    training: &Training<'_>,
    stage: &Stage<'_>,
    objective: &Paraphrase<'_>,
    trainee: &Trainee,
    fitted: &Fitted,
    monitor: &mut dyn Monitor,
) -> Result<(Map<String, Value>, Verdict), BridgeError> {
    let test = &stage.splits.test;
    let progress = Progress::default();
    let vectors = training.projected(objective, trainee, test)?;
    let tasks = training.tasks(objective, test, false)?;
    let beginnings: Vec<Vec<u32>> = tasks
        .iter()
        .map(|task| task.text.iter().take(TEXT_TOKENS).copied().collect())
        .collect();
    let nothing = vec![Vec::new(); test.len()];
    let mut bits = |put: Put<'_>| Ok::<_, BridgeError>(training.measure(&tasks, put, monitor, &progress)?.bits);
    let own = bits(Put::Vectors(&vectors, 0))?;
    // Another passage that was drawn: the next of the shuffled ones.
    let other = bits(Put::Vectors(&vectors, 1))?;
    let none = bits(Put::Ids(&nothing))?;
    let text = bits(Put::Ids(&beginnings))?;
    let seed = training.options.seed;
    let over_other = saved(&other, &own, seed);
    let mut figures = facts(stage, fitted);
    let more = json!({
        "text_tokens": training.options.text_tokens, "measured_tokens": training.options.measured_tokens,
        "bits_per_token": {"own": mean(&own), "other": mean(&other), "none": mean(&none), "text": mean(&text)},
        "saved_over_other": figure(&over_other), "saved_over_none": figure(&saved(&none, &own, seed)),
    });
    figures.extend(more.as_object().cloned().unwrap_or_default());
    // Passages test it, and no query.
    Ok((figures, Verdict::of(&[over_other.difference], false)))
}
