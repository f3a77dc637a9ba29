//! JSON files, with the place of what is wrong.

use std::fmt;
use std::path::Path;

use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{Error, Result};

/// Reads a JSON file.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    parse(path, "", &text)
}

/// Parses JSON that stands at `place` of a file.
pub(crate) fn parse<T: DeserializeOwned>(path: &Path, place: &str, text: &str) -> Result<T> {
    let mut json = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut json)
        .and_then(|value| {
            let track = serde_path_to_error::Track::new();
            json.end()
                .map_err(|error| serde_path_to_error::Error::new(track.path(), error))?;
            Ok(value)
        })
        .map_err(|error| {
            // Where the text ends too early, no field is known.
            let field = match error.path().to_string() {
                root if [".", "?"].contains(&root.as_str()) => String::new(),
                field => field.trim_end_matches(".?").to_owned(),
            };
            let separator = if place.is_empty() || field.is_empty() {
                ""
            } else {
                ", "
            };
            let mut reason = error.into_inner().to_string();
            if !place.is_empty() {
                // The line of the file is in `place`.
                reason = reason.replace(" at line 1 column", " at column");
            }
            Error::file(path, format!("{place}{separator}{field}"), reason)
        })?;
    Ok(value)
}

/// What a benchmark calls its questions or pictures: a number in some files, a string in others.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(untagged)]
pub enum Id {
    /// As in VQAv2 and COCO.
    Number(u64),
    /// As in GQA.
    Text(String),
}

impl Id {
    /// What files are matched by: those of answers need not keep the kind.
    pub fn key(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Id::Number(number) => number.fmt(f),
            Id::Text(text) => text.fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IdVisitor;
        impl Visitor<'_> for IdVisitor {
            type Value = Id;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an id: a string or a number from 0")
            }
            fn visit_u64<E>(self, number: u64) -> Result<Id, E> {
                Ok(Id::Number(number))
            }
            fn visit_str<E>(self, text: &str) -> Result<Id, E> {
                Ok(Id::Text(text.to_owned()))
            }
        }
        deserializer.deserialize_any(IdVisitor)
    }
}
