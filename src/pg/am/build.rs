//! CREATE INDEX and REINDEX: the table is read once, documents go through the encoder, vectors go to the index.

use super::entries::{DocumentEncoder, Encoded, Row, vector_entry};
use super::kind::{self, Key, KeyKind, MAX_DIMENSIONS};
use super::options::{self, IndexSettings};
use super::settings;
use super::spool::TemporaryFile;
use super::text_index::{self, TextPlan};
use crate::index::{self, Build, IndexOptions, Phase, Spool};
use crate::pg::catalog::model_registry;
use crate::pg::ereport::fail_with_hint;
use crate::pg::error::OrRaise;
use crate::pg::store::RelationStore;
use crate::pg::version;
use crate::serve::ipc::memory::give_back;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use std::ffi::c_void;
use std::time::Instant;

/// Numbers of the phases in `pg_stat_progress_create_index`; 1 is the server's own "initializing".
fn phase_number(phase: Phase) -> i64 {
    match phase {
        Phase::Loading => 2,
        Phase::Clustering => 3,
        Phase::Assigning => 4,
        Phase::Writing => 5,
    }
}

/// Access-method callback: the name of a phase.
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn ambuildphasename(phase: i64) -> *mut std::ffi::c_char {
    let name = match phase {
        1 => c"initializing",
        2 => c"loading and encoding rows",
        3 => c"clustering",
        4 => c"assigning vectors to lists",
        5 => c"writing lists",
        _ => return std::ptr::null_mut(),
    };
    // SAFETY: a copy in the caller's memory context.
    unsafe { pg_sys::pstrdup(name.as_ptr()) }
}

fn report(phase: Phase, done: u64, total: u64) {
    // SAFETY: plain stores into this backend's status entry.
    unsafe {
        pg_sys::pgstat_progress_update_param(pg_sys::PROGRESS_CREATEIDX_SUBPHASE as i32, phase_number(phase));
        if phase == Phase::Loading && done > 0 {
            // While rows come in, the builder counts rows; this counts entries.
            return;
        }
        pg_sys::pgstat_progress_update_param(pg_sys::PROGRESS_CREATEIDX_TUPLES_TOTAL as i32, total as i64);
        pg_sys::pgstat_progress_update_param(pg_sys::PROGRESS_CREATEIDX_TUPLES_DONE as i32, done as i64);
    }
}

/// Rows read, or documents encoded, so far.
fn report_rows(rows: u64) {
    // SAFETY: a plain store into this backend's status entry.
    unsafe { pg_sys::pgstat_progress_update_param(pg_sys::PROGRESS_CREATEIDX_TUPLES_DONE as i32, rows as i64) }
}

/// What documents need on their way into the index.
struct TextBuild {
    plan: TextPlan,
    /// Opened at the first document: an empty table needs no encoder. Keys are packed tids.
    encoder: Option<DocumentEncoder>,
    started: Instant,
}

/// The state behind the table scan's callback. It is dropped also when the scan ends in an error.
struct Builder {
    index: pg_sys::Relation,
    key: Key,
    store: RelationStore,
    /// Dimensions are 0 where the column declares none, and over text before the first document: then the first entry
    /// says.
    options: IndexOptions,
    /// The statement's memory context, for what outlives a row.
    context: pg_sys::MemoryContext,
    /// Opened when the dimensions are known.
    build: Option<Build<RelationStore>>,
    text: Option<TextBuild>,
    /// Rows with an entry.
    rows: u64,
    /// Rows read.
    read: u64,
    /// Memory for one row's detoasted values, emptied after each.
    row_context: pgrx::PgMemoryContexts,
}

/// Options of the index's own format, as far as its definition says them.
///
/// # Safety
/// `index` is open.
unsafe fn index_options(index: pg_sys::Relation, key: Key, settings: &IndexSettings) -> IndexOptions {
    // SAFETY: the caller's promise.
    let declared = unsafe { kind::declared_dimensions(index) }.filter(|_| key.kind != KeyKind::Text);
    IndexOptions {
        metric: key.kind.metric(),
        element: key.kind.element(),
        dimensions: declared.unwrap_or(0) as u32,
        lists: settings.lists,
        documents: key.kind == KeyKind::Text,
        model: None,
        extra: Vec::new(),
    }
}

/// Bytes that `maintenance_work_mem` allows.
fn maintenance_memory() -> usize {
    // SAFETY: a plain setting of this process.
    usize::try_from(unsafe { pg_sys::maintenance_work_mem }).unwrap_or(65_536) * 1024
}

/// Refuses what cannot be indexed.
fn check_dimensions(dimensions: usize) {
    if dimensions > MAX_DIMENSIONS {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            format!("column cannot have more than {MAX_DIMENSIONS} dimensions for a situ index"),
            "Reduce the vectors' dimensions first, for example with subvector().",
        );
    }
}

impl Builder {
    /// # Safety
    /// `index` is open, empty and locked for its build; `store` is one of its forks.
    unsafe fn new(index: pg_sys::Relation, store: RelationStore) -> Builder {
        // SAFETY: the caller's promise.
        let (key, settings) = unsafe { (kind::read_key(index), options::settings(index)) };
        if key.kind == KeyKind::Text {
            text_index::mode(key, &settings);
        }
        Builder {
            index,
            key,
            store,
            // SAFETY: as above.
            options: unsafe { index_options(index, key, &settings) },
            // SAFETY: a variable of this backend.
            context: unsafe { pg_sys::CurrentMemoryContext },
            build: None,
            text: None,
            rows: 0,
            read: 0,
            row_context: pgrx::PgMemoryContexts::new("situ build row"),
        }
    }

    /// The text side, asked of the registry at the first document.
    fn text(&mut self) -> &mut TextBuild {
        let Builder {
            index, options, text, ..
        } = self;
        text.get_or_insert_with(|| {
            model_registry::hold();
            // SAFETY: the index stays open for its build.
            let plan = unsafe { text_index::plan(*index) };
            options.clone_from(&plan.options);
            TextBuild {
                plan,
                encoder: None,
                started: Instant::now(),
            }
        })
    }

    /// The index's build, opened at the first vector, or at the end for what the column declares.
    fn open(&mut self, first_vector: usize) -> &mut Build<RelationStore> {
        let Builder {
            store,
            options,
            context,
            build,
            ..
        } = self;
        build.get_or_insert_with(|| {
            if options.dimensions == 0 {
                options.dimensions = first_vector as u32;
            }
            check_dimensions(options.dimensions as usize);
            let context = *context;
            Build::new(
                *store,
                options.clone(),
                maintenance_memory(),
                settings::build_threads(),
                // SAFETY: the build ends within the statement.
                Box::new(move || Ok(Box::new(unsafe { TemporaryFile::create(context) }) as Box<dyn Spool>)),
                Box::new(report),
            )
            .or_raise()
        })
    }

    /// Takes one row of the table.
    ///
    /// # Safety
    /// `values` and `isnull` are the row's index columns.
    unsafe fn row(&mut self, tid: u64, values: *mut pg_sys::Datum, isnull: *mut bool, alive: bool) {
        self.read += 1;
        if self.key.kind != KeyKind::Text && self.read.is_multiple_of(64) {
            report_rows(self.read);
        }
        // SAFETY: the caller's promise.
        let Some(row) = (unsafe { Row::read(self.key, values, isnull) }) else {
            return;
        };
        match row {
            Row::Vector { vector } => {
                if !alive && self.options.dimensions as usize != vector.len() {
                    // A deleted row neither says what the dimensions are nor fails the build.
                    return;
                }
                self.rows += 1;
                self.open(vector.len()).add(vector_entry(tid, &vector)).or_raise();
            }
            Row::Document { title, body } => {
                let TextBuild { plan, encoder, .. } = self.text();
                let encoder = encoder.get_or_insert_with(|| {
                    DocumentEncoder::open(&plan.model, &plan.record.situate, plan.bridge.clone())
                });
                let done = encoder.push(tid, title.as_deref(), &body);
                self.take(&done);
            }
        }
    }

    /// Adds encoded documents to the index.
    fn take(&mut self, done: &[Encoded]) {
        for document in done {
            let Some(text) = self.text.as_mut() else { return };
            let tokens = document.passages.iter().map(|passage| u64::from(passage.tokens));
            text.plan.record.tokens += tokens.sum::<u64>();
            self.rows += u64::from(!document.passages.is_empty());
            report_rows(self.rows);
            for entry in document.entries(document.key) {
                self.open(entry.vector.len()).add(entry).or_raise();
            }
        }
    }

    /// Waits for the documents on their way and writes the index.
    fn finish(mut self) -> u64 {
        if let Some(mut encoder) = self.text.as_mut().and_then(|text| text.encoder.take()) {
            self.take(&encoder.finish());
        }
        // SAFETY: the index stays open for its build.
        let lacks = |index| unsafe { text_index::missing(index) };
        if self.key.kind == KeyKind::Text && self.text.is_none() {
            match lacks(self.index) {
                None => _ = self.text(),
                Some(lack) if self.store.is_main() => warn_undecided(&lack),
                Some(_) => {}
            }
        }
        if self.build.is_none() && self.options.dimensions == 0 {
            index::write_undecided(&self.store, self.options.clone()).or_raise();
            return 0;
        }
        if let Some(text) = self.text.as_mut() {
            text.plan.record.encode_milliseconds = text.started.elapsed().as_millis() as u64;
            let extra = text.plan.record.write().or_raise();
            self.open(0).set_extra(extra);
        }
        self.open(0);
        if let Some(build) = self.build.take() {
            build.finish().or_raise();
        }
        self.rows
    }
}

impl Drop for Builder {
    fn drop(&mut self) {
        // What a build needs is large, and its backend may stay for long.
        self.build = None;
        give_back();
    }
}

/// Says that an index over no rows names what the registry does not have.
fn warn_undecided(lack: &str) {
    pgrx::ereport!(
        pgrx::PgLogLevel::WARNING,
        PgSqlErrorCode::ERRCODE_WARNING,
        format!("{lack}: the index is empty until the first text, which needs it")
    );
}

/// Called by the table scan for each row.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn build_row(
    _index: pg_sys::Relation,
    tid: pg_sys::ItemPointer,
    values: *mut pg_sys::Datum,
    isnull: *mut bool,
    alive: bool,
    state: *mut c_void,
) {
    // SAFETY: `state` is the builder that `ambuild` passed; the scan calls back from the same thread. Rows that are
    // dead only to newer snapshots are indexed too: older ones still see them.
    unsafe {
        let builder = &mut *state.cast::<Builder>();
        let previous = builder.row_context.set_as_current();
        builder.row(kind::pack_tid(tid), values, isnull, alive);
        pg_sys::MemoryContextSwitchTo(previous.value());
        builder.row_context.reset();
    }
}

/// Access-method callback: builds the index of a table.
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn ambuild(
    heap: pg_sys::Relation,
    index: pg_sys::Relation,
    info: *mut pg_sys::IndexInfo,
) -> *mut pg_sys::IndexBuildResult {
    version::check();
    // SAFETY: the server's contract for ambuild.
    unsafe {
        let store = RelationStore::new(index);
        let mut builder = Builder::new(index, store);
        report(Phase::Loading, 0, (*(*heap).rd_rel).reltuples.max(0.0) as u64);
        let methods = &*(*heap).rd_tableam;
        let heap_tuples = match methods.index_build_range_scan {
            Some(scan) => {
                let state = (&raw mut builder).cast();
                let none = std::ptr::null_mut();
                let last = pg_sys::InvalidBlockNumber;
                // An error in the scan must unwind through this function, which owns the builder.
                pg_guard_ffi_boundary(|| {
                    scan(
                        heap,
                        index,
                        info,
                        true,
                        false,
                        true,
                        0,
                        last,
                        Some(build_row),
                        state,
                        none,
                    )
                })
            }
            None => 0.0,
        };
        let rows = builder.finish();
        let result =
            pg_sys::palloc0(std::mem::size_of::<pg_sys::IndexBuildResult>()).cast::<pg_sys::IndexBuildResult>();
        (*result).heap_tuples = heap_tuples;
        (*result).index_tuples = rows as f64;
        result
    }
}

/// Access-method callback: builds the empty init fork of an unlogged index.
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn ambuildempty(index: pg_sys::Relation) {
    // SAFETY: the server's contract for ambuildempty: the init fork exists and is empty.
    unsafe {
        Builder::new(index, RelationStore::init_fork(index)).finish();
    }
}
