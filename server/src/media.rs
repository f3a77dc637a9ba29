//! Pictures on the server's own disk, below one directory.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reqwest::Url;

use crate::{Error, Result};

/// A directory whose files requests may name as `file://` URLs.
#[derive(Debug, Clone)]
pub struct MediaDir {
    root: PathBuf,
}

impl MediaDir {
    /// Opens a directory.
    ///
    /// # Errors
    /// It is not there, or no directory.
    pub fn open(dir: &Path) -> io::Result<MediaDir> {
        let root = dir.canonicalize()?;
        match root.is_dir() {
            true => Ok(MediaDir { root }),
            false => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    /// The bytes of the file at `url`, at most `limit`. What does not exist and what lies elsewhere look the same, so that
    /// nobody learns which files there are.
    pub(crate) fn read(&self, url: &str, limit: usize, param: &str) -> Result<Arc<[u8]>> {
        let file = self.open_below(url).map_err(|error| {
            tracing::info!(%error, "a file was not read");
            Error::invalid_image(param, "there is no such file below the media path")
        })?;
        let mut bytes = Vec::new();
        let read = file.take(limit as u64 + 1).read_to_end(&mut bytes);
        match read {
            Ok(length) if length > limit => Err(Error::image_too_large(param, limit)),
            Ok(_) => Ok(bytes.into()),
            Err(error) => {
                tracing::error!(%error, "reading a file failed");
                Err(Error::Internal)
            }
        }
    }

    /// Symbolic links are resolved first, so that none leads out. Whoever can change the directory itself is trusted.
    fn open_below(&self, url: &str) -> io::Result<File> {
        let path = Url::parse(url)
            .ok()
            .and_then(|url| url.to_file_path().ok())
            .ok_or(io::ErrorKind::InvalidInput)?
            .canonicalize()?;
        // A pipe would be waited for.
        if !path.starts_with(&self.root) || !path.is_file() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        File::open(path)
    }
}
