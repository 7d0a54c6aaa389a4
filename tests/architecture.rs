//! The walls of the house, read from its sources: what imports what, who may name Postgres, where `unsafe` may stand.
//!
//! An arrow that runs up is a failure, so a new one is either a mistake or a decision that changes the order below.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Rooms of the crate from the ground up: each imports those before it alone.
const ROOMS: &[&str] = &[
    "random", "compute", "text", "eval", "model", "index", "bridge", "serve", "pg",
];

/// Folders of `src/compute` from the ground up.
const COMPUTE: &[&str] = &[
    "error",
    "cpu",
    "rowwise",
    "quantised",
    "vectors",
    "matmul",
    "attention",
    "gradient",
    "forward",
    "cuda",
];

/// Folders of `src/serve` from the ground up.
const SERVE: &[&str] = &["ipc", "fair_queue", "encoder", "llm", "endpoint"];

/// Parts of `src/pg` from the ground up. Those on one line may import each other, but no two files may.
const PG: &[&[&str]] = &[
    &["error", "ereport", "raw", "vector"],
    &["settings", "version", "store"],
    &["service", "catalog"],
    &["llm"],
    &["bridges"],
    &["am", "search"],
    &["training"],
    &["sql"],
];

/// A source file: its path below `src` and its text without comments and without its tests.
struct Source {
    path: PathBuf,
    module: Vec<String>,
    text: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    collect(&root, &root, &mut found);
    assert!(found.len() > 200, "the sources are there");
    found
}

fn collect(root: &Path, folder: &Path, found: &mut Vec<Source>) {
    let entries = std::fs::read_dir(folder).expect("a folder of sources can be read");
    for entry in entries {
        let path = entry.expect("an entry of it").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "tests" {
                collect(root, &path, found);
            }
        } else if name.ends_with(".rs") && name != "tests.rs" {
            let below = path.strip_prefix(root).expect("it is below the root").to_path_buf();
            let mut module: Vec<String> = below
                .with_extension("")
                .iter()
                .map(|part| part.to_string_lossy().into_owned())
                .collect();
            module.retain(|part| !["mod", "lib"].contains(&part.as_str()));
            let text = std::fs::read_to_string(&path).expect("a source can be read");
            found.push(Source {
                path: below,
                module,
                text: code(&text),
            });
        }
    }
}

/// The text without comments, and without the module of tests at its end.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.map(|line| format!("{line}\n")).collect()
}

impl Source {
    /// Absolute paths that the file names: those that begin with `crate`, and relative ones through `super`. Names in braces are
    /// joined with what stands before the brace.
    fn imports(&self) -> Vec<Vec<String>> {
        let mut found = Vec::new();
        for (at, lead) in leads(&self.text) {
            let rest = self.text.get(at + lead.len()..).unwrap_or_default();
            let mut base: Vec<String> = match lead {
                "crate" => Vec::new(),
                _ => self
                    .module
                    .get(..self.module.len().saturating_sub(1))
                    .unwrap_or_default()
                    .to_vec(),
            };
            let mut rest = rest;
            while let Some(after) = rest.strip_prefix("::super") {
                base.pop();
                rest = after;
            }
            paths(rest, base, &mut found);
        }
        found
    }
}

/// Where `crate::` and the first `super::` of a path stand.
fn leads(text: &str) -> Vec<(usize, &'static str)> {
    let mut found = Vec::new();
    for lead in ["crate", "super"] {
        let starts = text.match_indices(lead).map(|(at, _)| at);
        found.extend(
            starts
                .filter(|at| {
                    let before = text.get(..*at).unwrap_or_default();
                    let inside = before.ends_with(|c: char| c.is_alphanumeric() || "_:$".contains(c));
                    !inside && text.get(at + lead.len()..).is_some_and(|rest| rest.starts_with("::"))
                })
                .map(|at| (at, lead)),
        );
    }
    found
}

/// The paths that `rest` (`::a::b` or `::{a, b::c}`) makes of `base`.
fn paths(rest: &str, mut base: Vec<String>, found: &mut Vec<Vec<String>>) {
    let mut rest = rest;
    while let Some(after) = rest.strip_prefix("::") {
        if let Some(inside) = after.strip_prefix('{') {
            for part in parts(inside) {
                paths(&format!("::{part}"), base.clone(), found);
            }
            return;
        }
        let end = after
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(after.len());
        let (name, behind) = after.split_at(end);
        if name.is_empty() {
            break;
        }
        base.push(name.to_owned());
        rest = behind;
    }
    found.push(base);
}

/// What stands between the commas of a brace that was opened.
fn parts(inside: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (at, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                found.push(inside.get(start..at).unwrap_or_default().trim());
                return found;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(inside.get(start..at).unwrap_or_default().trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    found
}

/// Arrows that run up among the parts below `room`, by the rank of each part.
fn upward(sources: &[Source], room: &[&str], rank: impl Fn(&str) -> Option<usize>) -> Vec<String> {
    let mut wrong = Vec::new();
    let inside = |module: &[String]| module.len() > room.len() && module.iter().zip(room).all(|(a, b)| a == b);
    for source in sources.iter().filter(|source| inside(&source.module)) {
        let part = &source.module[room.len()];
        let Some(own) = rank(part) else {
            wrong.push(format!("{}: {part} has no place in the order", source.path.display()));
            continue;
        };
        for import in source.imports().iter().filter(|import| inside(import)) {
            let other = &import[room.len()];
            if rank(other).is_some_and(|other| other > own) {
                wrong.push(format!("{} imports {}", source.path.display(), import.join("::")));
            }
        }
    }
    wrong
}

fn place(order: &[&str], part: &str) -> Option<usize> {
    order.iter().position(|name| *name == part)
}

#[test]
fn no_import_runs_up() {
    let sources = sources();
    let mut wrong = upward(&sources, &[], |part| place(ROOMS, part));
    wrong.extend(upward(&sources, &["compute"], |part| place(COMPUTE, part)));
    wrong.extend(upward(&sources, &["serve"], |part| place(SERVE, part)));
    wrong.extend(upward(&sources, &["pg"], |part| {
        PG.iter().position(|parts| parts.contains(&part))
    }));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_two_files_of_pg_import_each_other() {
    let sources = sources();
    let modules: BTreeSet<Vec<String>> = sources.iter().map(|source| source.module.clone()).collect();
    // An import means the file of the longest module that begins it.
    let file_of = |import: &[String]| {
        let all = (1..=import.len()).rev().map(|length| import[..length].to_vec());
        all.into_iter().find(|module| modules.contains(module))
    };
    let mut arrows: BTreeMap<Vec<String>, BTreeSet<Vec<String>>> = BTreeMap::new();
    for source in sources
        .iter()
        .filter(|source| source.module.first().is_some_and(|room| room == "pg"))
    {
        let targets = source.imports().into_iter().filter_map(|import| file_of(&import));
        let targets = targets.filter(|target| *target != source.module && target.len() > 2);
        arrows.entry(source.module.clone()).or_default().extend(targets);
    }
    let circles: Vec<String> = arrows
        .keys()
        .filter(|start| start.len() > 2 && reaches(&arrows, start, start))
        .map(|module| module.join("::"))
        .collect();
    assert!(circles.is_empty(), "files in circles:\n{}", circles.join("\n"));
}

/// Whether arrows lead from `start` to `end`.
fn reaches(arrows: &BTreeMap<Vec<String>, BTreeSet<Vec<String>>>, start: &[String], end: &[String]) -> bool {
    let (mut seen, mut next) = (BTreeSet::new(), vec![start.to_vec()]);
    while let Some(module) = next.pop() {
        for target in arrows.get(&module).into_iter().flatten() {
            if target == end {
                return true;
            }
            if seen.insert(target.clone()) {
                next.push(target.clone());
            }
        }
    }
    false
}

#[test]
fn only_pg_names_postgres() {
    for source in sources() {
        let own = source.module.first().is_some_and(|room| room == "pg");
        // The library's own file says once to the server what it is.
        let allowed = own || source.path == Path::new("lib.rs");
        for name in ["pgrx::", "pg_sys"] {
            assert!(
                allowed || !source.text.contains(name),
                "{} names {name}",
                source.path.display()
            );
        }
    }
}

#[test]
fn rooms_without_unsafe_forbid_it() {
    let sources = sources();
    let mut rooms: BTreeMap<&str, (bool, bool)> = BTreeMap::new();
    for source in &sources {
        let Some(room) = source.module.first() else { continue };
        let (used, forbidden) = rooms.entry(room).or_default();
        let mut words = source.text.split(|c: char| !c.is_alphanumeric() && c != '_');
        *used |= words.any(|word| word == "unsafe");
        *forbidden |= source.module.len() == 1 && source.text.contains("#![forbid(unsafe_code)]");
    }
    for (room, (used, forbidden)) in rooms {
        assert!(used || forbidden, "{room} has no unsafe code, and does not forbid it");
    }
}
