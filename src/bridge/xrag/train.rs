//! Training of a projector: the material, the two stages one after the other, what is stored.
//!
//! The first stage (`paraphrase.rs`) is accepted where a passage's own vectors say it better than another's, the second
//! (`answers.rs`) where the answers' loss falls on questions that were held out, and is lower with a passage's own
//! vectors than with another's; where it is not, what the second began with is stored.

use super::answers::{self, Answers, questions};
use super::fit::{Sizes, Trainee};
use super::options::{Stage as Which, XragOptions};
use super::paraphrase::{self, Paraphrase};
use super::pass::Reader;
use super::prompts::{Prompt, Wording};
use super::steps::{Objective, Place, Resumed, Stage, Training, monitored};
use crate::bridge::BridgeError;
use crate::bridge::train::acceptance::Verdict;
use crate::bridge::train::data::{Monitor, Passage, Progress, Trained};
use crate::bridge::train::encode::passage_vectors;
use crate::bridge::train::run::Run;
use crate::bridge::train::split::{SplitRule, Splits};
use crate::compute::cpu::has_bf16;
use crate::compute::rowwise::pooling::normalize;
use crate::compute::{Pool, Precision};
use crate::model::ModelError;
use crate::model::llm::files::LlmFiles;
use crate::model::llm::gradient::Differentiable;
use crate::model::llm::{Chat, LlmTokenizer};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Fewest passages, or questions, of a split.
const FEWEST: usize = 20;
/// Texts that are tokenised between two looks at the monitor.
const TOKENISED_AT_ONCE: usize = 64;

/// What an LLM's products are computed in while a projector is trained.
pub fn training_precision() -> Precision {
    if has_bf16() { Precision::Bf16 } else { Precision::F32 }
}

/// Trains a projector for the LLM that the options name.
///
/// # Errors
/// [`BridgeError::Option`] for options out of range, [`BridgeError::TooLittle`] for too few passages or questions,
/// [`BridgeError::Model`] for an LLM that cannot be read, and what the encoder and the monitor fail with.
pub fn train(mut run: Run<'_>) -> Result<Trained, BridgeError> {
    let options = XragOptions::read(run.options)?;
    let which = options.stages(run.pairs.iter().any(|pair| pair.answer.is_some()));
    let start = options
        .start
        .as_deref()
        .map(|name| run.encode.start(name))
        .transpose()?;
    let llm = Llm::open(&mut run, &options.llm)?;
    let pool = run.pool()?;
    let (dimensions, vectors) = vectors(&mut run, options.normalized)?;
    let instructions = llm.wording.instructions(options.templates)?;
    let training = Training {
        options: &options,
        pool: &pool,
        reader: llm.reader(&pool, &instructions, run.monitor)?,
        dimensions,
        vectors,
    };
    let reconstruction = Paraphrase {
        options: &options,
        prompts: instructions,
        texts: tokenised(&mut run, &llm.wording, options.text_tokens.max(options.measured_tokens))?,
    };
    let (asked, synthetic) = match which {
        Which::Paraphrase => (Vec::new(), false),
        Which::Answers | Which::Both => questions(run.passages, run.pairs, run.seed),
    };
    let answers = Answers {
        options: &options,
        wording: &llm.wording,
        passages: run.passages,
        asked,
        synthetic,
        reconstruction: &reconstruction,
    };
    let passage_splits = split_passages(&reconstruction, run.passages, which)?;
    let question_splits = split_questions(&answers, which)?;
    let stages = Stages::new(
        &reconstruction,
        &passage_splits,
        &answers,
        &question_splits,
        start.is_some(),
    );
    let trainee = llm.trainee(&training, start.as_deref())?;
    let done = stages.run(which, &training, trainee, run.checkpoint, run.monitor)?;
    llm.bridge(done, which, &options)
}

/// The LLM that a projector is trained for.
struct Llm {
    fingerprint: String,
    wording: Wording,
    decoder: Differentiable,
}

impl Llm {
    fn open(run: &mut Run<'_>, name: &str) -> Result<Llm, BridgeError> {
        let path = run.encode.language_model(name)?;
        let files = LlmFiles::open(&path)?;
        let tokenizer = Arc::new(LlmTokenizer::open(&files)?);
        let chat = Chat::open(&files, tokenizer.clone())?;
        let wording = Wording::new(tokenizer, chat, files.config());
        let precision = training_precision();
        let decoder = monitored(
            run.monitor,
            &Progress::default(),
            |stop| match Differentiable::open_until(&files, precision, stop) {
                Err(ModelError::Stopped) => Err(BridgeError::Stopped),
                result => Ok(result?),
            },
        )?;
        Ok(Llm {
            fingerprint: files.fingerprint().to_owned(),
            wording,
            decoder,
        })
    }

    /// The decoder behind what every prompt begins with: the instructions, and that of a question.
    fn reader<'a>(
        &'a self,
        pool: &'a Pool,
        instructions: &[Prompt],
        monitor: &mut dyn Monitor,
    ) -> Result<Reader<'a>, BridgeError> {
        let question = self.wording.question("")?;
        let all: Vec<Prompt> = instructions.iter().cloned().chain([question]).collect();
        monitored(monitor, &Progress::default(), |stop| {
            Reader::new(pool, &self.decoder, all.iter(), stop)
        })
    }

    /// The projector that training begins with: that of the bridge `start`, or random weights.
    fn trainee(&self, training: &Training<'_>, start: Option<&[u8]>) -> Result<Trainee, BridgeError> {
        let Training {
            options, pool, vectors, ..
        } = training;
        let hidden = self.decoder.config().hidden;
        if let Some(bytes) = start {
            return Trainee::read(pool, bytes, training.dimensions, hidden, vectors);
        }
        let sizes = Sizes {
            inputs: training.dimensions,
            hidden: if options.hidden == 0 { hidden } else { options.hidden },
            outputs: hidden * options.tokens,
        };
        Trainee::new(pool, sizes, vectors, self.decoder.input_scale(), options.seed)
    }

    /// What is stored.
    fn bridge(&self, done: Done, which: Which, options: &XragOptions) -> Result<Trained, BridgeError> {
        let Done {
            trainee,
            mut figures,
            verdict,
        } = done;
        let name = match which {
            Which::Paraphrase => "paraphrase",
            Which::Answers => "answers",
            Which::Both => "both",
        };
        let tokens = trainee.sizes.outputs / self.decoder.config().hidden.max(1);
        figures.insert("stage".to_owned(), json!(name));
        figures.insert("tokens".to_owned(), json!(tokens));
        let figures = Value::Object(figures);
        let more = Map::from_iter([
            ("figures".to_owned(), figures.clone()),
            ("llm".to_owned(), json!(self.fingerprint)),
            ("normalized".to_owned(), json!(options.normalized)),
            ("tokens".to_owned(), json!(tokens)),
        ]);
        Ok(Trained {
            weights: trainee.write(more)?,
            verdict,
            figures,
        })
    }
}

/// What the stages came to.
struct Done {
    trainee: Trainee,
    figures: Map<String, Value>,
    verdict: Verdict,
}

/// The two stages, one after the other.
struct Stages<'a> {
    reconstruction: &'a Paraphrase<'a>,
    answers: &'a Answers<'a>,
    first: Stage<'a>,
    second: Stage<'a>,
}

impl<'a> Stages<'a> {
    fn new(
        reconstruction: &'a Paraphrase<'a>,
        passages: &'a Splits,
        answers: &'a Answers<'a>,
        questions: &'a Splits,
        starts: bool,
    ) -> Stages<'a> {
        let stage = |objective: &'a dyn Objective, splits: &'a Splits, keeps_beginning: bool| Stage {
            objective,
            splits,
            place: Place { before: 0, all: 0 },
            carried: Value::Null,
            keeps_beginning,
        };
        let mut first = stage(reconstruction, passages, starts);
        let mut second = stage(answers, questions, true);
        let [before, behind] = [&first, &second].map(|stage| match stage.splits.training.is_empty() {
            true => 0,
            false => stage.steps(answers.options),
        });
        let all = before + behind;
        first.place = Place { before: 0, all };
        second.place = Place { before, all };
        Stages {
            reconstruction,
            answers,
            first,
            second,
        }
    }

    /// Runs the stages that are wanted, from the checkpoint on.
    fn run(
        mut self,
        which: Which,
        training: &Training<'_>,
        mut trainee: Trainee,
        checkpoint: Option<&[u8]>,
        monitor: &mut dyn Monitor,
    ) -> Result<Done, BridgeError> {
        let resumed = checkpoint
            .map(|bytes| trainee.resume(bytes).map(|(state, begun)| Resumed { state, begun }))
            .transpose()?;
        let (in_first, in_second) = match resumed {
            Some(resumed) if resumed.state["stage"].as_str() == Some(self.answers.name()) => (None, Some(resumed)),
            resumed => (resumed, None),
        };
        // Where the first stage is over, its figures are in the checkpoint of the second.
        let carried = match (which, &in_second) {
            (Which::Answers, _) => Value::Null,
            (_, Some(resumed)) => resumed.state["carried"].clone(),
            (_, None) => self.reconstruct(training, &mut trainee, in_first.as_ref(), monitor)?,
        };
        let verdict = carried["verdict"].as_str().and_then(Verdict::from_name);
        let mut done = Done {
            trainee,
            figures: carried["figures"].as_object().cloned().unwrap_or_default(),
            verdict: verdict.unwrap_or(Verdict::Rejected),
        };
        if which != Which::Paraphrase {
            self.second.carried = carried;
            self.answer(training, &mut done, in_second, monitor)?;
        }
        Ok(done)
    }

    /// The first stage: figures and verdict, as checkpoints of the second carry them.
    fn reconstruct(
        &self,
        training: &Training<'_>,
        trainee: &mut Trainee,
        resumed: Option<&Resumed>,
        monitor: &mut dyn Monitor,
    ) -> Result<Value, BridgeError> {
        let fitted = self.first.run(training, trainee, resumed, monitor)?;
        let found = paraphrase::evaluate(training, &self.first, self.reconstruction, trainee, &fitted, monitor)?;
        let (figures, verdict) = found;
        Ok(json!({"figures": figures, "verdict": verdict.name()}))
    }

    /// The second stage. Where it is rejected, what it began with is left, with the verdict of the first.
    fn answer(
        &self,
        training: &Training<'_>,
        done: &mut Done,
        resumed: Option<Resumed>,
        monitor: &mut dyn Monitor,
    ) -> Result<(), BridgeError> {
        let mut begun = done.trainee.copy();
        if let Some(resumed) = &resumed {
            begun.parts = resumed
                .begun
                .clone()
                .ok_or_else(|| damaged("it lacks the stage's beginning"))?;
        }
        begun.begin_anew(training.pool, &training.vectors)?;
        match &resumed {
            Some(_) => done.trainee.take_rates(&begun),
            None => done.trainee = begun.copy(),
        }
        let fitted = self
            .second
            .run(training, &mut done.trainee, resumed.as_ref(), monitor)?;
        let trained = [&begun, &done.trainee];
        let (mut figures, verdict) =
            answers::evaluate(training, &self.second, self.answers, trained, &fitted, monitor)?;
        match verdict.accepts() {
            true => done.verdict = verdict,
            false => done.trainee = begun,
        }
        let pairs = if self.answers.synthetic { "synthetic" } else { "given" };
        figures.insert("pairs".to_owned(), json!(pairs));
        figures.insert("kept".to_owned(), json!(verdict.accepts()));
        done.figures.insert("answers".to_owned(), Value::Object(figures));
        Ok(())
    }
}

fn damaged(what: &str) -> BridgeError {
    BridgeError::File(format!("the checkpoint is of another training: {what}"))
}

/// Passages that train the reconstruction, choose and test; none where that stage does not run.
fn split_passages(reconstruction: &Paraphrase<'_>, passages: &[Passage], which: Which) -> Result<Splits, BridgeError> {
    if which == Which::Answers {
        return Ok(Splits::default());
    }
    let texts = reconstruction.texts.iter().enumerate();
    let texts = texts.filter(|(_, text)| !text.is_empty());
    let documents = texts.map(|(number, _)| (number, passages[number].document));
    rule(reconstruction.options).split(documents, "passages")
}

/// Questions that train, choose and test, and among the first the passages that are replayed; none where that stage
/// does not run.
fn split_questions(answers: &Answers<'_>, which: Which) -> Result<Splits, BridgeError> {
    if which == Which::Paraphrase {
        return Ok(Splits::default());
    }
    let asked = answers.asked.iter().enumerate();
    let documents = asked.map(|(number, asked)| (number, answers.passages[asked.passage].document));
    let mut splits = rule(answers.options).split(documents, "questions")?;
    let replayed = answers.replayed(splits.training.len());
    splits.training.extend(replayed);
    Ok(splits)
}

fn rule(options: &XragOptions) -> SplitRule {
    SplitRule {
        held_out: options.held_out,
        measured: options.measured,
        fewest: FEWEST,
        seed: options.seed,
    }
}

/// The passages' vectors; `normalized` brings them to length 1.
fn vectors(run: &mut Run<'_>, normalized: bool) -> Result<(usize, Vec<f32>), BridgeError> {
    let (dimensions, mut vectors) = passage_vectors(run.encode, run.monitor, run.passages)?;
    if normalized {
        vectors.chunks_exact_mut(dimensions.max(1)).for_each(normalize);
    }
    Ok((dimensions, vectors))
}

/// The first tokens of the passages' texts.
fn tokenised(run: &mut Run<'_>, wording: &Wording, most: usize) -> Result<Vec<Vec<u32>>, BridgeError> {
    let mut all = Vec::with_capacity(run.passages.len());
    for part in run.passages.chunks(TOKENISED_AT_ONCE) {
        for passage in part {
            let mut ids = wording.tokenizer.encode(&passage.text)?;
            ids.truncate(most);
            all.push(ids);
        }
        run.monitor.step(&Progress::default())?;
    }
    Ok(all)
}
