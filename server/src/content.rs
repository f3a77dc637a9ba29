//! Messages: roles, and content as text or as parts.

use prompts::{Message, Part, Role, ToolCall};
use serde_json::Value;

use crate::fields::{Fields, as_list, as_string, expected};
use crate::images::Images;
use crate::tables::{CALL, CALL_FUNCTION, IMAGE_URL, MESSAGE, PART};
use crate::tools::{Syntax, known, only_functions};
use crate::{Error, Result, ServeOptions};

/// Reads `messages` for a model that writes calls in such a syntax, if any.
pub(crate) fn messages(
    value: Value,
    syntax: &Syntax,
    options: &ServeOptions,
) -> Result<(Vec<Message>, Images)> {
    let list = as_list(value, "messages")?;
    if list.is_empty() {
        return Err(Error::invalid("messages", "must have at least one message"));
    }
    let mut images = Images::new("messages", options.max_images);
    let mut messages = Vec::with_capacity(list.len());
    for (index, value) in list.into_iter().enumerate() {
        let path = format!("messages[{index}]");
        let message = message(value, &path, &messages, syntax, &mut images, options)?;
        messages.push(message);
    }
    Ok((messages, images))
}

fn message(
    value: Value,
    path: &str,
    before: &[Message],
    syntax: &Syntax,
    images: &mut Images,
    options: &ServeOptions,
) -> Result<Message> {
    let mut fields = Fields::of(value, path, &MESSAGE)?;
    let role = role(&mut fields, syntax)?;
    let calls = calls(&mut fields, role, syntax)?;
    let has_content = fields.contains("content") || !calls.is_empty();
    let content_path = fields.path("content");
    let mut parts = match fields.take("content") {
        Some(Value::String(text)) => vec![Part::Text(text)],
        Some(Value::Array(list)) if list.is_empty() => {
            return Err(Error::invalid(content_path, "must have at least one part"));
        }
        Some(Value::Array(list)) => list
            .into_iter()
            .enumerate()
            .map(|(index, value)| {
                part(
                    value,
                    &format!("{content_path}[{index}]"),
                    role,
                    images,
                    options,
                )
            })
            .collect::<Result<_>>()?,
        // OpenAI's own answers come back so, where they said nothing.
        None if role == Role::Assistant && has_content => vec![Part::Text(String::new())],
        None => {
            return Err(Error::Missing {
                param: content_path,
            });
        }
        Some(other) => {
            return Err(Error::invalid(
                content_path,
                expected("a string or a list of parts", &other),
            ));
        }
    };
    parts.extend(calls.into_iter().map(Part::Call));
    parts.extend(result_of(&mut fields, role, before)?.map(Part::ResultOf));
    for (other, reason) in [
        ("function_call", "send tool_calls"),
        ("name", "the prompt names speakers by their role"),
        ("refusal", "send the refusal as content"),
        ("audio", "send text and pictures"),
    ] {
        if fields.take(other).is_some() {
            return Err(Error::unsupported(fields.path(other), reason));
        }
    }
    fields.finish()?;
    Ok(Message { role, parts })
}

/// The functions that an assistant's message calls.
fn calls(fields: &mut Fields, role: Role, syntax: &Syntax) -> Result<Vec<ToolCall>> {
    let path = fields.path("tool_calls");
    let list = match fields.take("tool_calls") {
        None => return Ok(Vec::new()),
        Some(list) => as_list(list, &path)?,
    };
    if list.is_empty() {
        return Ok(Vec::new());
    }
    known(syntax, &path)?;
    if role != Role::Assistant {
        return Err(Error::invalid(path, "only the assistant calls functions"));
    }
    let calls = list.into_iter().enumerate();
    calls
        .map(|(index, value)| call(value, &format!("{path}[{index}]")))
        .collect()
}

fn call(value: Value, path: &str) -> Result<ToolCall> {
    let mut fields = Fields::of(value, path, &CALL)?;
    let id_path = fields.path("id");
    let id = as_string(fields.required("id")?, &id_path)?;
    only_functions(&mut fields)?;
    let path = fields.path("function");
    let mut function = Fields::of(fields.required("function")?, &path, &CALL_FUNCTION)?;
    fields.finish()?;
    let name_path = function.path("name");
    let name = as_string(function.required("name")?, &name_path)?;
    for (path, text) in [(&id_path, &id), (&name_path, &name)] {
        if text.is_empty() {
            return Err(Error::invalid(path, "must not be empty"));
        }
    }
    let path = function.path("arguments");
    let arguments = as_string(function.required("arguments")?, &path)?;
    function.finish()?;
    let arguments = match arguments.trim() {
        "" => "{}",
        arguments => arguments,
    };
    match serde_json::from_str(arguments) {
        Ok(Value::Object(arguments)) => Ok(ToolCall {
            id,
            name,
            arguments,
        }),
        _ => Err(Error::invalid(path, "must be a JSON object, as a string")),
    }
}

/// The id of the call that a tool's message answers.
fn result_of(fields: &mut Fields, role: Role, before: &[Message]) -> Result<Option<String>> {
    let path = fields.path("tool_call_id");
    match (role, fields.string("tool_call_id")?) {
        (Role::Tool, None) => Err(Error::Missing { param: path }),
        (Role::Tool, Some(id)) => {
            let is_it = |part: &Part| matches!(part, Part::Call(call) if call.id == id);
            match before.iter().flat_map(|message| &message.parts).any(is_it) {
                true => Ok(Some(id)),
                false => Err(Error::invalid(path, "is not the id of an earlier call")),
            }
        }
        (_, None) => Ok(None),
        (_, Some(_)) => Err(Error::invalid(path, "is for tool messages alone")),
    }
}

fn role(fields: &mut Fields, syntax: &Syntax) -> Result<Role> {
    let path = fields.path("role");
    let name = as_string(fields.required("role")?, &path)?;
    match name.as_str() {
        // Chat templates know no developer; it is OpenAI's later name for the same.
        "system" | "developer" => Ok(Role::System),
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        "tool" => known(syntax, path).map(|_| Role::Tool),
        "function" => Err(Error::unsupported(path, "send tool messages")),
        _ => Err(Error::invalid(
            path,
            "must be system, developer, user, assistant or tool",
        )),
    }
}

fn part(
    value: Value,
    path: &str,
    role: Role,
    images: &mut Images,
    options: &ServeOptions,
) -> Result<Part> {
    let mut fields = Fields::of(value, path, &PART)?;
    let kind_path = fields.path("type");
    let kind = as_string(fields.required("type")?, &kind_path)?;
    let part = match kind.as_str() {
        "text" => {
            let text_path = fields.path("text");
            Part::Text(as_string(fields.required("text")?, &text_path)?)
        }
        "image_url" if role != Role::User => {
            return Err(Error::invalid(path, "only user messages may hold pictures"));
        }
        "image_url" => {
            let url_path = fields.path("image_url");
            image(fields.required("image_url")?, &url_path, images, options)?
        }
        "input_audio" | "file" | "refusal" | "video_url" => {
            return Err(Error::unsupported(
                kind_path,
                "send text and image_url parts",
            ));
        }
        _ => return Err(Error::invalid(kind_path, "must be text or image_url")),
    };
    fields.finish()?;
    Ok(part)
}

/// `{"url": ..., "detail": ...}`, or the bare URL that Ollama's documents show. Every picture is seen at the one size the
/// ViT has, so `detail` asks for nothing that could be done otherwise.
fn image(value: Value, path: &str, images: &mut Images, options: &ServeOptions) -> Result<Part> {
    let (url, url_path) = match value {
        Value::String(url) => (url, path.to_owned()),
        value => {
            let mut fields = Fields::of(value, path, &IMAGE_URL)?;
            let url_path = fields.path("url");
            let url = as_string(fields.required("url")?, &url_path)?;
            fields.choice("detail")?;
            fields.finish()?;
            (url, url_path)
        }
    };
    Ok(Part::Image(images.add(&url, url_path, options)?))
}
