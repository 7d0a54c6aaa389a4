//! What a training reads: passages and pairs, as the caller, in one snapshot; and the encoder service as trainers know it.
//!
//! Relations are read some rows at a time, and what does not fit `situ.training_memory` is left out while they are read.

use crate::bridge::BridgeError;
use crate::bridge::train::data::{Encode, Pair, Passage, TokenStates, Vectors};
use crate::bridge::train::drawn::Drawn;
use crate::compute::memory::{room_for, spare, with_room};
use crate::model::{Manifest, Role};
use crate::pg::catalog::columns::has_column;
use crate::pg::catalog::model_registry::llm_by_name;
use crate::pg::catalog::names::qualified;
use crate::pg::ereport::{fail, fail_full, fail_with_hint};
use crate::pg::error::OrRaise;
use crate::pg::service::client;
use crate::pg::service::model_ref::ModelRef;
use crate::pg::service::{Lane, ServiceError, process, token_features};
use crate::pg::settings;
use crate::serve::encoder::models::resolve;
use crate::serve::llm::runtime::{describe, training_bytes};
use pgrx::pg_sys;
use pgrx::prelude::*;
use pgrx::spi::{SpiError, SpiHeapTupleData};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

/// Bytes of vectors that a passage or query takes while it trains, over those of one vector: as it was read, packed, as it
/// is, mapped.
const COPIES: usize = 5;

/// Tokens that a model puts around a text.
const SPECIAL_TOKENS: usize = 2;

/// The encoder service, for a trainer. Its own errors are raised, because they say what to do.
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

/// Fails where an LLM takes more memory in a trainer than `situ.llm_memory` allows, or, without that, than the machine has to
/// spare: the process would be killed, and the server would restart all others with it.
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

fn spi<T>(result: Result<T, SpiError>) -> T {
    result.unwrap_or_else(|error| fail(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, error.to_string()))
}

pub fn bad(message: String, hint: &str) -> ! {
    fail_with_hint(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message, hint)
}

/// How many rows are read at a time. Their texts are in memory twice for a moment.
const ROWS: std::ffi::c_long = 64;

/// Rows of a statement, some at a time, each batch in a session of its own so that the server frees the one before.
pub(super) fn each_row(statement: &str, mut take: impl FnMut(&SpiHeapTupleData<'_>) -> Result<(), SpiError>) {
    let name = spi(Spi::connect(|client| {
        Ok(client.try_open_cursor(statement, &[])?.detach_into_name())
    }));
    let mut batch = || {
        Spi::connect(|client| {
            let mut cursor = client.find_cursor(&name)?;
            let table = cursor.fetch(ROWS)?;
            let more = !table.is_empty();
            for row in table {
                spare().or_raise();
                take(&row)?;
            }
            match more {
                // Otherwise it is closed here.
                true => drop(cursor.detach_into_name()),
                false => drop(cursor),
            }
            Ok::<bool, SpiError>(more)
        })
    };
    while spi(batch()) {
        pgrx::check_for_interrupts!();
    }
}

/// What a training may hold of passages, and how they are drawn where there are more.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub memory: usize,
    pub seed: u64,
}

/// Bytes that a passage takes while it trains.
pub(super) fn passage_bytes(passage: &Passage, dimensions: usize) -> usize {
    size_of::<Passage>() + passage.key.len() + passage.text.len() + COPIES * dimensions * size_of::<f32>()
}

/// Rows of (key, document, ordinal, text), in the order of documents and ordinals, with the vectors of a column `embedding`
/// where there is one; and how many there are that were left out. Vectors of other than `dimensions` numbers raise an error.
pub fn relation_passages(relation: pg_sys::Oid, dimensions: usize, bounds: Bounds) -> (Vec<Passage>, usize) {
    let vector = match has_column(relation, "embedding") {
        true => "embedding::pg_catalog.float4[]",
        false => "NULL::pg_catalog.float4[]",
    };
    let statement = format!(
        "SELECT id::pg_catalog.text, document::pg_catalog.text, body::pg_catalog.text, {vector} \
           FROM {} WHERE id IS NOT NULL AND document IS NOT NULL AND body IS NOT NULL ORDER BY document, ordinal, id",
        qualified(relation)
    );
    let mut drawn = Drawn::new(bounds.memory, bounds.seed);
    let (mut documents, mut last, mut next_ordinal) = (0, None, 0);
    let (mut rows, mut without) = (0, 0);
    each_row(&statement, |row| {
        let (key, document, text) = (row.get::<String>(1)?, row.get::<String>(2)?, row.get::<String>(3)?);
        let (Some(key), Some(document), Some(text)) = (key, document, text) else {
            return Ok(());
        };
        let vector = row.get::<Vec<f32>>(4)?;
        if let Some(found) = vector.as_ref().map(Vec::len)
            && found != dimensions
        {
            bad(
                format!("the embedding of passage \"{key}\" has {found} dimensions, the model's have {dimensions}"),
                "The column embedding holds vectors of the model, situ.situate's for instance.",
            )
        }
        rows += 1;
        without += usize::from(vector.is_none());
        if last.as_ref() != Some(&document) {
            (documents, next_ordinal, last) = (documents + 1, 0, Some(document));
        }
        let passage = Passage {
            key,
            document: documents - 1,
            ordinal: next_ordinal,
            text,
            vector,
        };
        next_ordinal += 1;
        let bytes = passage_bytes(&passage, dimensions);
        drawn.add(u64::from(passage.document), passage, bytes);
        Ok(())
    });
    if (1..rows).contains(&without) {
        bad(
            format!("{without} of {rows} passages have no embedding"),
            "Fill the column embedding of all rows, or leave it out: bodies are then encoded.",
        )
    }
    kept(drawn)
}

/// What was drawn, and how many were left out.
fn kept<T>(drawn: Drawn<T>) -> (Vec<T>, usize) {
    let (items, found) = drawn.finish();
    let out = found - items.len();
    (items, out)
}

/// Passages that are longer than the model reads, cut in chunks of whole sentences that it does; they keep their key. In an
/// index, too, a long text is found at one of its chunks. A passage that comes with its vector is that vector, and is not cut.
pub fn cut_long(passages: Vec<Passage>, service: &mut Service) -> Vec<Passage> {
    let directory = service.directory().or_raise();
    let limit = Manifest::read(&directory).or_raise().max_tokens;
    let room = limit.saturating_sub(SPECIAL_TOKENS).max(1);
    let chunk_tokens = u32::try_from(room).unwrap_or(u32::MAX);
    let mut found: Vec<Passage> = Vec::with_capacity(passages.len());
    for passage in passages {
        let ordinal = match found.last() {
            Some(last) if last.document == passage.document => last.ordinal + 1,
            _ => 0,
        };
        // A token is at least a byte.
        let chunks = match passage.text.len() <= room || passage.vector.is_some() {
            true => Vec::new(),
            false => client::chunk_document(&service.model, Lane::Bulk, &passage.text, chunk_tokens).or_raise(),
        };
        if chunks.len() < 2 {
            found.push(Passage { ordinal, ..passage });
            continue;
        }
        found.extend(chunks.iter().map(|chunk| Passage {
            ordinal: ordinal + chunk.ordinal,
            text: chunk.span.of(&passage.text).unwrap_or_default().to_owned(),
            ..passage.clone()
        }));
    }
    found
}

/// The chunks of those rows of an index that are not passages as well: a passage's own text must not stand against it. A
/// row is one where its first chunk begins the passage.
pub fn unknown(searched: Vec<Passage>, passages: &[Passage]) -> Vec<Passage> {
    let mut texts: Vec<&str> = passages.iter().map(|passage| passage.text.trim_start()).collect();
    texts.sort_unstable();
    let begins_one = |chunk: &str| {
        let at = texts.partition_point(|text| *text < chunk);
        texts.get(at).is_some_and(|text| text.starts_with(chunk))
    };
    let known: HashSet<u32> = searched
        .iter()
        .filter(|chunk| chunk.ordinal == 0 && begins_one(chunk.text.trim_start()))
        .map(|chunk| chunk.document)
        .collect();
    searched
        .into_iter()
        .filter(|chunk| !known.contains(&chunk.document))
        .collect()
}

/// Adds the passages of the index that will be searched, which no pair speaks of.
pub fn beside(mut passages: Vec<Passage>, searched: Vec<Passage>) -> Vec<Passage> {
    let first = passages.iter().map(|passage| passage.document + 1).max().unwrap_or(0);
    passages.extend(searched.into_iter().map(|passage| Passage {
        // No text of the server holds a zero byte, so no pair names it.
        key: format!("\0{}", passage.key),
        document: first + passage.document,
        ..passage
    }));
    passages
}

/// An error where two passages have one key, so that a pair would not say which is meant.
pub fn each_key_once(passages: &[Passage]) {
    let mut known = HashSet::new();
    if let Some(twice) = passages.iter().find(|passage| !known.insert(&passage.key)) {
        bad(
            format!("several passages have the key \"{}\"", twice.key),
            "A pair names one passage by its id.",
        )
    }
}

/// A pair as it was read: the query, and the passages of the row that it names.
#[derive(Debug)]
struct Named {
    query: String,
    passages: Vec<u32>,
    answer: Option<String>,
}

/// Rows of (query, passage), and of a column `answer` where there is one. A pair whose passage the caller cannot see is
/// left out. Where a row has several passages (`chunked`: an index's rows, and passages that were cut), the one nearest
/// to the query is meant. Of more pairs than fit, some are drawn; how many were left out for that comes second.
pub fn read_pairs(
    relation: pg_sys::Oid,
    passages: &[Passage],
    chunked: bool,
    service: &mut Service,
    bounds: Bounds,
) -> (Vec<Pair>, usize) {
    if !chunked {
        each_key_once(passages);
    }
    let mut places: HashMap<&str, Vec<u32>> = HashMap::new();
    for (place, passage) in passages.iter().enumerate() {
        places.entry(&passage.key).or_default().push(place as u32);
    }
    let answer = match has_column(relation, "answer") {
        true => "answer::pg_catalog.text",
        false => "NULL::pg_catalog.text",
    };
    let statement = format!(
        "SELECT query::pg_catalog.text, passage::pg_catalog.text, {answer} FROM {} ORDER BY 1, 2, 3",
        qualified(relation)
    );
    let vectors = COPIES * service.model.dimensions * size_of::<f32>();
    let (mut drawn, mut number) = (Drawn::new(bounds.memory, bounds.seed), 0);
    each_row(&statement, |row| {
        if let (Some(query), Some(key)) = (row.get::<String>(1)?, row.get::<String>(2)?)
            && let Some(passages) = places.get(key.as_str())
        {
            let pair = Named {
                query,
                passages: passages.clone(),
                answer: row.get::<String>(3)?,
            };
            let answer = pair.answer.as_ref().map_or(0, String::len);
            let bytes = size_of::<Named>() + pair.query.len() + 4 * pair.passages.len() + answer + vectors;
            drawn.add(number, pair, bytes);
            number += 1;
        }
        Ok(())
    });
    let (named, out) = kept(drawn);
    (nearest(named, passages, service), out)
}

/// One passage a pair.
fn nearest(named: Vec<Named>, passages: &[Passage], service: &mut Service) -> Vec<Pair> {
    let open = || named.iter().filter(|pair| pair.passages.len() > 1);
    let among: HashSet<u32> = open().flat_map(|pair| pair.passages.iter().copied()).collect();
    let mut among: Vec<u32> = among.into_iter().collect();
    among.sort_unstable();
    let without = |place: &&u32| passages[**place as usize].vector.is_none();
    let texts: Vec<&str> = among
        .iter()
        .filter(without)
        .map(|place| passages[*place as usize].text.as_str())
        .collect();
    let encoded = service.embed(Role::Passage, &texts).or_raise();
    let texts: Vec<&str> = open().map(|pair| pair.query.as_str()).collect();
    let queries = service.embed(Role::Query, &texts).or_raise();
    let d = service.model.dimensions.max(1);
    let mut encoded = encoded.values.chunks_exact(d);
    let vector = |place: &u32| passages[*place as usize].vector.as_deref().or_else(|| encoded.next());
    let vectors: HashMap<u32, &[f32]> = among
        .iter()
        .copied()
        .zip(among.iter().map(vector))
        .filter_map(|(place, vector)| Some((place, vector?)))
        .collect();
    let mut queries = queries.values.chunks_exact(d);
    let mut pairs = Vec::with_capacity(named.len());
    for Named {
        query,
        passages,
        answer,
    } in &named
    {
        let passage = match passages[..] {
            [only] => Some(only),
            _ => queries.next().and_then(|query| {
                let score = |place: &u32| -> f32 {
                    let vector = vectors.get(place).copied().unwrap_or_default();
                    vector.iter().zip(query).map(|(a, b)| a * b).sum()
                };
                let scored = passages.iter().map(|place| (score(place), *place));
                // The first of equals.
                scored
                    .reduce(|best, next| if next.0 > best.0 { next } else { best })
                    .map(|best| best.1)
            }),
        };
        pairs.extend(passage.map(|passage| Pair {
            query: query.clone(),
            passage,
            answer: answer.clone(),
        }));
    }
    pairs
}

/// As many documents, drawn by the seed, as fit with their vectors, and how many passages were left out; the order stays.
pub fn bounded(passages: Vec<Passage>, dimensions: usize, bounds: Bounds) -> (Vec<Passage>, usize) {
    let mut drawn = Drawn::new(bounds.memory, bounds.seed);
    for passage in passages {
        let bytes = passage_bytes(&passage, dimensions);
        drawn.add(u64::from(passage.document), passage, bytes);
    }
    kept(drawn)
}
