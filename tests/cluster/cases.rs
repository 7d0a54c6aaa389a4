//! Small inputs with the right answer at the head of each: files `NN-name.sql` in the folder `shared/cases` beside the
//! checkout, where it is there.
//!
//! Each runs through the server's own psql against a fresh database with the extension and the model `minilm`, and prints
//! rows with a verdict. One FAIL, or a check that printed no verdict (an error in its place), fails the test.

use crate::support::{Cluster, fixtures, settings, shared};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder with the cases; none where it is not there.
pub fn folder() -> Option<PathBuf> {
    fixtures::beside("cases")
}

/// The file of a case.
fn file(folder: &Path, number: &str) -> PathBuf {
    let names = std::fs::read_dir(folder).expect("the folder of cases can be read");
    names
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find(|name| name.starts_with(&format!("{number}-")) && name.ends_with(".sql"))
        .map(|name| folder.join(name))
        .unwrap_or_else(|| panic!("there is no case {number}"))
}

/// Cells of what psql printed that are exactly `word`.
fn cells(output: &str, word: &str) -> usize {
    let cells = output.lines().flat_map(|line| line.split('|'));
    cells.filter(|cell| cell.trim() == word).count()
}

fn run(number: &str, alone: bool) {
    let Some(folder) = folder() else { return };
    let file = file(&folder, number);
    let text = std::fs::read_to_string(&file).expect("the case can be read");
    let own;
    let cluster = match alone {
        true => {
            own = Cluster::new();
            &own
        }
        false => shared(),
    };
    let database = format!("case_{number}");
    drop(cluster.text_database(&database));
    // As whoever runs the tests: the server's user need not be able to read the checkout.
    let output = Command::new(settings().bin.join("psql"))
        .args(["-X", "-U", "postgres", "-d", &database, "-h"])
        .arg(cluster.folder())
        .arg("-f")
        .arg(&file)
        .env_remove("PGOPTIONS")
        .output()
        .expect("psql runs");
    let printed = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    // A check that fails with an error prints no verdict.
    let (passed, failed, checks) = (
        cells(&printed, "PASS"),
        cells(&printed, "FAIL"),
        text.matches("AS verdict").count(),
    );
    assert!(
        output.status.success() && failed == 0 && passed > 0 && passed >= checks,
        "{}: {passed} of {checks} or more passed, {failed} failed:\n{printed}",
        file.display()
    );
}

macro_rules! cases {
    ($($name:ident: $number:literal $(, $alone:ident)?;)*) => {$(
        #[test]
        fn $name() {
            run($number, cases!(@alone $($alone)?));
        }
    )*};
    (@alone) => { false };
    (@alone alone) => { true };
}

// `alone`: on a cluster of its own, because it counts what the encoder does.
cases! {
    case_03_embed_once_per_statement: "03", alone;
    case_04_null_question: "04";
    case_05_distance_depends_on_plan: "05";
    case_06_question_from_elsewhere: "06", alone;
    case_07_concurrently_with_empty_rows: "07";
    case_08_savepoints_merge_upsert: "08";
    case_09_held_and_scrolled_cursors: "09";
    case_10_rank_fusion: "10";
    case_11_model_in_use: "11";
    case_12_generated_column_or_trigger: "12", alone;
    case_21_spans_in_bytes: "21";
}
