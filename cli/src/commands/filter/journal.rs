//! Scores as they come, in `OUT.partial`, in the order of the rows: what is kept is written when all are there.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::batch::{Existing, RowFile, lines};
use crate::tables::Scores;

/// How lines begin.
const BEGINNINGS: [&str; 2] = [r#"{"settings":{"#, r#"{"image":""#];

/// What scores depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub bundle_hash: String,
    /// Name and size of the table's file.
    pub table: String,
    pub table_bytes: u64,
    pub image_column: Option<String>,
    pub text_column: String,
    pub min_itm: Option<f32>,
    pub min_itc: Option<f32>,
    pub scores: bool,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "neither settings nor a row's scores")]
enum Line {
    Settings { settings: Settings },
    Row(Row),
}

/// The scores of a row.
#[derive(Debug, Serialize, Deserialize)]
pub struct Row {
    /// What its picture is called.
    pub image: String,
    pub similarity: Option<f32>,
    pub probability: Option<f32>,
    /// Why there are none.
    pub error: Option<String>,
}

impl Row {
    /// A row that was read.
    pub fn scored(image: String, scores: Scores) -> Row {
        Row {
            image,
            similarity: scores.similarity,
            probability: scores.probability,
            error: None,
        }
    }

    /// A row that could not be read.
    pub fn failed(image: String, error: String) -> Row {
        Row {
            image,
            similarity: None,
            probability: None,
            error: Some(error),
        }
    }
}

/// Where the journal of the output `out` is.
pub fn path(out: &Path) -> PathBuf {
    let mut path = out.as_os_str().to_owned();
    path.push(".partial");
    path.into()
}

/// How many rows there are.
#[derive(Debug, Clone, Copy)]
pub struct Count {
    pub rows: u64,
    pub errors: u64,
}

/// The scores that are there.
pub struct Journal {
    /// None where nothing is to be gone on with.
    file: Option<RowFile>,
    rows: Vec<Row>,
}

impl Journal {
    /// Opens the journal of the output `out`.
    ///
    /// # Errors
    /// It is there and nothing was said of that, it is of other settings, or cannot be written.
    pub fn open(out: Option<&Path>, existing: Existing, settings: Settings) -> Result<Journal> {
        let mut rows = Vec::new();
        let Some(out) = out else {
            return Ok(Journal { file: None, rows });
        };
        let path = path(out);
        existing.check(&path)?;
        let mut file = RowFile::open(path)?;
        match existing {
            Existing::Resume => file.recover(|reader| {
                let add = |line| match line {
                    Line::Settings { settings: earlier } if earlier != settings => bail!(
                        "it was begun with another table, bundle, or other flags: --overwrite begins anew"
                    ),
                    Line::Settings { .. } => Ok(()),
                    Line::Row(row) => {
                        rows.push(row);
                        Ok(())
                    }
                };
                lines::recover(reader, "filter", &BEGINNINGS, add)
            })?,
            Existing::Refuse | Existing::Overwrite => file.clear()?,
        }
        if file.is_empty() {
            file.append(&lines::line(&serde_json::json!({ "settings": settings }))?)?;
        }
        Ok(Journal {
            file: Some(file),
            rows,
        })
    }

    /// The rows, in the order of the table.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// How many they are.
    pub fn tally(&self) -> Count {
        let failed = self.rows.iter().filter(|row| row.error.is_some());
        Count {
            rows: self.rows.len() as u64,
            errors: failed.count() as u64,
        }
    }

    /// Writes a row, whole.
    ///
    /// # Errors
    /// It cannot be written. What was written before stays as it is.
    pub fn write(&mut self, row: Row) -> Result<()> {
        if let Some(file) = &mut self.file {
            file.append(&lines::line(&row)?)?;
        }
        self.rows.push(row);
        Ok(())
    }

    /// Removes the file: what is kept is written.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(self) -> Result<()> {
        match self.file {
            Some(file) => Ok(std::fs::remove_file(file.path())?),
            None => Ok(()),
        }
    }
}
