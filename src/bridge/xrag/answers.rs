//! Stage 2 of xRAG: questions are answered from the passage's vectors, in the prompt that is used where answers are
//! made; the loss is `-log p` of the answer's tokens and the divergence from what the same LLM says that reads the
//! passage's text in the same place (self-distillation). Both are taken at the positions that predict the answer's
//! tokens; the published code takes the divergence one position later, so that the first token's distribution is not
//! distilled.
//!
//! Among the questions passages are reconstructed as in the first stage (replayed), so that vectors go on saying what
//! stands in them.
//!
//! Where no pairs with answers are given, synthetic ones are made: of each passage a sentence, whose first half is
//! asked to be gone on with and whose second half is the answer. It stands in the passage, which an answer that a small
//! LLM makes up to a question that it has made up often does not, and it costs no generation.

use super::fit::Trainee;
use super::options::XragOptions;
use super::paraphrase::{Paraphrase, figure, saved};
use super::pass::Factors;
use super::prompts::Wording;
use super::steps::{Fitted, Objective, Put, Stage, Task, Training, facts};
use crate::bridge::BridgeError;
use crate::bridge::train::acceptance::Verdict;
use crate::bridge::train::data::{Monitor, Pair, Passage, Progress};
use crate::bridge::train::early_stopping::mean;
use crate::bridge::train::split::Split;
use crate::bridge::train::synthetic::synthetic_pairs;
use crate::random::Random;
use serde_json::{Map, Value, json};

/// What is asked of a synthetic pair; `{}` stands for the beginning of the sentence.
const GO_ON: &str = "How does this sentence of the background go on: \"{}\"?";

/// A question with its answer.
pub struct Asked {
    pub passage: usize,
    pub question: String,
    pub answer: String,
}

/// The questions as an objective; items are numbers of `asked`, and behind them those of passages that are replayed.
pub struct Answers<'a> {
    pub options: &'a XragOptions,
    pub wording: &'a Wording,
    pub passages: &'a [Passage],
    pub asked: Vec<Asked>,
    /// Whether the questions were made of the passages.
    pub synthetic: bool,
    pub reconstruction: &'a Paraphrase<'a>,
}

/// Pairs whose answers are known, or synthetic ones; and whether they are synthetic.
pub fn questions(passages: &[Passage], pairs: &[Pair], seed: u64) -> (Vec<Asked>, bool) {
    let given = pairs.iter().filter_map(|pair| {
        let answer = pair
            .answer
            .as_deref()
            .map(str::trim)
            .filter(|answer| !answer.is_empty())?;
        let passage = pair.passage as usize;
        (passage < passages.len()).then(|| Asked {
            passage,
            question: pair.query.clone(),
            answer: answer.to_owned(),
        })
    });
    let given: Vec<Asked> = given.collect();
    if !given.is_empty() {
        return (given, false);
    }
    let synthetic = synthetic_pairs(passages, seed).into_iter().filter_map(|pair| {
        let words: Vec<&str> = pair.query.split_whitespace().collect();
        let (begin, rest) = words.split_at(words.len() / 2);
        (!begin.is_empty() && !rest.is_empty()).then(|| Asked {
            passage: pair.passage as usize,
            question: GO_ON.replace("{}", &begin.join(" ")),
            answer: rest.join(" "),
        })
    });
    (synthetic.collect(), true)
}

impl Answers<'_> {
    /// The passages that are replayed among `questions` that are trained on: of the documents that are trained on,
    /// drawn by the seed. Questions alone teach the manner of an answer, and vectors lose of the passages what the
    /// first stage has taught.
    pub fn replayed(&self, questions: usize) -> Vec<usize> {
        let XragOptions { held_out, seed, .. } = *self.options;
        let trained = |passage: &Passage| Split::of(passage.document, held_out, seed) == Split::Training;
        let passages = self.passages.iter().zip(&self.reconstruction.texts).enumerate();
        let passages = passages.filter(|(_, (passage, text))| trained(passage) && !text.is_empty());
        let mut drawn: Vec<usize> = passages.map(|(number, _)| self.asked.len() + number).collect();
        Random::new(seed).shuffle(&mut drawn);
        drawn.truncate((questions as f64 * self.options.replayed) as usize);
        drawn
    }

    /// The beginning of a passage's text that the teacher reads.
    fn context(&self, passage: usize) -> Result<String, BridgeError> {
        let text = &self.passages[passage].text;
        let ids = self.wording.tokenizer.encode(text)?;
        Ok(match ids.get(..self.options.context_tokens) {
            Some(first) if first.len() < ids.len() => self.wording.tokenizer.decode(first),
            _ => text.clone(),
        })
    }
}

impl Objective for Answers<'_> {
    fn name(&self) -> &'static str {
        "answers"
    }

    fn passage(&self, item: usize) -> usize {
        match self.asked.get(item) {
            Some(asked) => asked.passage,
            None => item - self.asked.len(),
        }
    }

    fn task(&self, item: usize, place: Option<usize>) -> Result<Task, BridgeError> {
        let Some(Asked {
            passage,
            question,
            answer,
        }) = self.asked.get(item)
        else {
            return self.reconstruction.task(self.passage(item), place);
        };
        let text = self.context(*passage)?;
        Ok(Task {
            prompt: self.wording.question(question)?,
            text: self.wording.answer(answer, self.options.answer_tokens)?,
            teacher: Some(self.wording.question_with_text(&text, question)?),
        })
    }

    fn plan(&self) -> (f32, usize, Factors) {
        let XragOptions {
            answer_rate,
            answer_epochs,
            nll,
            kl,
            ..
        } = *self.options;
        (answer_rate, answer_epochs, Factors { nll, kl })
    }
}

/// The figures of questions about passages that were never seen, and the verdict on the stage: the answers' loss has
/// fallen from what the stage began with, and it is lower with the passage's own vectors than with another's. Of a loss
/// that falls alike with both, nothing was learned but the manner of an answer. `trained`: what the stage began with,
/// and what came of it.
pub fn evaluate(
    training: &Training<'_>,
    stage: &Stage<'_>,
    objective: &Answers<'_>,
    trained: [&Trainee; 2],
    fitted: &Fitted,
    monitor: &mut dyn Monitor,
) -> Result<(Map<String, Value>, Verdict), BridgeError> {
    let test = &stage.splits.test;
    let progress = Progress::default();
    let [before, after] = trained.map(|trainee| training.projected(objective, trainee, test));
    let (before, after) = (before?, after?);
    let taught = training.tasks(objective, test, true)?;
    let plain = training.tasks(objective, test, false)?;
    let alone = test
        .iter()
        .map(|item| objective.wording.question_alone(&objective.asked[*item].question));
    let alone = alone.collect::<Result<Vec<_>, _>>()?;
    let own = training.measure(&taught, Put::Vectors(&after, 0), monitor, &progress)?;
    let first = training.measure(&taught, Put::Vectors(&before, 0), monitor, &progress)?;
    let other = training
        .measure(&plain, Put::Vectors(&after, 1), monitor, &progress)?
        .bits;
    let none = training.measure(&plain, Put::Prompts(&alone), monitor, &progress)?.bits;
    let seed = training.options.seed;
    let over_before = saved(&first.bits, &own.bits, seed);
    let over_other = saved(&other, &own.bits, seed);
    let verdict = Verdict::of(&[over_before.difference, over_other.difference], objective.synthetic);
    let mut figures = facts(stage, fitted);
    let items = &stage.splits.training;
    let replayed = items.iter().filter(|item| **item >= objective.asked.len()).count();
    let more = json!({
        "trained_on": items.len() - replayed, "replayed": replayed,
        "bits_per_token": {"own": mean(&own.bits), "before": mean(&first.bits), "other": mean(&other), "none": mean(&none),
            "text": mean(&own.taught)},
        "divergence": {"own": mean(&own.divergence), "before": mean(&first.divergence)},
        "saved_over_before": figure(&over_before), "saved_over_other": figure(&over_other),
        "saved_over_none": figure(&saved(&none, &own.bits, seed)),
    });
    figures.extend(more.as_object().cloned().unwrap_or_default());
    Ok((figures, verdict))
}
