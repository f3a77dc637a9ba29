//! Everything that can go wrong between a hub and a file.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, with what a user can do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No room is left for a file.
    #[error("{}: the disk is full; free some room and run the command again, which goes on where it stopped", path.display())]
    DiskFull {
        /// The file that was being written.
        path: PathBuf,
    },
    /// There is less room than what is to be fetched.
    #[error("{}: {needed} bytes are to be fetched and {free} are free; free some room or choose another cache directory", dir.display())]
    NoRoom {
        /// The cache directory.
        dir: PathBuf,
        /// Bytes to be fetched.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// A name, revision, address or token that cannot be one.
    #[error("{what}")]
    Invalid {
        /// What was expected.
        what: String,
    },
    /// The hub refused, or sent something that cannot be.
    #[error("{what}: {reason}")]
    Hub {
        /// The model or the address.
        what: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The hub answers a request for a part of a file with all of it.
    #[error("{url}: the hub sends no parts of files")]
    NoParts {
        /// The file.
        url: String,
    },
    /// Files are asked for that were not fetched before, and no connection may
    /// be made.
    #[error("{model}@{revision}: offline, and not fetched before: {}", missing.join(", "))]
    Offline {
        /// `owner/name`
        model: String,
        /// Branch, tag or commit.
        revision: String,
        /// Files of the model.
        missing: Vec<String>,
    },
}

impl Error {
    /// Ties a system error to the file it concerns.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
        let path = path.to_owned();
        move |source| match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Error::DiskFull { path },
            _ => Error::Io { path, source },
        }
    }
}
