//! A language model in memory: files, tokenizer, template, weights.

use super::cache::Cache;
use super::chat::{Chat, Message};
use super::config::LlmConfig;
use super::files::LlmFiles;
use super::hooks::Hooks;
use super::matrix::Packing;
use super::network::Network;
use super::pass::Rows;
use super::piece::Piece;
use super::sample::log_softmax;
use super::tokenizer::LlmTokenizer;
use crate::compute::cpu::{Level, has_bf16};
use crate::compute::memory::{reserve, room_for, zeros};
use crate::compute::{Buffer, Pool, Precision};
use crate::model::ModelError;
use std::path::Path;
use std::sync::Arc;

/// Rows of a prompt that run at once.
pub const PREFILL_ROWS: usize = 256;

/// A prompt as tokens and vectors.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    pub(super) inputs: Vec<Input>,
}

/// What stands at a position.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Input {
    Token(u32),
    Vector(Vec<f32>),
}

impl Prompt {
    /// Positions.
    pub fn len(&self) -> usize {
        self.inputs.len()
    }

    pub fn is_empty(&self) -> bool {
        self.inputs.is_empty()
    }

    /// A prompt of these tokens.
    pub fn of_ids(ids: &[u32]) -> Prompt {
        let inputs = ids.iter().copied().map(Input::Token).collect();
        Prompt { inputs }
    }

    /// Ids of the tokens, without the vectors.
    pub fn ids(&self) -> Vec<u32> {
        let id = |input: &Input| match input {
            Input::Token(id) => Some(*id),
            Input::Vector(_) => None,
        };
        self.inputs.iter().filter_map(id).collect()
    }
}

/// A loaded language model. Immutable: shared between threads freely.
pub struct Llm {
    network: Network,
    tokenizer: Arc<LlmTokenizer>,
    chat: Option<Chat>,
    fingerprint: String,
}

impl Llm {
    /// Loads a GGUF file, a directory with one, or a directory of safetensors. Weights that are not in blocks are
    /// multiplied in bf16 where the processor has it.
    pub fn open(path: &Path) -> Result<Llm, ModelError> {
        let precision = if has_bf16() { Precision::Bf16 } else { Precision::F32 };
        Llm::open_with(
            path,
            Packing {
                level: Level::detect(),
                precision,
                unpack: false,
            },
        )
    }

    /// [`Llm::open`] with weights packed in a given way.
    pub fn open_with(path: &Path, packing: Packing) -> Result<Llm, ModelError> {
        let files = LlmFiles::open(path)?;
        let tokenizer = Arc::new(LlmTokenizer::open(&files)?);
        let chat = Chat::open(&files, tokenizer.clone())?;
        let network = Network::load(&files, packing)?;
        files.unchanged()?;
        Ok(Llm {
            network,
            tokenizer,
            chat,
            fingerprint: files.fingerprint().to_owned(),
        })
    }

    pub fn config(&self) -> &LlmConfig {
        self.network.config()
    }

    pub fn tokenizer(&self) -> &LlmTokenizer {
        &self.tokenizer
    }

    /// The model's own chat template, where its files have one.
    pub fn chat(&self) -> Option<&Chat> {
        self.chat.as_ref()
    }

    /// Content hash of the files.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Bytes of the weights.
    pub fn memory(&self) -> usize {
        self.network.memory()
    }

    /// The turns in the model's chat template, with the beginning of an answer behind them. A model without a template
    /// gets the contents one after another.
    pub fn render(&self, turns: &[Message]) -> Result<Vec<Piece>, ModelError> {
        match &self.chat {
            Some(chat) => chat.render(turns, true),
            None => Ok(turns.iter().flat_map(|turn| turn.pieces.clone()).collect()),
        }
    }

    /// The prompt of pieces. The beginning of a text is put before them where the model wants it and they do not have it.
    ///
    /// # Errors
    /// [`ModelError::Sequence`] for an empty prompt, one longer than the model's positions, an id outside the vocabulary
    /// or a vector of another length.
    pub fn prompt(&self, pieces: &[Piece]) -> Result<Prompt, ModelError> {
        let config = self.config();
        let bad = |what: String| ModelError::Sequence { index: 0, what };
        let mut inputs = Vec::new();
        for piece in pieces {
            match piece {
                // What is too long for the model is not read to its end.
                Piece::Text(text) => {
                    let enough = (config.positions + 1).saturating_sub(inputs.len());
                    let ids = self.tokenizer.encode_up_to(text, enough)?;
                    reserve(&mut inputs, ids.len())?;
                    inputs.extend(ids.into_iter().map(Input::Token));
                }
                Piece::Tokens(ids) => {
                    reserve(&mut inputs, ids.len())?;
                    inputs.extend(ids.iter().copied().map(Input::Token));
                }
                Piece::Vectors(vectors) => {
                    if let Some(vector) = vectors.iter().find(|vector| vector.len() != config.hidden) {
                        return Err(bad(format!(
                            "a vector of {} numbers, the model has {}",
                            vector.len(),
                            config.hidden
                        )));
                    }
                    reserve(&mut inputs, vectors.len())?;
                    room_for(vectors.len() * config.hidden * size_of::<f32>())?;
                    inputs.extend(vectors.iter().cloned().map(Input::Vector));
                }
            }
        }
        if let Some(bos) = config
            .bos
            .filter(|bos| config.add_bos && inputs.first() != Some(&Input::Token(*bos)))
        {
            inputs.insert(0, Input::Token(bos));
        }
        let outside = |input: &&Input| matches!(input, Input::Token(id) if *id as usize >= config.vocabulary);
        if let Some(Input::Token(id)) = inputs.iter().find(outside) {
            return Err(bad(format!(
                "id {id} is outside the vocabulary of {}",
                config.vocabulary
            )));
        }
        match inputs.len() {
            0 => Err(bad("the prompt is empty".to_owned())),
            length if length > config.positions => Err(bad(format!(
                "{length} tokens or more, the model reads at most {}",
                config.positions
            ))),
            _ => Ok(Prompt { inputs }),
        }
    }

    /// The input vectors of a prompt, row by row.
    pub fn embeds(&self, prompt: &Prompt) -> Result<Vec<f32>, ModelError> {
        let hidden = self.config().hidden;
        let mut vectors = zeros::<f32>(prompt.len().saturating_mul(hidden))?;
        for (input, out) in prompt.inputs.iter().zip(vectors.chunks_exact_mut(hidden)) {
            self.input(input, out)?;
        }
        Ok(vectors)
    }

    pub(super) fn input(&self, input: &Input, out: &mut [f32]) -> Result<(), ModelError> {
        match input {
            Input::Token(id) => self.network.embed(*id, out)?,
            Input::Vector(vector) => out.copy_from_slice(vector),
        }
        Ok(())
    }

    pub(super) fn network(&self) -> &Network {
        &self.network
    }

    /// Runs a prompt behind what `cache` holds, seen and changed by `hooks`: the logits of its last `wanted` positions.
    ///
    /// # Errors
    /// [`ModelError::Stopped`] where `stop` says so; the cache then is as before.
    pub fn read(
        &self,
        pool: &Pool,
        prompt: &Prompt,
        cache: &mut Cache,
        wanted: usize,
        hooks: &mut Hooks<'_>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Buffer<f32>, ModelError> {
        let mut vectors = self.embeds(prompt)?;
        let before = cache.len();
        let count = prompt.len();
        let wanted: Vec<usize> = (count.saturating_sub(wanted)..count).collect();
        let rows = Rows {
            vectors: &mut vectors,
            counts: &[count],
            wanted: &wanted,
        };
        let result = self.network.forward(pool, rows, &mut [&mut *cache], hooks, stop);
        if result.is_err() {
            cache.truncate(before);
        }
        Ok(result?)
    }

    /// The logarithm of the probability of each token of an answer behind a prompt.
    ///
    /// # Errors
    /// As [`Llm::prompt`] and [`Llm::read`].
    pub fn score(&self, pool: &Pool, prompt: &Prompt, answer: &[u32]) -> Result<Vec<f32>, ModelError> {
        let Some((_, but_last)) = answer.split_last() else {
            return Ok(Vec::new());
        };
        let mut whole = prompt.clone();
        whole.inputs.extend(but_last.iter().copied().map(Input::Token));
        let mut cache = Cache::new(self.config());
        let logits = self.read(pool, &whole, &mut cache, answer.len(), &mut Hooks::default(), &|| false)?;
        let rows = logits.chunks_exact(self.config().vocabulary).zip(answer);
        let probability = |(row, id): (&[f32], &u32)| log_softmax(row).get(*id as usize).copied();
        Ok(rows
            .map(|pair| probability(pair).unwrap_or(f32::NEG_INFINITY))
            .collect())
    }
}

/// What the files of a language model say, without its weights.
pub struct Description {
    pub config: LlmConfig,
    pub fingerprint: String,
}

/// Reads what the files at `path` say, and checks that its tokenizer can be read and that its chat template answers a user.
pub fn describe(path: &Path) -> Result<Description, ModelError> {
    let files = LlmFiles::open(path)?;
    let tokenizer = Arc::new(LlmTokenizer::open(&files)?);
    if let Some(chat) = Chat::open(&files, tokenizer)? {
        chat.check()?;
    }
    Ok(Description {
        config: files.config().clone(),
        fingerprint: files.fingerprint().to_owned(),
    })
}
