//! Messages: roles, and content as text or as parts.

use prompts::{Message, Part, Role};
use serde_json::Value;

use crate::fields::{Fields, as_list, as_string, expected};
use crate::images::Images;
use crate::tables::{IMAGE_URL, MESSAGE, PART};
use crate::{Error, Result, ServeOptions};

/// Reads `messages`.
pub(crate) fn messages(value: Value, options: &ServeOptions) -> Result<(Vec<Message>, Images)> {
    let list = as_list(value, "messages")?;
    if list.is_empty() {
        return Err(Error::invalid("messages", "must have at least one message"));
    }
    let mut images = Images::default();
    let messages = list
        .into_iter()
        .enumerate()
        .map(|(index, value)| message(value, &format!("messages[{index}]"), &mut images, options))
        .collect::<Result<_>>()?;
    Ok((messages, images))
}

fn message(
    value: Value,
    path: &str,
    images: &mut Images,
    options: &ServeOptions,
) -> Result<Message> {
    let mut fields = Fields::of(value, path, &MESSAGE)?;
    let role = role(&mut fields)?;
    let has_content = fields.contains("content");
    let content_path = fields.path("content");
    let parts = match fields.take("content") {
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
    match fields.take("tool_calls") {
        None => {}
        Some(Value::Array(list)) if list.is_empty() => {}
        Some(_) => {
            return Err(Error::unsupported(
                fields.path("tool_calls"),
                "there are no tools",
            ));
        }
    }
    for (other, reason) in [
        ("function_call", "there are no tools"),
        ("tool_call_id", "there are no tools"),
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

fn role(fields: &mut Fields) -> Result<Role> {
    let path = fields.path("role");
    let name = as_string(fields.required("role")?, &path)?;
    match name.as_str() {
        // Chat templates know no developer; it is OpenAI's later name for the same.
        "system" | "developer" => Ok(Role::System),
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        "tool" | "function" => Err(Error::unsupported(path, "there are no tools")),
        _ => Err(Error::invalid(
            path,
            "must be system, developer, user or assistant",
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
