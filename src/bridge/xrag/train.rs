//! Training of a projector: the material, the two stages one after the other, what is stored.
//!
//! The first stage (`paraphrase.rs`) is accepted where a passage's own vectors say it better than another's, the second
//! (`answers.rs`) where the answers' loss falls on questions that were held out, and is lower with a passage's own vectors than
//! with another's; where it is not, what the second began with is stored.

use super::answers::{self, Answers, questions};
use super::fit::{Sizes, Trainee};
use super::options::{Stage as Which, XragOptions};
use super::paraphrase::{self, Paraphrase};
use super::pass::Reader;
use super::prompts::{Prompt, Wording};
use super::steps::{Place, Resumed, Stage, Training, watched};
use crate::bridge::BridgeError;
use crate::bridge::train::data::{Encode, Pair, Passage, Progress, Trained, Watch};
use crate::bridge::train::judged::Verdict;
use crate::bridge::train::parts::{parted, passage_vectors};
use crate::compute::cpu::has_bf16;
use crate::compute::rowwise::pooling::normalize;
use crate::compute::{Pool, Precision};
use crate::model::ModelError;
use crate::model::llm::files::LlmFiles;
use crate::model::llm::gradient::Differentiable;
use crate::model::llm::{Chat, LlmTokenizer};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Fewest passages, or questions, of a part.
const FEWEST: usize = 20;
/// Texts that are tokenised between two looks at the watch.
const TOKENISED_AT_ONCE: usize = 64;

/// What an LLM's products are computed in while a projector is trained.
pub fn training_precision() -> Precision {
    if has_bf16() { Precision::Bf16 } else { Precision::F32 }
}

/// Trains a projector for the LLM that `encode` gives.
///
/// # Errors
/// [`BridgeError::Option`] for options out of range, [`BridgeError::TooLittle`] for too few passages or questions,
/// [`BridgeError::Model`] for an LLM that cannot be read, and what `encode` and `watch` fail with.
pub fn train(
    passages: &[Passage],
    pairs: &[Pair],
    options: &Value,
    encode: &mut dyn Encode,
    watch: &mut dyn Watch,
    checkpoint: Option<&[u8]>,
) -> Result<Trained, BridgeError> {
    let options = XragOptions::read(options)?;
    let stages = options.stages(pairs.iter().any(|pair| pair.answer.is_some()));
    let start = options.start.as_deref().map(|name| encode.start(name)).transpose()?;
    let path = encode.language_model(&options.llm)?;
    let files = LlmFiles::open(&path)?;
    let tokenizer = Arc::new(LlmTokenizer::open(&files)?);
    let chat = Chat::open(&files, tokenizer.clone())?;
    let wording = Wording::new(tokenizer, chat, files.config());
    let precision = training_precision();
    let progress = Progress::default();
    let decoder = watched(watch, &progress, |stop| {
        match Differentiable::open_until(&files, precision, stop) {
            Err(ModelError::Stopped) => Err(BridgeError::Stopped),
            result => Ok(result?),
        }
    })?;
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads.min(1024),
    };
    let pool = Pool::new(threads)?;
    let texts: Vec<&str> = passages.iter().map(|passage| passage.text.as_str()).collect();
    let (dimensions, mut vectors) = passage_vectors(encode, watch, passages)?;
    if options.normalized {
        vectors.chunks_exact_mut(dimensions.max(1)).for_each(normalize);
    }
    let instructions = wording.instructions(options.templates)?;
    let all: Vec<Prompt> = instructions.iter().cloned().chain([wording.question("")?]).collect();
    let reader = watched(watch, &progress, |stop| Reader::new(&pool, &decoder, all.iter(), stop))?;
    let training = Training {
        options: &options,
        pool: &pool,
        reader,
        dimensions,
        vectors,
    };
    let said = Paraphrase {
        options: &options,
        prompts: instructions,
        texts: tokenised(
            &wording,
            &texts,
            options.text_tokens.max(options.measured_tokens),
            watch,
        )?,
    };
    let (asked, made) = match stages {
        Which::Paraphrase => (Vec::new(), false),
        Which::Answers | Which::Both => questions(passages, pairs, options.seed),
    };
    let answered = Answers {
        options: &options,
        wording: &wording,
        passages,
        asked,
        said: &said,
    };
    let said_parts = match stages {
        Which::Answers => Default::default(),
        _ => {
            let texts = said.texts.iter().enumerate().filter(|(_, text)| !text.is_empty());
            part(
                texts.map(|(number, _)| (number, passages[number].document)),
                "passages",
                &options,
            )?
        }
    };
    let answered_parts = match stages {
        Which::Paraphrase => Default::default(),
        _ => {
            let asked = answered.asked.iter().enumerate();
            let mut parts = part(
                asked.map(|(number, asked)| (number, passages[asked.passage].document)),
                "questions",
                &options,
            )?;
            let retold = answered.retold(parts[0].len());
            parts[0].extend(retold);
            parts
        }
    };
    let hidden = decoder.config().hidden;
    let sizes = Sizes {
        inputs: dimensions,
        hidden: if options.hidden == 0 { hidden } else { options.hidden },
        outputs: hidden * options.tokens,
    };
    let mut trainee = match &start {
        Some(bytes) => Trainee::read(&pool, bytes, dimensions, hidden, &training.vectors)?,
        None => Trainee::new(&pool, sizes, &training.vectors, decoder.input_scale(), options.seed)?,
    };
    let mut first = Stage {
        lesson: &said,
        items: &said_parts[0],
        choosing: &said_parts[1],
        place: Place { before: 0, all: 0 },
        carried: Value::Null,
        keeps_beginning: start.is_some(),
    };
    let mut second = Stage {
        lesson: &answered,
        items: &answered_parts[0],
        choosing: &answered_parts[1],
        place: first.place,
        carried: Value::Null,
        keeps_beginning: true,
    };
    let steps = [&first, &second].map(|stage| {
        if stage.items.is_empty() {
            0
        } else {
            stage.steps(&options)
        }
    });
    first.place.all = steps.iter().sum();
    second.place = Place {
        before: steps[0],
        all: first.place.all,
    };

    let resumed = checkpoint
        .map(|bytes| trainee.resume(bytes).map(|(state, begun)| Resumed { state, begun }))
        .transpose()?;
    let stage_of = |resumed: &Resumed| resumed.state["stage"].as_str().map(str::to_owned);
    let resumed_in = resumed.as_ref().and_then(stage_of);
    // Where the first stage is over, its figures are in the checkpoint of the second.
    let mut carried = Value::Null;
    if stages != Which::Answers {
        carried = match (resumed_in.as_deref(), &resumed) {
            (Some("answers"), Some(resumed)) => resumed.state["carried"].clone(),
            (_, resumed) => {
                let fitted = first.run(&training, &mut trainee, resumed.as_ref(), watch)?;
                let judging = &said_parts[2];
                let (figures, verdict) =
                    paraphrase::judge(&training, &first, &said, &trainee, judging, &fitted, watch)?;
                json!({"figures": figures, "verdict": verdict.name()})
            }
        };
    }
    let mut figures = carried["figures"].as_object().cloned().unwrap_or_default();
    let said_verdict = carried["verdict"].as_str().and_then(Verdict::from_name);
    let mut verdict = said_verdict.unwrap_or(Verdict::Rejected);
    if stages != Which::Paraphrase {
        second.carried = carried;
        let resumed = resumed.filter(|_| resumed_in.as_deref() == Some("answers"));
        let mut begun = trainee.copy();
        if let Some(resumed) = &resumed {
            begun.parts = resumed
                .begun
                .clone()
                .ok_or_else(|| damaged("it lacks the stage's beginning"))?;
        }
        begun.begin_anew(&pool, &training.vectors)?;
        match &resumed {
            Some(_) => trainee.take_rates(&begun),
            None => trainee = begun.copy(),
        }
        let fitted = second.run(&training, &mut trainee, resumed.as_ref(), watch)?;
        let judging = &answered_parts[2];
        let (mut more, found) = answers::judge(
            &training, &second, &answered, &begun, &trainee, judging, &fitted, made, watch,
        )?;
        match found.accepts() {
            true => verdict = found,
            false => trainee = begun,
        }
        more.insert("pairs".to_owned(), json!(if made { "made" } else { "given" }));
        more.insert("kept".to_owned(), json!(found.accepts()));
        figures.insert("answers".to_owned(), Value::Object(more));
    }
    let name = match stages {
        Which::Paraphrase => "paraphrase",
        Which::Answers => "answers",
        Which::Both => "both",
    };
    let tokens = trainee.sizes.outputs / hidden.max(1);
    figures.insert("stage".to_owned(), json!(name));
    figures.insert("tokens".to_owned(), json!(tokens));
    let figures = Value::Object(figures);
    let more = Map::from_iter([
        ("figures".to_owned(), figures.clone()),
        ("llm".to_owned(), json!(files.fingerprint())),
        ("normalized".to_owned(), json!(options.normalized)),
        ("tokens".to_owned(), json!(tokens)),
    ]);
    Ok(Trained {
        weights: trainee.write(more)?,
        verdict,
        figures,
    })
}

fn damaged(what: &str) -> BridgeError {
    BridgeError::File(format!("the checkpoint is of another training: {what}"))
}

/// What is trained on, chooses and judges, document by document.
fn part(
    items: impl Iterator<Item = (usize, u32)>,
    what: &str,
    options: &XragOptions,
) -> Result<[Vec<usize>; 3], BridgeError> {
    parted(items, what, options.held_out, options.measured, FEWEST, options.seed)
}

/// The first tokens of texts.
fn tokenised(
    wording: &Wording,
    texts: &[&str],
    most: usize,
    watch: &mut dyn Watch,
) -> Result<Vec<Vec<u32>>, BridgeError> {
    let mut all = Vec::with_capacity(texts.len());
    for part in texts.chunks(TOKENISED_AT_ONCE) {
        for text in part {
            let mut ids = wording.tokenizer.encode(text)?;
            ids.truncate(most);
            all.push(ids);
        }
        watch.step(&Progress::default())?;
    }
    Ok(all)
}
