//! A file of whole rows. Each is written with one write as soon as it is there, and a later run goes on behind the last.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// What to do with output that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Leave it and stop.
    Refuse,
    /// Go on with it.
    Resume,
    /// Replace it.
    Overwrite,
}

impl Existing {
    /// As the flags `--resume` and `--overwrite` say.
    pub fn of(resume: bool, overwrite: bool) -> Existing {
        match (resume, overwrite) {
            (true, _) => Existing::Resume,
            (_, true) => Existing::Overwrite,
            _ => Existing::Refuse,
        }
    }

    /// # Errors
    /// There is something at `path`, and nothing was said of that.
    pub fn check(self, path: &Path) -> Result<()> {
        if self == Existing::Refuse && has_content(path) {
            bail!(
                "{} exists already: --resume goes on with it, --overwrite begins anew",
                path.display()
            );
        }
        Ok(())
    }
}

/// Whether something was written to `path` before.
pub fn has_content(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.len() > 0)
}

/// A file of whole rows.
pub struct RowFile {
    file: File,
    path: PathBuf,
    /// Bytes of whole rows.
    length: u64,
}

impl RowFile {
    /// The file at `path`, made where it is not there, and held against other runs.
    ///
    /// # Errors
    /// It cannot be opened, or another run writes to it.
    pub fn open(path: PathBuf) -> Result<RowFile> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| path.display().to_string())?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("{}: another run is writing to it", path.display())
            }
            // Some file systems know no locks.
            Err(TryLockError::Error(error)) => tracing::debug!(%error, "no lock"),
        }
        Ok(RowFile {
            file,
            path,
            length: 0,
        })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it holds no row.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Reads the rows that are there with `read`, which tells how many bytes they are, and cuts off what is not whole.
    ///
    /// # Errors
    /// They are no such rows, or cannot be read.
    pub fn recover(&mut self, read: impl FnOnce(BufReader<&File>) -> Result<u64>) -> Result<()> {
        self.length = read(BufReader::new(&self.file)).with_context(|| self.named())?;
        self.truncate().with_context(|| self.named())
    }

    /// Drops all rows.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn clear(&mut self) -> Result<()> {
        self.length = 0;
        self.truncate().with_context(|| self.named())
    }

    fn truncate(&mut self) -> io::Result<()> {
        self.file.set_len(self.length)?;
        self.file.seek(SeekFrom::Start(self.length)).map(|_| ())
    }

    /// Writes rows, whole.
    ///
    /// # Errors
    /// They cannot be written. What was written before stays as it is.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if let Err(error) = self.file.write_all(bytes) {
            // The beginning of a row, where the disk is full; `recover` would cut it off too.
            let _ = self.truncate();
            return Err(error).with_context(|| {
                format!(
                    "{}: all rows before this are whole; --resume goes on with them",
                    self.path.display()
                )
            });
        }
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Waits until all rows are on the disk.
    ///
    /// # Errors
    /// They do not reach it.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().with_context(|| self.named())
    }

    fn named(&self) -> String {
        self.path.display().to_string()
    }
}
