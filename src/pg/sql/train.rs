//! `CALL situ.train(...)`: reads passages and pairs as the caller in the statement's snapshot, trains in this backend with
//! vectors from the encoder service, and stores what came of it. A cancel is seen between any two steps.

use super::leaf::{kind_of, name_of};
use super::models::model_by_name;
use super::profiles::qualified;
use crate::bridge::train::data::{Encode, Pair, Passage, Progress, TokenStates, Trained, Vectors, Watch};
use crate::bridge::{BridgeError, adapter, file, lexsem, situate};
use crate::index::Meta;
use crate::model::Role;
use crate::pg::am::kind::KeyKind;
use crate::pg::am::text::TextIndex;
use crate::pg::bridges::{self, Entry};
use crate::pg::error::OrRaise;
use crate::pg::fail::{fail, fail_with_hint};
use crate::pg::service::client::{self, ModelRef};
use crate::pg::service::{Lane, readings};
use crate::pg::sql::evaluate::relations::table_of;
use crate::pg::store::RelationStore;
use pgrx::prelude::*;
use pgrx::spi::SpiError;
use pgrx::{JsonB, pg_sys};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// The encoder service, for a trainer. Its own errors are raised, because they say what to do.
struct Service {
    model: ModelRef,
    /// The masked language model of the scheme clr, and how many weights of a text are kept.
    mlm: Option<(ModelRef, u32)>,
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
}

/// The statement that waits for the training: its cancel ends it.
struct Statement;

impl Watch for Statement {
    fn step(&mut self, _progress: &Progress) -> Result<(), BridgeError> {
        pgrx::check_for_interrupts!();
        Ok(())
    }

    fn checkpoint(&mut self, _bytes: &[u8]) -> Result<(), BridgeError> {
        pgrx::check_for_interrupts!();
        Ok(())
    }
}

fn spi<T>(result: Result<T, SpiError>) -> T {
    result.unwrap_or_else(|error| fail(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, error.to_string()))
}

fn bad(message: String, hint: &str) -> ! {
    fail_with_hint(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message, hint)
}

/// Rows of (key, document, ordinal, text), in the order of documents and ordinals.
fn relation_passages(relation: pg_sys::Oid) -> Vec<Passage> {
    let statement = format!(
        "SELECT id::pg_catalog.text, document::pg_catalog.text, body::pg_catalog.text \
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
            });
        }
        Ok(())
    }));
    passages
}

/// The documents of a text index, cut as the index cuts them; a passage's key is the row's first column.
fn index_passages(index: pg_sys::Oid) -> (ModelRef, Vec<Passage>) {
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
        }));
    }
    (text.model, passages)
}

/// Rows of (query, passage). A pair whose passage the caller cannot see is left out.
fn read_pairs(relation: pg_sys::Oid, passages: &[Passage]) -> Vec<Pair> {
    let mut places: HashMap<&str, u32> = HashMap::new();
    for (place, passage) in passages.iter().enumerate() {
        if places.insert(&passage.key, place as u32).is_some() {
            bad(
                format!("several passages have the key \"{}\"", passage.key),
                "A pair names one passage: give passages with ids of their own by passages => 'relation'.",
            )
        }
    }
    let statement = format!(
        "SELECT query::pg_catalog.text, passage::pg_catalog.text FROM {} ORDER BY 1, 2",
        qualified(relation)
    );
    spi(Spi::connect(|client| {
        let mut pairs = Vec::new();
        for row in client.select(&statement, None, &[])? {
            if let (Some(query), Some(key)) = (row.get::<String>(1)?, row.get::<String>(2)?)
                && let Some(&passage) = places.get(key.as_str())
            {
                pairs.push(Pair { query, passage });
            }
        }
        Ok(pairs)
    }))
}

/// The options of the kind, as JSON, with the named arguments among them.
fn options_of(options: Option<JsonB>, named: [(&str, Option<Value>); 3]) -> Map<String, Value> {
    let mut options = match options {
        None => Map::new(),
        Some(JsonB(Value::Object(options))) => options,
        Some(JsonB(other)) => bad(
            format!("options is not a JSON object but {other}"),
            "Use '{\"epochs\": 3}'.",
        ),
    };
    for (name, value) in named {
        if let Some(value) = value {
            options.insert(name.to_owned(), value);
        }
    }
    options
}

/// `situ.train(kind, name, index, model, passages, pairs, side, scheme, options, seed, replace)`.
#[pg_extern(sql = false)]
#[allow(clippy::too_many_arguments)] // the arguments of the SQL procedure
fn train(
    kind: Option<&str>,
    name: Option<&str>,
    index: Option<pg_sys::Oid>,
    model: Option<&str>,
    passages: Option<pg_sys::Oid>,
    pairs: Option<pg_sys::Oid>,
    side: Option<&str>,
    scheme: Option<&str>,
    options: Option<JsonB>,
    seed: Option<i64>,
    replace: Option<bool>,
) {
    let (Some(kind), Some(name)) = (kind, name) else {
        bad(
            "kind and name must not be null".into(),
            "CALL situ.train('adapter', 'a name', ...).",
        )
    };
    let trainer = match kind {
        adapter::KIND => adapter::train,
        "lexsem" => lexsem::train,
        situate::bridge::KIND => situate::train,
        other => bad(
            format!("there is no training of kind \"{other}\""),
            "Use adapter, lexsem or situate.",
        ),
    };
    let named = [
        ("side", side.map(Value::from)),
        ("scheme", scheme.map(Value::from)),
        ("seed", seed.map(Value::from)),
    ];
    let options = options_of(options, named);
    let (model, passages) = match (index, passages) {
        (Some(index), None) => {
            let (of_index, passages) = index_passages(index);
            if model.is_some_and(|name| name != of_index.name) {
                bad(
                    format!("index \"{}\" has model \"{}\"", name_of(index), of_index.name),
                    "Leave model out: a bridge of an index is trained over its model.",
                )
            }
            (of_index, passages)
        }
        (None, Some(passages)) => (model_by_name(model).or_raise(), relation_passages(passages)),
        _ => bad(
            "one of index and passages is needed".into(),
            "index => 'a text index' or passages => 'a relation with id, document, ordinal and body'.",
        ),
    };
    let pairs = pairs.map(|pairs| read_pairs(pairs, &passages));
    if pairs.as_ref().is_some_and(Vec::is_empty) {
        Err(BridgeError::TooLittle("no pair has a passage that can be read".into())).or_raise()
    }
    let mlm = options.get("mlm").and_then(Value::as_str).map(|mlm| {
        let most = options.get("vocabulary_top").and_then(Value::as_u64).unwrap_or(64);
        (
            model_by_name(Some(mlm)).or_raise(),
            u32::try_from(most).unwrap_or(u32::MAX),
        )
    });
    let mut service = Service {
        model: model.clone(),
        mlm,
    };
    let recipe = json!({
        "kind": kind, "options": options, "index": index.map(qualified), "pairs": pairs.as_ref().map(Vec::len),
        "passages": passages.len(), "precision": model.precision(),
    });
    let given = Value::Object(options);
    let pairs = pairs.unwrap_or_default();
    let trained: Trained = trainer(&passages, &pairs, &given, &mut service, &mut Statement, None).or_raise();
    let stamp = Map::from_iter([
        ("fingerprint".to_owned(), json!(model.fingerprint)),
        ("model".to_owned(), json!(model.name)),
        ("accepted".to_owned(), json!(trained.accepted)),
        ("recipe".to_owned(), recipe.clone()),
        ("figures".to_owned(), trained.figures.clone()),
    ]);
    let weights = file::stamp(&trained.weights, stamp).or_raise();
    let entry = Entry {
        name,
        model: &model,
        recipe,
        figures: trained.figures,
        accepted: trained.accepted,
        weights: &weights,
    };
    // SAFETY: the current user of a running statement.
    bridges::store(entry, unsafe { pg_sys::GetUserId() }, replace.unwrap_or(false));
    if !trained.accepted {
        pgrx::notice!("bridge \"{name}\" did not beat the plain vectors on held-out data: it is stored as rejected");
    }
}
