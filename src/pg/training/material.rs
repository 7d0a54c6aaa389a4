//! What a training reads: passages and pairs, as the caller, in one snapshot; and the encoder service as trainers know it.

use crate::bridge::BridgeError;
use crate::bridge::train::data::{Encode, Pair, Passage, TokenStates, Vectors};
use crate::eval::random::Random;
use crate::index::Meta;
use crate::model::{Manifest, Role};
use crate::pg::am::kind::KeyKind;
use crate::pg::am::text::TextIndex;
use crate::pg::error::OrRaise;
use crate::pg::fail::{fail, fail_with_hint};
use crate::pg::llm::runtime::describe;
use crate::pg::service::client::{self, ModelRef};
use crate::pg::service::models::resolve;
use crate::pg::service::{Lane, ServiceError, readings};
use crate::pg::settings;
use crate::pg::sql::evaluate::relations::{has_column, table_of};
use crate::pg::sql::leaf::{kind_of, name_of};
use crate::pg::sql::models::llm_by_name;
use crate::pg::sql::profiles::qualified;
use crate::pg::store::RelationStore;
use pgrx::pg_sys;
use pgrx::prelude::*;
use pgrx::spi::SpiError;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

/// Bytes of vectors that a passage or query takes while it trains, over those of one vector: packed, as it is, mapped.
const COPIES: usize = 4;

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
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        let vectors = client::embed(&self.model, role, &texts).or_raise();
        Ok(Vectors {
            dimensions: self.model.dimensions,
            values: vectors.concat(),
        })
    }

    fn tokens(&mut self, texts: &[&str]) -> Result<Vec<Vec<u32>>, BridgeError> {
        Ok(readings::tokens(&self.model, Lane::Bulk, texts).or_raise())
    }

    fn states(&mut self, texts: &[&str]) -> Result<Vec<TokenStates>, BridgeError> {
        Ok(readings::states(&self.model, Lane::Bulk, texts).or_raise())
    }

    fn vocabulary(&mut self, texts: &[&str]) -> Result<Vec<Vec<(u32, f32)>>, BridgeError> {
        let (mlm, most) = self.mlm.as_ref().ok_or(BridgeError::NoReading("vocabulary weights"))?;
        Ok(readings::vocabulary(mlm, Lane::Bulk, texts, *most).or_raise())
    }

    fn language_model(&mut self, name: &str) -> Result<PathBuf, BridgeError> {
        let llm = llm_by_name(Some(name).filter(|name| !name.is_empty())).or_raise();
        let path = resolve(&settings::model_dir(), &llm.path)
            .map_err(ServiceError::from)
            .or_raise();
        let found = describe(&path)?.fingerprint;
        match found == llm.fingerprint {
            true => Ok(path),
            false => Err(changed(&llm.name)),
        }
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

/// Rows of (key, document, ordinal, text), in the order of documents and ordinals, with the vectors of a column `embedding`
/// where there is one. Vectors of other than `dimensions` numbers raise an error.
pub fn relation_passages(relation: pg_sys::Oid, dimensions: usize) -> Vec<Passage> {
    let vector = match has_column(relation, "embedding") {
        true => "embedding::pg_catalog.float4[]",
        false => "NULL::pg_catalog.float4[]",
    };
    let statement = format!(
        "SELECT id::pg_catalog.text, document::pg_catalog.text, body::pg_catalog.text, {vector} \
           FROM {} WHERE id IS NOT NULL AND document IS NOT NULL AND body IS NOT NULL ORDER BY document, ordinal, id",
        qualified(relation)
    );
    let mut documents: HashMap<String, u32> = HashMap::new();
    let mut passages: Vec<Passage> = Vec::new();
    spi(Spi::connect(|client| {
        for row in client.select(&statement, None, &[])? {
            let (key, document, text) = (row.get::<String>(1)?, row.get::<String>(2)?, row.get::<String>(3)?);
            let (Some(key), Some(document), Some(text)) = (key, document, text) else {
                continue;
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
            let next = documents.len() as u32;
            let document = *documents.entry(document).or_insert(next);
            let ordinal = match passages.last() {
                Some(last) if last.document == document => last.ordinal + 1,
                _ => 0,
            };
            passages.push(Passage {
                key,
                document,
                ordinal,
                text,
                vector,
            });
        }
        Ok(())
    }));
    let without = passages.iter().filter(|passage| passage.vector.is_none()).count();
    if (1..passages.len()).contains(&without) {
        bad(
            format!("{without} of {} passages have no embedding", passages.len()),
            "Fill the column embedding of all rows, or leave it out: bodies are then encoded.",
        )
    }
    passages
}

/// Passages that are longer than the model reads, cut in chunks of whole sentences that it does; they keep their key. In an
/// index, too, a long text is found at one of its chunks.
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
        let chunks = match passage.text.len() <= room {
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

/// The documents of a text index, cut as the index cuts them; a passage's key is the row's first column.
pub fn index_passages(index: pg_sys::Oid) -> (ModelRef, Vec<Passage>) {
    if kind_of(index) != KeyKind::Text {
        bad(
            format!("index \"{}\" is not over text", name_of(index)),
            "Give the passages as a relation: passages => 'relation'.",
        )
    }
    // SAFETY: opened and closed here; an error's abort releases the lock.
    let text = unsafe {
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let relation = pg_sys::index_open(index, lock);
        let meta = Meta::open(&RelationStore::new(relation)).or_raise();
        let text = TextIndex::open(relation, &meta);
        pg_sys::index_close(relation, lock);
        text
    };
    let table = table_of(index);
    let body: Option<String> = spi(Spi::get_one_with_args(
        "SELECT pg_catalog.pg_get_indexdef($1, 1, true)",
        &[index.into()],
    ));
    let key: Option<String> = spi(Spi::get_one_with_args(
        "SELECT pg_catalog.quote_ident(attname) FROM pg_catalog.pg_attribute \
          WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum LIMIT 1",
        &[table.into()],
    ));
    let (body, key) = (body.unwrap_or_default(), key.unwrap_or_default());
    let statement = format!(
        "SELECT ({key})::pg_catalog.text, ({body})::pg_catalog.text FROM {}",
        qualified(table)
    );
    let rows: Vec<(String, String)> = spi(Spi::connect(|client| {
        let mut rows = Vec::new();
        for row in client.select(&statement, None, &[])? {
            if let (Some(key), Some(body)) = (row.get::<String>(1)?, row.get::<String>(2)?) {
                rows.push((key, body));
            }
        }
        Ok(rows)
    }));
    let mut passages = Vec::new();
    for (document, (key, body)) in rows.iter().enumerate() {
        let chunks = client::chunk_document(&text.model, Lane::Bulk, body, text.record.situate.chunk_tokens).or_raise();
        passages.extend(chunks.iter().map(|chunk| Passage {
            key: key.clone(),
            document: document as u32,
            ordinal: chunk.ordinal,
            text: chunk.span.of(body).unwrap_or_default().to_owned(),
            vector: None,
        }));
    }
    (text.model, passages)
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
struct Named {
    query: String,
    passages: Vec<u32>,
    answer: Option<String>,
}

/// Rows of (query, passage), and of a column `answer` where there is one. A pair whose passage the caller cannot see is
/// left out. Where a row has several passages (`chunked`: an index's rows, and passages that were cut), the one nearest
/// to the query is meant.
pub fn read_pairs(relation: pg_sys::Oid, passages: &[Passage], chunked: bool, service: &mut Service) -> Vec<Pair> {
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
    let named: Vec<Named> = spi(Spi::connect(|client| {
        let mut named = Vec::new();
        for row in client.select(&statement, None, &[])? {
            if let (Some(query), Some(key)) = (row.get::<String>(1)?, row.get::<String>(2)?)
                && let Some(passages) = places.get(key.as_str())
            {
                named.push(Named {
                    query,
                    passages: passages.clone(),
                    answer: row.get::<String>(3)?,
                });
            }
        }
        Ok(named)
    }));
    nearest(named, passages, service)
}

/// One passage a pair.
fn nearest(named: Vec<Named>, passages: &[Passage], service: &mut Service) -> Vec<Pair> {
    let open = || named.iter().filter(|pair| pair.passages.len() > 1);
    let among: HashSet<u32> = open().flat_map(|pair| pair.passages.iter().copied()).collect();
    let mut among: Vec<u32> = among.into_iter().collect();
    among.sort_unstable();
    let texts: Vec<&str> = among
        .iter()
        .map(|place| passages[*place as usize].text.as_str())
        .collect();
    let chunks = service.embed(Role::Passage, &texts).or_raise();
    let texts: Vec<&str> = open().map(|pair| pair.query.as_str()).collect();
    let queries = service.embed(Role::Query, &texts).or_raise();
    let d = chunks.dimensions.max(1);
    let vectors: HashMap<u32, &[f32]> = among.iter().copied().zip(chunks.values.chunks_exact(d)).collect();
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

/// As many documents, drawn by the seed, as fit into `memory` bytes with their vectors; the order stays.
pub fn bounded(passages: Vec<Passage>, dimensions: usize, memory: usize, seed: u64) -> Vec<Passage> {
    let bytes = |passage: &Passage| {
        size_of::<Passage>() + passage.key.len() + passage.text.len() + COPIES * dimensions * size_of::<f32>()
    };
    if passages.iter().map(bytes).sum::<usize>() <= memory {
        return passages;
    }
    let mut of_document: HashMap<u32, usize> = HashMap::new();
    let mut documents = Vec::new();
    for passage in &passages {
        let sum = of_document.entry(passage.document).or_insert_with(|| {
            documents.push(passage.document);
            0
        });
        *sum += bytes(passage);
    }
    Random::new(seed).shuffle(&mut documents);
    let (mut used, mut kept) = (0, HashSet::new());
    for document in documents {
        used += of_document.get(&document).copied().unwrap_or_default();
        if used > memory {
            break;
        }
        kept.insert(document);
    }
    passages
        .into_iter()
        .filter(|passage| kept.contains(&passage.document))
        .collect()
}
