//! Features as they come, in `FILE.partial`: a graph cannot be written a picture at a time without being written whole.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use half::f16;
use search::About;
use serde::{Deserialize, Serialize};

use crate::batch::{Existing, NameHash, RowFile, hash, lines};
use crate::heads::Rows;

/// How lines begin.
const BEGINNINGS: [&str; 2] = [r#"{"about":{"#, r#"{"image":""#];

/// One line: the first says of what all the others are.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "neither a bundle nor a picture")]
enum Line {
    About { about: About },
    Row(Row),
}

/// A picture.
#[derive(Debug, Serialize, Deserialize)]
pub struct Row {
    /// Its name.
    pub image: String,
    /// Its features, row after row, f16 in little-endian bytes as base64: as exact as the index holds them.
    features: Option<String>,
    /// Why there are none.
    pub error: Option<String>,
}

impl Row {
    /// The row of a picture that was read.
    pub fn seen(image: String, features: &Rows) -> Row {
        let numbers = features.iter().flatten();
        let bytes: Vec<u8> = numbers
            .flat_map(|&number| f16::from_f32(number).to_le_bytes())
            .collect();
        Row {
            image,
            features: Some(STANDARD.encode(bytes)),
            error: None,
        }
    }

    /// The row of one that was not.
    pub fn failed(image: String, error: String) -> Row {
        Row {
            image,
            features: None,
            error: Some(error),
        }
    }

    /// The name, and the features, row after row.
    ///
    /// # Errors
    /// They are no such numbers.
    pub fn features(self) -> Result<(String, Option<Vec<f32>>)> {
        let Some(features) = self.features else {
            return Ok((self.image, None));
        };
        let bytes = STANDARD.decode(features)?;
        let (pairs, _) = bytes.as_chunks::<2>();
        let numbers = pairs.iter().map(|&pair| f16::from_le_bytes(pair).to_f32());
        Ok((self.image, Some(numbers.collect())))
    }
}

/// What a run that was stopped left.
#[derive(Default)]
pub struct Earlier {
    /// Of its pictures.
    pub names: Vec<NameHash>,
    /// Those that failed.
    pub errors: u64,
}

/// The file.
pub struct Journal {
    rows: RowFile,
    has_features: bool,
}

impl Journal {
    /// Opens the journal of the index `out`.
    ///
    /// # Errors
    /// It is there and nothing was said of that, it is of another bundle, or cannot be written.
    pub fn open(out: &Path, existing: Existing, about: &About) -> Result<(Journal, Earlier)> {
        let mut path = out.as_os_str().to_owned();
        path.push(".partial");
        let path = PathBuf::from(path);
        existing.check(&path)?;
        let mut rows = RowFile::open(path.clone())?;
        let mut earlier = Earlier::default();
        let mut has_features = false;
        match existing {
            Existing::Resume => rows.recover(|reader| {
                let add = |line| match line {
                    Line::About { about: theirs } => check(&theirs, about),
                    Line::Row(row) => {
                        earlier.names.push(hash(&row.image));
                        has_features |= row.features.is_some();
                        earlier.errors += u64::from(row.error.is_some());
                        Ok(())
                    }
                };
                lines::recover(reader, "index", &BEGINNINGS, add)
            })?,
            Existing::Refuse | Existing::Overwrite => rows.clear()?,
        }
        if rows.is_empty() {
            rows.append(&lines::line(&serde_json::json!({ "about": about }))?)?;
        }
        Ok((Journal { rows, has_features }, earlier))
    }

    /// Writes a row, whole.
    ///
    /// # Errors
    /// It cannot be written. What was written before stays as it is.
    pub fn write(&mut self, row: &Row) -> Result<()> {
        self.has_features |= row.features.is_some();
        self.rows.append(&lines::line(row)?)
    }

    /// Whether any of its pictures could be read.
    pub fn has_features(&self) -> bool {
        self.has_features
    }

    /// Reads all rows.
    ///
    /// # Errors
    /// They cannot be read, or `add` fails.
    pub fn read(&self, mut add: impl FnMut(Row) -> Result<()>) -> Result<()> {
        let path = self.rows.path();
        let named = || path.display().to_string();
        let file = BufReader::new(File::open(path).with_context(named)?);
        for line in file.lines() {
            let line = serde_json::from_str(&line.with_context(named)?).with_context(named)?;
            if let Line::Row(row) = line {
                add(row).with_context(named)?;
            }
        }
        Ok(())
    }

    /// Removes the file: the index holds all of it.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(self) -> Result<()> {
        let path = self.rows.path();
        std::fs::remove_file(path).with_context(|| path.display().to_string())
    }
}

fn check(theirs: &About, about: &About) -> Result<()> {
    let same = |about: &About| (about.bundle_hash.clone(), about.image_column.clone());
    if same(theirs) != same(about) {
        bail!(
            "a run with the bundle {} ({}) was stopped, and this is {} ({}): --overwrite begins anew",
            theirs.bundle,
            theirs.bundle_hash,
            about.bundle,
            about.bundle_hash
        );
    }
    Ok(())
}
