//! Checkpoints from a Hugging Face hub: the files of a model at one commit into
//! a directory, resumed where a connection broke, checked against the hub's
//! sizes and hashes.
//!
//! Where some tensors are not wanted, only the ranges of the others are asked
//! for. Names that the hub tells never become paths: files are asked for by
//! names that are known here, and a shard's must be a plain one.
//!
//! What is kept, below the cache directory:
//!
//! ```text
//! OWNER/NAME/lock             held while something is fetched
//! OWNER/NAME/refs/main        the commit that a revision was at
//! OWNER/NAME/COMMIT.json      its files, with sizes and hashes
//! OWNER/NAME/COMMIT/          the files, in the layout that transformers saves
//! OWNER/NAME/COMMIT-vision/   the same with a part of the tensors
//! ```

mod cache;
mod client;
mod error;
mod file;
mod listing;
mod name;
mod tensors;

pub use cache::{Cache, Snapshot, Tensors, Weights};
pub use client::{Client, ClientOptions};
pub use error::{Error, Result};
pub use name::{Endpoint, ModelName, Revision, Token};

/// Told of bytes that arrived, or were found to be here already.
pub type Progress<'a> = &'a dyn Fn(u64);
