//! Features and scores as they come.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Result, bail};
use eval::{Dataset, Id, Task};
use serde::{Deserialize, Serialize};

use crate::args::EvalArgs;
use crate::batch::{Existing, RowFile, lines};
use crate::heads::Rows;

/// How lines begin.
const BEGINNINGS: [&str; 2] = [r#"{"settings":{"#, r#"{"id":"#];

/// What scores depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub task: Task,
    /// Name of the file with the captions.
    pub questions: String,
    pub bundle: String,
    /// Tells the bundle's files from others.
    pub bundle_hash: String,
    pub preset: Option<String>,
    /// How many of the nearest the matching head puts in order.
    pub rerank: usize,
    pub vision: String,
}

/// One line. A picture has one with its features, then one with its scores.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged, expecting = "neither settings, nor features, nor scores")]
enum Line {
    Settings {
        settings: Settings,
    },
    Logits {
        id: Id,
        /// Places of the texts among all.
        texts: Vec<usize>,
        /// The matching head's, of each.
        logits: Vec<f32>,
    },
    Features {
        id: Id,
        features: Option<Rows>,
        error: Option<String>,
    },
}

/// What is known of each picture.
pub struct Journal {
    /// In memory alone where no file was named.
    file: Option<RowFile>,
    features: HashMap<String, Option<Rows>>,
    logits: HashMap<String, Vec<(usize, f32)>>,
}

impl Journal {
    /// Opens the file that the command line names.
    ///
    /// # Errors
    /// It is there and nothing was said of that, it cannot be written, it is none of `qbridge eval`, or of other settings.
    pub fn open(args: &EvalArgs, settings: &Settings) -> Result<Journal> {
        let mut journal = Journal {
            file: None,
            features: HashMap::new(),
            logits: HashMap::new(),
        };
        let Some(path) = &args.out else {
            return Ok(journal);
        };
        if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
            bail!("{}: this is no file", path.display());
        }
        let existing = Existing::of(args.resume, args.overwrite);
        existing.check(path)?;
        let mut file = RowFile::open(path.clone())?;
        match existing {
            Existing::Resume => file.recover(|reader| {
                let add = |line| journal.add(line, settings);
                lines::recover(reader, "eval", &BEGINNINGS, add)
            })?,
            Existing::Refuse | Existing::Overwrite => file.clear()?,
        }
        if file.is_empty() {
            let settings = settings.clone();
            file.append(&lines::line(&Line::Settings { settings })?)?;
        }
        journal.file = Some(file);
        Ok(journal)
    }

    fn add(&mut self, line: Line, settings: &Settings) -> Result<()> {
        match line {
            Line::Settings { settings: earlier } if earlier != *settings => bail!(
                "it was begun with other settings: name another file, or --overwrite this one"
            ),
            Line::Settings { .. } => {}
            Line::Logits { id, texts, logits } => {
                self.logits
                    .insert(id.key(), texts.into_iter().zip(logits).collect());
            }
            Line::Features { id, features, .. } => {
                self.features.insert(id.key(), features);
            }
        }
        Ok(())
    }

    /// Whether a picture was looked at.
    pub fn has_seen(&self, id: &Id) -> bool {
        self.features.contains_key(&id.key())
    }

    /// The features of a picture; none where it could not be read.
    pub fn features(&self, id: &Id) -> Option<&Rows> {
        self.features.get(&id.key())?.as_ref()
    }

    /// Whether a picture has the scores of these texts.
    pub fn has_matched(&self, id: &Id, texts: &BTreeSet<usize>) -> bool {
        let logits = self.logits.get(&id.key());
        logits.is_some_and(|logits| logits.iter().map(|(text, _)| text).eq(texts))
    }

    /// The scores of a picture's texts, by their places.
    pub fn logits(&self, dataset: &Dataset, picture: usize) -> &[(usize, f32)] {
        let record = dataset.records.get(picture);
        let logits = record.and_then(|record| self.logits.get(&record.id.key()));
        logits.map_or(&[], Vec::as_slice)
    }

    /// The score of a picture and a text.
    pub fn logit(&self, dataset: &Dataset, picture: usize, text: usize) -> Option<f32> {
        let logits = self.logits(dataset, picture);
        let at = logits.binary_search_by_key(&text, |(text, _)| *text).ok()?;
        logits.get(at).map(|(_, logit)| *logit)
    }

    /// Writes what was seen of a picture.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_features(&mut self, id: &Id, found: Result<Rows, String>) -> Result<()> {
        let (features, error) = match found {
            Ok(features) => (Some(features), None),
            Err(error) => (None, Some(error)),
        };
        let line = Line::Features {
            id: id.clone(),
            features,
            error,
        };
        self.append(&line)?;
        if let Line::Features { features, .. } = line {
            self.features.insert(id.key(), features);
        }
        Ok(())
    }

    /// Writes the scores of a picture's texts, in the order of their places.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn write_logits(
        &mut self,
        id: &Id,
        scores: impl Iterator<Item = (usize, f32)>,
    ) -> Result<()> {
        let scores: Vec<(usize, f32)> = scores.collect();
        let (texts, logits) = scores.iter().copied().unzip();
        let id = id.clone();
        let key = id.key();
        self.append(&Line::Logits { id, texts, logits })?;
        self.logits.insert(key, scores);
        Ok(())
    }

    fn append(&mut self, line: &Line) -> Result<()> {
        match &mut self.file {
            Some(file) => file.append(&lines::line(line)?),
            None => Ok(()),
        }
    }

    /// All pictures have their rows.
    ///
    /// # Errors
    /// What was written does not reach the disk.
    pub fn finish(&self) -> Result<()> {
        self.file.as_ref().map_or(Ok(()), RowFile::sync)
    }
}
