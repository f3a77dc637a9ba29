//! The language model's own chat template (`tokenizer.chat_template` of a GGUF), run as transformers runs it.
//!
//! Reference: `transformers.utils.chat_template_utils`: jinja with `trim_blocks`, `lstrip_blocks`, loop controls,
//! `raise_exception`, `strftime_now`, a `tojson` that escapes nothing, and `{% generation %}`.

mod environment;

use crate::layout::with_caption_prompt;
use crate::marks::Marks;
use crate::message::{check, ordered_parts};
use crate::tools::{probe, recognize};
use crate::{
    CallSyntax, Error, ImagePosition, Message, Part, Result, Role, Segment, Tool, ToolCall,
};
use minijinja::Value;
use serde::{Deserialize, Serialize};
use serde_json::json;

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
    /// Message of each marked text, where it must not be left out.
    texts: Vec<Option<usize>>,
    /// Message and image of each marked place.
    images: Vec<(usize, usize)>,
}

/// Where an answer's reasoning begins and ends. Templates look for these in the assistant's earlier answers to leave the
/// reasoning out, so they stay outside the marks there.
const REASONING: [&str; 2] = ["<think>", "</think>"];

impl ChatTemplateLayout {
    pub(crate) fn call_syntax(&self, template: Option<&ChatTemplate>) -> Result<CallSyntax> {
        let arguments = [("a".to_owned(), json!("b"))].into_iter().collect();
        let call = ToolCall {
            id: probe::ID.to_owned(),
            name: probe::CALL.to_owned(),
            arguments,
        };
        let messages = [
            Message::text(Role::User, probe::QUESTION),
            Message {
                role: Role::Assistant,
                parts: vec![Part::Call(call)],
            },
            Message {
                role: Role::Tool,
                parts: vec![
                    Part::ResultOf(probe::ID.to_owned()),
                    Part::Text(probe::RESULT.to_owned()),
                ],
            },
        ];
        let tool = Tool {
            name: probe::TOOL.to_owned(),
            description: None,
            parameters: Some(json!({"type": "object", "properties": {}})),
        };
        let segments = self.render(&messages, &[tool], template);
        let segments = segments.map_err(|_| Error::NoTools)?;
        let texts = segments.iter().map(|segment| match segment {
            Segment::Text { text, .. } => text.as_str(),
            Segment::Token(_) | Segment::Image(_) => "",
        });
        recognize(&texts.collect::<String>())
    }

    pub(crate) fn render(
        &self,
        messages: &[Message],
        tools: &[Tool],
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
        let attempt = |content| self.attempt(&messages, tools, content, &template);
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
        tools: &[Tool],
        content: Content,
        template: &ChatTemplate,
    ) -> Result<Vec<Segment>> {
        let tools: Vec<_> = tools.iter().map(Tool::to_json).collect();
        let calls = messages.iter().flat_map(Message::calls);
        let written = tools.iter().map(ToString::to_string);
        let written = written.chain(calls.map(|call| format!("{:?}", call.arguments)));
        let written: Vec<String> = written.collect();
        let mut texts: Vec<&str> = messages.iter().flat_map(Message::texts).collect();
        texts.extend(written.iter().map(String::as_str));
        texts.extend([
            template.source.as_str(),
            &template.bos_token,
            &template.eos_token,
        ]);
        let marks = Marks::avoiding(&texts);
        let mut marked = Marked::default();
        let mut size = written.iter().map(String::len).sum();
        let tools: Vec<Value> = tools
            .iter()
            .map(|tool| Value::from_serialize(marked_json(tool, &marks, &mut marked)))
            .collect();
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
                let mut fields = vec![
                    ("role", Value::from(message.role.as_str())),
                    ("content", content),
                ];
                let calls = message.calls();
                let calls: Vec<Value> = calls
                    .map(|call| call_value(call, &marks, &mut marked))
                    .collect();
                // Templates ask whether the field is there.
                if !calls.is_empty() {
                    fields.push(("tool_calls", Value::from(calls)));
                }
                if let Some(id) = message.result_of() {
                    let mut calls = messages.iter().flat_map(Message::calls);
                    if let Some(call) = calls.find(|call| call.id == id) {
                        fields.push(("name", Value::from(call.name.as_str())));
                    }
                    fields.push(("tool_call_id", Value::from(id)));
                }
                Value::from_iter(fields)
            })
            .collect();
        let output = environment::run(template, values, tools, size, &marks)?;
        let mut unmarked = marks
            .unmark(&output, marked.texts.len(), marked.images.len())
            .map_err(|_| Error::Torn)?;
        for (&count, &message) in unmarked.texts.iter().zip(&marked.texts) {
            if let (0, Some(message)) = (count, message) {
                let role = messages[message].role;
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
            // Templates leave out an earlier answer's reasoning on purpose.
            texts.push((message.role != Role::Assistant).then_some(index));
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
                Part::Call(_) | Part::ResultOf(_) => {}
            }
        }
        content
    }
}

/// A call as templates expect it; transformers' documents have its arguments as an object.
fn call_value(call: &ToolCall, marks: &Marks, marked: &mut Marked) -> Value {
    let arguments = marked_json(&call.arguments.clone().into(), marks, marked);
    Value::from_serialize(json!({
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }))
}

/// `json` with marks around the strings that could spell a special token. Words are left as they are: templates compare
/// them (`type == "string"`).
fn marked_json(json: &serde_json::Value, marks: &Marks, marked: &mut Marked) -> serde_json::Value {
    let mut mark = |text: &str| {
        let is_plain = |letter: char| letter.is_alphanumeric() || " _-.,:;!?'/()".contains(letter);
        if text.chars().all(is_plain) {
            return text.to_owned();
        }
        marked.texts.push(None);
        marks.text(marked.texts.len() - 1, text)
    };
    match json {
        serde_json::Value::String(text) => mark(text).into(),
        serde_json::Value::Array(list) => {
            let list = list.iter().map(|item| marked_json(item, marks, marked));
            list.collect()
        }
        serde_json::Value::Object(map) => {
            let keys: Vec<String> = map.keys().map(|key| mark(key)).collect();
            let values = map.values().map(|value| marked_json(value, marks, marked));
            let map: serde_json::Map<_, _> = keys.into_iter().zip(values).collect();
            map.into()
        }
        other => other.clone(),
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
