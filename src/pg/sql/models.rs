//! The registry of models: `situ.model_registry`, written by `situ.register_model` and `situ.drop_model`.
//!
//! Each backend keeps what it read until the table changes: a statement trigger on it invalidates its relation-cache
//! entry, which every backend hears of when the change commits (and this one at once).

use crate::model::calibrate::Calibration;
use crate::model::{Manifest, Precision};
use crate::pg::error::OrRaise;
use crate::pg::service::{Item, ModelRef, Report, ServiceError, ask, models::resolve};
use crate::pg::settings;
use pgrx::prelude::*;
use pgrx::{FromDatum, JsonB, pg_guard, pg_sys};
use std::cell::RefCell;
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
    #[error("must be owner of model \"{0}\"")]
    NotOwner(String),
}

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
    // SAFETY: catalog look-ups with constant names, inside a transaction.
    let relation = unsafe {
        let schema = pg_sys::get_namespace_oid(c"situ".as_ptr(), true);
        match schema == pg_sys::InvalidOid {
            true => pg_sys::InvalidOid,
            false => pg_sys::get_relname_relid(c"model_registry".as_ptr(), schema),
        }
    };
    (relation != pg_sys::InvalidOid).then_some(relation)
}

fn read() -> Result<Registry, RegistryError> {
    static WATCHED: Once = Once::new();
    // SAFETY: the callback lives as long as the library.
    WATCHED.call_once(|| unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(on_invalidation), pg_sys::Datum::from(0));
    });
    let relation = registry_relation().ok_or(RegistryError::NotInstalled)?;
    let mut models = Vec::new();
    // SAFETY: an open, locked table; its first six columns are those of sql/10_models.sql.
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
                path: text(1),
                fingerprint: text(2),
                dimensions: i32::from_datum(values[3], nulls[3]).unwrap_or_default().max(0) as usize,
                owner: pg_sys::Oid::from_datum(values[4], nulls[4]).map_or(0, |owner| owner.to_u32()),
                calibrated: serde_json::from_value(text(5).into()).ok(),
            });
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(table, lock);
    }
    Ok(Registry { relation, models })
}

/// The model of that name; without a name `situ.default_model`, or the only registered model. Cached per backend.
pub fn model_by_name(name: Option<&str>) -> Result<ModelRef, RegistryError> {
    // Read outside of the borrow: reading can run the invalidation callback.
    if REGISTRY.with_borrow(Option::is_none) {
        let registry = read()?;
        REGISTRY.set(Some(registry));
    }
    let default = name.is_none().then(settings::default_model).flatten();
    REGISTRY.with_borrow(|registry| {
        let models = registry.as_ref().map_or(&[][..], |registry| &registry.models);
        match (name.or(default.as_deref()), models) {
            (Some(name), _) => {
                let found = models.iter().find(|model| model.name == name);
                found.cloned().ok_or_else(|| RegistryError::Unknown(name.to_owned()))
            }
            (None, [model]) => Ok(model.clone()),
            (None, []) => Err(RegistryError::Empty),
            (None, _) => Err(RegistryError::Ambiguous),
        }
    })
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

/// Fails unless the role that called the outermost function owns the model, or is a superuser.
pub fn check_owner(model: &ModelRef) -> Result<(), RegistryError> {
    // SAFETY: in a transaction. The outer user: the functions of the registry run as the extension's owner.
    let may = unsafe { pg_sys::has_privs_of_role(pg_sys::GetOuterUserId(), model.owner.into()) };
    match may {
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

/// `situ.register_model(name, path, replace)`.
#[pg_extern(sql = false)]
fn register_model(name: &str, path: &str, replace: bool) -> String {
    if name.is_empty() {
        Err(RegistryError::EmptyName).or_raise()
    }
    let directory = resolve(&settings::model_dir(), path).or_raise();
    let manifest = Manifest::read(&directory).or_raise();
    let known = match model_by_name(Some(name)) {
        Ok(model) => Some(model),
        Err(RegistryError::Unknown(_)) => None,
        Err(error) => Err(error).or_raise(),
    };
    if let Some(known) = known {
        let same = known.fingerprint == manifest.fingerprint;
        if !same && !replace {
            Err(RegistryError::Taken {
                name: name.to_owned(),
                registered: known.fingerprint.clone(),
                found: manifest.fingerprint.clone(),
            })
            .or_raise()
        }
        if same && known.path == path && known.calibrated.is_some() {
            return manifest.fingerprint;
        }
    }
    // SAFETY: in a transaction. The role that calls, not the one that this function runs as.
    let owner = unsafe { pg_sys::GetOuterUserId() };
    let model = ModelRef {
        name: name.to_owned(),
        root: None,
        path: path.to_owned(),
        fingerprint: manifest.fingerprint.clone(),
        dimensions: manifest.dimensions,
        owner: owner.to_u32(),
        calibrated: None,
    };
    let calibration = calibrate(&model);
    let statement = "INSERT INTO situ.model_registry AS r (name, path, fingerprint, dimensions, owner, precision, \
                     calibration, max_tokens, family, pooling, normalize, query_prefix, passage_prefix) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) \
                     ON CONFLICT (name) DO UPDATE SET (path, fingerprint, dimensions, owner, precision, calibration, \
                     max_tokens, family, pooling, normalize, query_prefix, passage_prefix, registered_at) = \
                     (excluded.path, excluded.fingerprint, excluded.dimensions, excluded.owner, excluded.precision, \
                     excluded.calibration, excluded.max_tokens, excluded.family, excluded.pooling, \
                     excluded.normalize, excluded.query_prefix, excluded.passage_prefix, pg_catalog.now())";
    let result = Spi::run_with_args(
        statement,
        &[
            name.into(),
            path.into(),
            manifest.fingerprint.as_str().into(),
            (manifest.dimensions as i32).into(),
            owner.into(),
            calibration.as_ref().map(|found| found.precision.name()).into(),
            calibration.as_ref().map(to_json).into(),
            (manifest.max_tokens as i32).into(),
            variant(manifest.family).into(),
            variant(manifest.pooling).into(),
            manifest.normalize.into(),
            manifest.query_prefix.as_str().into(),
            manifest.passage_prefix.as_str().into(),
        ],
    );
    if let Err(error) = result {
        pgrx::error!("cannot register the model: {error}");
    }
    manifest.fingerprint
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
    let result = Spi::run_with_args(
        "UPDATE situ.model_registry SET (precision, calibration) = ($2, $3) WHERE name = $1",
        &[
            name.into(),
            calibration.precision.name().into(),
            to_json(&calibration).into(),
        ],
    );
    if let Err(error) = result {
        pgrx::error!("cannot store the calibration: {error}");
    }
    calibration.precision.name()
}

/// `situ.drop_model(name)`.
#[pg_extern(sql = false)]
fn drop_model(name: &str) {
    model_by_name(Some(name)).or_raise();
    if let Err(error) = Spi::run_with_args("DELETE FROM situ.model_registry WHERE name = $1", &[name.into()]) {
        pgrx::error!("cannot drop the model: {error}");
    }
}

/// `situ.version()`.
#[pg_extern(immutable, strict, parallel_safe, sql = false)]
fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}
