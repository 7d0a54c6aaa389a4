//! The registry of models, `situ_internal.model_registry`, as a backend knows it.
//!
//! Each backend keeps what it read until the table changes: a statement trigger on it invalidates its relation-cache
//! entry, which every backend hears of when the change commits (and this one at once).

use crate::pg::catalog::cache::{self, Cache, ReadOf};
use crate::pg::catalog::owner::{INTERNAL, has_rights_of, table};
use crate::pg::error::Describe;
use crate::pg::service::model_ref::Forms;
use crate::pg::service::{ModelKind, ModelRef};
use crate::pg::settings;
use crate::pg::version;
use pgrx::{FromDatum, PgSqlErrorCode, pg_guard, pg_sys};
use std::rc::Rc;

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
/// The ones of the texts before queries and before passages.
const PREFIX_COLUMNS: [usize; 2] = [11, 12];

const SIMILARITY_COLUMN: usize = 15;

pub const LLM: &str = "llm";

/// All registered models.
type Models = Rc<Vec<ModelRef>>;

thread_local! {
    static MODELS: Cache<(), Models> = Cache::new(1);
}

fn registry_relation() -> Option<pg_sys::Oid> {
    table(INTERNAL, c"model_registry")
}

/// Keeps models from being dropped until the transaction ends: for indexes that take one.
pub fn hold() {
    lock(pg_sys::RowExclusiveLock);
}

/// Locks the registry until the transaction ends.
pub fn lock(mode: u32) {
    if let Some(relation) = registry_relation() {
        // SAFETY: a relation that exists; the wait can be cancelled.
        unsafe { pg_sys::LockRelationOid(relation, mode as pg_sys::LOCKMODE) };
    }
}

fn read(relation: pg_sys::Oid) -> Vec<ModelRef> {
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
                forms: Forms::of(&text(PREFIX_COLUMNS[0]), &text(PREFIX_COLUMNS[1])),
                owner: pg_sys::Oid::from_datum(values[4], nulls[4]).map_or(0, |owner| owner.to_u32()),
                calibrated: serde_json::from_value(text(5).into()).ok(),
            });
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(table, lock);
    }
    models
}

/// Looks at the registered models. Cached per backend.
fn with_models<T>(look: impl FnOnce(&[ModelRef]) -> T) -> Result<T, RegistryError> {
    version::check();
    if let Some(models) = MODELS.with(|kept| kept.get(&())) {
        return Ok(look(&models));
    }
    let relation = registry_relation().ok_or(RegistryError::NotInstalled)?;
    let read_of = ReadOf::now(&[relation]);
    let models = Rc::new(read(relation));
    MODELS.with(|kept| kept.keep((), models.clone(), read_of));
    Ok(look(&models))
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
    cache::tell(registry_relation());
    pg_sys::Datum::from(0)
}

/// Fails unless the current user owns the model, or is a superuser.
pub fn check_owner(model: &ModelRef) -> Result<(), RegistryError> {
    match has_rights_of(model.owner.into()) {
        true => Ok(()),
        false => Err(RegistryError::NotOwner(model.name.clone())),
    }
}

impl Describe for RegistryError {
    fn code(&self) -> PgSqlErrorCode {
        match self {
            RegistryError::Unknown(_) | RegistryError::Empty => PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            RegistryError::Ambiguous => PgSqlErrorCode::ERRCODE_AMBIGUOUS_PARAMETER,
            RegistryError::Taken { .. } => PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
            RegistryError::InUse { .. } => PgSqlErrorCode::ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST,
            RegistryError::NotInstalled => PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            RegistryError::EmptyName => PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            RegistryError::NotOwner(_) => PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            RegistryError::NotEncoder(_) | RegistryError::NotLlm(_) => PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
            RegistryError::UnknownLlm(_) | RegistryError::NoLlm => PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            RegistryError::AmbiguousLlm => PgSqlErrorCode::ERRCODE_AMBIGUOUS_PARAMETER,
        }
    }
    fn detail(&self) -> Option<String> {
        match self {
            RegistryError::Taken { registered, found, .. } => {
                Some(format!("Registered fingerprint {registered}, found {found}."))
            }
            RegistryError::InUse { indexes, .. } => Some(format!("Built with it: {}.", indexes.join(", "))),
            _ => None,
        }
    }
    fn hint(&self) -> Option<String> {
        Some(match self {
            RegistryError::Unknown(_) | RegistryError::Empty => {
                "SELECT * FROM situ.models lists the models; situ.register_model(name, path) adds one.".to_owned()
            }
            RegistryError::Ambiguous => "Name the model, or set situ.default_model.".to_owned(),
            RegistryError::Taken { .. } => {
                "Choose another name, or pass replace => true and REINDEX the indexes that use the model.".to_owned()
            }
            RegistryError::InUse { .. } => {
                "DROP INDEX them first, or ALTER INDEX ... SET (model = ...) and REINDEX them.".to_owned()
            }
            RegistryError::NotInstalled => "CREATE EXTENSION situ CASCADE creates it.".to_owned(),
            RegistryError::EmptyName => "Give the model a name.".to_owned(),
            RegistryError::NotEncoder(_) => "Name an encoder: SELECT name, kind FROM situ.models.".to_owned(),
            RegistryError::NotLlm(_) => "Name an LLM: SELECT name, kind FROM situ.models.".to_owned(),
            RegistryError::UnknownLlm(_) | RegistryError::NoLlm => {
                "SELECT name FROM situ.models WHERE kind = 'llm' lists the LLMs; situ.register_model(name, path) adds \
                 one."
                    .to_owned()
            }
            RegistryError::AmbiguousLlm => "Name the LLM, or set situ.default_llm.".to_owned(),
            RegistryError::NotOwner(_) => {
                "The role that registered the model owns it: SELECT name, owner FROM situ.models.".to_owned()
            }
        })
    }
}
