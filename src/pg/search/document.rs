//! The distance of a document to a question: what `text <=> text` means.
//!
//! A row that a scan in progress has just returned has the distance that the scan found (`pg/am/returned_distances.rs`). Any other
//! document is cut and encoded here: as the index does that the question names (the planner put it there,
//! `pg/am/planner.rs`), or by the question's model, chunks of 128 tokens alone.
//!
//! What was encoded is kept, so that a document is not encoded again for another question, another pass or the next
//! statement: by what makes its vectors and the hash of its text, for the same role, at most `work_mem` in a backend, the
//! oldest first out. Where the documents come from pages of a table, the rows behind are encoded along, twice as many each
//! time, as long as they are asked for. Those wait under their row, not under their text, until that very row is asked for:
//! so neither time nor counts say whether a guess is the text of a row that the caller may not see.

use super::query::Query;
use crate::bridge::feedback::Method;
use crate::bridge::situate::{Situate, SituateOptions};
use crate::index::{Meta, Metric};
use crate::pg::am::kind::{body_hash, read_text};
use crate::pg::am::returned_distances;
use crate::pg::am::rows::{self, Place};
use crate::pg::am::text_index::{TextIndex, metric};
use crate::pg::bridges::passages::PassageBridge;
use crate::pg::catalog::model_registry::model_by_name;
use crate::pg::catalog::names::leaves;
use crate::pg::ereport::{fail, fail_with_hint};
use crate::pg::error::OrRaise;
use crate::pg::raw::{argument, function, kept, null};
use crate::pg::service::model_ref::ModelRef;
use crate::pg::service::{Documents, Lane};
use crate::pg::store::RelationStore;
use pgrx::datum::IntoDatum;
use pgrx::{PgSqlErrorCode, pg_sys};
use sha2::Digest;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

/// Questions that one expression keeps ready.
const QUESTIONS: usize = 8;
/// Most documents, and bytes of their texts, that are encoded at once.
const MOST_AHEAD: usize = 64;
const MOST_AHEAD_BYTES: usize = 256 << 10;
/// Bytes that a kept document takes beside its vectors.
const OVERHEAD: usize = 128;

/// The vectors of a document's passages.
type Vectors = Rc<[Vec<f32>]>;

/// A table whose rows an index covers, and where body and title are.
struct Table {
    oid: pg_sys::Oid,
    body: i16,
    title: Option<i16>,
}

/// How documents become vectors, and how those are compared.
struct Encoding {
    model: ModelRef,
    options: SituateOptions,
    bridge: Option<Rc<PassageBridge>>,
    titled: bool,
    metric: Metric,
}

/// How the documents of one question are encoded and compared.
struct Way {
    identity: u64,
    index: Option<u32>,
    question: Vec<f32>,
    encoding: Encoding,
    /// Tables of the index, or of its parts.
    tables: Vec<Table>,
    /// Identifies what makes a document's vectors.
    recipe: [u8; 32],
}

/// What one expression of a statement keeps between its calls.
#[derive(Default)]
pub struct Evaluator {
    ways: VecDeque<Rc<Way>>,
    /// Documents of one page that were encoded along, by recipe, table and row.
    ahead: HashMap<([u8; 32], pg_sys::Oid, u16), Vectors>,
    /// Calls that had to encode, and of what was encoded along how much there was, and how much was asked for.
    encoded: usize,
    along: usize,
    used: usize,
}

/// A document as a call gives it.
struct Document<'a> {
    value: pg_sys::Datum,
    body: &'a str,
    /// The title where the call brings one.
    title: Option<Option<String>>,
}

function! {
    /// `text <=> text`: NULL for a body without words.
    situ_text_distance, pg_finfo_situ_text_distance, text_distance
}

function! {
    /// `text <=> situ.query`: NULL for a body without words.
    situ_query_distance, pg_finfo_situ_query_distance, query_distance
}

function! {
    /// `situ_internal.document_distance(body, title, situ.query)`: what the planner makes of an operator that no index orders by.
    situ_document_distance, pg_finfo_situ_document_distance, document_distance
}

unsafe fn text_distance(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: a call in progress with two texts.
    unsafe {
        let question = argument(call, 1).map(|question| Query::from_text(read_text(question)));
        evaluate(call, None, question)
    }
}

unsafe fn query_distance(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: a call in progress with a text and a `situ.query`.
    unsafe {
        let question = argument(call, 1).map(|question| Query::from_argument(question));
        evaluate(call, None, question)
    }
}

unsafe fn document_distance(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: a call in progress with two texts and a `situ.query`.
    unsafe {
        let title = argument(call, 1).map(|title| read_text(title));
        let question = argument(call, 2).map(|question| Query::from_argument(question));
        evaluate(call, Some(title), question)
    }
}

unsafe fn evaluate(
    call: pg_sys::FunctionCallInfo,
    title: Option<Option<String>>,
    question: Option<Query>,
) -> pg_sys::Datum {
    // SAFETY: a call in progress whose first argument is a text.
    unsafe {
        let (Some(value), Some(question)) = (argument(call, 0), question) else {
            return null(call);
        };
        let body = read_text(value);
        let document = Document {
            value,
            body: &body,
            title,
        };
        let mut own = Evaluator::default();
        let evaluator = kept::<Evaluator>(call).unwrap_or(&mut own);
        match evaluator.distance(&document, &question).and_then(IntoDatum::into_datum) {
            Some(distance) => distance,
            None => null(call),
        }
    }
}

/// An option that only a scan of an index can carry out.
fn needs_a_scan(what: &str) -> ! {
    fail_with_hint(
        PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        what.to_owned(),
        "The planner chose not to scan the index: use situ.search, or SET enable_seqscan = off.",
    )
}

impl Way {
    /// How a question is answered outside a scan.
    fn of(query: &Query) -> Way {
        if let Some(profile) = &query.profile {
            needs_a_scan(&format!(
                "profile \"{profile}\" can be used by a scan of its index only"
            ));
        }
        let feedback = query.feedback.as_ref();
        if feedback.is_some_and(|options| options.method != Method::None) {
            needs_a_scan("feedback comes from a scan of an index only");
        }
        let by_index = query.index.and_then(|index| Way::by_index(query, index.into()));
        by_index.unwrap_or_else(|| {
            let options = SituateOptions {
                mode: Situate::None,
                chunk_tokens: 128,
                window_tokens: 0,
                weight: 0.0,
            };
            let model = model_by_name(query.model.as_deref()).or_raise();
            let encoding = Encoding {
                metric: metric(&model, options.mode),
                model,
                options,
                bridge: None,
                titled: false,
            };
            Way::new(query, encoding, Vec::new())
        })
    }

    /// As the index does it; `None` where it is gone.
    fn by_index(query: &Query, index: pg_sys::Oid) -> Option<Way> {
        let (mut encoding, mut tables) = (None, Vec::new());
        for leaf in leaves(index) {
            // SAFETY: an index that exists is locked to the end of the transaction; the planner has checked what it is.
            unsafe {
                let open = pg_sys::try_index_open(leaf, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
                if open.is_null() {
                    continue;
                }
                if encoding.is_none() {
                    let meta = Meta::open(&RelationStore::new(open)).or_raise();
                    let text = TextIndex::open(open, &meta);
                    encoding = Some(Encoding {
                        model: text.model,
                        options: text.record.situate,
                        bridge: text.bridge,
                        titled: text.record.title,
                        metric: text.metric,
                    });
                }
                if let Some(body) = returned_distances::key_column(open, 0) {
                    tables.push(Table {
                        oid: (*(*open).rd_index).indrelid,
                        body,
                        title: returned_distances::key_column(open, 1),
                    });
                }
                pg_sys::index_close(open, pg_sys::NoLock as pg_sys::LOCKMODE);
            }
        }
        Some(Way::new(query, encoding?, tables))
    }

    fn new(query: &Query, encoding: Encoding, tables: Vec<Table>) -> Way {
        let Encoding {
            model, options, bridge, ..
        } = &encoding;
        let question = query.vector(model);
        if question.len() != model.dimensions {
            fail(
                PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
                format!(
                    "different vector dimensions {} and {}",
                    model.dimensions,
                    question.len()
                ),
            );
        }
        // SAFETY: the current user of a running statement.
        let user = unsafe { pg_sys::GetUserId() };
        let mut digest = sha2::Sha256::new();
        digest.update(user.to_u32().to_le_bytes());
        digest.update(query.index.unwrap_or(0).to_le_bytes());
        digest.update(model.fingerprint.as_bytes());
        digest.update([0]);
        digest.update(model.precision().name().as_bytes());
        digest.update([0]);
        digest.update(format!("{options:?}").as_bytes());
        digest.update(bridge.as_ref().map_or("", |bridge| &bridge.hash).as_bytes());
        Way {
            identity: query.identity(),
            index: query.index,
            question,
            encoding,
            tables,
            recipe: digest.finalize().into(),
        }
    }

    /// What a document is kept under.
    fn key(&self, title: Option<&str>, body: &str) -> [u8; 32] {
        let mut digest = sha2::Sha256::new();
        digest.update(self.recipe);
        digest.update([u8::from(title.is_some())]);
        digest.update((title.map_or(0, str::len) as u64).to_le_bytes());
        digest.update(title.unwrap_or_default().as_bytes());
        digest.update(body.as_bytes());
        digest.finalize().into()
    }

    /// The row that a body lies in, with its table.
    unsafe fn place(&self, body: pg_sys::Datum) -> Option<(OpenTable, &Table, Place)> {
        // SAFETY: the body is an argument of a call in progress.
        self.tables.iter().find_map(|table| unsafe {
            let open = OpenTable::open(table.oid)?;
            let place = rows::find(open.0, table.body, body)?;
            Some((open, table, place))
        })
    }

    /// The vectors of documents: title and body of each.
    fn encode(&self, documents: &[(Option<String>, &str)]) -> Vec<Vectors> {
        let mut found: Vec<Vec<_>> = vec![Vec::new(); documents.len()];
        let mut sink = |key: u64, passages| {
            if let Some(place) = found.get_mut(key as usize) {
                *place = passages;
            }
            Ok(())
        };
        let mut line = Documents::open(&self.encoding.model, Lane::Bulk, &self.encoding.options).or_raise();
        for (number, (title, body)) in documents.iter().enumerate() {
            line.push(number as u64, title.as_deref(), body, &mut sink).or_raise();
        }
        line.flush(&mut sink).or_raise();
        drop(line);
        let vectors = found.into_iter().map(|mut passages| {
            if let Some(bridge) = &self.encoding.bridge {
                bridge.apply(&mut passages);
            }
            passages.into_iter().map(|passage| passage.vector).collect()
        });
        vectors.collect()
    }
}

/// A table that is open for reading while this lives.
struct OpenTable(pg_sys::Relation);

impl OpenTable {
    fn open(oid: pg_sys::Oid) -> Option<OpenTable> {
        // SAFETY: null where it is gone; the lock is kept to the end of the transaction.
        let open = unsafe { pg_sys::try_relation_open(oid, pg_sys::AccessShareLock as pg_sys::LOCKMODE) };
        (!open.is_null()).then_some(OpenTable(open))
    }
}

impl Drop for OpenTable {
    fn drop(&mut self) {
        // SAFETY: opened by `open`.
        unsafe { pg_sys::relation_close(self.0, pg_sys::NoLock as pg_sys::LOCKMODE) }
    }
}

impl Evaluator {
    /// # Safety
    /// The document's value is an argument of a call in progress.
    unsafe fn distance(&mut self, document: &Document<'_>, query: &Query) -> Option<f64> {
        let identity = query.identity();
        let index = query.index.map(pg_sys::Oid::from);
        // SAFETY: the caller's promise.
        let found = unsafe { returned_distances::recall(identity, document.value, || body_hash(document.body), index) };
        if found.is_some() {
            return found;
        }
        let way = self.way(identity, query);
        // SAFETY: as above.
        let vectors = unsafe { self.vectors(&way, document) };
        let distances = vectors
            .iter()
            .map(|vector| distance(way.encoding.metric, vector, &way.question));
        distances.min_by(f64::total_cmp)
    }

    fn way(&mut self, identity: u64, query: &Query) -> Rc<Way> {
        let known = |way: &&Rc<Way>| way.identity == identity && way.index == query.index;
        if let Some(way) = self.ways.iter().find(known) {
            return way.clone();
        }
        let way = Rc::new(Way::of(query));
        if self.ways.len() >= QUESTIONS {
            self.ways.pop_front();
        }
        self.ways.push_back(way.clone());
        way
    }

    unsafe fn vectors(&mut self, way: &Way, document: &Document<'_>) -> Vectors {
        // SAFETY: the caller's promise: the body is an argument of a call in progress, so its page is pinned.
        unsafe {
            let place = way.place(document.value);
            let title = match (&document.title, &place) {
                _ if !way.encoding.titled => None,
                (Some(given), _) => given.clone(),
                (None, Some((table, columns, place))) => title_of(table, columns, *place),
                (None, None) => None,
            };
            let key = way.key(title.as_deref(), document.body);
            if let Some((table, _, place)) = &place {
                let ahead = self.ahead.remove(&(way.recipe, (*table.0).rd_id, place.offset));
                if let Some(vectors) = ahead {
                    self.used += 1;
                    keep(key, &vectors);
                    return vectors;
                }
            }
            if let Some(vectors) = recall(&key) {
                return vectors;
            }
            let mut along = Vec::new();
            if let Some((table, columns, place)) = &place {
                // What waits of the page before is not asked for any more.
                self.ahead.clear();
                along = self.neighbours(way, table, columns, *place);
            }
            self.encoded += 1;
            self.along += along.len();
            let mut documents = vec![(title, document.body)];
            documents.extend(along.iter().map(|(_, title, body)| (title.clone(), body.as_str())));
            let mut encoded = way.encode(&documents).into_iter();
            let vectors = encoded.next().unwrap_or_else(|| Rc::from([]));
            keep(key, &vectors);
            if let Some((table, _, _)) = &place {
                for ((offset, _, _), vectors) in along.iter().zip(encoded) {
                    self.ahead.insert((way.recipe, (*table.0).rd_id, *offset), vectors);
                }
            }
            vectors
        }
    }

    /// Rows behind on the page to encode along: offset, title and body.
    unsafe fn neighbours(
        &self,
        way: &Way,
        table: &OpenTable,
        columns: &Table,
        place: Place,
    ) -> Vec<(u16, Option<String>, String)> {
        // Rows of which fewer than half are asked for are not worth it: a filter lets few of them through.
        if self.used * 2 < self.along {
            return Vec::new();
        }
        let most = (self.encoded + self.used).min(MOST_AHEAD);
        // SAFETY: the page is pinned, and belongs to the table; the snapshot is that of the running statement.
        unsafe {
            let snapshot = pg_sys::GetActiveSnapshot();
            if most == 0 || snapshot.is_null() || (*snapshot).snapshot_type != pg_sys::SnapshotType::SNAPSHOT_MVCC {
                return Vec::new();
            }
            let mut bytes = 0;
            let rows = rows::behind(table.0, place, most, snapshot).into_iter();
            let documents = rows.filter_map(|place| {
                let body = read_text(rows::column(table.0, place, columns.body)?);
                let title = way.encoding.titled.then(|| title_of(table, columns, place)).flatten();
                let known = recall(&way.key(title.as_deref(), &body)).is_some();
                (!known).then_some((place.offset, title, body))
            });
            documents
                .take_while(|(_, _, body)| {
                    bytes += body.len();
                    bytes <= MOST_AHEAD_BYTES
                })
                .collect()
        }
    }
}

/// The title beside a body.
unsafe fn title_of(table: &OpenTable, columns: &Table, place: Place) -> Option<String> {
    // SAFETY: the page is pinned and belongs to the table, whose title column is a text.
    unsafe { rows::column(table.0, place, columns.title?).map(|title| read_text(title)) }
}

/// Documents that this backend has encoded for the operator.
#[derive(Default)]
struct Kept {
    vectors: HashMap<[u8; 32], Vectors>,
    order: VecDeque<[u8; 32]>,
    bytes: usize,
}

thread_local! {
    static KEPT: RefCell<Kept> = RefCell::new(Kept::default());
}

fn size(vectors: &Vectors) -> usize {
    let numbers: usize = vectors.iter().map(|vector| size_of_val(vector.as_slice())).sum();
    OVERHEAD + numbers + size_of::<Vec<f32>>() * vectors.len()
}

fn recall(key: &[u8; 32]) -> Option<Vectors> {
    KEPT.with_borrow(|kept| kept.vectors.get(key).cloned())
}

/// Keeps a document within `work_mem`; the oldest make room.
fn keep(key: [u8; 32], vectors: &Vectors) {
    // SAFETY: a plain setting of the backend.
    let room = usize::try_from(unsafe { pg_sys::work_mem }).unwrap_or(4096) * 1024;
    KEPT.with_borrow_mut(|kept| {
        if kept.vectors.contains_key(&key) {
            return;
        }
        kept.bytes += size(vectors);
        kept.vectors.insert(key, vectors.clone());
        kept.order.push_back(key);
        while kept.bytes > room {
            let Some(oldest) = kept.order.pop_front() else { break };
            if let Some(vectors) = kept.vectors.remove(&oldest) {
                kept.bytes -= size(&vectors);
            }
        }
    });
}

/// The distance of that metric between a passage and a question, in f64.
fn distance(metric: Metric, a: &[f32], b: &[f32]) -> f64 {
    let (mut dot, mut squared, mut norm_a, mut norm_b) = (0.0f64, 0.0f64, 0.0f64, 0.0f64);
    for (&x, &y) in a.iter().zip(b) {
        let (x, y) = (f64::from(x), f64::from(y));
        dot += x * y;
        squared += (x - y) * (x - y);
        norm_a += x * x;
        norm_b += y * y;
    }
    match metric {
        Metric::Cosine => 1.0 - dot / (norm_a * norm_b).sqrt(),
        Metric::InnerProduct => -dot,
        Metric::L2 => squared.sqrt(),
    }
}
