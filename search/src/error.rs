//! What can be wrong with an index.

use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is wrong, with the file that it is wrong with.
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
    /// A file is none that `qbridge index` wrote.
    #[error("{}: this is no index of pictures, or not all of one", path.display())]
    NotAnIndex {
        /// The file.
        path: PathBuf,
    },
    /// A file is an index, and not as it was written.
    #[error("{}: the index is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// A file is of a later version.
    #[error("{}: format {found} of an index, and this version of qbridge reads format {known}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What the file says.
        found: u32,
        /// What is read here.
        known: u32,
    },
    /// Features that are not those of the index.
    #[error(
        "{what}: {found} numbers, and the index holds rows of {dimensions}, {rows} of each picture"
    )]
    Shape {
        /// What they are of.
        what: String,
        /// How many there are.
        found: usize,
        /// Numbers of a row.
        dimensions: usize,
        /// Rows of a picture.
        rows: usize,
    },
    /// The vector library failed.
    #[error("usearch: {0}")]
    Library(String),
}

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::Io {
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn damaged(path: &Path, reason: impl Into<String>) -> Error {
        Error::Damaged {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }

    pub(crate) fn library(error: impl std::fmt::Display) -> Error {
        Error::Library(error.to_string())
    }
}
