//! Which precision a model may be served with: how close each one's vectors come to f32, and how fast it is.
//!
//! A fixed set of texts is encoded in f32 and in every other precision that the processor has. What is kept is the
//! least cosine to f32, so that one text which a precision spoils is enough to refuse it.

use super::{Encoder, ModelError, Precision, Role, Sequence};
use crate::compute::Pool;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Least cosine to f32 of a precision that is chosen by itself.
pub const LEAST_COSINE: f32 = 0.999;
/// Texts of the set.
pub const TEXTS: usize = 64;
/// Texts that every model is measured with, however slow it is.
const LEAST_TEXTS: usize = 4;
/// Texts that are run at once.
const STEP: usize = 8;
/// Time for the texts in f32; the other precisions run as many as that allowed.
const TIME: Duration = Duration::from_secs(3);

/// One precision against f32.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub precision: Precision,
    /// Least cosine of a text's vector to the one in f32.
    pub cosine: f32,
    /// Tokens a second while the texts ran.
    pub tokens_per_second: f64,
}

/// What was measured for a model on this machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// The fastest precision whose cosine is at least [`LEAST_COSINE`].
    pub precision: Precision,
    /// Texts that were compared: all of them, or as many as a slow model encodes in some seconds.
    pub texts: u32,
    /// f32 first.
    pub measured: Vec<Measured>,
}

/// Sentences of the set. Several scripts, numbers, code, names: what a tokenizer cuts in few pieces and in many.
const SENTENCES: [&str; 32] = [
    "The ferry leaves at dawn.",
    "Yeast turns sugar into gas, and the dough rises until the oven's heat sets its crumb.",
    "Invoice 4471-B: 1,250.00 due on 2031-03-09; a discount of 2.5 % applies within ten days.",
    "Der Turmwart zählte die Schiffe, die vor dem Sturm in den Hafen zurückkehrten.",
    "SELECT station, avg(depth) FROM soundings WHERE taken_at > now() - interval '2 days' GROUP BY station;",
    "Les vignerons attendent la fin des gelées avant de tailler les jeunes plants.",
    "La bióloga marcó cuarenta tortugas y esperó dos veranos a que volvieran a la misma playa.",
    "Старый мост закрыли на ремонт, и теперь поезда идут в обход через долину.",
    "Η βιβλιοθήκη του νησιού ανοίγει μόνο τις Τρίτες και τις Παρασκευές.",
    "أغلقت المدرسة أبوابها مبكرا بسبب الثلوج التي غطت الطرق الجبلية.",
    "המדען מצא בארכיון מכתב ישן שאיש לא קרא מאז שנכתב.",
    "गाँव के बच्चे नदी के किनारे पतंग उड़ाने के लिए इकट्ठा हुए।",
    "山の上の観測所では、毎晩同じ時刻に星の明るさを記録している。",
    "这家小店卖手工纸和墨，老板会告诉你每一种纸的来历。",
    "비가 그치자 시장 상인들은 다시 천막 아래에 과일을 늘어놓았다.",
    "ชาวประมงซ่อมแหอยู่ใต้ต้นมะพร้าวก่อนน้ำขึ้น",
    "Kış gelmeden önce köylüler odunlarını ahırın arkasına dizdiler.",
    "Latarnik zapisywał kierunek wiatru co sześć godzin przez trzydzieści lat.",
    "Nu",
    "Why does a kettle sing shortly before the water boils?",
    "The court held that a notice sent to the wrong address does not start the period for an appeal, even where the \
     tenant learned of it by chance.",
    "fn mean(values: &[f64]) -> Option<f64> { (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64) }",
    "Apply the primer thinly, wait four hours, sand with grit 240 and wipe off the dust before the second coat.",
    "A graft of bone from the hip closed the gap, and after eleven weeks the patient walked without a stick.",
    "https://archive.example/maps/1887/sheet-12?scale=25000&layer=contours",
    "Hydrangeas turn blue in acid soil, since aluminium dissolves there and the plant stores it in its petals.",
    "Temperatures of -40 °C, winds of 110 km/h and 3.2 m of snow: the station was cut off for nineteen days.",
    "Her grandmother's recipe said only: flour, as much as it takes; butter, more than you think; patience.",
    "When two clocks disagree, neither is to be trusted, and a third one settles nothing unless it was set by another hand.",
    "The committee adopted paragraphs 3 to 7, struck paragraph 8, and sent the annex back to the working group.",
    "Électricité, eau, gaz: 12 relevés manquent; naïveté, cœur, œuvre, Ångström, piñata, smørrebrød.",
    "🚲 rental ☂️ forgotten → lost & found, shelf #7 (blue) … call Zoë @ noon!!!",
];

/// The texts: each sentence alone, and passages of two to twelve sentences in between. The first ones already hold
/// short and long texts and several scripts.
pub fn texts() -> Vec<String> {
    let mut texts = Vec::with_capacity(TEXTS);
    for (number, sentence) in SENTENCES.iter().enumerate() {
        texts.push((*sentence).to_owned());
        let length = 2 + (number * 5) % 7;
        let around = SENTENCES.iter().cycle().skip(number * 3 + 1).take(length);
        texts.push(around.copied().collect::<Vec<_>>().join(" "));
    }
    texts
}

/// The first `count` texts as the model's sequences.
pub fn sequences(encoder: &Encoder, count: usize) -> Result<Vec<Sequence>, ModelError> {
    let texts = texts();
    texts
        .iter()
        .take(count)
        .map(|text| encoder.text(Role::Plain, text))
        .collect()
}

/// What one precision gave.
struct Run {
    vectors: Vec<Vec<f32>>,
    tokens_per_second: f64,
}

fn run(
    encoder: &Encoder,
    pool: &Pool,
    count: usize,
    time: Option<Duration>,
    stop: &dyn Fn() -> bool,
) -> Result<Run, ModelError> {
    let sequences = sequences(encoder, count)?;
    // Touches the weights and wakes the threads: the first batch would count that as its own.
    encoder.encode_until(pool, sequences.get(..1).unwrap_or_default(), stop)?;
    let (mut vectors, mut tokens) = (Vec::new(), 0);
    let started = Instant::now();
    for batch in sequences.chunks(if count <= LEAST_TEXTS { 1 } else { STEP }) {
        if vectors.len() >= LEAST_TEXTS && time.is_some_and(|time| started.elapsed() >= time) {
            break;
        }
        vectors.extend(encoder.encode_until(pool, batch, stop)?);
        tokens += batch.iter().map(|sequence| sequence.ids.len()).sum::<usize>();
    }
    Ok(Run {
        vectors,
        tokens_per_second: tokens as f64 / started.elapsed().as_secs_f64().max(1e-9),
    })
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms > 0.0 { (dot(a, b) / norms) as f32 } else { 0.0 }
}

/// The fastest of those that are close enough to f32.
fn choose(measured: &[Measured]) -> Precision {
    let close = measured.iter().filter(|one| one.cosine >= LEAST_COSINE);
    let fastest = close.max_by(|a, b| a.tokens_per_second.total_cmp(&b.tokens_per_second));
    fastest.map_or(Precision::F32, |one| one.precision)
}

/// Measures a model in f32 and in every other precision that this processor has; `open` loads it in one, and each is
/// dropped before the next is loaded. Takes some seconds for a small model; a slow one encodes fewer texts.
///
/// # Errors
/// What `open` says, [`ModelError::Stopped`] when `stop` answers true, and errors of the forward pass in f32. A
/// precision whose forward pass fails (numbers that are not finite, say) counts as a cosine of 0.
pub fn calibrate(
    open: &dyn Fn(Precision) -> Result<Encoder, ModelError>,
    pool: &Pool,
    stop: &dyn Fn() -> bool,
) -> Result<Calibration, ModelError> {
    let reference = run(&open(Precision::F32)?, pool, TEXTS, Some(TIME), stop)?;
    let count = reference.vectors.len();
    let mut measured = vec![Measured {
        precision: Precision::F32,
        cosine: 1.0,
        tokens_per_second: reference.tokens_per_second,
    }];
    for precision in [Precision::Bf16, Precision::Int8] {
        if precision.check().is_err() {
            continue;
        }
        let (cosine, tokens_per_second) = match run(&open(precision)?, pool, count, None, stop) {
            Ok(run) => {
                let pairs = reference.vectors.iter().zip(&run.vectors);
                let least = pairs.map(|(a, b)| cosine(a, b)).fold(1.0, f32::min);
                (least, run.tokens_per_second)
            }
            Err(ModelError::Stopped) => return Err(ModelError::Stopped),
            Err(_) => (0.0, 0.0),
        };
        measured.push(Measured {
            precision,
            cosine,
            tokens_per_second,
        });
    }
    Ok(Calibration {
        precision: choose(&measured),
        texts: count as u32,
        measured,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::minilm;

    #[test]
    fn the_fastest_that_is_close_enough_is_chosen() {
        let one = |precision, cosine, tokens_per_second| Measured {
            precision,
            cosine,
            tokens_per_second,
        };
        let f32_ = one(Precision::F32, 1.0, 100.0);
        assert_eq!(choose(&[f32_, one(Precision::Int8, 0.9989, 900.0)]), Precision::F32);
        assert_eq!(choose(&[f32_, one(Precision::Int8, 0.999, 900.0)]), Precision::Int8);
        assert_eq!(choose(&[f32_, one(Precision::Bf16, 0.9999, 99.0)]), Precision::F32);
        assert_eq!(choose(&[f32_, one(Precision::Int8, f32::NAN, 900.0)]), Precision::F32);
    }

    #[test]
    fn the_set_holds_short_and_long_texts() {
        let texts = texts();
        assert_eq!(texts.len(), TEXTS);
        let distinct: std::collections::HashSet<&String> = texts.iter().collect();
        assert_eq!(distinct.len(), TEXTS);
        let Some(dir) = minilm() else { return };
        let encoder = Encoder::open(&dir).expect("the model");
        let lengths: Vec<usize> = sequences(&encoder, TEXTS)
            .expect("tokens")
            .iter()
            .map(|s| s.ids.len())
            .collect();
        assert!(lengths.iter().min().is_some_and(|least| *least <= 5), "{lengths:?}");
        assert!(lengths.iter().max().is_some_and(|most| *most >= 200), "{lengths:?}");
    }

    #[test]
    fn precisions_are_measured_against_f32() {
        let Some(dir) = minilm() else { return };
        let pool = Pool::new(2).expect("threads");
        let open = |precision| Encoder::open_with(&dir, precision);
        let found = calibrate(&open, &pool, &|| false).expect("a calibration");
        eprintln!("{found:?}");
        assert!(found.texts as usize >= LEAST_TEXTS);
        assert_eq!(found.measured[0].precision, Precision::F32);
        for one in &found.measured {
            assert!(one.tokens_per_second > 0.0 && one.cosine <= 1.0001, "{one:?}");
            // The same by hand for one text.
            let (a, b) = (open(Precision::F32).expect("f32"), open(one.precision).expect("it"));
            let text = [a.text(Role::Plain, &texts()[1]).expect("tokens")];
            let vectors = (a.encode(&pool, &text).expect("a"), b.encode(&pool, &text).expect("b"));
            assert!(cosine(&vectors.0[0], &vectors.1[0]) >= one.cosine - 1e-6, "{one:?}");
        }
        let chosen = found.measured.iter().find(|one| one.precision == found.precision);
        assert!(chosen.is_some_and(|one| one.cosine >= LEAST_COSINE));
        assert!(matches!(calibrate(&open, &pool, &|| true), Err(ModelError::Stopped)));
    }
}
