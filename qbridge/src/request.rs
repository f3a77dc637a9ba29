//! What a model is asked.

use bridge::constraint::Format;
use bridge::engine::Sampling;
use bridge::model::{self, Prompt};
use prompts::{Message, Part, Role};

use crate::{Generation, Picture};

/// What a model is asked: text and pictures in the order in which they are put in, and how to answer.
///
/// A picture without text is captioned.
#[derive(Debug, Clone, Default)]
pub struct Request {
    messages: Vec<Message>,
    raw: Option<String>,
    pictures: Vec<Picture>,
    generation: Generation,
    stop: Vec<String>,
    format: Option<Format>,
}

impl Request {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A prompt as it is, without the layout of the model's family. Pictures stand where the family puts them; no other
    /// text counts.
    pub fn raw(prompt: impl Into<String>) -> Self {
        Self {
            raw: Some(prompt.into()),
            ..Self::default()
        }
    }

    /// Shows a picture.
    pub fn picture(mut self, picture: Picture) -> Self {
        let index = self.pictures.len();
        self.pictures.push(picture);
        self.say(Role::User, Part::Image(index))
    }

    /// Says or asks something.
    pub fn text(self, text: impl Into<String>) -> Self {
        self.say(Role::User, Part::Text(text.into()))
    }

    /// Instructs the model; goes before all else.
    pub fn system(mut self, text: impl Into<String>) -> Self {
        self.messages.insert(0, Message::text(Role::System, text));
        self
    }

    /// What the model answered to what was said so far. The next text or picture begins the next turn.
    pub fn answered(self, text: impl Into<String>) -> Self {
        self.say(Role::Assistant, Part::Text(text.into()))
    }

    /// How tokens are chosen.
    pub fn generation(mut self, generation: Generation) -> Self {
        self.generation = generation;
        self
    }

    /// A text that ends the answer and is not part of it, beside the layout's own.
    pub fn stop(mut self, text: impl Into<String>) -> Self {
        self.stop.push(text.into());
        self
    }

    /// The form that the answer must have: JSON, or JSON of a schema.
    pub fn format(mut self, format: Format) -> Self {
        self.format = Some(format);
        self
    }

    fn say(mut self, role: Role, part: Part) -> Self {
        match self.messages.last_mut() {
            Some(last) if last.role == role => last.parts.push(part),
            _ => self.messages.push(Message {
                role,
                parts: vec![part],
            }),
        }
        self
    }

    /// As the bridge takes it, where `defaults` are the bundle's.
    pub(crate) fn into_bridge(self, defaults: Sampling) -> model::Request {
        let prompt = match self.raw {
            Some(text) => Prompt::Raw(text),
            None => Prompt::Chat(self.messages),
        };
        model::Request {
            images: (self.pictures.iter())
                .map(|picture| picture.bytes().clone())
                .collect(),
            max_tokens: self.generation.max_tokens,
            stop: self.stop,
            format: self.format,
            ..model::Request::new(prompt, self.generation.sampling(defaults))
        }
    }
}
