//! Small inputs with the right answer at the head of each: files `NN-name.sql` in the folder `shared/cases` beside the
//! checkout, where it is there.
//!
//! Each runs through the server's own psql against a fresh database with the extension and the model `minilm`, and prints
//! rows with a verdict. One FAIL, or a check that printed no verdict (an error in its place), fails the test.

use crate::support::{Cluster, fixtures, settings, shared};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The folder with the cases; none where it is not there.
pub fn folder() -> Option<PathBuf> {
    fixtures::beside("cases")
}

/// The file of a case, by the ending of its name.
pub fn file(folder: &Path, number: &str, ending: &str) -> PathBuf {
    let names = std::fs::read_dir(folder).expect("the folder of cases can be read");
    names
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find(|name| name.starts_with(&format!("{number}-")) && name.ends_with(ending))
        .map(|name| folder.join(name))
        .unwrap_or_else(|| panic!("there is no case {number}"))
}

/// Cells of what psql printed that are exactly `word`.
fn cells(output: &str, word: &str) -> usize {
    let cells = output.lines().flat_map(|line| line.split('|'));
    cells.filter(|cell| cell.trim() == word).count()
}

/// Statements with the names that functions, arguments and columns have now: the cases are older than some of them.
fn with_names_of_today(statements: &str) -> String {
    let renamed = statements
        .replace(".start", ".start_byte")
        .replace(".\"end\"", ".end_byte");
    let call = "situ.generate(";
    let mut pieces = renamed.split(call);
    let mut today = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        // Model and prompt have changed places; both are plain literals.
        let mut arguments = piece.splitn(3, '\'').skip(1);
        let model = arguments.next().expect("the model is a literal");
        let rest = arguments
            .next()
            .and_then(|rest| rest.strip_prefix(", '"))
            .expect("a prompt follows");
        let (prompt, rest) = rest.split_once('\'').expect("the prompt ends");
        today += &format!("{call}'{prompt}', '{model}'{rest}");
    }
    today
}

/// Runs statements with psql, which must print a verdict for each check, and no FAIL.
pub fn check(cluster: &Cluster, database: &str, case: &Path, statements: &str) {
    let statements = &with_names_of_today(statements);
    // As whoever runs the tests: the server's user need not be able to read the checkout.
    let mut psql = Command::new(settings().bin.join("psql"))
        .args(["-X", "-U", "postgres", "-d", database, "-h"])
        .arg(cluster.folder())
        .args(["-f", "-"])
        .env_remove("PGOPTIONS")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("psql starts");
    let mut input = psql.stdin.take().expect("a pipe");
    let output = std::thread::scope(|scope| {
        // What psql prints may fill its pipes before it has read all.
        scope.spawn(move || input.write_all(statements.as_bytes()));
        psql.wait_with_output().expect("psql runs")
    });
    let printed = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    // A check that fails with an error prints no verdict.
    let (passed, failed, checks) = (
        cells(&printed, "PASS"),
        cells(&printed, "FAIL"),
        statements.matches("AS verdict").count(),
    );
    assert!(
        output.status.success() && failed == 0 && passed > 0 && passed >= checks,
        "{}: {passed} of {checks} or more passed, {failed} failed:\n{printed}",
        case.display()
    );
}

fn run(number: &str, alone: bool) {
    let Some(folder) = folder() else { return };
    let file = file(&folder, number, ".sql");
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
    check(cluster, &database, &file, &text);
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
    case_16_nested_code_fences: "16";
    case_17_table_rows_cut: "17";
    case_18_sentence_marks_of_other_scripts: "18";
    case_21_spans_in_bytes: "21";
    case_22_base64_in_the_body: "22";
}
