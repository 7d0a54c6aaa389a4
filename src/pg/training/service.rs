//! The encoder service as trainers know it. Its own errors are raised, because they say what to do.

use crate::bridge::BridgeError;
use crate::bridge::train::data::{Encode, Passage, TokenStates, Vectors};
use crate::bridge::train::passages::{self, Piece};
use crate::compute::memory::{room_for, with_room};
use crate::model::{Manifest, Role};
use crate::pg::catalog::model_registry::llm_by_name;
use crate::pg::ereport::fail_full;
use crate::pg::error::OrRaise;
use crate::pg::service::client;
use crate::pg::service::model_ref::ModelRef;
use crate::pg::service::{Lane, ServiceError, SituatedPassage, process, token_features};
use crate::pg::settings;
use crate::serve::encoder::models::resolve;
use crate::serve::llm::runtime::{describe, training_bytes};
use pgrx::prelude::*;
use std::path::PathBuf;

/// Tokens that a model puts around a text.
const SPECIAL_TOKENS: usize = 2;

/// The encoder service, for a trainer.
pub struct Service {
    pub model: ModelRef,
    /// The masked language model of the scheme clr, and how many weights of a text are kept.
    pub mlm: Option<(ModelRef, u32)>,
    /// The file of the bridge that the training starts from, read in the snapshot of the rest.
    pub start: Option<Vec<u8>>,
}

impl Encode for Service {
    fn embed(&mut self, role: Role, texts: &[&str]) -> Result<Vectors, BridgeError> {
        room_for(texts.iter().map(|text| text.len()).sum())?;
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        let vectors = client::embed(&self.model, role, &texts).or_raise();
        let mut values = with_room(vectors.len() * self.model.dimensions)?;
        vectors.iter().for_each(|vector| values.extend_from_slice(vector));
        Ok(Vectors {
            dimensions: self.model.dimensions,
            values,
        })
    }

    fn tokens(&mut self, texts: &[&str]) -> Result<Vec<Vec<u32>>, BridgeError> {
        Ok(token_features::tokens(&self.model, Lane::Bulk, texts).or_raise())
    }

    fn states(&mut self, texts: &[&str]) -> Result<Vec<TokenStates>, BridgeError> {
        Ok(token_features::states(&self.model, Lane::Bulk, texts).or_raise())
    }

    fn vocabulary(&mut self, texts: &[&str]) -> Result<Vec<Vec<(u32, f32)>>, BridgeError> {
        let (mlm, most) = self.mlm.as_ref().ok_or(BridgeError::NoReading("vocabulary weights"))?;
        Ok(token_features::vocabulary(mlm, Lane::Bulk, texts, *most).or_raise())
    }

    fn language_model(&mut self, name: &str) -> Result<PathBuf, BridgeError> {
        let llm = llm_by_name(Some(name).filter(|name| !name.is_empty())).or_raise();
        let path = resolve(&settings::model_dir(), &llm.path)
            .map_err(ServiceError::from)
            .or_raise();
        let found = describe(&path)?;
        if found.fingerprint != llm.fingerprint {
            return Err(changed(&llm.name));
        }
        check_llm_memory(&llm.name, training_bytes(&found.config));
        Ok(path)
    }

    fn start(&mut self, _name: &str) -> Result<Vec<u8>, BridgeError> {
        self.start.clone().ok_or(BridgeError::NoReading("bridge to start from"))
    }

    fn directory(&mut self) -> Result<PathBuf, BridgeError> {
        let root = self.model.root.clone().unwrap_or_else(settings::model_dir);
        let directory = resolve(&root, &self.model.path).map_err(ServiceError::from).or_raise();
        let found = Manifest::read(&directory)?.fingerprint;
        match found == self.model.fingerprint {
            true => Ok(directory),
            false => Err(changed(&self.model.name)),
        }
    }
}

/// Fails where an LLM takes more memory in a trainer than `situ.llm_memory` allows, or, without that, than the machine
/// has to spare: the process would be killed, and the server would restart all others with it.
fn check_llm_memory(name: &str, bytes: u64) {
    let (allowed, what, hint) = match settings::llm_memory() {
        0 => match process::available_bytes() {
            Some(available) => (
                available,
                "the machine has to spare",
                "Train with a smaller LLM, or when less is running.",
            ),
            None => return,
        },
        limit => (
            limit as u64,
            "situ.llm_memory allows",
            "Train with a smaller LLM, or raise situ.llm_memory.",
        ),
    };
    if bytes > allowed {
        fail_full(
            PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            format!("training with LLM \"{name}\" takes more memory than {what}"),
            format!(
                "Its weights, unpacked and once more transposed, take {} MB of {} MB.",
                bytes >> 20,
                allowed >> 20
            ),
            hint.to_owned(),
        )
    }
}

fn changed(name: &str) -> BridgeError {
    BridgeError::Outside(format!(
        "the files of model \"{name}\" are not those that were registered"
    ))
}

/// Passages that are longer than the model reads, cut in chunks of whole sentences that it does.
pub fn cut_long(passages: Vec<Passage>, service: &mut Service) -> Vec<Passage> {
    let directory = service.directory().or_raise();
    let limit = Manifest::read(&directory).or_raise().max_tokens;
    // A token is at least a byte.
    let room = limit.saturating_sub(SPECIAL_TOKENS).max(1);
    let chunk_tokens = u32::try_from(room).unwrap_or(u32::MAX);
    passages::cut_long(passages, room, |text| {
        let chunks = client::chunk_document(&service.model, Lane::Bulk, text, chunk_tokens).or_raise();
        let piece = |chunk: SituatedPassage| Piece {
            ordinal: chunk.ordinal,
            text: chunk.span.of(text).unwrap_or_default().to_owned(),
        };
        chunks.into_iter().map(piece).collect()
    })
}
