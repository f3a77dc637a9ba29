//! Everything that can go wrong between files on disk and query embeddings.

use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, with the file, tensor or numbers that a user can act on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A config file cannot be used.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A config is not JSON of the right shape.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// A value of a config cannot be honoured.
    #[error("{field}: {reason}")]
    ConfigValue {
        /// The field, with its section.
        field: String,
        /// What is wrong with its value.
        reason: String,
    },
    /// A directory holds no checkpoint.
    #[error("{}: neither model.safetensors nor pytorch_model.bin is here, nor model.safetensors.index.json or pytorch_model.bin.index.json of their shards", dir.display())]
    NoCheckpoint {
        /// The directory.
        dir: PathBuf,
    },
    /// A file is no safetensors file, is cut short or is damaged.
    #[error("{}: not a whole safetensors file, as after a download that was cut short ({source}): fetch it again", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: safetensors::SafeTensorError,
    },
    /// A file is what Git LFS leaves in the place of the weights.
    #[error("{}: a pointer of Git LFS, not the weights: run `git lfs pull` where it was cloned", path.display())]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// A file is none that `torch.save` wrote, is cut short or is damaged.
    #[error("{}: {reason}", path.display())]
    Torch {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The files that were given do not make a model.
    #[error("{files}: {reason}")]
    Parts {
        /// The files.
        files: String,
        /// What is missing or wrong, and what to give.
        reason: String,
    },
    /// A `model.safetensors.index.json` cannot be used.
    #[error("{}: {reason}", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Two files of one checkpoint hold a tensor of the same name.
    #[error("tensor {tensor} is in both {} and {}", first.display(), second.display())]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
        /// One file.
        first: PathBuf,
        /// The other file.
        second: PathBuf,
    },
    /// A checkpoint lacks a tensor.
    #[error("{files}: no tensor {tensor}")]
    MissingTensor {
        /// The checkpoint's file, or all of them.
        files: String,
        /// The tensor.
        tensor: String,
    },
    /// A tensor has another shape than the config says.
    #[error("{}: tensor {tensor} has shape {found:?}, expected {expected:?}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape that the config asks for.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor has an element type that is no weight's.
    #[error("{}: tensor {tensor} has dtype {found}, expected F32, F16 or BF16", path.display())]
    DType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The element type in the file.
        found: safetensors::Dtype,
    },
    /// A tensor holds what no weight is.
    #[error("{}: tensor {tensor} holds a value that is not finite: the file is damaged", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A checkpoint's Q-Former reads text, and has no tokenizer for it.
    #[error("{}: neither tokenizer.json nor vocab.txt is here, and the Q-Former reads text through its own tokenizer: save the checkpoint's processor beside it", dir.display())]
    NoTokenizer {
        /// The directory.
        dir: PathBuf,
    },
    /// A tokenizer of the Q-Former cannot be used.
    #[error("{}: {reason}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A text cannot be read beside a picture.
    #[error("text: {reason}")]
    Text {
        /// What is wrong with it.
        reason: String,
    },
    /// A checkpoint lacks the parts for what is asked of it.
    #[error("this is a {found}, and it takes a {needed}")]
    Task {
        /// The reference's class that was loaded.
        found: &'static str,
        /// The one that has what is asked for.
        needed: &'static str,
    },
    /// A picture was not decoded.
    #[error(transparent)]
    Image(#[from] crate::image::ImageError),
    /// Pixels do not have the shape that the ViT reads.
    #[error("pixels have shape {found:?}, expected [batch, 3, {size}, {size}]")]
    Pixels {
        /// The side of the ViT's input.
        size: usize,
        /// The shape that was given.
        found: Vec<usize>,
    },
    /// A tensor operation failed on its device.
    #[error("tensor operation: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// Ties a system error to the file it concerns.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { path, source }
    }
}
