//! The kinds of bridges: what each is called, how it is trained, what its trainer reads, and how its file is read.
//!
//! Whoever has to tell kinds apart matches on [`BridgeKind`] or [`Bridge`] with every variant, so that the compiler
//! names each place that a new kind has to fill in. Names of kinds are compared here and nowhere else.

use super::BridgeError;
use super::adapter::{self, Adapter, Side};
use super::file::{self, Description};
use super::lexsem::{self, LexSem};
use super::situate;
use super::situate::bridge::Bridge as SituateBridge;
use super::text_feedback::{self, TextFeedback};
use super::train::data::Trained;
use super::train::run::Run;
use super::xrag;
use super::xrag::projector::Projector;
use serde_json::Value;
use std::fmt;
use std::rc::Rc;

/// Declares the kinds with the names that users write, files carry and the registry holds.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal,)+) => {
        /// A kind of bridge.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum BridgeKind {
            $($(#[$doc])* $kind,)+
        }

        impl BridgeKind {
            /// All of them.
            pub const ALL: &[BridgeKind] = &[$(BridgeKind::$kind,)+];

            /// What users, files and the registry call it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(BridgeKind::$kind => $name,)+
                }
            }
        }
    };
}

kinds! {
    /// A linear map of queries or passages.
    Adapter = "adapter",
    /// A query's vector corrected by the query's words.
    LexSem = "lexsem",
    /// A residual over the chunks of a document.
    Situate = "situate",
    /// A copy of the encoder that reads a query with passages of a first round.
    TextFeedback = "feedback",
    /// A projector into the input of an LLM.
    Xrag = "xrag",
}

/// A kind's trainer.
pub type Trainer = fn(Run<'_>) -> Result<Trained, BridgeError>;

/// What a kind's trainer reads of the caller's material.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reads {
    /// The vectors that an index stores for its passages: what is trained is used against those.
    pub stored_vectors: bool,
    /// An index and a relation of passages together; the index adds passages that no pair names.
    pub index_beside_passages: bool,
    /// Passages of a relation cut in chunks that the encoder reads whole, instead of as they are.
    pub chunks: bool,
    /// The vectors that passages come with; a trainer that does not encodes their texts.
    pub given_vectors: bool,
}

/// What the file of a bridge holds; a copy is another handle on the same numbers.
#[derive(Clone, Debug)]
pub enum Bridge {
    Adapter(Rc<Adapter>),
    LexSem(Rc<LexSem>),
    Situate(Rc<SituateBridge>),
    TextFeedback(Rc<TextFeedback>),
    Xrag(Rc<Projector>),
}

impl BridgeKind {
    /// The kind of that name.
    pub fn parse(name: &str) -> Option<BridgeKind> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }

    /// The names of all kinds, for messages: "a, b or c".
    pub fn names() -> String {
        let names: Vec<&str> = Self::ALL.iter().map(|kind| kind.name()).collect();
        match names.split_last() {
            Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
            _ => names.concat(),
        }
    }

    /// What trains it.
    pub fn trainer(self) -> Trainer {
        match self {
            BridgeKind::Adapter => adapter::train,
            BridgeKind::LexSem => lexsem::train,
            BridgeKind::Situate => situate::train,
            BridgeKind::TextFeedback => text_feedback::train,
            BridgeKind::Xrag => xrag::train,
        }
    }

    /// What its trainer reads, by the training's options.
    pub fn reads(self, options: &Value) -> Reads {
        match self {
            BridgeKind::Adapter => Reads {
                stored_vectors: options.get("side").and_then(Value::as_str) != Some(Side::Passage.name()),
                index_beside_passages: true,
                chunks: true,
                given_vectors: true,
            },
            BridgeKind::LexSem | BridgeKind::TextFeedback => Reads {
                stored_vectors: true,
                index_beside_passages: false,
                chunks: false,
                given_vectors: true,
            },
            // It changes the chunk's own vector, so it encodes the bodies whatever vectors they came with.
            BridgeKind::Situate => Reads {
                stored_vectors: false,
                index_beside_passages: false,
                chunks: true,
                given_vectors: false,
            },
            // The projector is given the vector of the passage alone.
            BridgeKind::Xrag => Reads {
                stored_vectors: false,
                index_beside_passages: false,
                chunks: false,
                given_vectors: true,
            },
        }
    }

    /// Reads the file of a bridge of this kind.
    ///
    /// # Errors
    /// [`BridgeError::File`] for bytes of another kind, or that are damaged.
    pub fn read(self, bytes: &[u8]) -> Result<Bridge, BridgeError> {
        Ok(match self {
            BridgeKind::Adapter => Bridge::Adapter(Rc::new(Adapter::read(bytes)?)),
            BridgeKind::LexSem => Bridge::LexSem(Rc::new(lexsem::read(bytes)?)),
            BridgeKind::Situate => Bridge::Situate(Rc::new(SituateBridge::read(bytes)?)),
            BridgeKind::TextFeedback => Bridge::TextFeedback(Rc::new(TextFeedback::read(bytes)?)),
            BridgeKind::Xrag => Bridge::Xrag(Rc::new(Projector::read(bytes)?)),
        })
    }

    /// Whether a query can name a bridge of this kind, so that `situ.tune` tries it: as a bridge or as a reader of
    /// feedback.
    pub fn serves_queries(self) -> bool {
        match self {
            BridgeKind::Adapter | BridgeKind::LexSem | BridgeKind::TextFeedback => true,
            BridgeKind::Situate | BridgeKind::Xrag => false,
        }
    }
}

impl fmt::Display for BridgeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Reads the whole file of a bridge, so that what is stored can be used; gives what the file says of itself.
///
/// # Errors
/// [`BridgeError::File`] for bytes that are no bridge of a known kind.
pub fn check(bytes: &[u8]) -> Result<Description, BridgeError> {
    let description = file::describe(bytes)?;
    description.kind.read(bytes)?;
    Ok(description)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_name_of_its_own() {
        for kind in BridgeKind::ALL {
            assert_eq!(BridgeKind::parse(kind.name()), Some(*kind));
        }
        assert_eq!(BridgeKind::parse("Adapter"), None);
        assert_eq!(BridgeKind::names(), "adapter, lexsem, situate, feedback or xrag");
    }

    #[test]
    fn what_trainers_read() {
        let stored = |kind: BridgeKind, options: Value| kind.reads(&options).stored_vectors;
        assert!(stored(BridgeKind::Adapter, Value::Null));
        assert!(!stored(BridgeKind::Adapter, serde_json::json!({"side": "passage"})));
        assert!(stored(BridgeKind::LexSem, Value::Null) && stored(BridgeKind::TextFeedback, Value::Null));
        assert!(!stored(BridgeKind::Situate, Value::Null) && !stored(BridgeKind::Xrag, Value::Null));
    }
}
