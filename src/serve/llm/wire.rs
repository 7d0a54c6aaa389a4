//! Messages between backends and the LLM worker, and their bytes: the frame of the encoder's messages, in which a
//! request's vectors and a reply's numbers follow the header.

use crate::serve::ipc::failure::Failure;
use crate::serve::ipc::wire::{BadMessage, frame, unframe, within};
use serde::{Deserialize, Serialize};

/// Which weights a request needs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LlmKey {
    /// `situ.model_dir` of the sender.
    pub root: String,
    /// File or directory below it.
    pub path: String,
    /// Content hash that the files must have.
    pub fingerprint: String,
}

/// A piece of a prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Part {
    /// Plain text: never a special token.
    Text(String),
    /// The next `rows` vectors of the prompt, each in the place of one token.
    Vectors { rows: u32 },
}

/// What one side of a conversation says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// `system`, `user`.
    pub role: String,
    pub parts: Vec<Part>,
}

/// What an answer goes on from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PromptForm {
    /// Whether the turns are put into the model's chat template; else their parts follow one another.
    pub chat: bool,
    pub turns: Vec<Turn>,
    /// Numbers in a vector.
    pub width: u32,
    /// The vectors of all parts, row by row.
    #[serde(skip)]
    pub values: Vec<f32>,
}

impl PromptForm {
    /// Vectors that the parts name.
    pub fn rows(&self) -> usize {
        let parts = self.turns.iter().flat_map(|turn| &turn.parts);
        let rows = parts.map(|part| match part {
            Part::Vectors { rows } => *rows as usize,
            Part::Text(_) => 0,
        });
        rows.sum()
    }
}

/// How tokens are chosen and when an answer ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    pub max_tokens: u32,
    /// 0: the likeliest token always.
    pub temperature: f32,
    /// Only the likeliest `top_k`, 0 for all.
    pub top_k: u32,
    /// Only the likeliest that together have this probability, 1 for all.
    pub top_p: f32,
    pub seed: u64,
    pub stop: Vec<String>,
}

/// One unit of work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Item {
    /// Answered by [`Reply::Token`]s and [`Reply::Done`].
    Generate { prompt: PromptForm, sampling: Sampling },
    /// The input vectors of a prompt: answered by [`Reply::Embeds`].
    Embeds { prompt: PromptForm },
    /// Loads the model: answered by [`Reply::Warmed`].
    Warm,
    /// Drops the model from memory where it has nothing to do: answered by [`Reply::Unloaded`].
    Unload,
}

/// Longest request: a prompt's texts have at most 4 MB, its vectors some thousand rows.
pub const MAX_REQUEST: usize = 64 << 20;

impl Item {
    /// Bytes of texts and vectors.
    pub fn bytes(&self) -> usize {
        let prompt = |prompt: &PromptForm| {
            let parts = prompt.turns.iter().flat_map(|turn| &turn.parts);
            let texts = parts.map(|part| match part {
                Part::Text(text) => text.len(),
                Part::Vectors { .. } => 0,
            });
            texts.sum::<usize>() + 4 * prompt.values.len()
        };
        self.prompt().map_or(0, prompt)
    }

    fn prompt(&self) -> Option<&PromptForm> {
        match self {
            Item::Generate { prompt, .. } | Item::Embeds { prompt } => Some(prompt),
            Item::Warm | Item::Unload => None,
        }
    }
}

/// An item on its way to the worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Which owner of the slot sent it.
    pub generation: u64,
    /// The sender's number for the item.
    pub number: u64,
    pub model: LlmKey,
    pub item: Item,
}

/// What an answer has cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    pub prompt_tokens: u32,
    pub tokens: u32,
    pub prefill_ms: f64,
    pub decode_ms: f64,
}

/// The answer to an item, or a part of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// A token, and the text that it completes; without one text of earlier tokens that had been held back.
    Token {
        id: Option<u32>,
        text: String,
    },
    Done(Figures),
    /// Rows of `columns` numbers.
    Embeds {
        columns: u32,
        values: Vec<f32>,
    },
    Warmed {
        /// From the arrival of the request, loading included.
        seconds: f64,
        /// Of the weights.
        bytes: u64,
    },
    Unloaded {
        bytes: u64,
    },
    Failed(Failure),
}

impl Reply {
    /// Whether nothing follows it.
    pub fn is_last(&self) -> bool {
        !matches!(self, Reply::Token { .. })
    }
}

#[derive(Serialize, Deserialize)]
enum ReplyHeader {
    Token { id: Option<u32>, text: String },
    Done(Figures),
    Embeds { columns: u32 },
    Warmed { seconds: f64, bytes: u64 },
    Unloaded { bytes: u64 },
    Failed(Failure),
}

/// The bytes of a request.
pub fn encode_request(request: &Request) -> Result<Vec<u8>, BadMessage> {
    let message = match request.item.prompt() {
        Some(prompt) => frame(request, &[&prompt.values]),
        None => frame(request, &[]),
    };
    within(message?, MAX_REQUEST)
}

/// A request from a message without its length word.
pub fn decode_request(message: &[u8]) -> Result<Request, BadMessage> {
    let (mut request, values): (Request, Vec<f32>) = unframe(message)?;
    if let Item::Generate { prompt, .. } | Item::Embeds { prompt } = &mut request.item {
        if Some(values.len()) != prompt.rows().checked_mul(prompt.width as usize) {
            return Err(BadMessage::Malformed(
                "the vectors of a prompt do not fit its parts".to_owned(),
            ));
        }
        prompt.values = values;
    }
    Ok(request)
}

/// The bytes of a reply to item `number`.
pub fn encode_reply(number: u64, reply: &Reply) -> Result<Vec<u8>, BadMessage> {
    let mut numbers: &[f32] = &[];
    let header = match reply {
        Reply::Token { id, text } => ReplyHeader::Token {
            id: *id,
            text: text.clone(),
        },
        Reply::Done(figures) => ReplyHeader::Done(*figures),
        Reply::Embeds { columns, values } => {
            numbers = values;
            ReplyHeader::Embeds { columns: *columns }
        }
        Reply::Warmed { seconds, bytes } => ReplyHeader::Warmed {
            seconds: *seconds,
            bytes: *bytes,
        },
        Reply::Unloaded { bytes } => ReplyHeader::Unloaded { bytes: *bytes },
        Reply::Failed(failure) => ReplyHeader::Failed(failure.clone()),
    };
    frame(&(number, header), &[numbers])
}

/// Item number and reply from a message without its length word.
pub fn decode_reply(message: &[u8]) -> Result<(u64, Reply), BadMessage> {
    let ((number, header), values): ((u64, ReplyHeader), Vec<f32>) = unframe(message)?;
    let reply = match header {
        ReplyHeader::Token { id, text } => Reply::Token { id, text },
        ReplyHeader::Done(figures) => Reply::Done(figures),
        ReplyHeader::Embeds { columns } if columns == 0 || values.len() % columns as usize != 0 => {
            return Err(BadMessage::Malformed(
                "the rows of a reply do not fit its columns".to_owned(),
            ));
        }
        ReplyHeader::Embeds { columns } => Reply::Embeds { columns, values },
        ReplyHeader::Warmed { seconds, bytes } => Reply::Warmed { seconds, bytes },
        ReplyHeader::Unloaded { bytes } => Reply::Unloaded { bytes },
        ReplyHeader::Failed(failure) => Reply::Failed(failure),
    };
    Ok((number, reply))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::ipc::failure::Kind;

    fn request(values: Vec<f32>) -> Request {
        let parts = vec![
            Part::Text("Background: ".to_owned()),
            Part::Vectors { rows: 2 },
            Part::Text("?".to_owned()),
        ];
        Request {
            generation: 3,
            number: 0,
            model: LlmKey {
                root: "/models".to_owned(),
                path: "smol".to_owned(),
                fingerprint: "f".to_owned(),
            },
            item: Item::Embeds {
                prompt: PromptForm {
                    chat: true,
                    turns: vec![Turn {
                        role: "user".to_owned(),
                        parts,
                    }],
                    width: 3,
                    values,
                },
            },
        }
    }

    #[test]
    fn requests_survive_the_wire_with_their_vectors() {
        let sent = request((0..6).map(|i| i as f32 / 3.0).collect());
        let bytes = encode_request(&sent).expect("encodes");
        assert_eq!(decode_request(&bytes[4..]).expect("decodes"), sent);
    }

    #[test]
    fn vectors_that_do_not_fit_the_parts_are_refused() {
        for count in [0, 3, 5, 7] {
            let bytes = encode_request(&request(vec![1.0; count])).expect("encodes");
            assert!(decode_request(&bytes[4..]).is_err(), "{count}");
        }
    }

    #[test]
    fn replies_survive_the_wire() {
        let replies = [
            Reply::Token {
                id: Some(70_000),
                text: "é".to_owned(),
            },
            Reply::Done(Figures {
                prompt_tokens: 7,
                tokens: 2,
                prefill_ms: 1.5,
                decode_ms: 0.25,
            }),
            Reply::Embeds {
                columns: 2,
                values: vec![1.0, -0.0, 3.0, f32::MIN_POSITIVE],
            },
            Reply::Warmed {
                seconds: 0.5,
                bytes: 1 << 40,
            },
            Reply::Unloaded { bytes: 0 },
            Reply::Failed(Failure::new(Kind::Changed, "no").hint("yes")),
        ];
        for reply in replies {
            let bytes = encode_reply(77, &reply).expect("encodes");
            assert_eq!(decode_reply(&bytes[4..]).expect("decodes"), (77, reply.clone()));
            assert_eq!(reply.is_last(), !matches!(reply, Reply::Token { .. }));
            for length in 4..bytes.len() - 1 {
                // Cut short it is an error, or (numbers) other rows; never a panic.
                let _ = decode_reply(&bytes[4..length]);
            }
        }
    }
}
