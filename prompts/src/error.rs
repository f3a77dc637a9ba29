//! What can be wrong with a conversation or with a template.

use crate::Role;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a conversation could not be laid out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The conversation has no messages.
    #[error("the conversation has no messages")]
    NoMessages,
    /// A message without any part.
    #[error("message {message} is empty")]
    EmptyMessage {
        /// Index of the message.
        message: usize,
    },
    /// The last message is the assistant's, so there is no turn to answer.
    #[error("the last message is the assistant's; continuing it is not supported")]
    NothingToAnswer,
    /// The question is there, but blank. A picture without any text is captioned.
    #[error("the question is empty: ask something, or send the picture alone to have it captioned")]
    EmptyQuestion,
    /// A message refers to an image that the request does not have.
    #[error("message {message} refers to image {image}, but the request has {images}")]
    NoSuchImage {
        /// Index of the message.
        message: usize,
        /// Index of the image.
        image: usize,
        /// Number of images of the request.
        images: usize,
    },
    /// An image of the request stands in no message.
    #[error("image {image} stands in no message")]
    UnusedImage {
        /// Index of the image.
        image: usize,
    },
    /// An image in a system or assistant message.
    #[error("message {message} holds an image, which only user messages may ({role} message)")]
    ImageOutsideUserMessage {
        /// Index of the message.
        message: usize,
        /// Role of that message.
        role: Role,
    },
    /// A call outside the assistant's messages, or a result that belongs to none.
    #[error(
        "message {message}: calls stand in the assistant's messages, and each tool message names the call that it answers ({role} message)"
    )]
    MisplacedCall {
        /// Index of the message.
        message: usize,
        /// Role of that message.
        role: Role,
    },
    /// The layout has no place for functions and their calls.
    #[error("this model's prompt has no place for tools")]
    NoTools,
    /// The template writes calls in a way that is not known, so they could not be read in answers.
    #[error("this model's chat template writes tool calls in a form that is not known here")]
    UnknownCallSyntax,
    /// More images than the layout takes.
    #[error("this model takes at most {max} image(s) in a conversation, and got {images}")]
    TooManyImages {
        /// Images in the conversation.
        images: usize,
        /// Images that the layout takes.
        max: usize,
    },
    /// The layout puts the image before everything else, so a later turn cannot hold it.
    #[error(
        "this model reads the image before the conversation: it must stand in the first user message"
    )]
    ImageNotInFirstTurn,
    /// The layout has no place for a system message.
    #[error("this model's prompt has no place for a system message")]
    NoSystemTurn,
    /// A system message after the first place.
    #[error("a system message must come first (message {message})")]
    SystemNotFirst {
        /// Index of the message.
        message: usize,
    },
    /// No such preset.
    #[error("there is no prompt layout named {name:?}; there are {}", crate::PRESETS.join(", "))]
    UnknownPreset {
        /// The name asked for.
        name: String,
    },
    /// The layout needs a chat template, and the language model has none.
    #[error("the language model has no chat template (tokenizer.chat_template)")]
    NoTemplate,
    /// The chat template cannot be parsed or fails while it runs.
    #[error("the chat template fails{}: {reason}", line.map_or(String::new(), |line| format!(" in line {line}")))]
    Template {
        /// Line of the template, from 1.
        line: Option<usize>,
        /// What is wrong there.
        reason: String,
    },
    /// The template calls `raise_exception`: it does not accept this conversation.
    #[error("the model's chat template refuses this conversation: {reason}")]
    Refused {
        /// The template's words.
        reason: String,
    },
    /// The template leaves out what a user or system message says.
    #[error("the model's chat template has no place for message {message} ({role} message)")]
    Dropped {
        /// Index of the message.
        message: usize,
        /// Role of that message.
        role: Role,
    },
    /// The template cuts messages or pictures apart or repeats a picture.
    #[error("the chat template tears a message's text or image apart")]
    Torn,
    /// The template runs for too long.
    #[error("the chat template did not end within {steps} steps")]
    TooManySteps {
        /// The limit.
        steps: u64,
    },
    /// The template's output is too long.
    #[error("the chat template wrote more than {bytes} bytes")]
    TooLong {
        /// The limit.
        bytes: usize,
    },
}

impl Error {
    /// Whether the conversation is at fault (and another one could be laid out), not the model's layout.
    pub fn is_request(&self) -> bool {
        match self {
            Error::UnknownPreset { .. }
            | Error::NoTemplate
            | Error::Template { .. }
            | Error::Torn
            | Error::TooManySteps { .. }
            | Error::TooLong { .. } => false,
            Error::NoMessages
            | Error::EmptyMessage { .. }
            | Error::NothingToAnswer
            | Error::EmptyQuestion
            | Error::NoSuchImage { .. }
            | Error::UnusedImage { .. }
            | Error::ImageOutsideUserMessage { .. }
            | Error::TooManyImages { .. }
            | Error::ImageNotInFirstTurn
            | Error::MisplacedCall { .. }
            | Error::NoTools
            | Error::UnknownCallSyntax
            | Error::NoSystemTurn
            | Error::SystemNotFirst { .. }
            | Error::Refused { .. }
            | Error::Dropped { .. } => true,
        }
    }
}
