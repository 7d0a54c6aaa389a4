//! The registry of models: `situ.model_registry`, written by `situ.register_model` and `situ.drop_model`.
//!
//! Each backend keeps what it read until the table changes: a statement trigger on it invalidates its relation-cache
//! entry, which every backend hears of when the change commits (and this one at once).

use crate::model::calibrate::Calibration;
use crate::model::{Manifest, ModelError, Precision, Similarity};
use crate::pg::am::users::{Needed, needed_by};
use crate::pg::error::OrRaise;
use crate::pg::fail::fail;
use crate::pg::llm::runtime;
use crate::pg::owner::{as_owner, current_user, has_rights_of, table};
use crate::pg::service::{Item, ModelKind, ModelRef, Report, ServiceError, ask, models::resolve};
use crate::pg::settings;
use crate::pg::version;
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::{FromDatum, JsonB, pg_guard, pg_sys};
use std::cell::RefCell;
use std::path::Path;
use std::sync::Once;

/// Why a name did not lead to a model, or could not be registered.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("model \"{0}\" is not registered")]
    Unknown(String),
    #[error("no model is registered")]
    Empty,
    #[error("several models are registered and situ.default_model is not set")]
    Ambiguous,
    #[error("model \"{name}\" is registered with other files")]
    Taken {
        name: String,
        registered: String,
        found: String,
    },
    #[error("the extension situ is not installed in this database")]
    NotInstalled,
    #[error("the name of a model is empty")]
    EmptyName,
    #[error("cannot drop model \"{name}\" because indexes use it")]
    InUse { name: String, indexes: Vec<String> },
    #[error("must be owner of model \"{0}\"")]
    NotOwner(String),
    #[error("\"{0}\" is an LLM, which makes no vectors of texts")]
    NotEncoder(String),
    #[error("\"{0}\" is an encoder, which generates no text")]
    NotLlm(String),
    #[error("LLM \"{0}\" is not registered")]
    UnknownLlm(String),
    #[error("no LLM is registered")]
    NoLlm,
    #[error("several LLMs are registered and situ.default_llm is not set")]
    AmbiguousLlm,
}

/// The column that says what a model is, and what it says of LLMs.
const KIND_COLUMN: usize = 14;
const SIMILARITY_COLUMN: usize = 15;
const LLM: &str = "llm";

struct Registry {
    relation: pg_sys::Oid,
    models: Vec<ModelRef>,
}

thread_local! {
    static REGISTRY: RefCell<Option<Registry>> = const { RefCell::new(None) };
}

#[pg_guard]
unsafe extern "C-unwind" fn on_invalidation(_argument: pg_sys::Datum, relation: pg_sys::Oid) {
    REGISTRY.with_borrow_mut(|registry| {
        let concerned = |registry: &Registry| relation == pg_sys::InvalidOid || relation == registry.relation;
        if registry.as_ref().is_some_and(concerned) {
            *registry = None;
        }
    });
}

fn registry_relation() -> Option<pg_sys::Oid> {
    table(c"model_registry")
}

/// Keeps models from being dropped until the transaction ends: for indexes that take one.
pub fn hold() {
    lock(pg_sys::RowExclusiveLock);
}

fn lock(mode: u32) {
    if let Some(relation) = registry_relation() {
        // SAFETY: a relation that exists; the wait can be cancelled.
        unsafe { pg_sys::LockRelationOid(relation, mode as pg_sys::LOCKMODE) };
    }
}

fn read() -> Result<Registry, RegistryError> {
    static WATCHED: Once = Once::new();
    // SAFETY: the callback lives as long as the library.
    WATCHED.call_once(|| unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(on_invalidation), pg_sys::Datum::from(0));
    });
    let relation = registry_relation().ok_or(RegistryError::NotInstalled)?;
    let mut models = Vec::new();
    // SAFETY: an open, locked table; its columns are those of sql/10_models.sql.
    unsafe {
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let table = pg_sys::table_open(relation, lock);
        let none = std::ptr::null_mut();
        let scan = pg_sys::systable_beginscan(table, pg_sys::InvalidOid, false, none, 0, std::ptr::null_mut());
        let columns = (*(*table).rd_att).natts as usize;
        let (mut values, mut nulls) = (vec![pg_sys::Datum::null(); columns], vec![false; columns]);
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            pg_sys::heap_deform_tuple(tuple, (*table).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
            let text = |column: usize| String::from_datum(values[column], nulls[column]).unwrap_or_default();
            models.push(ModelRef {
                name: text(0),
                root: None,
                kind: match text(KIND_COLUMN).as_str() {
                    LLM => ModelKind::Llm,
                    _ => ModelKind::Encoder,
                },
                path: text(1),
                fingerprint: text(2),
                dimensions: i32::from_datum(values[3], nulls[3]).unwrap_or_default().max(0) as usize,
                similarity: serde_json::from_value(text(SIMILARITY_COLUMN).into()).unwrap_or_default(),
                owner: pg_sys::Oid::from_datum(values[4], nulls[4]).map_or(0, |owner| owner.to_u32()),
                calibrated: serde_json::from_value(text(5).into()).ok(),
            });
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(table, lock);
    }
    Ok(Registry { relation, models })
}

/// Looks at the registered models. Cached per backend.
fn with_models<T>(look: impl FnOnce(&[ModelRef]) -> T) -> Result<T, RegistryError> {
    version::check();
    // Read outside of the borrow: reading can run the invalidation callback.
    if REGISTRY.with_borrow(Option::is_none) {
        let registry = read()?;
        REGISTRY.set(Some(registry));
    }
    Ok(REGISTRY.with_borrow(|registry| look(registry.as_ref().map_or(&[][..], |registry| &registry.models))))
}

/// Paths and fingerprints of all registered models; none where they cannot be read.
pub fn registered() -> Vec<(String, String)> {
    let of = |model: &ModelRef| (model.path.clone(), model.fingerprint.clone());
    with_models(|models| models.iter().map(of).collect()).unwrap_or_default()
}

/// The only model of a kind.
fn only(models: &[ModelRef], kind: ModelKind) -> Result<ModelRef, Many> {
    let mut all = models.iter().filter(|model| model.kind == kind);
    match (all.next(), all.next()) {
        (Some(model), None) => Ok(model.clone()),
        (None, _) => Err(Many::None),
        _ => Err(Many::Several),
    }
}

/// Why there is no only one.
enum Many {
    None,
    Several,
}

/// The model of that name, encoder or LLM.
pub fn any_by_name(name: &str) -> Result<ModelRef, RegistryError> {
    with_models(|models| models.iter().find(|model| model.name == name).cloned())?
        .ok_or_else(|| RegistryError::Unknown(name.to_owned()))
}

/// The encoder of that name; without a name `situ.default_model`, or the only registered encoder.
pub fn model_by_name(name: Option<&str>) -> Result<ModelRef, RegistryError> {
    let default = name.is_none().then(settings::default_model).flatten();
    match name.or(default.as_deref()) {
        Some(name) => {
            let model = any_by_name(name)?;
            match model.kind {
                ModelKind::Encoder => Ok(model),
                ModelKind::Llm => Err(RegistryError::NotEncoder(model.name)),
            }
        }
        None => with_models(|models| only(models, ModelKind::Encoder))?.map_err(|many| match many {
            Many::None => RegistryError::Empty,
            Many::Several => RegistryError::Ambiguous,
        }),
    }
}

/// The LLM of that name; without a name `situ.default_llm`, or the only registered LLM.
pub fn llm_by_name(name: Option<&str>) -> Result<ModelRef, RegistryError> {
    let default = name.is_none().then(settings::default_llm).flatten();
    match name.or(default.as_deref()) {
        Some(name) => match any_by_name(name) {
            Ok(model) if model.kind == ModelKind::Llm => Ok(model),
            Ok(model) => Err(RegistryError::NotLlm(model.name)),
            Err(RegistryError::Unknown(name)) => Err(RegistryError::UnknownLlm(name)),
            Err(error) => Err(error),
        },
        None => with_models(|models| only(models, ModelKind::Llm))?.map_err(|many| match many {
            Many::None => RegistryError::NoLlm,
            Many::Several => RegistryError::AmbiguousLlm,
        }),
    }
}

/// Tells the server that [`situ_model_registry_changed`] uses the version-1 calling convention.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_finfo_situ_model_registry_changed() -> *const pg_sys::Pg_finfo_record {
    static RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &raw const RECORD
}

/// The statement trigger on the registry.
///
/// # Safety
/// Called by the server.
#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn situ_model_registry_changed(_call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    if let Some(relation) = registry_relation() {
        // SAFETY: a relation that exists.
        unsafe { pg_sys::CacheInvalidateRelcacheByRelid(relation) };
    }
    pg_sys::Datum::from(0)
}

/// The name of a unit variant as its serialized form has it.
fn variant<T: serde::Serialize>(value: T) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

/// Fails unless the current user owns the model, or is a superuser.
pub fn check_owner(model: &ModelRef) -> Result<(), RegistryError> {
    match has_rights_of(model.owner.into()) {
        true => Ok(()),
        false => Err(RegistryError::NotOwner(model.name.clone())),
    }
}

/// Has the service measure a model. `None`, with a notice, where it does not run.
fn calibrate(model: &ModelRef) -> Option<Calibration> {
    match ask(model, Item::Calibrate { again: false }) {
        Ok(Report::Calibrated(calibration)) => Some(calibration),
        Ok(_) => None,
        Err(error @ (ServiceError::NotPreloaded | ServiceError::NoWorker { .. })) => {
            pgrx::notice!(
                "model \"{0}\" is not calibrated and will be computed in f32 until situ.calibrate_model('{0}') is called: {error}",
                model.name
            );
            None
        }
        Err(error) => Err(error).or_raise(),
    }
}

fn to_json<T: serde::Serialize>(value: &T) -> JsonB {
    JsonB(serde_json::to_value(value).unwrap_or_default())
}

/// What the registry stores of a model's files.
struct Described {
    kind: ModelKind,
    fingerprint: String,
    dimensions: usize,
    max_tokens: usize,
    family: String,
    pooling: String,
    normalize: bool,
    /// None for an LLM.
    similarity: Option<Similarity>,
    query_prefix: String,
    passage_prefix: String,
}

fn describe(path: &Path) -> Result<Described, ModelError> {
    if runtime::is_llm(path) {
        let found = runtime::describe(path)?;
        return Ok(Described {
            kind: ModelKind::Llm,
            fingerprint: found.fingerprint,
            dimensions: found.config.hidden,
            max_tokens: found.config.positions,
            family: variant(found.config.family),
            pooling: "none".to_owned(),
            normalize: false,
            similarity: None,
            query_prefix: String::new(),
            passage_prefix: String::new(),
        });
    }
    let manifest = Manifest::read(path)?;
    Ok(Described {
        kind: ModelKind::Encoder,
        dimensions: manifest.dimensions,
        max_tokens: manifest.max_tokens,
        family: variant(manifest.family),
        pooling: variant(manifest.pooling),
        normalize: manifest.normalize,
        similarity: Some(manifest.similarity),
        query_prefix: manifest.query_prefix,
        passage_prefix: manifest.passage_prefix,
        fingerprint: manifest.fingerprint,
    })
}

/// Runs a statement on the registry as its owner. The current user's right to it was checked before.
fn write(what: &str, statement: &str, arguments: &[DatumWithOid<'_>]) {
    if let Err(error) = as_owner(|| Spi::run_with_args(statement, arguments)) {
        fail(
            PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
            format!("cannot {what}: {error}"),
        )
    }
}

/// `situ.register_model(name, path, replace)`.
#[pg_extern(sql = false)]
fn register_model(name: &str, path: &str, replace: bool) -> String {
    if name.is_empty() {
        Err(RegistryError::EmptyName).or_raise()
    }
    let place = resolve(&settings::model_dir(), path).or_raise();
    let found = describe(&place).or_raise();
    let known = match any_by_name(name) {
        Ok(model) => Some(model),
        Err(RegistryError::Unknown(_)) => None,
        Err(error) => Err(error).or_raise(),
    };
    if let Some(known) = known {
        let same = known.fingerprint == found.fingerprint && known.kind == found.kind;
        if !same && !replace {
            Err(RegistryError::Taken {
                name: name.to_owned(),
                registered: known.fingerprint.clone(),
                found: found.fingerprint.clone(),
            })
            .or_raise()
        }
        if same && known.path == path && (known.calibrated.is_some() || known.kind == ModelKind::Llm) {
            return found.fingerprint;
        }
        check_owner(&known).or_raise();
    }
    let owner = current_user();
    let calibration = match found.kind {
        ModelKind::Encoder => calibrate(&ModelRef {
            name: name.to_owned(),
            kind: found.kind,
            root: None,
            path: path.to_owned(),
            fingerprint: found.fingerprint.clone(),
            dimensions: found.dimensions,
            similarity: found.similarity.unwrap_or_default(),
            owner: owner.to_u32(),
            calibrated: None,
        }),
        ModelKind::Llm => None,
    };
    let kind = match found.kind {
        ModelKind::Encoder => "encoder",
        ModelKind::Llm => LLM,
    };
    let statement = "INSERT INTO situ.model_registry AS r (name, path, fingerprint, dimensions, owner, precision, \
                     calibration, max_tokens, family, pooling, normalize, query_prefix, passage_prefix, kind, \
                     similarity) \
                     VALUES ($1, $2, $3, $4, $5::pg_catalog.oid::situ.role, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) \
                     ON CONFLICT (name) DO UPDATE SET (path, fingerprint, dimensions, owner, precision, calibration, \
                     max_tokens, family, pooling, normalize, query_prefix, passage_prefix, kind, similarity, registered_at) = \
                     (excluded.path, excluded.fingerprint, excluded.dimensions, excluded.owner, excluded.precision, \
                     excluded.calibration, excluded.max_tokens, excluded.family, excluded.pooling, \
                     excluded.normalize, excluded.query_prefix, excluded.passage_prefix, excluded.kind, \
                     excluded.similarity, \
                     pg_catalog.now())";
    write(
        "register the model",
        statement,
        &[
            name.into(),
            path.into(),
            found.fingerprint.as_str().into(),
            (found.dimensions as i32).into(),
            owner.into(),
            calibration.as_ref().map(|found| found.precision.name()).into(),
            calibration.as_ref().map(to_json).into(),
            (found.max_tokens as i32).into(),
            found.family.into(),
            found.pooling.into(),
            found.normalize.into(),
            found.query_prefix.into(),
            found.passage_prefix.into(),
            kind.into(),
            found.similarity.map(variant).into(),
        ],
    );
    found.fingerprint
}

/// `situ.calibrate_model(name)`.
#[pg_extern(sql = false)]
fn calibrate_model(name: &str) -> &'static str {
    let model = model_by_name(Some(name)).or_raise();
    check_owner(&model).or_raise();
    let calibration = match ask(&model, Item::Calibrate { again: true }).or_raise() {
        Report::Calibrated(calibration) => calibration,
        _ => return Precision::F32.name(),
    };
    write(
        "store the calibration",
        "UPDATE situ.model_registry SET (precision, calibration) = ($2, $3) WHERE name OPERATOR(pg_catalog.=) $1",
        &[
            name.into(),
            calibration.precision.name().into(),
            to_json(&calibration).into(),
        ],
    );
    calibration.precision.name()
}

/// `situ.drop_model(name)`.
#[pg_extern(sql = false)]
fn drop_model(name: &str) {
    check_owner(&any_by_name(name).or_raise()).or_raise();
    // Builds hold the registry in a mode that this one waits for: afterwards every index that took the model is seen.
    lock(pg_sys::ShareRowExclusiveLock);
    let indexes = needed_by(Needed::Model(name));
    if !indexes.is_empty() {
        let name = name.to_owned();
        Err(RegistryError::InUse { name, indexes }).or_raise()
    }
    write(
        "drop the model",
        "DELETE FROM situ.model_registry WHERE name OPERATOR(pg_catalog.=) $1",
        &[name.into()],
    );
}

/// `situ.version()`.
#[pg_extern(immutable, strict, parallel_safe, sql = false)]
fn version() -> &'static str {
    version::LIBRARY
}
