//! A GGUF model in several files, as the splitting tool writes them: `NAME-00001-of-00003.gguf` and so on.
//!
//! The metadata of each says which it is (`split.no`, from 0), how many there are (`split.count`) and how many tensors
//! they hold together (`split.tensors.count`); the model's own metadata stands in the first. All headers are read and
//! compared when the first is opened, so a part that is missing or another model's is an error then, not at a tensor.

use super::{Gguf, Header, Part, Value};
use crate::model::ModelError;
use std::path::{Path, PathBuf};

/// Most parts that are believed: their names have five digits.
const MOST_PARTS: u64 = 99_999;

/// What the name of a part says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartName {
    stem: String,
    /// Its number from 1, and how many there are.
    pub number: u64,
    pub count: u64,
}

impl PartName {
    /// `None` for a name of another form.
    pub fn of(path: &Path) -> Option<PartName> {
        let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, count) = name.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let digits = |text: &str| match text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit()) {
            true => text.parse().ok(),
            false => None,
        };
        Some(PartName {
            stem: stem.to_string(),
            number: digits(number)?,
            count: digits(count)?,
        })
    }

    /// The file name of a part of the same model.
    pub fn sibling(&self, number: u64) -> String {
        format!("{}-{number:05}-of-{:05}.gguf", self.stem, self.count)
    }

    /// Of several files the first part, where they are parts of one model and nothing else.
    pub fn first_of(paths: &[PathBuf]) -> Option<PathBuf> {
        let first = paths.first()?;
        let name = PartName::of(first)?;
        let same = |path: &PathBuf| {
            PartName::of(path).is_some_and(|other| (&other.stem, other.count) == (&name.stem, name.count))
        };
        paths.iter().all(same).then(|| first.with_file_name(name.sibling(1)))
    }
}

/// What the metadata of a part says.
struct Split {
    /// From 0.
    number: u64,
    count: u64,
    tensors: u64,
}

impl Split {
    /// `None` for a whole model.
    fn of(part: &Part, header: &Header) -> Result<Option<Split>, ModelError> {
        let number = |key: &str| match header.metadata.get(key) {
            Some(Value::Integer(number)) if *number >= 0 => Ok(number.unsigned_abs()),
            None => Err(wrong(part, format!("it is a part of a model and has no \"{key}\""))),
            Some(_) => Err(wrong(part, format!("key \"{key}\" is not a number from 0"))),
        };
        if !header.metadata.contains_key("split.count") {
            return Ok(None);
        }
        let (no, count) = (number("split.no")?, number("split.count")?);
        // The tool can write a model that was not cut.
        if count <= 1 && no == 0 {
            return Ok(None);
        }
        if no >= count || count > MOST_PARTS {
            return Err(wrong(
                part,
                format!("it says to be part {} of {count}", no.saturating_add(1)),
            ));
        }
        Ok(Some(Split {
            number: no,
            count,
            tensors: number("split.tensors.count")?,
        }))
    }
}

fn wrong(part: &Part, what: String) -> ModelError {
    ModelError::Corrupt {
        path: part.path.clone(),
        what,
    }
}

impl Gguf {
    /// Opens a file, or the first of a model's parts with all others beside it, and checks their headers.
    ///
    /// # Errors
    /// [`ModelError::Part`] for a part that is not the first, [`ModelError::Missing`] for one that is not there,
    /// [`ModelError::Corrupt`] for one that does not belong to the first; each names the file.
    pub fn open(path: &Path) -> Result<Gguf, ModelError> {
        let (part, header) = Part::open(path)?;
        let split = Split::of(&part, &header)?;
        let name = PartName::of(path);
        let mut whole = Gguf {
            parts: vec![part],
            metadata: header.metadata,
            tensors: header.tensors,
        };
        let (Some(split), Some(part)) = (split, whole.parts.first()) else {
            return Ok(whole);
        };
        let said = (split.number + 1, split.count);
        let Some(name) = name.filter(|name| (name.number, name.count) == said) else {
            let (number, count) = said;
            let what =
                format!("it is part {number} of {count}, and its name does not end in -{number:05}-of-{count:05}.gguf");
            return Err(wrong(part, what));
        };
        if split.number > 0 {
            return Err(ModelError::Part {
                path: path.to_path_buf(),
                part: name.number,
                count: name.count,
                first: path.with_file_name(name.sibling(1)),
            });
        }
        for number in 2..=split.count {
            whole.add(&path.with_file_name(name.sibling(number)), &split)?;
        }
        if whole.tensors.len() as u64 != split.tensors {
            let what = format!(
                "its parts hold {} tensors together, not {}",
                whole.tensors.len(),
                split.tensors
            );
            return Err(ModelError::Corrupt {
                path: path.to_path_buf(),
                what,
            });
        }
        Ok(whole)
    }

    /// Opens the next part, which has to fit the first.
    fn add(&mut self, path: &Path, first: &Split) -> Result<(), ModelError> {
        super::super::stop::check()?;
        let (part, header) = Part::open(path)?;
        let number = self.parts.len();
        match Split::of(&part, &header)? {
            Some(split)
                if (split.number, split.count, split.tensors) == (number as u64, first.count, first.tensors) => {}
            Some(split) => {
                let what = format!(
                    "it is part {} of {} with {} tensors in all, where part {} of {} with {} belongs",
                    split.number + 1,
                    split.count,
                    split.tensors,
                    number + 1,
                    first.count,
                    first.tensors
                );
                return Err(wrong(&part, what));
            }
            None => {
                return Err(wrong(
                    &part,
                    format!("it is no part, where part {} belongs", number + 1),
                ));
            }
        }
        for (name, mut info) in header.tensors {
            info.part = number;
            if self.tensors.contains_key(&name) {
                return Err(wrong(&part, format!("tensor \"{name}\" is in an earlier part as well")));
            }
            self.tensors.insert(name, info);
        }
        self.parts.push(part);
        Ok(())
    }
}
