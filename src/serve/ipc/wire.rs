//! Messages between backends and worker, and their bytes (`frame`). Requests carry no vectors.

use super::failure::Failure;
pub use super::frame::{BadMessage, frame, unframe, within};
use super::ring::Ring;
use crate::bridge::situate::SituateOptions;
use crate::compute::memory::{collected, copied, reserve, room_for, spare};
use crate::model::calibrate::Calibration;
use crate::model::{Precision, Role};
use crate::text::{Place, Span};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::VecDeque;
use std::ops::{Index, IndexMut};
use std::sync::Arc;

/// Longest message: what would be longer is an error of the item.
pub const MAX_MESSAGE: usize = 512 << 20;
/// Longest request. Clients cut what they send into items far below it.
pub const MAX_REQUEST: usize = 16 << 20;
/// In the place of an item's number: the reply, an error, is to the whole call.
pub const WHOLE_CALL: u64 = u64::MAX;
/// Bytes read from a ring at once.
const READ: usize = 64 << 10;

/// Which queue a request waits in. Before every batch the query lane goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Lane {
    Query,
    Bulk,
}

impl Lane {
    /// Both, in the order in which they are served.
    pub const ALL: [Lane; 2] = [Lane::Query, Lane::Bulk];
}

/// One of something for each lane.
#[derive(Clone, Copy, Debug, Default)]
pub struct PerLane<T>([T; 2]);

impl<T> Index<Lane> for PerLane<T> {
    type Output = T;

    fn index(&self, lane: Lane) -> &T {
        let PerLane([query, bulk]) = self;
        match lane {
            Lane::Query => query,
            Lane::Bulk => bulk,
        }
    }
}

impl<T> IndexMut<Lane> for PerLane<T> {
    fn index_mut(&mut self, lane: Lane) -> &mut T {
        let PerLane([query, bulk]) = self;
        match lane {
            Lane::Query => query,
            Lane::Bulk => bulk,
        }
    }
}

/// One unit of work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Item {
    /// One text, one vector: answered by [`Reply::Vector`].
    Embed { role: Role, text: String },
    /// A piece of a document of at most about 32 kB: answered by [`Reply::Passages`].
    Situate {
        title: Option<String>,
        /// What stands before it in the document.
        place: Place,
        text: String,
        options: SituateOptions,
        /// Chunks that the caller has cut; empty: the worker cuts them.
        chunks: Vec<Span>,
    },
    /// The chunks of such a piece without their vectors: answered by [`Reply::Passages`] with empty vectors.
    Chunks {
        /// What stands before it in the document.
        place: Place,
        text: String,
        chunk_tokens: u32,
    },
    /// Token ids of texts, without special tokens: answered by [`Reply::Tokens`]. `continues`: the first of them was cut
    /// from what is before it.
    Tokens { texts: Vec<String>, continues: bool },
    /// A query's tokens and their last layer's states: answered by [`Reply::States`].
    States { text: String },
    /// The last layer's state of the first token of a query's sequence: answered by [`Reply::States`].
    FirstState { text: String },
    /// The vocabulary weights of a masked language model for a query, the `most` largest (0 for all): answered by
    /// [`Reply::Vocabulary`].
    Vocabulary { text: String, most: u32 },
    /// A query read together with passages, of each `passage_tokens` (0 for all): answered by [`Reply::Vector`].
    Feedback {
        query: String,
        passages: Vec<String>,
        passage_tokens: u32,
    },
    /// Measures the model in every precision of the processor: answered by [`Report::Calibrated`]. `again`: also where
    /// the worker has measured the same files before.
    Calibrate { again: bool },
    /// Loads the model and runs a batch: answered by [`Report::Warmed`].
    Warm,
    /// Drops the model from memory: answered by [`Report::Unloaded`].
    Unload,
}

impl Item {
    /// Bytes of text, which bound what the item costs in memory.
    pub fn bytes(&self) -> usize {
        match self {
            Item::Embed { text, .. } => text.len(),
            Item::Situate { title, place, text, .. } => {
                title.as_ref().map_or(0, String::len) + lengths(&place.headings) + text.len()
            }
            Item::Chunks { place, text, .. } => lengths(&place.headings) + text.len(),
            Item::States { text } | Item::FirstState { text } | Item::Vocabulary { text, .. } => text.len(),
            Item::Tokens { texts, .. } => lengths(texts),
            Item::Feedback { query, passages, .. } => query.len() + lengths(passages),
            Item::Calibrate { .. } | Item::Warm | Item::Unload => 0,
        }
    }
}

fn lengths(texts: &[String]) -> usize {
    texts.iter().map(String::len).sum()
}

/// Which weights an item needs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ModelKey {
    /// `situ.model_dir` of the sender.
    pub root: String,
    /// Directory below it.
    pub path: String,
    /// Content hash that the files must have.
    pub fingerprint: String,
    /// Numeric precision on the CPU.
    pub precision: Precision,
}

/// An item on its way to the worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Which owner of the slot sent it: tells messages of one owner from those of the next.
    pub generation: u64,
    /// The sender's number for the item.
    pub number: u64,
    pub lane: Lane,
    pub model: ModelKey,
    pub item: Item,
}

/// A chunk of a piece of text.
#[derive(Clone, Debug, PartialEq)]
pub struct Passage {
    /// Bytes of the item's text.
    pub span: Span,
    pub tokens: u32,
    /// Empty for [`Item::Chunks`].
    pub vector: Vec<f32>,
}

/// What came of a request that is not about texts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Report {
    Calibrated(Calibration),
    Warmed {
        /// From the arrival of the request to the end of its batch, loading included.
        seconds: f64,
        /// Of the weights.
        bytes: u64,
        precision: Precision,
        tokens_per_second: f64,
    },
    Unloaded {
        models: u64,
        bytes: u64,
    },
}

/// The answer to an item.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Vector(Vec<f32>),
    Passages(Vec<Passage>),
    /// Ids of each text.
    Tokens(Vec<Vec<u32>>),
    /// Ids, and a row of numbers for each.
    States {
        ids: Vec<u32>,
        values: Vec<f32>,
    },
    /// Ids, ascending, and their weights.
    Vocabulary(Vec<(u32, f32)>),
    Report(Report),
    Failed(Failure),
}

#[derive(Serialize, Deserialize)]
enum ReplyHeader<'a> {
    Vector,
    Passages {
        dimensions: u32,
        passages: Vec<(Span, u32)>,
    },
    Tokens(Cow<'a, [Vec<u32>]>),
    States {
        ids: Cow<'a, [u32]>,
    },
    Vocabulary {
        ids: Vec<u32>,
    },
    Report(Report),
    Failed(Failure),
}

/// The bytes of a request.
pub fn encode_request(request: &Request) -> Result<Vec<u8>, BadMessage> {
    within(frame(request, &[])?, MAX_REQUEST)
}

/// A request from a message without its length word.
pub fn decode_request(message: &[u8]) -> Result<Request, BadMessage> {
    Ok(unframe(message)?.0)
}

/// The bytes of a reply to item `number`.
pub fn encode_reply(number: u64, reply: &Reply) -> Result<Vec<u8>, BadMessage> {
    match reply {
        Reply::Vector(vector) => frame(&(number, ReplyHeader::Vector), &[vector]),
        Reply::Tokens(tokens) => frame(&(number, ReplyHeader::Tokens(tokens.into())), &[]),
        Reply::States { ids, values } => frame(&(number, ReplyHeader::States { ids: ids.into() }), &[values]),
        Reply::Vocabulary(weights) => {
            let (ids, values): (Vec<u32>, Vec<f32>) = weights.iter().copied().unzip();
            frame(&(number, ReplyHeader::Vocabulary { ids }), &[&values])
        }
        Reply::Failed(failure) => frame(&(number, ReplyHeader::Failed(failure.clone())), &[]),
        Reply::Report(report) => frame(&(number, ReplyHeader::Report(report.clone())), &[]),
        Reply::Passages(passages) => {
            let dimensions = passages.first().map_or(0, |passage| passage.vector.len());
            if passages.iter().any(|passage| passage.vector.len() != dimensions) {
                return Err(BadMessage::Malformed(
                    "passages with vectors of different lengths".to_owned(),
                ));
            }
            let header = ReplyHeader::Passages {
                dimensions: dimensions as u32,
                passages: passages.iter().map(|passage| (passage.span, passage.tokens)).collect(),
            };
            let vectors: Vec<&[f32]> = passages.iter().map(|passage| passage.vector.as_slice()).collect();
            frame(&(number, header), &vectors)
        }
    }
}

/// Item number and reply from a message without its length word.
pub fn decode_reply(message: &[u8]) -> Result<(u64, Reply), BadMessage> {
    let ((number, header), numbers): ((u64, ReplyHeader<'static>), Vec<f32>) = unframe(message)?;
    let reply = match header {
        ReplyHeader::Vector => Reply::Vector(numbers),
        ReplyHeader::Tokens(tokens) => Reply::Tokens(tokens.into_owned()),
        ReplyHeader::States { ids }
            if ids.is_empty() != numbers.is_empty() || numbers.len() % ids.len().max(1) != 0 =>
        {
            return Err(BadMessage::Malformed(
                "the states of a reply do not fit its tokens".to_owned(),
            ));
        }
        ReplyHeader::States { ids } => Reply::States {
            ids: ids.into_owned(),
            values: numbers,
        },
        ReplyHeader::Vocabulary { ids } if ids.len() != numbers.len() => {
            return Err(BadMessage::Malformed(
                "the weights of a reply do not fit its tokens".to_owned(),
            ));
        }
        ReplyHeader::Vocabulary { ids } => Reply::Vocabulary(collected(ids.into_iter().zip(numbers))?),
        ReplyHeader::Failed(failure) => Reply::Failed(failure),
        ReplyHeader::Report(report) => Reply::Report(report),
        ReplyHeader::Passages { dimensions, passages } => {
            let dimensions = dimensions as usize;
            if numbers.len() != dimensions * passages.len() {
                return Err(BadMessage::Malformed(
                    "the vectors of a reply do not fit its passages".to_owned(),
                ));
            }
            room_for(numbers.len() * size_of::<f32>())?;
            Reply::Passages(
                passages
                    .into_iter()
                    .enumerate()
                    .map(|(i, (span, tokens))| Passage {
                        span,
                        tokens,
                        vector: numbers[i * dimensions..(i + 1) * dimensions].to_vec(),
                    })
                    .collect(),
            )
        }
    };
    Ok((number, reply))
}

/// Puts messages together from the bytes of a ring.
#[derive(Default)]
pub struct Assembler {
    bytes: Vec<u8>,
    /// Bytes at the front that were given out already.
    taken: usize,
}

impl Assembler {
    /// The next complete message without its length word, `None` until more bytes come.
    /// Sets `moved` when bytes were taken from the ring.
    pub fn take(&mut self, ring: &Ring<'_>, moved: &mut bool) -> Result<Option<Vec<u8>>, BadMessage> {
        self.take_up_to(ring, MAX_MESSAGE, moved)
    }

    /// [`Assembler::take`] where messages have at most `most` bytes.
    pub fn take_up_to(
        &mut self,
        ring: &Ring<'_>,
        most: usize,
        moved: &mut bool,
    ) -> Result<Option<Vec<u8>>, BadMessage> {
        loop {
            let have = &self.bytes[self.taken..];
            let wanted = match have.first_chunk::<4>() {
                None => 4,
                Some(length) => {
                    let length = u32::from_le_bytes(*length) as usize;
                    if length > most {
                        return Err(BadMessage::Malformed(format!("a message claims {length} bytes")));
                    }
                    if let Some(message) = have.get(4..4 + length) {
                        // For what is made of it.
                        spare()?;
                        let message = copied(message)?;
                        self.taken += 4 + length;
                        return Ok(Some(message));
                    }
                    4 + length
                }
            };
            if self.taken > 0 {
                self.bytes.drain(..self.taken);
                self.taken = 0;
            }
            if self.bytes.is_empty() && self.bytes.capacity() > 4 * READ {
                self.bytes = Vec::new();
            }
            let missing = wanted - self.bytes.len();
            let count = READ.max(missing).min(ring.waiting());
            if count == 0 {
                return Ok(None);
            }
            // For all that is missing, before it comes: a message that has no room here is not waited for.
            reserve(&mut self.bytes, missing.max(count))?;
            ring.read(&mut self.bytes, count);
            *moved = true;
        }
    }

    /// Forgets what was read.
    pub fn clear(&mut self) {
        *self = Assembler::default();
    }
}

/// Messages on their way into a ring, without waiting for it.
#[derive(Default)]
pub struct Outgoing {
    messages: VecDeque<Arc<Vec<u8>>>,
    /// Bytes of the first message that went already.
    sent: usize,
    bytes: usize,
}

impl Outgoing {
    pub fn push(&mut self, message: impl Into<Arc<Vec<u8>>>) {
        let message = message.into();
        self.bytes += message.len();
        self.messages.push_back(message);
    }

    /// Bytes of the messages that have not gone completely.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Writes what fits; true where something went.
    pub fn flush(&mut self, ring: &Ring<'_>) -> bool {
        let mut moved = false;
        while let Some(message) = self.messages.front() {
            let count = ring.write(message.get(self.sent..).unwrap_or_default());
            moved |= count > 0;
            self.sent += count;
            if self.sent < message.len() {
                break;
            }
            self.bytes -= message.len();
            self.sent = 0;
            self.messages.pop_front();
        }
        moved
    }

    /// Forgets what has not gone.
    pub fn clear(&mut self) {
        *self = Outgoing::default();
    }
}

#[cfg(test)]
mod tests {
    use super::super::failure::Kind;
    use super::super::ring::Positions;
    use super::*;
    use crate::compute::memory::scarce::at_most;

    fn passage(start: u32, vector: Vec<f32>) -> Passage {
        let span = Span { start, end: start + 3 };
        Passage {
            span,
            tokens: 7,
            vector,
        }
    }

    #[test]
    fn replies_survive_the_wire() {
        let replies = [
            Reply::Vector(vec![1.5, -0.0, f32::MIN_POSITIVE]),
            Reply::Passages(vec![passage(0, vec![1.0, 2.0]), passage(9, vec![3.0, 4.0])]),
            Reply::Passages(vec![passage(4, Vec::new())]),
            Reply::Passages(Vec::new()),
            Reply::Tokens(vec![vec![1, 70_000], Vec::new()]),
            Reply::States {
                ids: vec![5, 5],
                values: vec![1.0, 2.0, 3.0, 4.0],
            },
            Reply::States {
                ids: Vec::new(),
                values: Vec::new(),
            },
            Reply::Vocabulary(vec![(2, 0.5), (9, 1.5)]),
            Reply::Report(Report::Unloaded {
                models: 2,
                bytes: 1 << 40,
            }),
            Reply::Failed(Failure::new(Kind::Changed, "no").hint("yes")),
        ];
        for reply in replies {
            let bytes = encode_reply(77, &reply).expect("encodes");
            assert_eq!(decode_reply(&bytes[4..]).expect("decodes"), (77, reply));
        }
    }

    #[test]
    fn damaged_messages_are_errors() {
        let bytes = encode_reply(1, &Reply::Passages(vec![passage(0, vec![1.0, 2.0])])).expect("encodes");
        for length in 4..bytes.len() {
            assert!(decode_reply(&bytes[4..length]).is_err(), "{length}");
        }
        let states = Reply::States {
            ids: vec![1, 2],
            values: vec![1.0; 3],
        };
        assert!(decode_reply(&encode_reply(1, &states).expect("encodes")[4..]).is_err());
        let uneven = Reply::Passages(vec![passage(0, vec![1.0]), passage(1, vec![1.0, 2.0])]);
        assert!(encode_reply(1, &uneven).is_err());
    }

    #[test]
    fn long_messages_stream_through_a_short_ring() {
        let positions = Positions::default();
        let mut memory = [0u8; 256];
        // SAFETY: both outlive the ring; one end writes and one reads.
        let ring = unsafe { Ring::new(&positions, memory.as_mut_ptr(), 256) };
        let mut outgoing = Outgoing::default();
        let replies: Vec<Reply> = (0..5).map(|i| Reply::Vector(vec![i as f32; 300 * i])).collect();
        for (i, reply) in replies.iter().enumerate() {
            outgoing.push(encode_reply(i as u64, reply).expect("encodes"));
        }
        let mut assembler = Assembler::default();
        let mut got = Vec::new();
        while got.len() < replies.len() {
            outgoing.flush(&ring);
            let mut moved = false;
            while let Some(message) = assembler.take(&ring, &mut moved).expect("well-formed") {
                got.push(decode_reply(&message).expect("decodes"));
            }
            assert!(moved, "the stream stands still");
        }
        assert_eq!(outgoing.bytes(), 0);
        assert!(
            got.into_iter()
                .enumerate()
                .all(|(i, (number, reply))| number == i as u64 && reply == replies[i])
        );
    }

    #[test]
    fn a_message_that_finds_no_memory_is_an_error() {
        const MOST: usize = 1 << 20;
        let memory = |result: Result<(), BadMessage>| matches!(result, Err(BadMessage::Memory { .. }));
        let text = |length: usize| Request {
            generation: 1,
            number: 0,
            lane: Lane::Bulk,
            model: ModelKey {
                root: "/models".to_owned(),
                path: "one".to_owned(),
                fingerprint: "f".to_owned(),
                precision: Precision::F32,
            },
            item: Item::States {
                text: "x".repeat(length),
            },
        };
        let (short, long) = (text(1000), text(2 * MOST));
        assert!(at_most(MOST, || encode_request(&short)).is_ok());
        assert!(memory(at_most(MOST, || encode_request(&long)).map(drop)));
        let bytes = encode_request(&long).expect("encodes");
        assert!(memory(at_most(MOST, || decode_request(&bytes[4..])).map(drop)));
        let reply = Reply::Vector(vec![1.0; MOST]);
        assert!(memory(at_most(MOST, || encode_reply(1, &reply)).map(drop)));
        let bytes = encode_reply(1, &reply).expect("encodes");
        assert!(memory(at_most(MOST, || decode_reply(&bytes[4..])).map(drop)));
        let tokens = Reply::Tokens(vec![vec![70_000; MOST / 4]]);
        let bytes = encode_reply(1, &tokens).expect("encodes");
        assert!(memory(at_most(MOST, || decode_reply(&bytes[4..])).map(drop)));
    }

    #[test]
    fn a_length_that_finds_no_memory_is_an_error_before_the_message_comes() {
        let positions = Positions::default();
        let mut memory = [0u8; 64];
        // SAFETY: as above.
        let ring = unsafe { Ring::new(&positions, memory.as_mut_ptr(), 64) };
        ring.write(&(MAX_MESSAGE as u32).to_le_bytes());
        let mut assembler = Assembler::default();
        ring.write(&[0; 8]);
        let taken = at_most(1 << 20, || {
            let first = assembler.take(&ring, &mut false);
            ring.write(&[0; 8]);
            first.and_then(|_| assembler.take(&ring, &mut false))
        });
        assert!(matches!(taken, Err(BadMessage::Memory { .. })), "{taken:?}");
        // The next owner of the slot begins anew.
        assembler.clear();
        ring.reset();
        ring.write(&4u32.to_le_bytes());
        ring.write(b"next");
        let next = assembler.take(&ring, &mut false).expect("well-formed");
        assert_eq!(next.as_deref(), Some(&b"next"[..]));
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused() {
        let positions = Positions::default();
        let mut memory = [0u8; 64];
        // SAFETY: as above.
        let ring = unsafe { Ring::new(&positions, memory.as_mut_ptr(), 64) };
        ring.write(&u32::MAX.to_le_bytes());
        assert!(Assembler::default().take(&ring, &mut false).is_err());
    }
}
