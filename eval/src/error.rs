//! What can be wrong with a benchmark's files.

use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is wrong, with the file and the place in it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what its task's files are.
    #[error("{}: {place}{reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Record and field with a colon and a space, or line, or nothing.
        place: String,
        /// What is wrong there.
        reason: String,
    },
    /// The files of a task are not in a directory.
    #[error("{}: {reason}", dir.display())]
    NotThere {
        /// The directory.
        dir: PathBuf,
        /// What was looked for.
        reason: String,
    },
}

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::Io {
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn file(path: &Path, place: impl Into<String>, reason: impl Into<String>) -> Error {
        let mut place = place.into();
        if !place.is_empty() {
            place.push_str(": ");
        }
        Error::File {
            path: path.to_owned(),
            place,
            reason: reason.into(),
        }
    }
}
