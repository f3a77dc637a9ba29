//! The jinja environment that chat templates expect, with limits: a GGUF is somebody else's file.

use crate::marks::Marks;
use crate::{ChatTemplate, Error, Result};
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{AutoEscape, Environment, ErrorKind, Value, context};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::io::{self, Write};

/// Steps of the template engine that a conversation may take: so many, and so many for each message and tool.
const STEPS: u64 = 500_000;
const STEPS_PER_MESSAGE: u64 = 10_000;
/// Bytes that a template may add to what the messages hold; the messages' own size is limited by the caller.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;
/// Longest message of a template's `raise_exception` that is passed on, in characters.
const MAX_REASON: usize = 300;
/// Name of the template in the environment; its ending turns nothing on.
const NAME: &str = "chat_template";

/// Renders `template` with `messages` and `tools`, which hold `size` bytes of text and marks, asking for an answer.
pub(super) fn run(
    template: &ChatTemplate,
    messages: Vec<Value>,
    tools: Vec<Value>,
    size: usize,
    marks: &Marks,
) -> Result<String> {
    let steps = STEPS + STEPS_PER_MESSAGE * (messages.len() + tools.len()) as u64;
    let source = without_generation_blocks(&template.source);
    let mut environment = environment();
    environment.set_fuel(Some(steps));
    environment
        .add_template(NAME, &source)
        .map_err(|error| explain(&error, steps, marks))?;
    let compiled = environment
        .get_template(NAME)
        .map_err(|error| explain(&error, steps, marks))?;
    let mut output = Output {
        bytes: Vec::new(),
        limit: size.saturating_add(MAX_TEMPLATE_BYTES),
        full: false,
    };
    let context = context! {
        messages => messages,
        add_generation_prompt => true,
        bos_token => template.bos_token,
        eos_token => template.eos_token,
        tools => (!tools.is_empty()).then_some(tools),
        documents => (),
    };
    let rendered = compiled.render_captured_to(context, &mut output).map(drop);
    if output.full {
        return Err(Error::TooLong {
            bytes: output.limit,
        });
    }
    rendered.map_err(|error| explain(&error, steps, marks))?;
    String::from_utf8(output.bytes).map_err(|_| Error::Template {
        line: None,
        reason: "its output is not UTF-8".into(),
    })
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function(
        "raise_exception",
        |reason: String| -> Result<Value, minijinja::Error> {
            Err(
                minijinja::Error::new(ErrorKind::InvalidOperation, "raise_exception")
                    .with_source(Raised(reason)),
            )
        },
    );
    environment.add_function("strftime_now", |format: &str| {
        jiff::fmt::strtime::format(format, &jiff::Zoned::now()).map_err(|_| {
            minijinja::Error::new(ErrorKind::InvalidOperation, "strftime_now: unknown format")
        })
    });
    environment.add_filter("tojson", to_json);
    environment
}

/// `{% generation %}` marks the assistant's part of a template for training; it prints nothing.
fn without_generation_blocks(source: &str) -> String {
    let mut plain = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        plain.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end);
        match tag.trim_matches(['-', '+', ' ', '\t', '\n', '\r']) {
            "generation" => plain.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => plain.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => plain.push_str(tag),
        }
        rest = after;
    }
    plain.push_str(rest);
    plain
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn to_json(value: &Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // The rest of json.dumps's options change nothing here.
    for ignored in ["ensure_ascii", "separators", "sort_keys"] {
        let _: Option<Value> = options.get(ignored)?;
    }
    options.assert_all_used()?;
    let mut bytes = Vec::new();
    let written = match indent {
        Some(indent) => {
            let indent = " ".repeat(indent.min(16));
            value.serialize(&mut Serializer::with_formatter(
                &mut bytes,
                PrettyFormatter::with_indent(indent.as_bytes()),
            ))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut bytes, PythonFormatter)),
    };
    written
        .map_err(io::Error::from)
        .and_then(|()| String::from_utf8(bytes).map_err(io::Error::other))
        .map_err(|_| {
            minijinja::Error::new(
                ErrorKind::BadSerialization,
                format!("tojson of {}", kind(value)),
            )
        })
}

fn kind(value: &Value) -> ValueKind {
    value.kind()
}

/// Separators as Python's json writes them.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_key<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Collects a template's output up to a limit.
struct Output {
    bytes: Vec<u8>,
    limit: usize,
    full: bool,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            self.full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The template's own refusal.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn explain(error: &minijinja::Error, steps: u64, marks: &Marks) -> Error {
    if error.kind() == ErrorKind::OutOfFuel {
        return Error::TooManySteps { steps };
    }
    let mut source: Option<&dyn std::error::Error> = Some(error);
    while let Some(cause) = source {
        if let Some(Raised(reason)) = cause.downcast_ref() {
            return Error::Refused {
                reason: marks.erase(reason).chars().take(MAX_REASON).collect(),
            };
        }
        source = cause.source();
    }
    let reason = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    Error::Template {
        line: error.line(),
        reason: marks.erase(&reason).chars().take(MAX_REASON).collect(),
    }
}
