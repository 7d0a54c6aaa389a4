//! Training over a small random decoder: passes, gradients of the projector, checkpoints, what is held out.

use super::fit::{Example, Given, Sizes, Trainee, pass};
use super::prompts::prompts;
use super::{projector::Projector, train};
use crate::bridge::BridgeError;
use crate::bridge::train::data::{Encode, Passage, Progress, Trained, Vectors, Watch};
use crate::compute::{Pool, Precision};
use crate::model::Role;
use crate::model::llm::files::LlmFiles;
use crate::model::llm::gradient::Differentiable;
use crate::model::llm::{Chat, LlmTokenizer};
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
}

#[derive(Default)]
struct Keeper {
    checkpoints: Vec<Vec<u8>>,
    stop_after: Option<usize>,
}

impl Watch for Keeper {
    fn step(&mut self, _progress: &Progress) -> Result<(), BridgeError> {
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
    json!({"llm": "x", "tokens": 2, "hidden": 24, "text_tokens": 6, "rate": 1e-2, "epochs": 6, "batch": 8, "round_steps": 30,
        "held_out": 0.4, "measured": 40, "threads": 2})
}

fn run(dir: &tempfile::TempDir, watch: &mut Keeper, checkpoint: Option<&[u8]>) -> Result<Trained, BridgeError> {
    let mut letters = Letters {
        llm: dir.path().to_path_buf(),
    };
    train(&passages(), &[], &options(), &mut letters, watch, checkpoint)
}

#[test]
fn a_projector_learns_to_say_what_its_vector_means_and_goes_on_from_a_checkpoint() {
    let dir = maker().write();
    let mut whole = Keeper::default();
    let trained = run(&dir, &mut whole, None).unwrap();
    let bits = &trained.figures["bits_per_token"];
    let [own, other] = ["own", "other"].map(|name| bits[name].as_f64().unwrap());
    assert!(trained.accepted && own < other - 0.1, "{}", trained.figures);
    assert!(whole.checkpoints.len() >= 2, "{}", trained.figures);
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
    assert_eq!(stopped.checkpoints[0], whole.checkpoints[0]);
    let resumed = run(&dir, &mut Keeper::default(), Some(&stopped.checkpoints[0])).unwrap();
    assert_eq!(resumed.weights, trained.weights);
    let other = run(&dir, &mut Keeper::default(), Some(&trained.weights));
    assert!(matches!(other, Err(BridgeError::File(_))));
}

#[test]
fn the_projectors_gradient_is_that_of_finite_differences() {
    let dir = maker().write();
    let files = LlmFiles::open(dir.path()).unwrap();
    let tokenizer = Arc::new(LlmTokenizer::open(&files).unwrap());
    let chat = Chat::open(&files, tokenizer.clone()).unwrap();
    let prompts = prompts(&tokenizer, chat.as_ref()).unwrap();
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
    let value = |trainee: &Trainee, weight: f32| {
        let (_, _, out) = trainee.forward(&pool, &x).unwrap();
        let width = sizes.outputs;
        let examples: Vec<Example> = (0..2)
            .map(|number| Example {
                prompt: &prompts[number],
                given: Given::Vectors(&out[number * width..][..width]),
                text: &texts[number],
            })
            .collect();
        pass(&pool, &decoder, &examples, weight, &|| false).unwrap()
    };
    let nats = |trainee: &Trainee| -> f64 {
        let bits = value(trainee, 0.0).bits;
        bits.iter()
            .zip(&texts)
            .map(|(bits, text)| bits * text.len() as f64 * std::f64::consts::LN_2)
            .sum()
    };
    // By the numbers that the projector gives, from which its own gradient follows.
    let gradients = value(&trainee, 1.0).gradients.concat();
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
    // A step lowers the loss by about rate times the gradient's size; the first step of Adam moves every number by the rate.
    let before = nats(&trainee);
    let mut stepped = Trainee::new(&pool, sizes, &x, 0.5, 3).unwrap();
    stepped.step(&pool, &x, &gradients, 1e-3, 0.0).unwrap();
    assert!(nats(&stepped) < before);
    let largest = stepped.parts[0]
        .iter()
        .zip(&trainee.parts[0])
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!((largest - 1e-3).abs() < 1e-4, "{largest}");
    // Outputs begin as large as was asked for.
    let size = (out.iter().map(|x| x * x).sum::<f32>() / out.len() as f32).sqrt();
    assert!((size - 0.5).abs() < 1e-3, "{size}");
}

#[test]
fn what_does_not_fit_is_an_error() {
    let dir = maker().write();
    let mut letters = Letters {
        llm: dir.path().to_path_buf(),
    };
    for bad in [
        json!({"tokens": 0}),
        json!({"rate": 0}),
        json!({"other": 1}),
        json!({"held_out": 0.0}),
    ] {
        let found = train(&passages(), &[], &bad, &mut letters, &mut Keeper::default(), None);
        assert!(matches!(found, Err(BridgeError::Option { .. })), "{bad}");
    }
    let found = train(
        &passages()[..30],
        &[],
        &json!({"llm": "x"}),
        &mut letters,
        &mut Keeper::default(),
        None,
    );
    assert!(matches!(found, Err(BridgeError::TooLittle(_))));
}
