//! The answers that are there: those of an earlier run in their file, and each that comes.

use std::path::Path;

use anyhow::{Context, Result, bail};
use eval::Answers;
use serde_json::json;

use super::rows::{BEGINNINGS, Line, Row};
use super::settings::Settings;
use crate::args::EvalArgs;
use crate::batch::{Existing, RowFile, check_settings, lines, read_back};

/// The answers that are there.
pub struct Journal {
    /// Where they are kept; in memory alone where no file was named.
    file: Option<RowFile>,
    /// The answers.
    pub answers: Answers,
    /// Rows of an earlier run.
    pub earlier: u64,
    /// Those of them with an error.
    pub earlier_errors: u64,
}

impl Journal {
    /// Opens the file that the command line names.
    ///
    /// # Errors
    /// It is there and nothing was said of that, another run writes to it, it cannot be written, it is none of
    /// `qbridge eval`, or its questions were asked otherwise.
    pub fn open(args: &EvalArgs, settings: &Settings) -> Result<Journal> {
        let mut journal = Journal {
            file: None,
            answers: Answers::default(),
            earlier: 0,
            earlier_errors: 0,
        };
        let Some(path) = &args.out else {
            return Ok(journal);
        };
        if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
            bail!(
                "{}: this is no file, so that nothing can be read back from it",
                path.display()
            );
        }
        let existing = Existing::of(args.resume, args.overwrite);
        existing.check(path)?;
        let mut file = RowFile::open(path.clone())?;
        match existing {
            Existing::Resume => journal.recover(&mut file, settings)?,
            Existing::Refuse | Existing::Overwrite => file.clear()?,
        }
        if file.is_empty() {
            file.append(&lines::line(&json!({ "settings": settings }))?)?;
        }
        journal.file = Some(file);
        Ok(journal)
    }

    fn recover(&mut self, file: &mut RowFile, settings: &Settings) -> Result<()> {
        let settings = read_back(settings)?;
        file.recover(|reader| {
            let add = |line| match line {
                Line::Settings { settings: earlier } => check_settings(&earlier, &settings),
                Line::Row(row) => self.add_earlier(row),
            };
            lines::recover(reader, "eval", &BEGINNINGS, add)
        })
    }

    fn add_earlier(&mut self, row: Row) -> Result<()> {
        self.earlier += 1;
        self.earlier_errors += u64::from(row.error.is_some());
        self.add(row)
    }

    fn add(&mut self, row: Row) -> Result<()> {
        match self.answers.insert(&row.id, row.answer) {
            true => Ok(()),
            false => bail!("{} is answered a second time", row.id),
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
        self.add(row)
    }

    /// All questions have their rows.
    ///
    /// # Errors
    /// What was written does not reach the disk.
    pub fn finish(&self) -> Result<()> {
        self.file.as_ref().map_or(Ok(()), RowFile::sync)
    }
}

/// Writes a file at once in place of what was there.
///
/// # Errors
/// It cannot be written.
pub fn replace(path: &Path, contents: &str) -> Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    std::fs::write(&new, contents)
        .and_then(|()| std::fs::rename(&new, path))
        .with_context(|| path.display().to_string())
}
