//! Where rows go. Each is written whole as soon as it is there, and what an earlier run wrote is gone on with.

mod csv;
mod parquet;
mod settings;
mod sidecar;

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bridge::bundle::Manifest;

use super::rows::Row;
use crate::args::{CaptionArgs, OutputFormat};
use crate::batch::{Done, Existing, RowFile, has_content, lines};

pub use sidecar::{Prepared, Sidecars};

/// How every JSON line begins.
const BEGINNING: &str = "{\"image\":\"";

/// Where rows go.
pub struct Output {
    target: Target,
    format: OutputFormat,
    /// What goes before the first row.
    header: Option<Vec<u8>>,
}

enum Target {
    Stdout,
    /// A pipe or a device: nothing of it can be read again.
    Stream {
        file: File,
        path: PathBuf,
    },
    File {
        rows: RowFile,
        /// The Parquet file that they become in the end.
        becomes: Option<PathBuf>,
    },
}

/// What an earlier run left.
#[derive(Default)]
pub struct Earlier {
    /// Its rows.
    pub done: Done,
    /// The last of them, whose sidecar it may not have come to.
    pub last: Option<Row>,
    /// Whether files beside pictures replace what is there, as the run that began was told.
    pub replaces_sidecars: bool,
}

impl Output {
    /// Opens the output that the command line names.
    ///
    /// # Errors
    /// It is there and nothing was said of that, another run writes to it, it was begun with another bundle or other settings,
    /// or it cannot be written or is not such an output.
    pub fn open(args: &CaptionArgs, manifest: &Manifest) -> Result<(Output, Earlier)> {
        let format = format(args)?;
        let Some(path) = &args.out else {
            if args.resume && args.sidecar.is_none() {
                bail!(
                    "--resume needs --out FILE, or --sidecar: standard output does not say what is done"
                );
            }
            let output = Output::new(Target::Stdout, format)?;
            return Ok((output, Earlier::default()));
        };
        let existing = Existing::of(args.resume, args.overwrite);
        if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
            return Self::open_stream(path, format, existing);
        }
        let becomes = (format == OutputFormat::Parquet).then(|| path.clone());
        let rows_path = match &becomes {
            Some(path) => parquet::journal(path),
            None => path.clone(),
        };
        existing.check(path)?;
        existing.check(&rows_path)?;
        let settings = settings::of(args, manifest)?;
        let mut replaces_sidecars = args.overwrite && args.sidecar.is_some();
        if existing == Existing::Resume && (has_content(path) || has_content(&rows_path)) {
            // Before anything is changed.
            replaces_sidecars = settings::check(path, &settings)?;
        }
        if existing == Existing::Resume && becomes.is_some() {
            parquet::reopen(path, &rows_path).with_context(|| named(path))?;
        }
        let mut rows = RowFile::open(rows_path)?;
        let mut earlier = Earlier::default();
        if existing == Existing::Resume {
            let add = |row: Row| {
                earlier.done.add(&row.image, row.error.is_some());
                earlier.last = Some(row);
            };
            rows.recover(|file| recover(file, format, add))?;
        } else {
            rows.clear()?;
        }
        let is_new = rows.is_empty();
        if is_new {
            settings::begin(path, settings, replaces_sidecars)?;
        }
        earlier.replaces_sidecars = replaces_sidecars;
        let mut output = Output::new(Target::File { rows, becomes }, format)?;
        if !is_new {
            output.header = None;
        }
        Ok((output, earlier))
    }

    fn new(target: Target, format: OutputFormat) -> Result<Output> {
        let header = match format {
            OutputFormat::Csv => Some(csv::header()?),
            OutputFormat::Jsonl | OutputFormat::Parquet => None,
        };
        Ok(Output {
            target,
            format,
            header,
        })
    }

    fn open_stream(
        path: &Path,
        format: OutputFormat,
        existing: Existing,
    ) -> Result<(Output, Earlier)> {
        if path.is_dir() {
            bail!("{}: this is a directory; name a file", path.display());
        }
        if existing == Existing::Resume || format == OutputFormat::Parquet {
            bail!(
                "{}: this is no file, so that nothing can be read back from it",
                path.display()
            );
        }
        let file = OpenOptions::new().write(true).open(path);
        let file = file.with_context(|| named(path))?;
        let path = path.to_owned();
        let output = Output::new(Target::Stream { file, path }, format)?;
        Ok((output, Earlier::default()))
    }

    /// Whether rows go to standard output.
    pub fn is_stdout(&self) -> bool {
        matches!(self.target, Target::Stdout)
    }

    /// Writes a row, whole.
    ///
    /// # Errors
    /// It cannot be written. What was written before stays as it is.
    pub fn write(&mut self, row: &Row) -> Result<()> {
        let mut bytes = self.header.take().unwrap_or_default();
        bytes.extend(match self.format {
            OutputFormat::Csv => csv::record(row)?,
            OutputFormat::Jsonl | OutputFormat::Parquet => lines::line(row)?,
        });
        self.append(&bytes)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.target {
            Target::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(bytes)?;
                Ok(out.flush()?)
            }
            Target::Stream { file, path } => file.write_all(bytes).with_context(|| named(path)),
            Target::File { rows, .. } => rows.append(bytes),
        }
    }

    /// All pictures have their rows.
    ///
    /// # Errors
    /// What was written does not reach the disk.
    pub fn finish(mut self) -> Result<()> {
        // There was no row to write it with.
        if let Some(header) = self.header.take() {
            self.append(&header)?;
        }
        let Target::File { rows, becomes } = self.target else {
            return Ok(());
        };
        rows.sync()?;
        if let Some(out) = becomes {
            let path = rows.path();
            parquet::write(path, &out).with_context(|| named(&out))?;
            std::fs::remove_file(path).with_context(|| named(path))?;
        }
        Ok(())
    }
}

/// Reads the rows of an earlier run, and tells how many bytes they are.
fn recover(file: BufReader<&File>, format: OutputFormat, mut add: impl FnMut(Row)) -> Result<u64> {
    match format {
        OutputFormat::Csv => csv::recover(file, add),
        OutputFormat::Jsonl | OutputFormat::Parquet => {
            let add = |row| {
                add(row);
                Ok(())
            };
            lines::recover(file, "caption", &[BEGINNING], add)
        }
    }
}

/// The form that was asked for, by word or by the name of the file.
fn format(args: &CaptionArgs) -> Result<OutputFormat> {
    let extension = args.out.as_ref().and_then(|path| path.extension());
    let by_name = match extension.and_then(|extension| extension.to_str()) {
        Some("csv") => OutputFormat::Csv,
        Some("parquet") => OutputFormat::Parquet,
        _ => OutputFormat::Jsonl,
    };
    let format = args.format.unwrap_or(by_name);
    if format == OutputFormat::Parquet && args.out.is_none() {
        bail!("--format parquet needs --out FILE: a Parquet file is written from its end");
    }
    Ok(format)
}

/// A file beside `path` with `end` behind its whole name.
fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

fn named(path: &Path) -> String {
    path.display().to_string()
}
