//! Functions that a request lets the model call: the fields that name them, and reading the calls out of an answer.

use bridge::model::{ToolChoice, Tools};
use prompts::{CallReader, CallSyntax, Said, Tool};
use serde_json::Value;

use crate::fields::{Fields, as_list, as_string, expected};
use crate::tables::{CALLED, CHOSEN, FUNCTION, MAX_TOOLS, TOOL};
use crate::{Error, Result};

/// How the model writes calls, or why it makes none.
pub(crate) type Syntax = prompts::Result<CallSyntax>;

/// Reads `tools`, `tool_choice` and `parallel_tool_calls`; nothing where the model is to call none.
pub(crate) fn tools(fields: &mut Fields, syntax: &Syntax) -> Result<Option<Tools>> {
    let mut strict = false;
    let mut functions = Vec::new();
    if let Some(list) = fields.take("tools") {
        let list = as_list(list, "tools")?;
        if list.len() > MAX_TOOLS {
            let reason = format!("must not have more than {MAX_TOOLS} functions");
            return Err(Error::invalid("tools", reason));
        }
        if !list.is_empty() {
            known(syntax, "tools")?;
        }
        for (index, tool) in list.into_iter().enumerate() {
            let path = format!("tools[{index}]");
            let (tool, is_strict) = self::tool(tool, &path)?;
            if functions.iter().any(|known: &Tool| known.name == tool.name) {
                let reason = format!("{:?} is there twice", tool.name);
                return Err(Error::invalid(format!("{path}.function.name"), reason));
            }
            strict |= is_strict;
            functions.push(tool);
        }
    }
    let several = fields.boolean("parallel_tool_calls")?.unwrap_or(true);
    let choice = match fields.take("tool_choice") {
        None => Some(ToolChoice::Auto),
        Some(Value::String(choice)) => match choice.as_str() {
            "none" => None,
            "auto" => Some(ToolChoice::Auto),
            "required" if functions.is_empty() => return Err(without_tools()),
            "required" => Some(ToolChoice::Required),
            _ => {
                let reason = "must be none, auto, required or name a function";
                return Err(Error::invalid("tool_choice", reason));
            }
        },
        Some(chosen) => Some(ToolChoice::Function(self::chosen(chosen, &functions)?)),
    };
    // A model that is to call nothing is not shown what it could.
    let choice = choice.filter(|_| !functions.is_empty());
    Ok(choice.map(|choice| Tools {
        functions,
        choice,
        strict,
        several,
    }))
}

fn without_tools() -> Error {
    Error::invalid("tool_choice", "is allowed only with tools")
}

/// A function, and whether its arguments are to be held to its schema.
fn tool(value: Value, path: &str) -> Result<(Tool, bool)> {
    let mut fields = Fields::of(value, path, &TOOL)?;
    only_functions(&mut fields)?;
    let path = fields.path("function");
    let mut function = Fields::of(fields.required("function")?, &path, &FUNCTION)?;
    fields.finish()?;
    let name_path = function.path("name");
    let name = as_string(function.required("name")?, &name_path)?;
    if !is_name(&name) {
        let reason = "must be 1 to 64 letters, digits, _ and -";
        return Err(Error::invalid(name_path, reason));
    }
    let description = function.string("description")?;
    let parameters_path = function.path("parameters");
    let parameters = match function.take("parameters") {
        None => None,
        Some(schema @ Value::Object(_)) => Some(schema),
        Some(other) => {
            return Err(Error::invalid(
                parameters_path,
                expected("an object", &other),
            ));
        }
    };
    let strict = function.boolean("strict")?.unwrap_or(false);
    function.finish()?;
    let tool = Tool {
        name,
        description,
        parameters,
    };
    Ok((tool, strict))
}

/// What `type` may be of tools, choices and calls.
pub(crate) fn only_functions(fields: &mut Fields) -> Result<()> {
    let path = fields.path("type");
    let kind = as_string(fields.required("type")?, &path)?;
    match kind.as_str() {
        "function" => Ok(()),
        "custom" | "allowed_tools" => Err(Error::unsupported(path, "tools are functions")),
        _ => Err(Error::invalid(path, "must be function")),
    }
}

fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    (1..=64).contains(&name.len()) && name.bytes().all(is_plain)
}

/// The index of the function that `tool_choice` names.
fn chosen(value: Value, functions: &[Tool]) -> Result<usize> {
    let Value::Object(_) = value else {
        let wanted = "none, auto, required or an object";
        return Err(Error::invalid("tool_choice", expected(wanted, &value)));
    };
    let mut fields = Fields::of(value, "tool_choice", &CHOSEN)?;
    only_functions(&mut fields)?;
    let path = fields.path("function");
    let mut function = Fields::of(fields.required("function")?, &path, &CALLED)?;
    fields.finish()?;
    let path = function.path("name");
    let name = as_string(function.required("name")?, &path)?;
    function.finish()?;
    if functions.is_empty() {
        return Err(without_tools());
    }
    let index = functions.iter().position(|tool| tool.name == name);
    index.ok_or_else(|| Error::invalid(path, "is not the name of one of tools"))
}

/// How the model writes calls.
///
/// # Errors
/// `param` is refused where it writes none.
pub(crate) fn known(syntax: &Syntax, param: impl Into<String>) -> Result<CallSyntax> {
    syntax
        .clone()
        .map_err(|error| Error::unsupported(param, error.to_string()))
}

/// Reads the calls out of each choice of an answer to a request that has tools.
pub(crate) fn reader(tools: &Tools, syntax: CallSyntax) -> CallReader {
    let names = tools.functions.iter().map(|tool| tool.name.clone());
    let most = match (tools.choice, tools.several) {
        (ToolChoice::Function(_), _) | (_, false) => 1,
        (_, true) => usize::MAX,
    };
    let opened = tools.choice != ToolChoice::Auto;
    CallReader::new(syntax, names.collect(), most, opened)
}

/// An id for a call that `reader` found. Mistral's templates refuse others than theirs.
pub(crate) fn call_id(reader: Option<&CallReader>) -> String {
    let id = uuid::Uuid::new_v4().simple().to_string();
    match reader.map(CallReader::syntax) {
        Some(CallSyntax::Mistral) => id.chars().take(9).collect(),
        _ => format!("call_{id}"),
    }
}

/// What `text` says: text, where nothing is read out of it.
pub(crate) fn said(reader: &mut Option<CallReader>, text: &str) -> Vec<Said> {
    match reader {
        Some(reader) => reader.push(text),
        None if text.is_empty() => Vec::new(),
        None => vec![Said::Text(text.to_owned())],
    }
}
