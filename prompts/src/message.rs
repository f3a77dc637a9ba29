//! A conversation as the caller gives it, and the rules that hold for every layout.

use crate::{Error, ImagePosition, Result, ToolCall};
use std::fmt;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions to the model.
    System,
    /// The person who asks.
    User,
    /// The model.
    Assistant,
    /// A function that the model called.
    Tool,
}

impl Role {
    /// The name that chat templates know the role by.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A part of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Text, taken as it is.
    Text(String),
    /// The request's image with this index.
    Image(usize),
    /// A call of a function, in the assistant's messages alone.
    Call(ToolCall),
    /// The id of the call that a tool's message answers, in such messages alone.
    ResultOf(String),
}

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said and shown, in order.
    pub parts: Vec<Part>,
}

impl Message {
    /// A message of one text.
    pub fn text(role: Role, text: impl Into<String>) -> Message {
        Message {
            role,
            parts: vec![Part::Text(text.into())],
        }
    }

    pub(crate) fn images(&self) -> impl Iterator<Item = usize> + '_ {
        self.parts.iter().filter_map(|part| match part {
            Part::Image(image) => Some(*image),
            _ => None,
        })
    }

    pub(crate) fn texts(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    pub(crate) fn calls(&self) -> impl Iterator<Item = &ToolCall> {
        self.parts.iter().filter_map(|part| match part {
            Part::Call(call) => Some(call),
            _ => None,
        })
    }

    pub(crate) fn result_of(&self) -> Option<&str> {
        self.parts.iter().find_map(|part| match part {
            Part::ResultOf(id) => Some(id.as_str()),
            _ => None,
        })
    }

    pub(crate) fn says_nothing(&self) -> bool {
        self.texts().all(|text| text.trim().is_empty())
    }
}

/// Checks that every image a message refers to is among the request's `images`, and that each of those is used.
pub fn check_images(messages: &[Message], images: usize) -> Result<()> {
    let mut used = vec![false; images];
    for (message, content) in messages.iter().enumerate() {
        for image in content.images() {
            *used.get_mut(image).ok_or(Error::NoSuchImage {
                message,
                image,
                images,
            })? = true;
        }
    }
    match used.iter().position(|used| !used) {
        Some(image) => Err(Error::UnusedImage { image }),
        None => Ok(()),
    }
}

/// The rules of every layout.
pub(crate) fn check(messages: &[Message], max_images: Option<usize>) -> Result<()> {
    let last = messages.last().ok_or(Error::NoMessages)?;
    for (message, content) in messages.iter().enumerate() {
        if content.parts.is_empty() {
            return Err(Error::EmptyMessage { message });
        }
        if content.role != Role::User && content.images().next().is_some() {
            return Err(Error::ImageOutsideUserMessage {
                message,
                role: content.role,
            });
        }
        let is_result = content.result_of().is_some();
        let calls = content.calls().next().is_some();
        if calls && content.role != Role::Assistant || is_result != (content.role == Role::Tool) {
            return Err(Error::MisplacedCall {
                message,
                role: content.role,
            });
        }
    }
    if last.role == Role::Assistant {
        return Err(Error::NothingToAnswer);
    }
    if last.role == Role::User && last.says_nothing() && last.texts().next().is_some() {
        return Err(Error::EmptyQuestion);
    }
    let images = messages.iter().flat_map(Message::images).count();
    match max_images {
        Some(max) if images > max => Err(Error::TooManyImages { images, max }),
        _ => Ok(()),
    }
}

/// The parts of a message in the layout's order, adjacent texts joined by a newline (as vLLM and llama.cpp join them).
pub(crate) fn ordered_parts(message: &Message, position: ImagePosition) -> Vec<Part> {
    let mut parts = message.parts.clone();
    if position != ImagePosition::InPlace {
        // Stable: images keep their order, and so do texts.
        parts.sort_by_key(|part| matches!(part, Part::Text(_)));
    }
    let mut joined: Vec<Part> = Vec::with_capacity(parts.len());
    for part in parts {
        match (joined.last_mut(), part) {
            (Some(Part::Text(before)), Part::Text(text)) => {
                before.push('\n');
                before.push_str(&text);
            }
            (_, part) => joined.push(part),
        }
    }
    joined
}
