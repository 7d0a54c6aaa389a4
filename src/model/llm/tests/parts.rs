//! GGUF models in several files: all parts are the model, from the first or from the directory that holds them.

use super::gguf_maker::{Entry, Matrix, marks, metadata, tensors, write};
use super::{alone, request};
use crate::model::ModelError;
use crate::model::gguf::Gguf;
use crate::model::llm::{Llm, LlmFiles, Piece, describe};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

/// The parts of the small model, which a test can bend before they are written.
struct Parts(Vec<(String, Vec<Entry>, Vec<Matrix>)>);

impl Parts {
    /// As the splitting tool writes them: the model's metadata in the first, the tensors dealt out in order.
    fn new(count: u16) -> Parts {
        let all = tensors();
        let share = all.len().div_ceil(usize::from(count));
        let part = |(no, tensors): (usize, &[Matrix])| {
            let name = format!("tiny-{:05}-of-{count:05}.gguf", no + 1);
            let mut values = if no == 0 { metadata() } else { Vec::new() };
            values.extend(marks(no as u16, count, all.len() as u32));
            (name, values, tensors.to_vec())
        };
        Parts(all.chunks(share).enumerate().map(part).collect())
    }

    fn write(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, values, tensors) in &self.0 {
            write(&dir.path().join(name), values, tensors);
        }
        dir
    }

    /// The marks of a part, in the place of its own.
    fn mark(&mut self, part: usize, no: u16, count: u16, tensors: u32) {
        let values = &mut self.0[part].1;
        values.truncate(values.len() - 3);
        values.extend(marks(no, count, tensors));
    }
}

fn first(dir: &TempDir) -> PathBuf {
    let mut names: Vec<PathBuf> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    names.remove(0)
}

fn answer(path: &Path) -> Vec<u32> {
    let llm = Arc::new(Llm::open(path).unwrap());
    let prompt = llm.prompt(&[Piece::Text("Hello there".to_owned())]).unwrap();
    alone(&llm, request(prompt, 8)).ids
}

/// Lengths and content of files, without names.
fn hash(paths: &[PathBuf]) -> String {
    let mut hash = Sha256::new();
    for path in paths {
        let bytes = std::fs::read(path).unwrap();
        hash.update([0; 8]);
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn all_parts_are_one_model_with_one_fingerprint() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole.gguf");
    write(&whole, &metadata(), &tensors());
    let expected = answer(&whole);
    assert_eq!(
        describe(&whole).unwrap().fingerprint,
        hash(std::slice::from_ref(&whole))
    );
    for count in [2, 3] {
        let dir = Parts::new(count).write();
        let paths: Vec<PathBuf> = (1..=count)
            .map(|part| dir.path().join(format!("tiny-{part:05}-of-{count:05}.gguf")))
            .collect();
        assert_eq!(answer(&paths[0]), expected);
        assert_eq!(answer(dir.path()), expected);
        assert_eq!(describe(dir.path()).unwrap().fingerprint, hash(&paths));
        // A change of any part is another model, and is seen while files are open.
        let files = LlmFiles::open(&paths[0]).unwrap();
        files.unchanged().unwrap();
        let last = &paths[usize::from(count) - 1];
        let mut bytes = std::fs::read(last).unwrap();
        let at = bytes.len() - 40;
        bytes[at] ^= 1;
        bytes.push(0);
        std::fs::write(last, bytes).unwrap();
        assert!(matches!(files.unchanged(), Err(ModelError::Changed(_))));
        assert_ne!(describe(dir.path()).unwrap().fingerprint, files.fingerprint());
    }
    // A tool can write the marks of one part alone, under any name, and a first part without tensors.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("one.gguf");
    write(&path, &[metadata(), marks(0, 1, 12)].concat(), &tensors());
    assert_eq!(answer(&path), expected);
    let mut parts = Parts::new(2);
    let moved = std::mem::take(&mut parts.0[0].2);
    parts.0[1].2.extend(moved);
    assert_eq!(answer(&first(&parts.write())), expected);
}

#[test]
fn a_part_that_is_not_the_first_says_which_it_is() {
    let dir = Parts::new(2).write();
    let second = dir.path().join("tiny-00002-of-00002.gguf");
    let error = describe(&second).err().expect("must fail");
    let ModelError::Part { part, count, first, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!((*part, *count), (2, 2));
    assert!(first.ends_with("tiny-00001-of-00002.gguf"));
    assert!(error.to_string().contains("is part 2 of 2"), "{error}");
    // Alone in its directory as well.
    std::fs::remove_file(first).unwrap();
    assert!(matches!(describe(dir.path()), Err(ModelError::Part { .. })));
}

#[test]
fn parts_that_do_not_belong_together_are_errors_that_name_the_file() {
    let open = |bend: &dyn Fn(&mut Parts)| {
        let mut parts = Parts::new(3);
        bend(&mut parts);
        let dir = parts.write();
        Gguf::open(&first(&dir)).err().expect("must fail")
    };
    let missing = open(&|parts| drop(parts.0.remove(1)));
    assert!(
        matches!(&missing, ModelError::Missing(path) if path.ends_with("tiny-00002-of-00003.gguf")),
        "{missing}"
    );
    type Bend<'a> = &'a dyn Fn(&mut Parts);
    let cases: [(Bend, &str, &str); 10] = [
        (&|parts| parts.mark(2, 2, 4, 12), "tiny-00003", "part 3 of 4"),
        (&|parts| parts.mark(2, 1, 3, 12), "tiny-00003", "part 2 of 3"),
        (&|parts| parts.mark(1, 1, 3, 13), "tiny-00002", "13 tensors"),
        (
            &|parts| (0..3).for_each(|at| parts.mark(at, at as u16, 3, 13)),
            "tiny-00001",
            "12 tensors together, not 13",
        ),
        (&|parts| parts.mark(0, 5, 3, 12), "tiny-00001", "part 6 of 3"),
        (
            &|parts| {
                let twice = parts.0[0].2[0].clone();
                parts.0[2].2.push(twice);
            },
            "tiny-00003",
            "token_embd.weight",
        ),
        (&|parts| parts.0[1].1.clear(), "tiny-00002", "it is no part"),
        (&|parts| drop(parts.0[1].1.pop()), "tiny-00002", "split.tensors.count"),
        (&|parts| drop(parts.0[1].1.remove(0)), "tiny-00002", "split.no"),
        (
            &|parts| parts.0[0].0 = "a.gguf".to_owned(),
            "a.gguf",
            "-00001-of-00003.gguf",
        ),
    ];
    for (bend, file, named) in cases {
        let error = open(bend);
        assert!(matches!(error, ModelError::Corrupt { .. }), "{error}");
        let said = error.to_string();
        assert!(said.contains(file) && said.contains(named), "{named}: {said}");
    }
    // What is cut off is seen before anything is read.
    let dir = Parts::new(3).write();
    let last = dir.path().join("tiny-00003-of-00003.gguf");
    let bytes = std::fs::read(&last).unwrap();
    std::fs::write(&last, &bytes[..bytes.len() - 64]).unwrap();
    let error = Gguf::open(&first(&dir)).err().expect("must fail").to_string();
    assert!(
        error.contains("tiny-00003") && error.contains("behind the file's end"),
        "{error}"
    );
}

#[test]
fn a_directory_holds_the_parts_of_one_model_and_nothing_else() {
    let said = |dir: &TempDir| describe(dir.path()).err().expect("must fail").to_string();
    let dir = Parts::new(2).write();
    write(&dir.path().join("other.gguf"), &metadata(), &tensors());
    assert!(said(&dir).contains("holds 3 GGUF files"), "{}", said(&dir));
    // Two whole models under the names of parts.
    let dir = tempfile::tempdir().unwrap();
    for part in 1..=2 {
        let name = format!("tiny-{part:05}-of-00002.gguf");
        write(&dir.path().join(name), &metadata(), &tensors());
    }
    assert!(said(&dir).contains("holds 2 GGUF files"), "{}", said(&dir));
    // Parts whose first is missing.
    let dir = Parts::new(3).write();
    std::fs::remove_file(first(&dir)).unwrap();
    assert!(
        said(&dir).contains("tiny-00001-of-00003.gguf\" is missing"),
        "{}",
        said(&dir)
    );
}
