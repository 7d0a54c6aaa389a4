//! A loaded model: text in, vectors out.

use super::cuda::OnGpu;
use super::directory::content;
use super::embedding_head::EmbeddingHead;
use super::files::{read_bytes, states};
use super::mlm::Head;
use super::network::Network;
use super::sequence::{Read, Role, Sequence};
use super::situated::{self, Form, Situated, Template};
use super::tokenizer::Tokenizer;
use super::weights::Weights;
use super::{Device, Manifest, ModelError, Pooling, Precision, Tokens};
use crate::compute::Pool;
use crate::compute::cpu::Level;
use crate::compute::forward::bert::Packed;
use crate::compute::rowwise::pooling;
use parking_lot::Mutex;
use std::ops::Range;
use std::path::Path;

/// A loaded model. Immutable: shared between threads freely.
pub struct Encoder {
    pub(super) manifest: Manifest,
    precision: Precision,
    pub(super) tokenizer: Tokenizer,
    query_prefix: Vec<u32>,
    passage_prefix: Vec<u32>,
    place: Place,
    /// What a model that reads chunks in their context has besides, and the second encoder of a model of two.
    situated: Option<Situated>,
    second: Option<Box<Encoder>>,
    /// The head of a masked language model, where the weights have one.
    head: Option<Head>,
    /// The head behind the pooling, where the weights have one.
    embedding_head: Option<EmbeddingHead>,
}

/// Loads a model's weights to where they are to be.
type Placing<'a> = &'a dyn Fn(&Manifest, &Weights) -> Result<Place, ModelError>;

/// Where the weights are.
pub(super) enum Place {
    Cpu(Box<Network>),
    Gpu(Box<OnGpu>),
}

impl Encoder {
    /// Loads a model directory in f32. The weights are copied: the files may change afterwards.
    pub fn open(dir: &Path) -> Result<Encoder, ModelError> {
        Encoder::open_with(dir, Precision::F32)
    }

    /// Loads a model directory for kernels of the given precision; fails where the processor lacks the instructions.
    pub fn open_with(dir: &Path, precision: Precision) -> Result<Encoder, ModelError> {
        Encoder::open_at(dir, precision, Level::detect())
    }

    /// Like [`Encoder::open_with`] with instructions of at most `level`.
    pub fn open_at(dir: &Path, precision: Precision, level: Level) -> Result<Encoder, ModelError> {
        Encoder::load(dir, precision, &|manifest, weights| {
            Ok(Place::Cpu(Box::new(Network::load(
                manifest, weights, level, precision,
            )?)))
        })
    }

    /// Loads a model directory for a device. On a GPU everything is computed in bf16 with f32 sums, whatever `precision`
    /// says; `cache` is a directory in which its compiled kernels are kept. Never called in a postmaster.
    pub fn open_on(
        dir: &Path,
        device: Device,
        precision: Precision,
        cache: Option<&Path>,
    ) -> Result<Encoder, ModelError> {
        match device {
            Device::Cpu => Encoder::open_with(dir, precision),
            Device::Cuda(ordinal) => Encoder::load(dir, Precision::Bf16, &|manifest, weights| {
                Ok(Place::Gpu(Box::new(OnGpu::load(manifest, weights, ordinal, cache)?)))
            }),
        }
    }

    pub(super) fn load(dir: &Path, precision: Precision, place: Placing) -> Result<Encoder, ModelError> {
        if !dir.is_dir() {
            return Err(ModelError::NotADirectory(dir.to_path_buf()));
        }
        let paths = content(dir)?;
        let before = states(&paths)?;
        let manifest = Manifest::read(dir)?;
        let tokenizer = Tokenizer::open(dir, &manifest)?;
        let situated = Situated::load(dir, &manifest, &tokenizer)?;
        let second = match &situated {
            Some(situated) if situated.template.form == Form::Sum => {
                Some(Box::new(Encoder::load_second(dir, precision, &manifest, place)?))
            }
            _ => None,
        };
        let weights = Weights::open(dir)?;
        let place = place(&manifest, &weights)?;
        let head = Head::load(&manifest, &weights, Level::detect())?;
        let embedding_head = EmbeddingHead::load(&manifest, &weights, Level::detect())?;
        // Fingerprint, tokenizer and weights were read one after the other: they must be of the same content.
        if content(dir)? != paths || states(&paths)? != before {
            return Err(ModelError::Changed(dir.to_path_buf()));
        }
        let query_prefix = tokenizer.prefix(&manifest.query_prefix)?;
        let passage_prefix = tokenizer.prefix(&manifest.passage_prefix)?;
        let (first, last) = tokenizer.around();
        let around = first.len() + last.len() + query_prefix.len().max(passage_prefix.len());
        if around >= manifest.max_tokens {
            let what = format!(
                "{around} tokens around a text leave none of the {} for it",
                manifest.max_tokens
            );
            return Err(ModelError::Tokenizer(what));
        }
        Ok(Encoder {
            manifest,
            precision,
            tokenizer,
            query_prefix,
            passage_prefix,
            place,
            situated,
            second,
            head,
            embedding_head,
        })
    }

    /// The second encoder of a model of two, which has to fit the first.
    fn load_second(
        dir: &Path,
        precision: Precision,
        manifest: &Manifest,
        place: Placing,
    ) -> Result<Encoder, ModelError> {
        let inner = situated::folder(dir);
        let second = Encoder::load(&inner, precision, place)?;
        let own = read_bytes(&dir.join("tokenizer.json"))?;
        let other = read_bytes(&inner.join("tokenizer.json"))?;
        if second.situated.is_some() || second.manifest.hidden != manifest.hidden || own != other {
            let what = "its two encoders differ in their tokenizers or the length of their vectors";
            return Err(situated::unfit(dir, what.to_string()));
        }
        Ok(second)
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Bytes of memory that the weights take; the tokenizer is not counted.
    pub fn memory(&self) -> usize {
        let head = self.head.as_ref().map_or(0, Head::memory);
        let behind = self.embedding_head.as_ref().map_or(0, EmbeddingHead::memory);
        let own = head
            + behind
            + match &self.place {
                Place::Cpu(network) => network.memory(),
                Place::Gpu(gpu) => gpu.memory(),
            };
        own + self.second().map_or(0, Encoder::memory)
    }

    /// A logit for each entry of the vocabulary, from the last layer's state of one token ([`Read::States`]); `None` where
    /// the model has no such head. Computed on the processor, wherever the model is.
    ///
    /// # Errors
    /// [`ModelError::Compute`] for a state of another length.
    pub fn vocabulary_logits(&self, pool: &Pool, state: &[f32]) -> Result<Option<Vec<f32>>, ModelError> {
        self.head.as_ref().map(|head| head.logits(pool, state)).transpose()
    }

    /// Ids and spans of a text: no special tokens, no limit. Text that looks like a special token is plain text.
    pub fn tokenize(&self, text: &str) -> Result<Tokens, ModelError> {
        self.tokenizer.tokens(text, usize::MAX)
    }

    /// [`Encoder::tokenize`] as far as there are `enough` tokens; it may give more.
    pub fn tokenize_up_to(&self, text: &str, enough: usize) -> Result<Tokens, ModelError> {
        self.tokenizer.tokens(text, enough)
    }

    /// [`Encoder::tokenize`] of a part of a text that was cut from what is before it.
    pub fn tokenize_behind(&self, text: &str) -> Result<Tokens, ModelError> {
        self.tokenizer.tokens_behind(text, true, usize::MAX)
    }

    /// The sequence of a text: special tokens and the role's prefix around it, cut at the model's limit.
    ///
    /// A query is tokenised together with its prefix, as sentence-transformers does: where a prefix ends without white
    /// space, a token may reach over the border. A passage's tokens are those of the passage alone, as in an index.
    pub fn text(&self, role: Role, text: &str) -> Result<Sequence, ModelError> {
        if role == Role::Query && !self.manifest.query_prefix.is_empty() {
            let whole = format!("{}{text}", self.manifest.query_prefix);
            let ids = self.tokenizer.tokens(&whole, self.manifest.max_tokens)?.ids;
            return Ok(self.assemble(Role::Plain, &ids)?.0);
        }
        let ids = self.tokenizer.tokens(text, self.manifest.max_tokens)?.ids;
        Ok(self.assemble(role, &ids)?.0)
    }

    /// The sequence of token ids that are put together from pieces: special tokens and the role's prefix around `ids`,
    /// cut at the model's limit; with it, the position of `ids[0]` in the sequence. What is read out is the pooled
    /// vector; callers may replace it.
    pub fn assemble(&self, role: Role, ids: &[u32]) -> Result<(Sequence, usize), ModelError> {
        let (first, last) = self.tokenizer.around();
        let prefix = self.prefix(role);
        let start = first.len() + prefix.len();
        let mut all = Vec::with_capacity(start + ids.len() + last.len());
        all.extend(first);
        all.extend(prefix);
        all.extend(ids);
        all.truncate(self.manifest.max_tokens.saturating_sub(last.len()));
        all.extend(last);
        Ok((
            Sequence {
                ids: all,
                read: match self.second() {
                    Some(_) => Read::Sum,
                    None => Read::Pooled,
                },
            },
            start,
        ))
    }

    /// Tokens that [`Encoder::assemble`] leaves for a text of that role: the model's limit without special tokens and
    /// prefix.
    pub fn room(&self, role: Role) -> usize {
        let (first, last) = self.tokenizer.around();
        self.manifest
            .max_tokens
            .saturating_sub(first.len() + self.prefix(role).len() + last.len())
    }

    fn prefix(&self, role: Role) -> &[u32] {
        match role {
            Role::Query => &self.query_prefix,
            Role::Passage => &self.passage_prefix,
            Role::Plain => &[],
        }
    }

    /// How the model reads a chunk together with its context, where it was trained to.
    pub fn situated(&self) -> Option<&Template> {
        self.situated.as_ref().map(|situated| &situated.template)
    }

    /// The sequence of a chunk in its context, from their ids: `CHUNK separator instruction CONTEXT end`, the context cut
    /// at its tail where the model's limit is reached, never the chunk; without a context where not even the
    /// separator and the instruction fit. Of [`Form::Mix`] it gives two vectors, the chunk alone and the chunk in its
    /// context; of [`Form::Sum`] the second encoder's. None where the model has no template.
    pub fn in_context(&self, chunk: &[u32], context: &[u32]) -> Option<Sequence> {
        let situated = self.situated.as_ref()?;
        let (first, last) = self.tokenizer.around();
        let before = [first, &self.passage_prefix].concat();
        Some(situated.sequence((&before, last), self.manifest.max_tokens, chunk, context))
    }

    /// The second encoder of a model of two.
    fn second(&self) -> Option<&Encoder> {
        self.second.as_deref()
    }

    /// One vector a read-out, in order. A text's vector is bit-equal alone and in any batch, on any number of threads.
    pub fn encode(&self, pool: &Pool, batch: &[Sequence]) -> Result<Vec<Vec<f32>>, ModelError> {
        self.encode_until(pool, batch, &|| false)
    }

    /// Like [`Encoder::encode`], but asks `stop` every few milliseconds of work and fails with [`ModelError::Stopped`] when it says so.
    pub fn encode_until(
        &self,
        pool: &Pool,
        batch: &[Sequence],
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        for (index, sequence) in batch.iter().enumerate() {
            self.check(sequence)
                .map_err(|what| ModelError::Sequence { index, what })?;
        }
        if let Some(second) = self.second() {
            return self.encode_both(second, pool, batch, stop);
        }
        self.encode_own(pool, batch, stop)
    }

    /// Every sequence through the encoders that it is for.
    fn encode_both(
        &self,
        second: &Encoder,
        pool: &Pool,
        batch: &[Sequence],
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        let own: Vec<Sequence> = batch
            .iter()
            .filter(|s| s.read != Read::Second)
            .map(pooled_or_spans)
            .collect();
        let others = batch.iter().filter(|s| matches!(s.read, Read::Second | Read::Sum));
        let others: Vec<Sequence> = others.map(pooled_or_spans).collect();
        let mut first = self.encode_own(pool, &own, stop)?.into_iter();
        let mut then = second.encode_own(pool, &others, stop)?.into_iter();
        let mut vectors = Vec::with_capacity(batch.iter().map(Sequence::vectors).sum());
        for sequence in batch {
            match &sequence.read {
                Read::Pooled => vectors.extend(first.next()),
                Read::Spans(spans) | Read::States(spans) => vectors.extend(first.by_ref().take(spans.len())),
                Read::Second => vectors.extend(then.next()),
                Read::Sum => {
                    let both = first.next().zip(then.next());
                    vectors.extend(both.map(|(a, b)| a.iter().zip(&b).map(|(a, b)| a + b).collect()));
                }
            }
        }
        Ok(vectors)
    }

    fn encode_own(
        &self,
        pool: &Pool,
        batch: &[Sequence],
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        let mut vectors = match &self.place {
            Place::Cpu(network) => self.encode_parts(network, pool, batch, stop)?,
            Place::Gpu(gpu) => gpu.encode(&self.manifest, batch, stop)?,
        };
        if let Some(head) = &self.embedding_head {
            let reads = batch
                .iter()
                .flat_map(|one| std::iter::repeat_n(&one.read, one.vectors()));
            for (vector, read) in vectors.iter_mut().zip(reads) {
                if *read == Read::Pooled {
                    *vector = head.apply(pool, vector)?;
                }
            }
        }
        match vectors
            .iter()
            .position(|vector| vector.iter().any(|number| !number.is_finite()))
        {
            Some(index) => Err(ModelError::Output { index }),
            None => Ok(vectors),
        }
    }

    fn encode_parts(
        &self,
        network: &Network,
        pool: &Pool,
        batch: &[Sequence],
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        let mut vectors = Vec::with_capacity(batch.iter().map(Sequence::vectors).sum());
        let (most, mut rest) = (network.tokens_at_once(pool.threads()), batch);
        while !rest.is_empty() {
            // Parts of about the same size: a sequence belongs to the part that its middle is in.
            let left: usize = rest.iter().map(|sequence| sequence.ids.len()).sum();
            let size = left.div_ceil(left.div_ceil(most).max(1));
            let mut tokens = 0;
            let fits = |sequence: &&Sequence| {
                let middle = tokens + sequence.ids.len() / 2;
                tokens += sequence.ids.len();
                middle < size
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let (part, others) = rest.split_at(count);
            self.encode_part(network, pool, part, stop, &mut vectors)?;
            rest = others;
        }
        Ok(vectors)
    }

    fn encode_part(
        &self,
        network: &Network,
        pool: &Pool,
        batch: &[Sequence],
        stop: &dyn Fn() -> bool,
        vectors: &mut Vec<Vec<f32>>,
    ) -> Result<(), ModelError> {
        let mut packed = Packed {
            ids: Vec::new(),
            starts: vec![0],
        };
        for sequence in batch {
            packed.ids.extend(&sequence.ids);
            packed.starts.push(packed.ids.len());
        }
        let states = network.forward(pool, &packed, stop)?;
        // A vector is as much reading as a layer's normalisation: all threads take part.
        let read: Vec<Mutex<Vec<Vec<f32>>>> = batch.iter().map(|_| Mutex::default()).collect();
        pool.run(batch.len(), |number| {
            let rows = packed.starts[number]..packed.starts[number + 1];
            let states = states.get(rows.start * self.manifest.hidden..rows.end * self.manifest.hidden);
            *read[number].lock() = self.read(&batch[number].read, states.unwrap_or_default());
        })?;
        vectors.extend(read.into_iter().flat_map(Mutex::into_inner));
        Ok(())
    }

    /// What is read out of a sequence's token states.
    fn read(&self, read: &Read, states: &[f32]) -> Vec<Vec<f32>> {
        let hidden = self.manifest.hidden;
        let rows = |range: Range<usize>| states.get(range.start * hidden..range.end * hidden).unwrap_or_default();
        let tokens = states.len() / hidden;
        match read {
            Read::Pooled | Read::Second | Read::Sum => {
                let mut vector = match self.manifest.pooling {
                    Pooling::Mean => pooling::mean(states, hidden),
                    Pooling::Cls => rows(0..1).to_vec(),
                    Pooling::Max => pooling::max(states, hidden),
                    Pooling::Last => rows(tokens.saturating_sub(1)..tokens).to_vec(),
                };
                if self.manifest.normalize {
                    pooling::normalize(&mut vector);
                }
                vec![vector]
            }
            Read::Spans(spans) | Read::States(spans) => {
                let mean = |span: &Range<u32>| {
                    let mut vector = pooling::mean(rows(span.start as usize..span.end as usize), hidden);
                    if matches!(read, Read::Spans(_)) {
                        pooling::normalize(&mut vector);
                    }
                    vector
                };
                spans.iter().map(mean).collect()
            }
        }
    }

    /// What is wrong with a sequence, if anything.
    fn check(&self, sequence: &Sequence) -> Result<(), String> {
        let length = sequence.ids.len();
        if length == 0 {
            return Err("it is empty".to_string());
        }
        if length > self.manifest.positions {
            return Err(format!(
                "{length} tokens, the model reads at most {}",
                self.manifest.positions
            ));
        }
        if let Some(id) = sequence.ids.iter().find(|id| **id as usize >= self.manifest.vocabulary) {
            return Err(format!(
                "id {id} is outside the vocabulary of {}",
                self.manifest.vocabulary
            ));
        }
        if matches!(sequence.read, Read::Second | Read::Sum) && self.second().is_none() {
            return Err("it is for the second encoder of a model that has one".to_string());
        }
        if let Read::Spans(spans) | Read::States(spans) = &sequence.read
            && let Some(span) = spans
                .iter()
                .find(|span| span.start >= span.end || span.end as usize > length)
        {
            return Err(format!("range {}..{} of {length} tokens", span.start, span.end));
        }
        Ok(())
    }
}

/// The sequence as one of two encoders sees it.
fn pooled_or_spans(sequence: &Sequence) -> Sequence {
    Sequence {
        ids: sequence.ids.clone(),
        read: match &sequence.read {
            Read::Spans(_) | Read::States(_) => sequence.read.clone(),
            _ => Read::Pooled,
        },
    }
}
