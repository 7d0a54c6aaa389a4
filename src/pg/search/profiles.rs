//! Profiles: options of `situ.query` that `situ.tune` found best for an index, in the table `situ.profiles`.
//!
//! A profile is found under the qualified name of its index, because a dump restores tables before indexes exist. The
//! owner of the index writes it; everybody may use it. A query that names a profile keeps its own options, and takes
//! from the profile what it does not say.

use crate::pg::catalog::names::name_of;
use crate::pg::catalog::names::{check_owner, qualified};
use crate::pg::catalog::owner::{current_user, write};
use crate::pg::catalog::read;
use crate::pg::ereport::{fail_full, fail_with_hint};
use crate::pg::search::query::Query;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;
use pgrx::prelude::*;

/// The query with the options of its profile; without a profile, itself. `index` is the index that is scanned, whose
/// profile may be that of the partitioned index it belongs to.
pub fn resolve(query: &Query, index: pg_sys::Oid) -> Query {
    let Some(profile) = &query.profile else {
        return query.clone();
    };
    let Some(stored) = options(index, profile) else {
        fail_with_hint(
            PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            format!("profile \"{profile}\" does not exist for index \"{}\"", name_of(index)),
            "SELECT * FROM situ.profiles lists them; situ.tune(index, queries, qrels) makes one.",
        )
    };
    merged(query, &stored).unwrap_or_else(|error| {
        fail_full(
            PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
            format!("profile \"{profile}\" of index \"{}\" cannot be read", name_of(index)),
            error.to_string(),
            "Make it again with situ.tune(index, queries, qrels).".into(),
        )
    })
}

/// Fields that say which bridges a query uses.
const BRIDGES: [&str; 2] = ["bridge", "bridges"];

/// The fields of `query`, and those of the profile where it has none.
fn merged(query: &Query, stored: &str) -> Result<Query, serde_json::Error> {
    let mut own = serde_json::to_value(query)?;
    let stored: serde_json::Map<String, serde_json::Value> = serde_json::from_str(stored)?;
    if let Some(own) = own.as_object_mut() {
        // A query that names a bridge has said which ones it wants.
        let named = BRIDGES.iter().any(|name| own.contains_key(*name));
        for (name, value) in stored {
            if !named || !BRIDGES.contains(&name.as_str()) {
                own.entry(name).or_insert(value);
            }
        }
        own.remove("profile");
    }
    serde_json::from_value(own)
}

/// The stored options of a profile, as JSON.
fn options(index: pg_sys::Oid, profile: &str) -> Option<String> {
    let statement = "SELECT p.options::pg_catalog.text FROM situ.profiles p \
                     JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) $1 OR c.oid OPERATOR(pg_catalog.=) ANY \
                          (SELECT relid::pg_catalog.oid FROM pg_catalog.pg_partition_ancestors($1)) \
                     JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace \
                     WHERE p.name OPERATOR(pg_catalog.=) $2 \
                       AND p.index OPERATOR(pg_catalog.=) pg_catalog.format('%I.%I', n.nspname, c.relname) \
                     ORDER BY c.oid OPERATOR(pg_catalog.=) $1 DESC LIMIT 1";
    read::one(statement, &[index.into(), profile.into()])
}

/// Stores a profile of an index that the current user owns; one of that name is replaced.
pub fn store(index: pg_sys::Oid, name: &str, options: &str, measure: &str, figures: &serde_json::Value) {
    check_owner(index);
    write(
        "INSERT INTO situ.profiles AS p (index, name, options, measure, figures, tuned_by) \
         VALUES ($1, $2, $3::pg_catalog.jsonb, $4, $5, $6::pg_catalog.oid::situ.role) \
         ON CONFLICT (index, name) DO UPDATE SET (options, measure, figures, tuned_by, tuned_at) = \
         (excluded.options, excluded.measure, excluded.figures, excluded.tuned_by, pg_catalog.now())",
        &[
            qualified(index).into(),
            name.into(),
            options.into(),
            measure.into(),
            pgrx::JsonB(figures.clone()).into(),
            current_user().into(),
        ],
    );
}

/// `situ.drop_profile(index, name)`.
#[pg_extern(sql = false)]
fn drop_profile(index: pg_sys::Oid, name: &str) {
    check_owner(index);
    write(
        "DELETE FROM situ.profiles WHERE index OPERATOR(pg_catalog.=) $1 AND name OPERATOR(pg_catalog.=) $2",
        &[qualified(index).into(), name.into()],
    );
}
