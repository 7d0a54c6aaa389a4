//! As `cases.rs`, for the cases that need models: files `NN-name.md` with the statements under "## Steps", over small models
//! that the script beside them makes.

use crate::cases::{check, file, folder};
use crate::support::{Cluster, as_server, run as run_program, shared};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// Has the script make its models, and gives the cluster copies of them: they have to be the server's user's, who need
/// not be able to read the checkout or to run this user's python.
fn make_models(folder: &Path, cluster: &Cluster) {
    let made = tempfile::tempdir().expect("a folder");
    let readable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(made.path(), readable).expect("everybody may read it");
    run_program(
        Command::new("python3")
            .arg(folder.join("tiny_models.py"))
            .arg(made.path().join("ceo_cases")),
    );
    run_program(
        as_server("cp")
            .arg("-r")
            .arg(made.path().join("ceo_cases"))
            .arg(cluster.folder().join("models")),
    );
}

/// What stands in the fences of SQL under a heading.
fn statements(text: &str, heading: &str) -> String {
    let mut lines = text.lines().skip_while(|line| line.trim() != heading).skip(1);
    let section = lines.by_ref().take_while(|line| !line.starts_with("## "));
    let (mut inside, mut found) = (false, String::new());
    for line in section {
        match line.trim_end() {
            "```sql" => inside = true,
            "```" => inside = false,
            line if inside => found.extend([line, "\n"]),
            _ => {}
        }
    }
    found
}

fn run(number: &str) {
    static MADE: OnceLock<()> = OnceLock::new();
    let Some(folder) = folder() else { return };
    let cluster = shared();
    MADE.get_or_init(|| make_models(&folder, cluster));
    let file = file(&folder, number, ".md");
    let text = std::fs::read_to_string(&file).expect("the case can be read");
    let database = format!("case_{number}");
    drop(cluster.database(&database));
    check(cluster, &database, &file, &statements(&text, "## Steps"));
}

macro_rules! cases {
    ($($name:ident: $number:literal;)*) => {$(
        #[test]
        fn $name() {
            run($number);
        }
    )*};
}

cases! {
    case_31_modernbert_rope_parameters: "31";
    case_32_camembert_is_roberta: "32";
    case_33_pooling_folder_missing: "33";
    case_34_do_lower_case: "34";
    case_35_template_with_date_and_marks: "35";
    case_36_split_gguf: "36";
    case_37_template_without_system: "37";
    case_38_families_that_are_refused: "38";
}
