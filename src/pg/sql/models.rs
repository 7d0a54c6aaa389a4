//! What writes `situ_internal.model_registry`: `situ.register_model`, `situ.calibrate_model` and `situ.drop_model`. How backends
//! read it is `pg/catalog/model_registry.rs`.

use crate::model::calibrate::Calibration;
use crate::model::{Manifest, ModelError, Precision, Similarity};
use crate::pg::am::users::{Needed, needed_by};
use crate::pg::catalog::model_registry::{LLM, RegistryError, any_by_name, check_owner, lock, model_by_name};
use crate::pg::catalog::owner::{as_owner, current_user};
use crate::pg::ereport::fail;
use crate::pg::error::OrRaise;
use crate::pg::service::model_ref::Forms;
use crate::pg::service::{Item, ModelKind, ModelRef, Report, ServiceError, ask};
use crate::pg::settings;
use crate::pg::version;
use crate::serve::encoder::models::resolve;
use crate::serve::llm::runtime;
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::{JsonB, pg_sys};
use std::path::Path;

/// The name of a unit variant as its serialized form has it.
fn variant<T: serde::Serialize>(value: T) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
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
        ModelKind::Encoder => calibrate(&unregistered(name, path, &found, owner)),
        ModelKind::Llm => None,
    };
    store(name, path, &found, owner, calibration.as_ref());
    found.fingerprint
}

/// An encoder that the registry does not have yet, for the service to measure.
fn unregistered(name: &str, path: &str, found: &Described, owner: pg_sys::Oid) -> ModelRef {
    ModelRef {
        name: name.to_owned(),
        kind: found.kind,
        root: None,
        path: path.to_owned(),
        fingerprint: found.fingerprint.clone(),
        dimensions: found.dimensions,
        similarity: found.similarity.unwrap_or_default(),
        owner: owner.to_u32(),
        forms: Forms::Plain,
        calibrated: None,
    }
}

/// Writes a model's row, over one of its name.
fn store(name: &str, path: &str, found: &Described, owner: pg_sys::Oid, calibration: Option<&Calibration>) {
    let kind = match found.kind {
        ModelKind::Encoder => "encoder",
        ModelKind::Llm => LLM,
    };
    let statement = "INSERT INTO situ_internal.model_registry AS r (name, path, fingerprint, dimensions, owner, precision, \
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
            calibration.map(|found| found.precision.name()).into(),
            calibration.map(to_json).into(),
            (found.max_tokens as i32).into(),
            found.family.as_str().into(),
            found.pooling.as_str().into(),
            found.normalize.into(),
            found.query_prefix.as_str().into(),
            found.passage_prefix.as_str().into(),
            kind.into(),
            found.similarity.map(variant).into(),
        ],
    );
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
        "UPDATE situ_internal.model_registry SET (precision, calibration) = ($2, $3) WHERE name OPERATOR(pg_catalog.=) $1",
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
        "DELETE FROM situ_internal.model_registry WHERE name OPERATOR(pg_catalog.=) $1",
        &[name.into()],
    );
}

/// `situ.version()`.
#[pg_extern(sql = false)]
fn version() -> &'static str {
    version::LIBRARY
}
