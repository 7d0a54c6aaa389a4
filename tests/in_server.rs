//! Runs the functions of `pgrx-tests/` inside a server: each in a transaction of its own that is rolled back.
//!
//! A test is a function `test_...` with `#[pg_extern]` above it and neither arguments nor result; it fails by
//! raising an error (a failed assertion is one). Tests are found in the sources, so a test that is not compiled into
//! the library fails instead of being left out.

#[path = "support/mod.rs"]
mod support;

use libtest_mimic::{Arguments, Failed, Trial};
use support::{Cluster, Sql};

fn main() {
    let arguments = Arguments::from_args();
    let names = tests();
    if arguments.list {
        let trials = names.into_iter().map(|name| Trial::test(name, || Ok(()))).collect();
        libtest_mimic::run(&arguments, trials).exit();
    }
    assert!(!names.is_empty(), "no test in pgrx-tests/");

    // Leaked: trials are 'static. It is ended by hand before the program exits.
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::new()));
    let mut client = cluster.text_database("in_server");
    client.run("CREATE SCHEMA tests");
    let trials = names
        .into_iter()
        .map(|name| {
            Trial::test(name.clone(), move || {
                let mut client = cluster.connect("in_server");
                call(&mut client, &name).map_err(Failed::from)
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if conclusion.has_failed() {
        eprintln!("the log of the server:\n{}", cluster.log());
    }
    // SAFETY: it came from Box::leak above, and no trial runs any more.
    drop(unsafe { Box::from_raw(std::ptr::from_ref(cluster).cast_mut()) });
    conclusion.exit();
}

/// Runs one test function and rolls back what it did.
fn call(client: &mut postgres::Client, name: &str) -> Result<(), String> {
    let steps = [
        "BEGIN".to_string(),
        format!("CREATE FUNCTION tests.{name}() RETURNS void LANGUAGE c AS '$libdir/situ', '{name}_wrapper'"),
        format!("SELECT tests.{name}()"),
        "ROLLBACK".to_string(),
    ];
    for step in steps {
        client.batch_execute(&step).map_err(|error| match error.as_db_error() {
            Some(error) => format!(
                "{}: {}{}{}",
                error.code().code(),
                error.message(),
                error.detail().map(|detail| format!("\n{detail}")).unwrap_or_default(),
                error.where_().map(|place| format!("\n{place}")).unwrap_or_default()
            ),
            None => format!("the connection was lost: {error}"),
        })?;
    }
    Ok(())
}

/// Names of the functions below an attribute `#[pg_extern...]` in `pgrx-tests/`.
fn tests() -> Vec<String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/pgrx-tests");
    let mut names = Vec::new();
    let files = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
    for file in files.map(|entry| entry.expect("a folder entry").path()) {
        if file.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let source = std::fs::read_to_string(&file).expect("a source file");
        let mut attribute = false;
        for line in source.lines().map(str::trim_start) {
            attribute |= line.starts_with("#[pg_extern");
            let Some(rest) = line.strip_prefix("fn ").or_else(|| line.strip_prefix("pub fn ")) else {
                continue;
            };
            let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if attribute && name.starts_with("test_") {
                names.push(name);
            }
            attribute = false;
        }
    }
    names.sort();
    names
}
