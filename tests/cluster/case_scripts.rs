//! As `cases.rs`, for the cases that are shell scripts: they make databases, and some make roles, of their own.

use crate::cases::folder;
use crate::support::{Cluster, Sql, program, run as run_program, settings, shared};
use std::process::Command;

/// Where a script runs.
enum Where {
    /// On the cluster that all tests share.
    Shared,
    /// On a cluster of its own with these settings: it makes roles or slots, or needs them.
    Own(&'static [(&'static str, &'static str)]),
}

/// Runs the case, which must print at least `verdicts` verdicts and no FAIL. Verdicts that begin with one of `apart` are not counted.
fn run(number: &str, place: Where, verdicts: usize, apart: &[&str]) {
    let Some(folder) = folder() else { return };
    let names = std::fs::read_dir(&folder).expect("the folder of cases can be read");
    let script = names
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find(|name| name.starts_with(&format!("{number}-")) && name.ends_with(".sh"))
        .unwrap_or_else(|| panic!("there is no case {number}"));
    let own;
    let cluster = match place {
        Where::Shared => shared(),
        Where::Own(settings) => {
            own = Cluster::with(settings);
            &own
        }
    };
    let home = format!("case_{number}_home");
    drop(cluster.text_database(&home));
    // As whoever runs the tests: the server's user need not be able to read the checkout.
    let scratch = std::env::temp_dir().join(format!("situ-case-{number}-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).expect("a scratch folder");
    let output = Command::new("bash")
        .arg(folder.join(&script))
        .env("PGHOST", cluster.folder())
        .env("PGPORT", "5432")
        .env("PGUSER", "postgres")
        .env("PGDATABASE", &home)
        .env("PGBIN", &settings().bin)
        .env("CASE_OUT", &scratch)
        .env_remove("PGOPTIONS")
        .output()
        .expect("bash runs");
    let _ = std::fs::remove_dir_all(&scratch);
    let printed = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let counted = |line: &&str| !apart.iter().any(|apart| line.starts_with(apart));
    let count = |word: &str| {
        let lines = printed.lines().filter(counted);
        lines.filter(|line| line.ends_with(word)).count()
    };
    let (passed, failed) = (count("| PASS"), count("| FAIL"));
    assert!(
        failed == 0 && passed >= verdicts,
        "{script}: {passed} of {verdicts} or more passed, {failed} failed:\n{printed}"
    );
}

#[test]
fn case_23_restore_without_the_role() {
    run("23", Where::Own(&[]), 4, &[]);
}

#[test]
fn case_24_schema_extensions() {
    run("24", Where::Own(&[]), 9, &[]);
}

#[test]
fn case_25_schema_situ_is_there() {
    run("25", Where::Own(&[]), 4, &[]);
}

#[test]
fn case_26_databases_that_are_not_utf8() {
    run("26", Where::Shared, 2, &[]);
}

#[test]
fn case_28_logical_subscriber() {
    run("28", Where::Own(&[("wal_level", "logical")]), 4, &[]);
}

#[test]
fn case_29_dump_of_views_over_search() {
    // In one parallel run pg_restore builds an index as soon as its own table is filled, before the registry of models or after it:
    // nothing in a dump can make an index wait for the rows of an extension's table. The test below shows what does.
    run("29", Where::Shared, 7, &["29 pg_restore -j 2"]);
}

#[test]
fn a_parallel_restore_in_two_sections_has_models_before_indexes() {
    let cluster = shared();
    let mut from = cluster.text_database("sections_from");
    for table in ["docs", "notes"] {
        from.run(&format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, body text);
             INSERT INTO {table} VALUES (1, 'The bell was cast in 1702.'), (2, 'The clock is wound by hand.');
             CREATE INDEX {table}_body ON {table} USING situ (body) WITH (model = 'minilm');
             CREATE MATERIALIZED VIEW {table}_kept AS SELECT passage FROM situ.search('{table}_body', 'church tower', k => 10)"
        ));
    }
    let file = cluster.folder().join("sections.dump");
    let tool = |name: &str| {
        let mut command = program(name);
        command
            .arg("-h")
            .arg(cluster.folder())
            .args(["-p", "5432", "-U", "postgres"]);
        command
    };
    run_program(tool("pg_dump").args(["-Fc", "-f"]).arg(&file).arg("sections_from"));
    let mut to = cluster.bare_database("sections_to");
    for sections in [&["--section=pre-data", "--section=data"][..], &["--section=post-data"]] {
        run_program(
            tool("pg_restore")
                .args(["-e", "-j", "4", "-d", "sections_to"])
                .args(sections)
                .arg(&file),
        );
    }
    for table in ["docs", "notes"] {
        assert_eq!(to.one::<i64>(&format!("SELECT count(*) FROM {table}_kept")), 2);
        let search = format!("SELECT count(*) FROM situ.search('{table}_body', 'church tower', k => 10)");
        assert_eq!(to.one::<i64>(&search), 2);
    }
}
