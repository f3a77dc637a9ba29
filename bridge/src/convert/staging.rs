//! The directory in which a bundle is made before it gets its name.
//!
//! It stands beside the bundle as `.NAME.partial`. A journal in it records each
//! finished part with its size and hash, so that an interrupted conversion goes
//! on where it stopped; the manifest, without which nothing is a bundle, comes
//! last.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::bundle::{FileEntry, sha256_file};
use crate::{Error, Result};

const JOURNAL_FILE: &str = "journal.toml";
const LOCK_FILE: &str = "lock";

#[derive(Debug, Serialize, Deserialize)]
struct Journal {
    /// What the parts are made from; other inputs make other parts.
    inputs: String,
    #[serde(default)]
    parts: BTreeMap<String, FileEntry>,
}

#[derive(Debug)]
pub(super) struct Staging {
    dir: PathBuf,
    journal: Journal,
    /// Held until the conversion ends, however it ends.
    _lock: File,
}

impl Staging {
    /// Opens the directory for the bundle `out`, keeping the parts that were
    /// finished from the same `inputs` (any text that tells them apart).
    ///
    /// # Errors
    /// Another conversion to `out` is running, or the directory cannot be made.
    pub fn open(out: &Path, inputs: String) -> Result<Self> {
        let name = out.file_name().unwrap_or(out.as_os_str());
        let dir = out.with_file_name(format!(".{}.partial", name.to_string_lossy()));
        std::fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
        let lock_path = dir.join(LOCK_FILE);
        let lock = File::create(&lock_path).map_err(Error::io(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Convert {
                    path: out.to_owned(),
                    reason: "another conversion is making this bundle".to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(Error::io(&lock_path)(source)),
        }
        let journal = std::fs::read_to_string(dir.join(JOURNAL_FILE))
            .ok()
            .and_then(|text| toml::from_str::<Journal>(&text).ok())
            .filter(|journal| journal.inputs == inputs)
            .unwrap_or(Journal {
                inputs,
                parts: BTreeMap::new(),
            });
        let staging = Self {
            dir,
            journal,
            _lock: lock,
        };
        staging.remove_leftovers()?;
        Ok(staging)
    }

    /// Removes what an earlier conversion began and did not finish.
    fn remove_leftovers(&self) -> Result<()> {
        let entries = std::fs::read_dir(&self.dir).map_err(Error::io(&self.dir))?;
        for entry in entries {
            let entry = entry.map_err(Error::io(&self.dir))?;
            let name = entry.file_name();
            let keep = name == JOURNAL_FILE
                || name == LOCK_FILE
                || name
                    .to_str()
                    .is_some_and(|name| self.journal.parts.contains_key(name));
            if !keep {
                let path = entry.path();
                std::fs::remove_file(&path).map_err(Error::io(&path))?;
            }
        }
        Ok(())
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The part `name`: made by `write`, unless it was finished before.
    /// `progress` is told the bytes that are hashed, and those of a part that
    /// need not be written again.
    pub fn part(
        &mut self,
        name: &str,
        progress: &dyn Fn(u64),
        write: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<FileEntry> {
        let path = self.dir.join(name);
        if let Some(entry) = self.journal.parts.get(name)
            && std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() == entry.bytes)
            && sha256_file(&path, progress)? == entry.sha256
        {
            progress(entry.bytes);
            return Ok(entry.clone());
        }
        write(&path)?;
        let file = File::open(&path).map_err(Error::io(&path))?;
        file.sync_all().map_err(Error::io(&path))?;
        let entry = FileEntry {
            path: name.to_owned(),
            bytes: file.metadata().map_err(Error::io(&path))?.len(),
            sha256: sha256_file(&path, progress)?,
        };
        self.journal.parts.insert(name.to_owned(), entry.clone());
        self.record()?;
        Ok(entry)
    }

    /// Writes the journal whole or not at all.
    fn record(&self) -> Result<()> {
        let path = self.dir.join(JOURNAL_FILE);
        let text = toml::to_string(&self.journal).map_err(|error| Error::Convert {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        let new = self.dir.join("journal.new");
        std::fs::write(&new, text).map_err(Error::io(&new))?;
        std::fs::rename(&new, &path).map_err(Error::io(&path))
    }

    /// Gives the whole bundle its name.
    pub fn publish(self, out: &Path) -> Result<()> {
        for name in [JOURNAL_FILE, LOCK_FILE] {
            let path = self.dir.join(name);
            std::fs::remove_file(&path).map_err(Error::io(&path))?;
        }
        std::fs::rename(&self.dir, out).map_err(Error::io(out))
    }
}
