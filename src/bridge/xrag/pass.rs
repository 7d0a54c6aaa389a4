//! Examples through the decoder: what stands around and behind a passage's place, packed into passes, with what they
//! begin with read once.

use super::prompts::Prompt;
use crate::bridge::BridgeError;
use crate::compute::{ComputeError, Pool};
use crate::model::llm::gradient::{Batch, Differentiable, Past, Sequence, Target};

/// Rows of a pass: what a pass keeps for the way back is most of the memory.
pub const ROWS: usize = 384;
/// Most numbers that the teachers of a pass say.
const TAUGHT: usize = 16 << 20;

/// What stands in the place of a passage.
#[derive(Clone, Copy)]
pub enum Given<'a> {
    /// Vectors of the projector, one after another.
    Vectors(&'a [f32]),
    Ids(&'a [u32]),
    /// Another prompt instead of the example's.
    Prompt(&'a [u32]),
}

/// A prompt with something in the passage's place, and the text that is wanted behind it.
#[derive(Clone, Copy)]
pub struct Example<'a> {
    pub prompt: &'a Prompt,
    pub given: Given<'a>,
    pub text: &'a [u32],
    /// The prompt that the teacher reads, where there is one.
    pub teacher: Option<&'a [u32]>,
}

/// What passes over examples gave, of each of them.
#[derive(Default)]
pub struct Passed {
    /// Mean of `-log2 p` over the text's tokens.
    pub bits: Vec<f64>,
    /// Mean divergence from the teacher over the text's tokens, in bits; 0 without one.
    pub divergence: Vec<f64>,
    /// Mean of `-log2 p` that the teacher has for them; 0 without one.
    pub taught: Vec<f64>,
    /// By the vectors, where there are any and the way back was gone.
    pub gradients: Vec<Vec<f32>>,
}

/// Factors of the losses of a token in the gradient.
#[derive(Clone, Copy, Debug)]
pub struct Factors {
    pub nll: f32,
    pub kl: f32,
}

/// A decoder with what it has read already.
pub struct Reader<'a> {
    pool: &'a Pool,
    decoder: &'a Differentiable,
    /// Beginnings of prompts.
    pasts: Vec<(Vec<u32>, Past)>,
}

/// An example as rows.
struct Packed {
    /// Of the pasts, and positions of it that are used.
    past: Option<(usize, usize)>,
    /// Input vectors of the rows behind them.
    vectors: Vec<f32>,
    /// Numbers of `vectors` that are the passage's.
    place: std::ops::Range<usize>,
    /// Row that the first token of the text is expected from.
    last: usize,
}

fn stopped<T>(result: Result<T, ComputeError>) -> Result<T, BridgeError> {
    match result {
        Err(ComputeError::Stopped) => Err(BridgeError::Stopped),
        result => Ok(result?),
    }
}

impl<'a> Reader<'a> {
    /// Reads the beginnings of some prompts.
    ///
    /// # Errors
    /// [`BridgeError::Stopped`] where `stop` says so.
    pub fn new<'p>(
        pool: &'a Pool,
        decoder: &'a Differentiable,
        prompts: impl Iterator<Item = &'p Prompt>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Reader<'a>, BridgeError> {
        let mut reader = Reader {
            pool,
            decoder,
            pasts: Vec::new(),
        };
        for prompt in prompts {
            if reader.pasts.iter().all(|(ids, _)| *ids != prompt.before) {
                let past = stopped(decoder.past(pool, &reader.vectors(&prompt.before), stop))?;
                reader.pasts.push((prompt.before.clone(), past));
            }
        }
        Ok(reader)
    }

    fn vectors(&self, ids: &[u32]) -> Vec<f32> {
        let hidden = self.decoder.config().hidden;
        let mut vectors = vec![0.0; ids.len() * hidden];
        for (id, out) in ids.iter().zip(vectors.chunks_exact_mut(hidden)) {
            self.decoder.embed(*id, out);
        }
        vectors
    }

    /// The past that has most of a prompt's beginning, and how much.
    fn past(&self, ids: &[u32]) -> Option<(usize, usize)> {
        let common = |of: &[u32]| of.iter().zip(ids).take_while(|(a, b)| a == b).count();
        let all = self
            .pasts
            .iter()
            .enumerate()
            .map(|(number, (of, _))| (number, common(of)));
        all.max_by_key(|(_, rows)| *rows).filter(|(_, rows)| *rows > 0)
    }

    fn pack(&self, example: &Example<'_>) -> Result<Packed, BridgeError> {
        let hidden = self.decoder.config().hidden;
        let nothing = || BridgeError::TooLittle("a prompt or a passage without tokens".to_owned());
        let (before, middle, after): (&[u32], Vec<f32>, &[u32]) = match example.given {
            Given::Vectors(vectors) => (&example.prompt.before, vectors.to_vec(), &example.prompt.after),
            Given::Ids(ids) => (&example.prompt.before, self.vectors(ids), &example.prompt.after),
            Given::Prompt(ids) => (ids, Vec::new(), &[]),
        };
        // The row that the text begins behind is always one of the pass.
        let most = match middle.is_empty() && after.is_empty() {
            true => before.len().checked_sub(1).ok_or_else(nothing)?,
            false => before.len(),
        };
        let (_, but_last) = example.text.split_last().ok_or_else(nothing)?;
        let past = self.past(&before[..most]);
        let mut vectors = self.vectors(&before[past.map_or(0, |(_, rows)| rows)..]);
        let at = vectors.len();
        vectors.extend(middle);
        let place = at..vectors.len();
        vectors.extend(self.vectors(after));
        let last = vectors.len() / hidden - 1;
        vectors.extend(self.vectors(but_last));
        Ok(Packed {
            past,
            vectors,
            place,
            last,
        })
    }

    fn sequence(&self, packed: &Packed) -> Sequence<'_> {
        Sequence {
            rows: packed.vectors.len() / self.decoder.config().hidden,
            past: packed.past.map(|(number, rows)| (&self.pasts[number].1, rows)),
        }
    }

    /// Runs examples through the decoder, a few at a time; with `factors` back to their vectors.
    ///
    /// # Errors
    /// [`BridgeError::Stopped`] where `stop` says so, [`BridgeError::TooLittle`] for an example without tokens.
    pub fn pass(
        &self,
        examples: &[Example<'_>],
        factors: Option<Factors>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Passed, BridgeError> {
        let mut passed = Passed::default();
        let packed = examples.iter().map(|example| self.pack(example));
        let packed = packed.collect::<Result<Vec<_>, _>>()?;
        let tokens: Vec<usize> = examples
            .iter()
            .map(|example| example.teacher.map_or(0, |_| example.text.len()))
            .collect();
        let mut begin = 0;
        for end in self.cuts(&packed, &tokens) {
            self.part(&examples[begin..end], &packed[begin..end], factors, stop, &mut passed)?;
            begin = end;
        }
        Ok(passed)
    }

    /// Where passes end that have about [`ROWS`] rows, and whose teachers say [`TAUGHT`] numbers; `tokens` are those
    /// that each example has a teacher for.
    fn cuts(&self, packed: &[Packed], tokens: &[usize]) -> Vec<usize> {
        let most = TAUGHT / self.decoder.config().vocabulary.max(1);
        let (mut cuts, mut rows, mut taught) = (Vec::new(), 0, 0);
        for (number, (example, tokens)) in packed.iter().zip(tokens).enumerate() {
            let own = self.sequence(example).rows;
            if rows > 0 && (rows + own > ROWS || taught + tokens > most) {
                cuts.push(number);
                (rows, taught) = (0, 0);
            }
            rows += own;
            taught += tokens;
        }
        cuts.push(packed.len());
        cuts
    }

    fn part(
        &self,
        examples: &[Example<'_>],
        packed: &[Packed],
        factors: Option<Factors>,
        stop: &dyn Fn() -> bool,
        passed: &mut Passed,
    ) -> Result<(), BridgeError> {
        let taught = self.teachers(examples, stop)?;
        let targets = self.targets(examples, packed, &taught);
        let vectors: Vec<f32> = packed.iter().flat_map(|packed| &packed.vectors).copied().collect();
        let sequences: Vec<Sequence> = packed.iter().map(|packed| self.sequence(packed)).collect();
        let batch = Batch {
            vectors: &vectors,
            sequences: &sequences,
            targets: &targets,
        };
        let (loss, gradient) = stopped(match factors {
            None => self
                .decoder
                .losses(self.pool, &batch, stop)
                .map(|loss| (loss, Vec::new())),
            Some(Factors { nll, kl }) => self.decoder.gradient(self.pool, &batch, [nll, kl], stop),
        })?;
        let (mut nats, mut divergence, mut first) = (loss.nats.as_slice(), loss.divergence.as_slice(), 0);
        let bits = |nats: &[f32]| {
            let sum: f64 = nats.iter().map(|nats| f64::from(*nats)).sum();
            sum / nats.len().max(1) as f64 / std::f64::consts::LN_2
        };
        let mut targets = targets.iter();
        for (example, packed) in examples.iter().zip(packed) {
            let (own, rest) = nats.split_at(example.text.len());
            nats = rest;
            passed.bits.push(bits(own));
            let (own, rest) = divergence.split_at(example.text.len());
            divergence = rest;
            passed.divergence.push(bits(own));
            let own = targets.by_ref().take(example.text.len());
            let of_teacher: Vec<f32> = own
                .filter_map(|target| Some(-target.teacher?.get(target.id as usize)?))
                .collect();
            passed.taught.push(bits(&of_teacher));
            passed.gradients.push(match (factors, &example.given) {
                (Some(_), Given::Vectors(_)) => gradient[first + packed.place.start..first + packed.place.end].to_vec(),
                _ => Vec::new(),
            });
            first += packed.vectors.len();
        }
        Ok(())
    }

    /// The tokens that examples are measured at, each with what its teacher says, out of `taught`.
    fn targets<'t>(&self, examples: &[Example<'_>], packed: &[Packed], taught: &'t [f32]) -> Vec<Target<'t>> {
        let mut taught = taught.chunks_exact(self.decoder.config().vocabulary);
        let (mut targets, mut rows) = (Vec::new(), 0);
        for (example, packed) in examples.iter().zip(packed) {
            for (number, id) in example.text.iter().enumerate() {
                targets.push(Target {
                    row: rows + packed.last + number,
                    id: *id,
                    teacher: example.teacher.and_then(|_| taught.next()),
                });
            }
            rows += self.sequence(packed).rows;
        }
        targets
    }

    /// What the teachers of some examples say: logarithms of probabilities, a row of the vocabulary for each token of
    /// each text that has a teacher.
    fn teachers(&self, examples: &[Example<'_>], stop: &dyn Fn() -> bool) -> Result<Vec<f32>, BridgeError> {
        let mut packed = Vec::new();
        let mut texts = Vec::new();
        for example in examples {
            if let Some(ids) = example.teacher {
                packed.push(self.pack(&Example {
                    given: Given::Prompt(ids),
                    ..*example
                })?);
                texts.push(example.text);
            }
        }
        let (mut all, mut begin) = (Vec::new(), 0);
        for end in self.cuts(&packed, &vec![0; packed.len()]) {
            let (mut targets, mut rows) = (Vec::new(), 0);
            let part = &packed[begin..end];
            for (packed, text) in part.iter().zip(&texts[begin..end]) {
                let target = |(number, id): (usize, &u32)| Target {
                    row: rows + packed.last + number,
                    id: *id,
                    teacher: None,
                };
                targets.extend(text.iter().enumerate().map(target));
                rows += self.sequence(packed).rows;
            }
            begin = end;
            if targets.is_empty() {
                continue;
            }
            let vectors: Vec<f32> = part.iter().flat_map(|packed| &packed.vectors).copied().collect();
            let sequences: Vec<Sequence> = part.iter().map(|packed| self.sequence(packed)).collect();
            let batch = Batch {
                vectors: &vectors,
                sequences: &sequences,
                targets: &targets,
            };
            all.extend(stopped(self.decoder.log_probabilities(self.pool, &batch, stop))?);
        }
        Ok(all)
    }
}
