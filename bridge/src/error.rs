//! Everything that can go wrong between a bundle on disk and an answer.

use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, with the file, field or numbers that a user can act on.
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
    /// The prompt has more rows than the context has room for.
    #[error(
        "the prompt has {n_prompt_tokens} tokens and the context holds {n_ctx}: shorten the question or raise the context size"
    )]
    ContextLengthExceeded {
        /// Rows of the prompt, soft-prompt rows included.
        n_prompt_tokens: usize,
        /// Rows that one sequence may hold.
        n_ctx: usize,
    },
    /// No room in the queue; try again later.
    #[error("the queue is full ({limit} requests are waiting): try again later")]
    QueueFull {
        /// The queue's capacity.
        limit: usize,
    },
    /// The engine has stopped, by request or after a failure.
    #[error("the engine has stopped")]
    Stopped,
}

/// The kinds of failure that a caller answers differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request is at fault.
    InvalidRequest,
    /// A picture of the request cannot be read.
    InvalidImage,
    /// A picture of the request is over a limit of bytes or pixels.
    ImageTooLarge,
    /// The prompt does not fit the context.
    ContextLengthExceeded,
    /// Too many requests are waiting.
    QueueFull,
    /// Not the request's fault.
    Internal,
}

impl Error {
    /// The kind of this failure, for a status or an exit code.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::ContextLengthExceeded { .. } => ErrorKind::ContextLengthExceeded,
            Error::QueueFull { .. } => ErrorKind::QueueFull,
            Error::Io { .. } | Error::Stopped => ErrorKind::Internal,
        }
    }

    /// Ties a system error to the file it concerns.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { path, source }
    }
}
