//! Functions that a model may call, and how its chat template writes calls.

use crate::{Error, Result};
use serde_json::{Map, Value, json};

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// Its name: letters, digits, `_` and `-`.
    pub name: String,
    /// What it does, in words for the model.
    pub description: Option<String>,
    /// JSON Schema of its arguments, an object.
    pub parameters: Option<Value>,
}

impl Tool {
    /// As templates expect it: `{"type": "function", "function": {"name", "description", "parameters"}}`.
    pub(crate) fn to_json(&self) -> Value {
        let mut function = json!({ "name": self.name });
        if let Some(description) = &self.description {
            function["description"] = json!(description);
        }
        if let Some(parameters) = &self.parameters {
            function["parameters"] = parameters.clone();
        }
        json!({ "type": "function", "function": function })
    }
}

/// A call that the assistant made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// What the tool's answer refers to it by.
    pub id: String,
    /// The function.
    pub name: String,
    /// Its arguments.
    pub arguments: Map<String, Value>,
}

/// How a model writes calls. Which one is its own is read off what its chat template makes of the assistant's calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallSyntax {
    /// `<tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>`, each call by itself, text before and between
    /// them: Hermes, Qwen.
    Hermes,
    /// The whole answer is `{"name": ..., "parameters": {...}}`: Llama 3.
    Llama,
    /// `[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`: Mistral.
    Mistral,
}

impl CallSyntax {
    /// What stands before the first call.
    pub fn opening(self) -> &'static str {
        match self {
            CallSyntax::Hermes => "<tool_call>\n",
            CallSyntax::Llama => "",
            CallSyntax::Mistral => "[TOOL_CALLS][",
        }
    }

    /// What stands between two calls, where there may be several.
    pub fn separator(self) -> Option<&'static str> {
        match self {
            CallSyntax::Hermes => Some("\n</tool_call>\n<tool_call>\n"),
            CallSyntax::Llama => None,
            CallSyntax::Mistral => Some(", "),
        }
    }

    /// What stands behind the last call.
    pub fn closing(self) -> &'static str {
        match self {
            CallSyntax::Hermes => "\n</tool_call>",
            CallSyntax::Llama => "",
            CallSyntax::Mistral => "]",
        }
    }

    /// The name that a call has its arguments under.
    pub fn arguments(self) -> &'static str {
        match self {
            CallSyntax::Hermes | CallSyntax::Mistral => "arguments",
            CallSyntax::Llama => "parameters",
        }
    }

    /// The text that tells a call from other text, where there is one.
    pub(crate) fn mark(self) -> Option<&'static str> {
        match self {
            CallSyntax::Hermes => Some("<tool_call>"),
            CallSyntax::Llama => None,
            CallSyntax::Mistral => Some("[TOOL_CALLS]"),
        }
    }
}

/// Names in a conversation that a template is asked to write, to see what it makes of them. Its ids are Mistral's nine
/// characters, since its templates refuse others.
pub(crate) mod probe {
    pub(crate) const TOOL: &str = "qbridge_probe_tool";
    pub(crate) const QUESTION: &str = "qbridge_probe_question";
    pub(crate) const CALL: &str = "qbridge_probe_call";
    pub(crate) const RESULT: &str = "qbridge_probe_result";
    pub(crate) const ID: &str = "qbprobe01";
}

/// The syntax of the call in what a template wrote of the [`probe`] conversation.
pub(crate) fn recognize(written: &str) -> Result<CallSyntax> {
    if !written.contains(probe::TOOL) {
        return Err(Error::NoTools);
    }
    // The instructions before it may show an example of a call.
    let turn = written.split_once(probe::QUESTION).map(|(_, turn)| turn);
    let turn = turn.and_then(|turn| turn.split_once(probe::RESULT));
    let (turn, _) = turn.ok_or(Error::NoTools)?;
    let call = |key: &str| format!("{{\"name\": \"{}\", \"{key}\": {{", probe::CALL);
    let follows = |mark: &str, call: &str| {
        let behind = turn.split_once(mark).map(|(_, behind)| behind.trim_start());
        behind.is_some_and(|behind| behind.starts_with(call))
    };
    match () {
        () if follows("<tool_call>", &call("arguments")) => Ok(CallSyntax::Hermes),
        () if follows("[TOOL_CALLS]", &format!("[{}", call("arguments"))) => {
            Ok(CallSyntax::Mistral)
        }
        () if turn.contains(&call("parameters")) => Ok(CallSyntax::Llama),
        () if turn.contains(probe::CALL) => Err(Error::UnknownCallSyntax),
        () => Err(Error::NoTools),
    }
}
