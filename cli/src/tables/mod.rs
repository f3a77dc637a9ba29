//! Tables of pictures and texts: JSON lines, CSV and Parquet. Their rows are read one after the other, and some of them
//! written again as they were.

mod csv;
mod jsonl;
mod parquet;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::args::TableArgs;
use crate::inputs::feed::Walk;
use crate::inputs::{Item, Picture, Visitor, url};

/// The column that holds pictures where none is named.
const IMAGE_COLUMN: &str = "image";

/// Names of the columns that scores are written to.
pub const SCORES: [&str; 2] = ["similarity", "probability"];

/// A table.
#[derive(Debug, Clone)]
pub struct Table {
    path: PathBuf,
    format: Format,
    image_column: Option<String>,
    text_column: String,
    /// Where relative paths of pictures begin.
    images: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Jsonl,
    Csv,
    Parquet,
}

/// What is written of a row that is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Scores {
    /// Of the text and the picture.
    pub similarity: Option<f32>,
    /// That they match.
    pub probability: Option<f32>,
}

/// What becomes of a row, by its number from 0: where it is kept, its scores.
pub type Kept<'a> = &'a dyn Fn(u64) -> Option<Scores>;

impl Table {
    /// The table that the command line names.
    ///
    /// # Errors
    /// It is no file, or its name does not say what it is.
    pub fn new(args: &TableArgs) -> Result<Table> {
        let path = &args.table;
        let named = || path.display().to_string();
        if !path.metadata().with_context(named)?.is_file() {
            bail!("{}: this is no file; it is read twice", named());
        }
        let extension = path.extension().and_then(|extension| extension.to_str());
        let format = match extension.map(str::to_ascii_lowercase).as_deref() {
            Some("jsonl" | "ndjson") => Format::Jsonl,
            Some("csv") => Format::Csv,
            Some("parquet") => Format::Parquet,
            _ => bail!(
                "{}: a table's name ends with .jsonl, .csv or .parquet",
                named()
            ),
        };
        Ok(Table {
            path: path.clone(),
            format,
            image_column: args.image_column.clone(),
            text_column: args.text_column.clone(),
            images: args.images.clone(),
        })
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is read by, to tell it from others.
    pub fn columns(&self) -> (Option<&str>, &str) {
        (self.image_column.as_deref(), &self.text_column)
    }

    /// Whether it can only be written to a file.
    pub fn needs_file(&self) -> bool {
        self.format == Format::Parquet
    }

    /// Whether columns of scores have a place: none of their names is taken. Rows of JSON lines are each asked by
    /// themselves.
    ///
    /// # Errors
    /// One is taken, or the file cannot be read.
    pub fn check_scores(&self) -> Result<()> {
        let names = match self.format {
            Format::Jsonl => Vec::new(),
            Format::Csv => csv::columns(&self.path)?,
            Format::Parquet => parquet::columns(&self.path)?,
        };
        match SCORES
            .iter()
            .find(|name| names.iter().any(|other| other == *name))
        {
            None => Ok(()),
            Some(name) => bail!(
                "{}: there is a column {name} already, so leave out --scores",
                self.path.display()
            ),
        }
    }

    /// Writes those rows to `out` that are `kept`, at once in place of what was there.
    ///
    /// # Errors
    /// The table cannot be read any more, or the file not written.
    pub fn copy(&self, out: &Path, has_scores: bool, kept: Kept) -> Result<()> {
        let mut new = out.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        let named = || new.display().to_string();
        let file = File::create(&new).with_context(named)?;
        let written = match self.format {
            Format::Parquet => parquet::copy(&self.path, file, has_scores, kept),
            _ => {
                let mut writer = BufWriter::new(file);
                self.write(&mut writer, has_scores, kept).and_then(|()| {
                    writer.flush()?;
                    Ok(writer.get_ref().sync_all()?)
                })
            }
        };
        match written {
            Ok(()) => std::fs::rename(&new, out).with_context(|| out.display().to_string()),
            Err(error) => {
                let _ = std::fs::remove_file(&new);
                Err(error)
            }
        }
    }

    /// Writes the rows that are `kept` as text.
    ///
    /// # Errors
    /// As [`Table::copy`]; or it is Parquet, which is no text.
    pub fn write(&self, out: &mut dyn Write, has_scores: bool, kept: Kept) -> Result<()> {
        match self.format {
            Format::Jsonl => jsonl::copy(&self.path, out, has_scores, kept),
            Format::Csv => csv::copy(&self.path, out, has_scores, kept),
            Format::Parquet => bail!("a Parquet file is written from its end: name it with --out"),
        }
    }

    /// Where the picture of a row is, whose column holds `text`.
    fn picture(&self, text: &str) -> Picture {
        if let Some(url) = url(text.as_ref()) {
            return Picture::Url(url.to_owned());
        }
        Picture::File(match &self.images {
            Some(images) => images.join(text),
            None => PathBuf::from(text),
        })
    }

    /// Tells of row `number`, whose cells hold these, or why it has none.
    fn offer(&self, visitor: &mut dyn Visitor, number: u64, cells: Cells) -> ControlFlow<()> {
        let place = || format!("{}#{number}", self.path.display());
        let name = match &cells {
            Ok((image, _)) => image.clone(),
            Err(_) => place(),
        };
        if !visitor.wants(&name) {
            return ControlFlow::Continue(());
        }
        let (picture, text) = match cells {
            Ok((image, text)) => (self.picture(&image), text),
            Err(reason) => (Picture::Unreadable(format!("{}: {reason}", place())), None),
        };
        visitor.take(Item {
            name,
            key: None,
            text,
            picture,
        })
    }
}

/// Picture and text of a row, or what is wrong with it.
type Cells = Result<(String, Option<String>), String>;

impl Walk for Table {
    fn can_be_walked_twice(&self) -> bool {
        true
    }

    fn walk(&self, visitor: &mut dyn Visitor) -> ControlFlow<()> {
        let image_column = self.image_column.as_deref().unwrap_or(IMAGE_COLUMN);
        let walked = match self.format {
            Format::Jsonl => jsonl::walk(&self.path, |number, row| {
                let cells = row.and_then(|row| jsonl::cells(&row, image_column, &self.text_column));
                self.offer(visitor, number, cells)
            }),
            Format::Csv => csv::walk(
                &self.path,
                [image_column, &self.text_column],
                |number, cells| self.offer(visitor, number, cells),
            ),
            Format::Parquet => {
                let mut rooted = Rooted {
                    visitor,
                    images: self.images.as_deref(),
                    file: &self.path,
                };
                return crate::inputs::parquet::walk_with_text(
                    &self.path,
                    self.image_column.as_deref(),
                    Some(&self.text_column),
                    &mut rooted,
                );
            }
        };
        match walked {
            Ok(flow) => flow,
            Err(error) => {
                let name = self.path.display().to_string();
                match visitor.wants(&name) {
                    false => ControlFlow::Continue(()),
                    true => visitor.take(Item {
                        picture: Picture::Unreadable(format!("{error:#}")),
                        key: None,
                        text: None,
                        name,
                    }),
                }
            }
        }
    }
}

/// Puts relative paths of a Parquet file, which begin beside it, where the command line says.
struct Rooted<'a> {
    visitor: &'a mut dyn Visitor,
    images: Option<&'a Path>,
    file: &'a Path,
}

impl Visitor for Rooted<'_> {
    fn wants(&mut self, name: &str) -> bool {
        self.visitor.wants(name)
    }

    fn take(&mut self, mut item: Item) -> ControlFlow<()> {
        if let (Picture::File(path), Some(images)) = (&mut item.picture, self.images) {
            let beside = self.file.parent().unwrap_or(Path::new(""));
            if let Ok(relative) = path.strip_prefix(beside) {
                *path = images.join(relative);
            }
        }
        self.visitor.take(item)
    }
}

/// A score as it is written: four digits are what it is worth.
pub fn rounded(score: f32) -> f64 {
    (f64::from(score) * 1e4).round() / 1e4
}
