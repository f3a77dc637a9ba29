//! The language model's own chat template (`tokenizer.chat_template` of a GGUF), run as transformers runs it.
//!
//! Reference: `transformers.utils.chat_template_utils`: jinja with `trim_blocks`, `lstrip_blocks`, loop controls,
//! `raise_exception`, `strftime_now`, a `tojson` that escapes nothing, and `{% generation %}`.

mod environment;

use crate::layout::with_caption_prompt;
use crate::marks::Marks;
use crate::message::{check, ordered_parts};
use crate::{Error, ImagePosition, Message, Part, Result, Role, Segment};
use minijinja::Value;
use serde::{Deserialize, Serialize};

/// A chat template and the tokens that it prints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatTemplate {
    /// The jinja source.
    pub source: String,
    /// Text of the BOS token, empty where there is none.
    pub bos_token: String,
    /// Text of the EOS token, empty where there is none.
    pub eos_token: String,
}

/// A layout that asks the language model's chat template.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChatTemplateLayout {
    /// What a picture without words is asked; empty leaves the turn to the picture alone.
    pub caption_prompt: String,
    /// Texts that end an answer.
    pub stop: Vec<String>,
    /// Token ids that end an answer, besides the vocabulary's own.
    pub stop_ids: Vec<i32>,
    /// Most images in a conversation.
    pub max_images: Option<usize>,
    /// Where pictures stand; `before_bos` has no meaning here and is read as `start_of_turn`.
    pub image_position: ImagePosition,
    /// A template to use in place of the language model's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
}

/// How a message's content is handed to the template.
#[derive(Clone, Copy)]
enum Content {
    /// As a string.
    Text,
    /// As a list of parts (`[{"type": "text", "text": ...}]`), which some templates need.
    Parts,
}

/// What the marks stand for.
#[derive(Default)]
struct Marked {
    /// Message of each marked text.
    texts: Vec<usize>,
    /// Message and image of each marked place.
    images: Vec<(usize, usize)>,
}

/// Where an answer's reasoning begins and ends. Templates look for these in the assistant's earlier answers to leave the
/// reasoning out, so they stay outside the marks there.
const REASONING: [&str; 2] = ["<think>", "</think>"];

impl ChatTemplateLayout {
    pub(crate) fn render(
        &self,
        messages: &[Message],
        template: Option<&ChatTemplate>,
    ) -> Result<Vec<Segment>> {
        check(messages, self.max_images)?;
        let source = self
            .template
            .as_ref()
            .or(template.map(|template| &template.source))
            .ok_or(Error::NoTemplate)?;
        let template = ChatTemplate {
            source: source.clone(),
            bos_token: template.map_or(String::new(), |template| template.bos_token.clone()),
            eos_token: template.map_or(String::new(), |template| template.eos_token.clone()),
        };
        let messages = with_caption_prompt(messages, &self.caption_prompt);
        let attempt = |content| self.attempt(&messages, content, &template);
        // Templates that read content as a list drop a string, or fail on it; the first error is the one to report.
        attempt(Content::Text).or_else(|error| match error {
            Error::Dropped { .. } | Error::Template { .. } | Error::Torn => {
                attempt(Content::Parts).map_err(|_| error)
            }
            other => Err(other),
        })
    }

    fn attempt(
        &self,
        messages: &[Message],
        content: Content,
        template: &ChatTemplate,
    ) -> Result<Vec<Segment>> {
        let mut texts: Vec<&str> = messages.iter().flat_map(Message::texts).collect();
        texts.extend([
            template.source.as_str(),
            &template.bos_token,
            &template.eos_token,
        ]);
        let marks = Marks::avoiding(&texts);
        let mut marked = Marked::default();
        let mut size = 0;
        let values: Vec<Value> = messages
            .iter()
            .enumerate()
            .map(|(index, message)| {
                let text = self.marked_content(index, message, &marks, &mut marked);
                size += text.len();
                let content = match content {
                    Content::Text => Value::from(text),
                    Content::Parts => Value::from(vec![Value::from_iter([
                        ("type", Value::from("text")),
                        ("text", Value::from(text)),
                    ])]),
                };
                Value::from_iter([
                    ("role", Value::from(message.role.as_str())),
                    ("content", content),
                ])
            })
            .collect();
        let output = environment::run(template, values, size, &marks)?;
        let mut unmarked = marks
            .unmark(&output, marked.texts.len(), marked.images.len())
            .map_err(|_| Error::Torn)?;
        for (&count, &message) in unmarked.texts.iter().zip(&marked.texts) {
            // Templates leave out an earlier answer's reasoning on purpose.
            let role = messages[message].role;
            if count == 0 && role != Role::Assistant {
                return Err(Error::Dropped { message, role });
            }
        }
        for (&count, &(message, _)) in unmarked.images.iter().zip(&marked.images) {
            match count {
                0 => {
                    let role = messages[message].role;
                    return Err(Error::Dropped { message, role });
                }
                1 => {}
                _ => return Err(Error::Torn),
            }
        }
        for segment in &mut unmarked.segments {
            if let Segment::Image(image) = segment {
                (_, *image) = *marked.images.get(*image).ok_or(Error::Torn)?;
            }
        }
        Ok(unmarked.segments)
    }

    fn marked_content(
        &self,
        index: usize,
        message: &Message,
        marks: &Marks,
        marked: &mut Marked,
    ) -> String {
        let Marked { texts, images } = marked;
        let mut mark_text = |text: &str, content: &mut String| {
            if text.trim().is_empty() {
                return content.push_str(text);
            }
            content.push_str(&marks.text(texts.len(), text));
            texts.push(index);
        };
        let mut content = String::new();
        for part in ordered_parts(message, self.image_position) {
            match part {
                Part::Image(image) => {
                    content.push_str(&marks.image(images.len()));
                    images.push((index, image));
                }
                Part::Text(text) if message.role == Role::Assistant => {
                    for piece in split_reasoning(&text) {
                        match REASONING.contains(&piece) {
                            true => content.push_str(piece),
                            false => mark_text(piece, &mut content),
                        }
                    }
                }
                Part::Text(text) => mark_text(&text, &mut content),
            }
        }
        content
    }
}

/// `text` cut before and after each mark of [`REASONING`].
fn split_reasoning(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((at, mark)) = REASONING
        .iter()
        .filter_map(|mark| Some((rest.find(mark)?, *mark)))
        .min()
    {
        pieces.push(&rest[..at]);
        pieces.push(&rest[at..at + mark.len()]);
        rest = &rest[at + mark.len()..];
    }
    pieces.push(rest);
    pieces
}
