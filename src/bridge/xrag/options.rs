//! How a projector is trained: the options of kind `xrag`.

use crate::bridge::BridgeError;
use serde::Deserialize;
use serde_json::Value;

/// Which of the two stages run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Passages are reconstructed from their vectors.
    Paraphrase,
    /// Questions are answered from the passage's vectors.
    Answers,
    /// One after the other.
    Both,
}

/// How a projector is trained. Unknown names are refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct XragOptions {
    /// The registered LLM that the vectors are for.
    pub llm: String,
    /// Both where pairs with answers are given, else the paraphrase; with a start and answers, the answers.
    pub stage: Option<Stage>,
    /// The bridge whose projector is the beginning, instead of random weights.
    pub start: Option<String>,
    /// Whether passages' vectors are brought to length 1 first.
    pub normalized: bool,
    /// Vectors of a passage.
    pub tokens: usize,
    /// Width between the projector's layers, 0 for the LLM's.
    pub hidden: usize,
    /// Instructions of the paraphrase that are drawn from.
    pub templates: usize,
    /// Tokens of a passage that are to be reconstructed, and those that are where it is measured.
    pub text_tokens: usize,
    pub measured_tokens: usize,
    /// AdamW's highest learning rate, in sizes of the weights that it moves, and its decay.
    pub rate: f32,
    pub decay: f32,
    /// Share of a stage's steps in which the rate rises.
    pub warm_up: f32,
    pub epochs: usize,
    /// Passages, or questions, of a step.
    pub batch: usize,
    /// Steps between two measurements.
    pub round_steps: usize,
    /// Highest rate and epochs of the answers.
    pub answer_rate: f32,
    pub answer_epochs: usize,
    /// Passages that are replayed among the answers, for each question.
    pub replayed: f64,
    /// Most tokens of an answer.
    pub answer_tokens: usize,
    /// Most tokens of the passage's text that the teacher reads.
    pub context_tokens: usize,
    /// Factors of the two losses of the answers: `-log p`, and the divergence from the teacher.
    pub nll: f32,
    pub kl: f32,
    /// Share of the documents that is held out, half for stopping, half for the figures.
    pub held_out: f64,
    /// Most passages, or questions, of validation, and of test.
    pub measured: usize,
    pub seed: u64,
    /// Threads, 0 for the machine's.
    pub threads: usize,
}

impl Default for XragOptions {
    fn default() -> XragOptions {
        XragOptions {
            llm: String::new(),
            stage: None,
            start: None,
            normalized: true,
            tokens: 1,
            hidden: 0,
            templates: super::prompts::TEMPLATES.len(),
            text_tokens: 32,
            measured_tokens: 64,
            rate: 0.1,
            decay: 0.0,
            warm_up: 0.03,
            epochs: 3,
            batch: 4,
            round_steps: 200,
            answer_rate: 0.1,
            answer_epochs: 1,
            replayed: 0.5,
            answer_tokens: 32,
            context_tokens: 256,
            nll: 1.0,
            kl: 2.0,
            held_out: 0.1,
            measured: 200,
            seed: 1,
            threads: 0,
        }
    }
}

impl XragOptions {
    /// Reads the options of a training.
    ///
    /// # Errors
    /// [`BridgeError::Option`] for unknown names and values out of range.
    pub fn read(options: &Value) -> Result<XragOptions, BridgeError> {
        let bad = |value: String, range: &'static str| BridgeError::Option {
            name: "options",
            value,
            range,
        };
        let names = "llm, stage (paraphrase, answers, both), start, normalized, tokens, hidden, templates, text_tokens, \
                     measured_tokens, rate, decay, warm_up, epochs, batch, round_steps, answer_rate, answer_epochs, replayed, \
                     answer_tokens, context_tokens, nll, kl, held_out, measured, seed, threads";
        let read: XragOptions =
            serde_json::from_value(options.clone()).map_err(|error| bad(error.to_string(), names))?;
        let shown = || format!("{read:?}");
        if !(1..=16).contains(&read.tokens) || read.hidden > 8192 {
            return Err(bad(shown(), "tokens 1 to 16, hidden to 8192"));
        }
        let counts = [read.text_tokens, read.measured_tokens];
        if !counts.iter().all(|tokens| (4..=512).contains(tokens)) || !(0.0..=16.0).contains(&read.replayed) {
            return Err(bad(
                shown(),
                "text_tokens and measured_tokens 4 to 512, replayed 0 to 16",
            ));
        }
        if !(1..=super::prompts::TEMPLATES.len()).contains(&read.templates) {
            return Err(bad(shown(), "templates 1 to 13"));
        }
        let positive = |x: f32| x.is_finite() && x > 0.0;
        if !(positive(read.rate) && positive(read.answer_rate) && (0.0..=10.0).contains(&read.decay)) {
            return Err(bad(shown(), "rate and answer_rate above 0, decay 0 to 10"));
        }
        let factors = [read.nll, read.kl].iter().all(|x| (0.0..=100.0).contains(x));
        if !(factors && read.nll + read.kl > 0.0 && (0.0..=0.9).contains(&read.warm_up)) {
            return Err(bad(shown(), "nll and kl 0 to 100, not both 0; warm_up 0 to 0.9"));
        }
        if !((1..=256).contains(&read.answer_tokens) && (4..=4096).contains(&read.context_tokens)) {
            return Err(bad(shown(), "answer_tokens 1 to 256, context_tokens 4 to 4096"));
        }
        let counts = [
            read.epochs,
            read.batch,
            read.round_steps,
            read.answer_epochs,
            read.measured,
        ];
        if !counts.iter().all(|count| (1..=100_000).contains(count)) {
            let range = "epochs, answer_epochs, batch, round_steps and measured 1 to 100000";
            return Err(bad(shown(), range));
        }
        if !(0.02..=0.8).contains(&read.held_out) {
            return Err(bad(shown(), "held_out 0.02 to 0.8"));
        }
        Ok(read)
    }

    /// The stages that run, where `answers` says whether pairs with answers are given.
    pub fn stages(&self, answers: bool) -> Stage {
        match (self.stage, answers, self.start.is_some()) {
            (Some(stage), _, _) => stage,
            (None, false, _) => Stage::Paraphrase,
            (None, true, false) => Stage::Both,
            (None, true, true) => Stage::Answers,
        }
    }
}
