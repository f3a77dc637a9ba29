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
    /// The directory holds no manifest.
    #[error("{}: no bundle.toml here, so this is not a bundle; make one with `qbridge bundle`", dir.display())]
    NotABundle {
        /// The directory.
        dir: PathBuf,
    },
    /// A task needs a language model, and the bundle has none.
    #[error("{}: no language model is here to answer with: this model compares pictures and texts or captions pictures by itself (`qbridge match`, `qbridge embed`, `qbridge caption`)", dir.display())]
    NoLanguageModel {
        /// The bundle.
        dir: PathBuf,
    },
    /// A task needs what compares pictures and texts, and the bundle has none.
    #[error("{}: no heads that match pictures and texts are here: make a bundle of Salesforce/blip2-itm-vit-g, of LAVIS's blip2_pretrained.pth, of a CLIP or of a BLIP", dir.display())]
    NoHeads {
        /// The bundle.
        dir: PathBuf,
    },
    /// The manifest says something that cannot be honoured.
    #[error("{}: {reason}", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Two parts of a model do not fit together.
    #[error("{what} does not fit: {left}, but {right}")]
    Mismatch {
        /// The quantity.
        what: String,
        /// One part with its number.
        left: String,
        /// The other part with its number.
        right: String,
    },
    /// An input of a conversion cannot be used.
    #[error("{}: {reason}", path.display())]
    Convert {
        /// The input.
        path: PathBuf,
        /// What is wrong with it, and what to use.
        reason: String,
    },
    /// The output is there already.
    #[error("{}: exists already; choose another directory or remove it first", path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// Preprocessing, ViT or Q-Former.
    #[error(transparent)]
    Vision(#[from] qformer::Error),
    /// A tensor operation of the projection.
    #[error("projection: {0}")]
    Tensor(#[from] candle_core::Error),
    /// The messages have no form in the model's prompt layout.
    #[error(transparent)]
    Prompt(#[from] prompts::Error),
    /// The GGUF file cannot be used.
    #[error("{}: {reason}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// llama.cpp cannot load the language model.
    #[error("{}: the language model cannot be loaded: {reason}", path.display())]
    LanguageModel {
        /// The file.
        path: PathBuf,
        /// llama.cpp's own words.
        reason: String,
    },
    /// The llama.cpp context cannot be made.
    #[error("the language model's context cannot be made: {reason}")]
    Context {
        /// Which size is impossible, or llama.cpp's own words.
        reason: String,
    },
    /// A step of the language model failed.
    #[error("the language model failed: {reason}")]
    Decode {
        /// What failed.
        reason: String,
    },
    /// The request asks for something that cannot be.
    #[error("{reason}")]
    InvalidRequest {
        /// The value and what it may be.
        reason: String,
    },
    /// The request asks by a field of its own for what this model cannot do.
    #[error("{field}: {reason}")]
    Unsupported {
        /// The field, as requests of OpenAI's API name it.
        field: &'static str,
        /// What can be asked for.
        reason: String,
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
    /// A request wants more beams than there can be.
    #[error(
        "num_beams is {num_beams}, and the engine computes {limit} sequences at once: ask for fewer beams or start it with more slots"
    )]
    TooManyBeams {
        /// Beams of the request.
        num_beams: usize,
        /// Sequences of the engine.
        limit: usize,
    },
    /// A request wants more answers than there can be.
    #[error(
        "n is {n}, and the engine computes {limit} sequences at once: ask for fewer answers or start it with more slots"
    )]
    TooManyChoices {
        /// Answers of the request.
        n: usize,
        /// Sequences of the engine.
        limit: usize,
    },
    /// A bias for a token that there is not.
    #[error("logit_bias: {reason}")]
    LogitBias {
        /// The token and what is wrong.
        reason: String,
    },
    /// A JSON Schema cannot be followed.
    #[error("the JSON schema cannot be followed: {reason}")]
    Schema {
        /// What is wrong with it.
        reason: String,
    },
    /// The JSON Schema of a function's arguments cannot be followed.
    #[error("the JSON schema of tool {tool} cannot be followed: {reason}")]
    ToolSchema {
        /// Index of the function among those of the request.
        tool: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// No room in the queue; try again later.
    #[error("the queue is full ({limit} requests are waiting): try again later")]
    QueueFull {
        /// The queue's capacity.
        limit: usize,
    },
    /// No slot took the request before its deadline.
    #[error("no slot was free in time: try again later")]
    QueueTimeout,
    /// The prompt has no rows at all.
    #[error("the prompt is empty: send some text or a picture")]
    EmptyPrompt,
    /// The layout begins with BOS, and the vocabulary has none.
    #[error(
        "the prompt layout begins with a BOS token, and the language model's vocabulary has none; choose another layout with `qbridge bundle --layout`"
    )]
    NoBos,
    /// The layout has an EOS token, and the vocabulary has none.
    #[error(
        "the prompt layout holds an EOS token, and the language model's vocabulary has none; choose another layout with `qbridge bundle --layout`"
    )]
    NoEos,
    /// A batch of pictures failed on the device; the log has the cause.
    #[error("the picture could not be encoded")]
    VisionFailed,
    /// A batch of pictures and texts failed on the device; the log has the cause.
    #[error("the pictures and texts could not be read")]
    RetrievalFailed,
    /// A thread could not be started.
    #[error("could not start a thread: {0}")]
    Thread(#[source] std::io::Error),
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
    /// A request waited for too long.
    QueueTimeout,
    /// Not the request's fault.
    Internal,
}

impl Error {
    /// The kind of this failure, for a status or an exit code.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::ContextLengthExceeded { .. } => ErrorKind::ContextLengthExceeded,
            Error::QueueFull { .. } => ErrorKind::QueueFull,
            Error::QueueTimeout => ErrorKind::QueueTimeout,
            Error::InvalidRequest { .. }
            | Error::Unsupported { .. }
            | Error::TooManyBeams { .. }
            | Error::TooManyChoices { .. }
            | Error::LogitBias { .. }
            | Error::Schema { .. }
            | Error::ToolSchema { .. }
            | Error::EmptyPrompt => ErrorKind::InvalidRequest,
            Error::Prompt(error) if error.is_request() => ErrorKind::InvalidRequest,
            Error::Vision(qformer::Error::Image(error)) if error.is_too_large() => {
                ErrorKind::ImageTooLarge
            }
            Error::Vision(qformer::Error::Image(_)) => ErrorKind::InvalidImage,
            // Captions and texts that the model has no room for.
            Error::Vision(qformer::Error::Text { .. }) => ErrorKind::InvalidRequest,
            Error::Io { .. }
            | Error::NotABundle { .. }
            | Error::NoLanguageModel { .. }
            | Error::NoHeads { .. }
            | Error::Manifest { .. }
            | Error::Mismatch { .. }
            | Error::Exists { .. }
            | Error::Vision(_)
            | Error::Tensor(_)
            | Error::Gguf { .. }
            | Error::Convert { .. }
            | Error::LanguageModel { .. }
            | Error::Context { .. }
            | Error::Decode { .. }
            | Error::NoBos
            | Error::NoEos
            | Error::Prompt(_)
            | Error::VisionFailed
            | Error::RetrievalFailed
            | Error::Thread(_)
            | Error::Stopped => ErrorKind::Internal,
        }
    }

    /// Ties a system error to the file it concerns.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { path, source }
    }
}
