//! Training over a small random decoder: passes, gradients of the projector, checkpoints, what is held out.

use super::answers::{Answers, questions};
use super::fit::{Sizes, Trainee};
use super::options::XragOptions;
use super::paraphrase::Paraphrase;
use super::pass::{Example, Factors, Given, Reader};
use super::prompts::Wording;
use super::steps::Objective;
use super::{projector::Projector, train};
use crate::bridge::BridgeError;
use crate::bridge::train::data::{Encode, Monitor, Pair, Passage, Progress, Trained, Vectors};
use crate::bridge::train::run::Run;
use crate::bridge::train::split::Split;
use crate::compute::{Pool, Precision};
use crate::model::Role;
use crate::model::llm::files::LlmFiles;
use crate::model::llm::gradient::Differentiable;
use crate::model::llm::{Chat, Llm, LlmTokenizer, Message, Piece};
use crate::model::tests::families::{Sizes as Shapes, mistral};
use crate::model::tests::maker::{Maker, Random};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;

fn maker() -> Maker {
    let mut maker = mistral(Shapes::SMALL);
    let (_, head) = maker.tensors.get_mut("lm_head.weight").unwrap();
    *head = Random(9).numbers(head.len(), 0.0, 0.4);
    maker.files.push((
        "chat_template.jinja",
        b"{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}a:".to_vec(),
    ));
    maker
}

/// Sixteen dimensions that say which letters a passage has.
struct Letters {
    llm: PathBuf,
    start: Option<Vec<u8>>,
}

impl Encode for Letters {
    fn embed(&mut self, _role: Role, texts: &[&str]) -> Result<Vectors, BridgeError> {
        let mut values = Vec::new();
        for text in texts {
            let mut row = [0.0f32; 16];
            text.bytes().for_each(|byte| row[byte as usize % 16] += 1.0);
            values.extend(row);
        }
        Ok(Vectors { dimensions: 16, values })
    }

    fn tokens(&mut self, _texts: &[&str]) -> Result<Vec<Vec<u32>>, BridgeError> {
        Err(BridgeError::NoReading("tokens"))
    }

    fn language_model(&mut self, _name: &str) -> Result<PathBuf, BridgeError> {
        Ok(self.llm.clone())
    }

    fn start(&mut self, _name: &str) -> Result<Vec<u8>, BridgeError> {
        self.start.clone().ok_or(BridgeError::NoReading("bridge to start from"))
    }
}

#[derive(Default)]
struct Keeper {
    checkpoints: Vec<Vec<u8>>,
    steps: Vec<u64>,
    stop_after: Option<usize>,
}

impl Monitor for Keeper {
    fn step(&mut self, progress: &Progress) -> Result<(), BridgeError> {
        // Evaluation between two stages has no steps.
        if progress.steps > 0 {
            self.steps.push(progress.step);
        }
        match self.stop_after == Some(self.checkpoints.len()) {
            true => Err(BridgeError::Stopped),
            false => Ok(()),
        }
    }

    fn checkpoint(&mut self, bytes: &[u8]) -> Result<(), BridgeError> {
        self.checkpoints.push(bytes.to_vec());
        Ok(())
    }
}

/// Passages that repeat one letter: what their vector says is what has to be said.
fn passages() -> Vec<Passage> {
    (0..300u32)
        .map(|n| Passage {
            key: n.to_string(),
            document: n,
            ordinal: 0,
            text: char::from(b'a' + (n % 12) as u8).to_string().repeat(6),
            vector: None,
        })
        .collect()
}

fn options() -> Value {
    json!({"llm": "x", "tokens": 2, "hidden": 24, "text_tokens": 6, "measured_tokens": 6, "rate": 0.1, "epochs": 6, "batch": 8,
        "round_steps": 30, "held_out": 0.4, "measured": 40, "threads": 2})
}

fn with(more: Value) -> Value {
    let mut options = options();
    let all = options.as_object_mut().unwrap();
    all.extend(more.as_object().unwrap().clone());
    options
}

fn letters(dir: &tempfile::TempDir) -> Letters {
    Letters {
        llm: dir.path().to_path_buf(),
        start: None,
    }
}

fn run(dir: &tempfile::TempDir, monitor: &mut Keeper, checkpoint: Option<&[u8]>) -> Result<Trained, BridgeError> {
    train(Run::new(
        &passages(),
        &[],
        &options(),
        &mut letters(dir),
        monitor,
        checkpoint,
    ))
}

#[test]
fn a_projector_learns_to_say_what_its_vector_means_and_goes_on_from_a_checkpoint() {
    let dir = maker().write();
    let mut whole = Keeper::default();
    let trained = run(&dir, &mut whole, None).unwrap();
    let bits = &trained.figures["bits_per_token"];
    let [own, other] = ["own", "other"].map(|name| bits[name].as_f64().unwrap());
    assert!(trained.verdict.accepts() && own < other - 0.1, "{}", trained.figures);
    assert!(whole.checkpoints.len() >= 2, "{}", trained.figures);
    assert!(trained.figures["stage"] == "paraphrase" && trained.figures["answers"].is_null());
    let projector = Projector::read(&trained.weights).unwrap();
    assert_eq!(
        (projector.inputs(), projector.outputs()),
        (16, 2 * Shapes::SMALL.hidden)
    );
    assert!(projector.normalized && projector.llm.is_some());

    let mut stopped = Keeper {
        stop_after: Some(1),
        ..Keeper::default()
    };
    assert!(matches!(run(&dir, &mut stopped, None), Err(BridgeError::Stopped)));
    assert!(stopped.checkpoints[0] == whole.checkpoints[0]);
    let resumed = run(&dir, &mut Keeper::default(), Some(&stopped.checkpoints[0])).unwrap();
    assert!(resumed.weights == trained.weights);
    let other = run(&dir, &mut Keeper::default(), Some(&trained.weights));
    assert!(matches!(other, Err(BridgeError::File(_))));
}

/// Questions whose answer is the passage's letter, twice.
fn pairs() -> Vec<Pair> {
    let passages = passages();
    let pair = |(number, passage): (usize, &Passage)| Pair {
        query: "what".to_owned(),
        passage: number as u32,
        answer: Some(passage.text.chars().take(2).collect()),
    };
    passages.iter().enumerate().map(pair).collect()
}

#[test]
fn answers_are_learned_after_the_paraphrase_and_checkpoints_go_through_both_stages() {
    let dir = maker().write();
    let options = with(json!({"epochs": 2, "answer_rate": 0.1, "answer_epochs": 4}));
    let run = |monitor: &mut Keeper, checkpoint: Option<&[u8]>| {
        train(Run::new(
            &passages(),
            &pairs(),
            &options,
            &mut letters(&dir),
            monitor,
            checkpoint,
        ))
    };
    let mut whole = Keeper::default();
    let trained = run(&mut whole, None).unwrap();
    let answers = &trained.figures["answers"];
    assert!(
        trained.figures["stage"] == "both" && answers["pairs"] == "given",
        "{}",
        trained.figures
    );
    let bits = |name: &str| answers["bits_per_token"][name].as_f64().unwrap();
    assert!(
        trained.verdict.accepts() && answers["kept"] == true,
        "{}",
        trained.figures
    );
    assert!(
        bits("own") < bits("before") - 0.1 && bits("own") < bits("other") - 0.1,
        "{}",
        trained.figures
    );
    assert!(answers["saved_over_before"]["low"].as_f64().unwrap() > 0.0);
    let kl = |name: &str| answers["divergence"][name].as_f64().unwrap();
    assert!(kl("own") > 0.0 && kl("before") > 0.0);
    // Progress counts the steps of both stages.
    assert!(whole.steps.windows(2).all(|pair| pair[0] <= pair[1]));

    // Stopped in the first stage, and at each checkpoint of the second.
    for at in [1, whole.checkpoints.len() - 1, whole.checkpoints.len()] {
        let mut stopped = Keeper {
            stop_after: Some(at),
            ..Keeper::default()
        };
        assert!(matches!(run(&mut stopped, None), Err(BridgeError::Stopped)), "{at}");
        let last = stopped.checkpoints.last().unwrap();
        let resumed = run(&mut Keeper::default(), Some(last)).unwrap();
        assert!(
            resumed.weights == trained.weights,
            "{at}: {} {}",
            resumed.figures,
            trained.figures
        );
    }
}

#[test]
fn a_stage_begins_with_the_bridge_that_is_named_and_keeps_it_where_nothing_is_gained() {
    let dir = maker().write();
    let first = run(&dir, &mut Keeper::default(), None).unwrap();
    let mut letters = Letters {
        start: Some(first.weights.clone()),
        ..letters(&dir)
    };
    let mut run = |pairs: &[Pair], more: Value| {
        train(Run::new(
            &passages(),
            pairs,
            &with(more),
            &mut letters,
            &mut Keeper::default(),
            None,
        ))
    };
    let gained = run(
        &pairs(),
        json!({"start": "first", "answer_rate": 0.1, "answer_epochs": 2}),
    )
    .unwrap();
    assert!(
        gained.verdict.accepts() && gained.figures["stage"] == "answers",
        "{}",
        gained.figures
    );
    assert!(gained.figures["bits_per_token"].is_null());
    // A rate that moves nothing far enough to be seen.
    let kept = run(&pairs(), json!({"start": "first", "answer_rate": 1e-12})).unwrap();
    assert!(
        !kept.verdict.accepts() && kept.figures["answers"]["kept"] == false,
        "{}",
        kept.figures
    );
    let [stored, start] = [&kept, &first].map(|trained| Projector::read(&trained.weights).unwrap());
    assert_eq!(stored, start);
    // Without answers the paraphrase goes on; sizes are the start's.
    let on = run(&[], json!({"start": "first", "epochs": 1, "tokens": 1})).unwrap();
    assert!(
        on.figures["stage"] == "paraphrase" && on.figures["tokens"] == 2,
        "{}",
        on.figures
    );
    letters.start = Some(vec![1, 2, 3]);
    let bad = train(Run::new(
        &passages(),
        &[],
        &with(json!({"start": "x"})),
        &mut letters,
        &mut Keeper::default(),
        None,
    ));
    assert!(matches!(bad, Err(BridgeError::File(_))));
}

#[test]
fn a_manner_of_answering_that_any_vector_brings_about_is_not_kept() {
    let dir = maker().write();
    let first = run(&dir, &mut Keeper::default(), None).unwrap();
    let mut letters = Letters {
        start: Some(first.weights.clone()),
        ..letters(&dir)
    };
    // The same answer whatever the passage says.
    let same: Vec<Pair> = pairs()
        .into_iter()
        .map(|pair| Pair {
            answer: Some("kk".to_owned()),
            ..pair
        })
        .collect();
    let options = with(json!({"start": "first", "answer_rate": 0.1, "answer_epochs": 2, "replayed": 0.0}));
    let trained = train(Run::new(
        &passages(),
        &same,
        &options,
        &mut letters,
        &mut Keeper::default(),
        None,
    ))
    .unwrap();
    let answers = &trained.figures["answers"];
    assert!(answers["saved_over_before"]["low"].as_f64().unwrap() > 0.0, "{answers}");
    assert!(answers["saved_over_other"]["low"].as_f64().unwrap() <= 0.0, "{answers}");
    assert!(!trained.verdict.accepts() && answers["kept"] == false, "{answers}");
    let [stored, start] = [&trained, &first].map(|trained| Projector::read(&trained.weights).unwrap());
    assert_eq!(stored, start);
}

#[test]
fn pairs_are_made_of_sentences_where_none_have_answers() {
    let passages: Vec<Passage> = (0..4)
        .map(|number| Passage {
            key: number.to_string(),
            document: number,
            ordinal: 0,
            text: format!("The {number} old clocks of the tower struck at noon in the rain."),
            vector: None,
        })
        .collect();
    let (asked, made) = super::answers::questions(&passages, &[], 1);
    assert!(made && asked.len() == 4);
    assert_eq!(
        asked[2].question,
        "How does this sentence of the background go on: \"The 2 old clocks of the\"?"
    );
    assert_eq!(asked[2].answer, "tower struck at noon in the rain.");
    let pair = |answer: Option<&str>| Pair {
        query: "When?".to_owned(),
        passage: 3,
        answer: answer.map(str::to_owned),
    };
    let (asked, made) = super::answers::questions(&passages, &[pair(None), pair(Some(" ")), pair(Some("noon "))], 1);
    assert!(!made && asked.len() == 1);
    assert_eq!((asked[0].passage, asked[0].answer.as_str()), (3, "noon"));
}

#[test]
fn the_projectors_gradient_is_that_of_finite_differences() {
    let dir = maker().write();
    let files = LlmFiles::open(dir.path()).unwrap();
    let tokenizer = Arc::new(LlmTokenizer::open(&files).unwrap());
    let chat = Chat::open(&files, tokenizer.clone()).unwrap();
    let wording = Wording::new(tokenizer.clone(), chat, files.config());
    let prompts = wording.instructions(13).unwrap();
    assert_eq!(prompts.len(), 13);
    assert!(
        prompts
            .iter()
            .all(|prompt| prompt.before.first() == Some(&1) && prompt.after.contains(&2))
    );
    let decoder = Differentiable::open(&files, Precision::F32).unwrap();
    let pool = Pool::new(1).unwrap();
    let sizes = Sizes {
        inputs: 5,
        hidden: 7,
        outputs: Shapes::SMALL.hidden,
    };
    let x = Random(2).numbers(2 * 5, 0.0, 1.0);
    let trainee = Trainee::new(&pool, sizes, &x, 0.5, 3).unwrap();
    let texts = [tokenizer.encode("abc").unwrap(), tokenizer.encode("de").unwrap()];
    // One beginning is read before, the other is not.
    let reader = Reader::new(&pool, &decoder, prompts.iter().take(1), &|| false).unwrap();
    let value = |trainee: &Trainee, factors: Option<Factors>| {
        let (_, _, out) = trainee.forward(&pool, &x).unwrap();
        let width = sizes.outputs;
        let examples: Vec<Example> = (0..2)
            .map(|number| Example {
                prompt: &prompts[number],
                given: Given::Vectors(&out[number * width..][..width]),
                text: &texts[number],
                teacher: None,
            })
            .collect();
        reader.pass(&examples, factors, &|| false).unwrap()
    };
    let nats = |trainee: &Trainee| -> f64 {
        let bits = value(trainee, None).bits;
        bits.iter()
            .zip(&texts)
            .map(|(bits, text)| bits * text.len() as f64 * std::f64::consts::LN_2)
            .sum()
    };
    // By the numbers that the projector gives, from which its own gradient follows.
    let gradients = value(&trainee, Some(Factors { nll: 1.0, kl: 0.0 })).gradients.concat();
    let (_, _, out) = trainee.forward(&pool, &x).unwrap();
    let mut moved = Trainee::new(&pool, sizes, &x, 0.5, 3).unwrap();
    for place in [0, 9, 33] {
        // The last bias moves one number of both examples.
        let step = 1e-2;
        let by = |moved: &mut Trainee, step: f32| {
            moved.parts[3][place] += step;
            let value = nats(moved);
            moved.parts[3][place] -= step;
            value
        };
        let expected = (by(&mut moved, step) - by(&mut moved, -step)) / f64::from(2.0 * step);
        let found = f64::from(gradients[place] + gradients[sizes.outputs + place]);
        assert!(
            (found - expected).abs() < 2e-3 + 2e-2 * expected.abs(),
            "{place}: {found} {expected}"
        );
    }
    // A step against the gradient lowers the loss; the first one of Adam moves every number by the rate, which counts
    // in sizes of what is moved, and less in the first layer.
    let before = nats(&trainee);
    let mut stepped = Trainee::new(&pool, sizes, &x, 0.5, 3).unwrap();
    stepped.step(&pool, &x, &gradients, 1e-3, 0.0).unwrap();
    assert!(nats(&stepped) < before);
    let size = |numbers: &[f32]| (numbers.iter().map(|x| x * x).sum::<f32>() / numbers.len() as f32).sqrt();
    let (sums, _, _) = trainee.forward(&pool, &x).unwrap();
    let units = [
        0.15 * size(&trainee.parts[0]),
        0.15 * size(&sums),
        size(&trainee.parts[2]),
        size(&out),
    ];
    for (part, unit) in units.into_iter().enumerate() {
        let moved = stepped.parts[part].iter().zip(&trainee.parts[part]);
        let largest = moved.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / unit;
        assert!((largest - 1e-3).abs() < 1e-4, "{part}: {largest}");
    }
    // Outputs begin ten times as large as the decoder's inputs.
    assert!((size(&out) - 5.0).abs() < 1e-2, "{}", size(&out));
}

#[test]
fn passages_are_said_among_the_answers() {
    let dir = maker().write();
    let files = LlmFiles::open(dir.path()).unwrap();
    let tokenizer = Arc::new(LlmTokenizer::open(&files).unwrap());
    let chat = Chat::open(&files, tokenizer.clone()).unwrap();
    let wording = Wording::new(tokenizer.clone(), chat, files.config());
    let passages = passages();
    let texts: Vec<Vec<u32>> = passages
        .iter()
        .map(|passage| tokenizer.encode(&passage.text).unwrap())
        .collect();
    let options = XragOptions::read(&with(json!({"replayed": 0.5, "text_tokens": 4, "measured_tokens": 5}))).unwrap();
    let reconstruction = Paraphrase {
        options: &options,
        prompts: wording.instructions(13).unwrap(),
        texts: texts.clone(),
    };
    let answers = |options| Answers {
        options,
        wording: &wording,
        passages: &passages,
        asked: questions(&passages, &pairs(), 1).0,
        synthetic: false,
        reconstruction: &reconstruction,
    };
    let objective = answers(&options);
    let count = objective.asked.len();
    let replayed = objective.replayed(40);
    assert_eq!(replayed.len(), 20);
    assert_eq!(replayed.iter().collect::<std::collections::BTreeSet<_>>().len(), 20);
    for item in replayed {
        let passage = objective.passage(item);
        assert!(item >= count && Split::of(passages[passage].document, 0.4, options.seed) == Split::Training);
        // As many tokens as are trained on, and as are measured; nobody teaches.
        let (trained, measured) = (
            objective.task(item, Some(3)).unwrap(),
            objective.task(item, None).unwrap(),
        );
        assert_eq!(
            (&trained.text[..], &measured.text[..]),
            (&texts[passage][..4], &texts[passage][..5])
        );
        assert!(trained.teacher.is_none());
    }
    assert!(objective.task(0, Some(0)).unwrap().teacher.is_some());
    let none = XragOptions {
        replayed: 0.0,
        ..options.clone()
    };
    assert!(answers(&none).replayed(40).is_empty());
}

#[test]
fn questions_are_asked_as_where_they_are_answered() {
    let dir = maker().write();
    let files = LlmFiles::open(dir.path()).unwrap();
    let tokenizer = Arc::new(LlmTokenizer::open(&files).unwrap());
    let chat = Chat::open(&files, tokenizer.clone()).unwrap();
    let wording = Wording::new(tokenizer, chat, files.config());
    let llm = Llm::open(dir.path()).unwrap();
    let ids = |pieces: Vec<Piece>| {
        let turn = Message {
            role: "user".to_owned(),
            pieces,
        };
        llm.prompt(&llm.render(&[turn]).unwrap()).unwrap().ids()
    };
    let text = |text: &str| Piece::Text(text.to_owned());
    let vector = Piece::Vectors(vec![vec![0.5; Shapes::SMALL.hidden]]);
    let (begin, end) = (
        "Use the background to answer the question.\n\nBackground: ",
        "\n\nQuestion: is {documents} it </s> so?",
    );
    let question = "is {documents} it </s> so?";
    let prompt = wording.question(question).unwrap();
    let whole: Vec<u32> = prompt.before.iter().chain(&prompt.after).copied().collect();
    assert_eq!(whole, ids(vec![text(begin), vector, text(end)]));
    assert_eq!(prompt.before, wording.question("other").unwrap().before);
    let with_text = wording.question_with_text("a fox", question).unwrap();
    assert_eq!(with_text, ids(vec![text(&format!("{begin}a fox{end}"))]));
    let alone = wording.question_alone("so?").unwrap();
    assert_eq!(alone, ids(vec![text("Answer the question.\n\nQuestion: so?")]));
    // An answer ends with what ends one, unless it is cut off.
    let whole = wording.answer(" ab ", 8).unwrap();
    assert_eq!(whole.last(), Some(&2));
    assert_eq!(wording.answer("ab", 1).unwrap(), whole[..1]);
}

#[test]
fn what_does_not_fit_is_an_error() {
    let dir = maker().write();
    let mut letters = letters(&dir);
    for bad in [
        json!({"tokens": 0}),
        json!({"rate": 0}),
        json!({"stage": "third"}),
        json!({"nll": 0, "kl": 0}),
        json!({"other": 1}),
        json!({"held_out": 0.0}),
        json!({"measured_tokens": 3}),
        json!({"replayed": -1}),
    ] {
        let found = train(Run::new(
            &passages(),
            &[],
            &bad,
            &mut letters,
            &mut Keeper::default(),
            None,
        ));
        assert!(matches!(found, Err(BridgeError::Option { .. })), "{bad}");
    }
    let found = train(Run::new(
        &passages()[..30],
        &[],
        &json!({"llm": "x"}),
        &mut letters,
        &mut Keeper::default(),
        None,
    ));
    assert!(matches!(found, Err(BridgeError::TooLittle(_))));
    let few = train(Run::new(
        &passages(),
        &pairs()[..10],
        &json!({"llm": "x", "stage": "answers"}),
        &mut letters,
        &mut Keeper::default(),
        None,
    ));
    assert!(matches!(few, Err(BridgeError::TooLittle(_))));
}
