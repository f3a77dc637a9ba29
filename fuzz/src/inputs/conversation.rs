//! Conversations as bytes that a fuzzer can change: parts with a NUL between them, the first letter of each telling what
//! it is.

use prompts::{Message, Part, Role, Said, Segment, Tool, ToolCall};
use serde_json::{Map, Value};

/// Most parts: what a fuzzer should look at, not what a server takes.
const MAX_PARTS: usize = 24;

/// The messages, the functions that may be called, and how many pictures there are.
///
/// `s`, `u` and `a` begin a message with a text, `p` goes on with another text, `i` with a picture; `c` is a call of the
/// assistant with the arguments that follow, `t` its result, and `f` a function with the schema that follows.
pub(crate) fn read(input: &[u8]) -> (Vec<Message>, Vec<Tool>, usize) {
    let mut messages: Vec<Message> = Vec::new();
    let mut tools = Vec::new();
    let mut images = 0;
    for part in input.split(|&byte| byte == 0).take(MAX_PARTS) {
        let Some((kind, text)) = part.split_first() else {
            continue;
        };
        let text = String::from_utf8_lossy(text).into_owned();
        let mut message = |role, parts| messages.push(Message { role, parts });
        match kind {
            b's' => message(Role::System, vec![Part::Text(text)]),
            b'u' => message(Role::User, vec![Part::Text(text)]),
            b'a' => message(Role::Assistant, vec![Part::Text(text)]),
            b'c' => message(Role::Assistant, vec![Part::Call(call(&text))]),
            b't' => {
                let result = vec![Part::Text(text), Part::ResultOf(ID.to_owned())];
                message(Role::Tool, result);
            }
            b'f' => tools.push(Tool {
                name: "look".to_owned(),
                description: Some(text.clone()),
                parameters: object(&text).map(Value::Object),
            }),
            b'p' => {
                if let Some(last) = messages.last_mut() {
                    last.parts.push(Part::Text(text));
                }
            }
            b'i' => {
                if let Some(last) = messages.last_mut() {
                    last.parts.push(Part::Image(images));
                    images += 1;
                }
            }
            _ => {}
        }
    }
    (messages, tools, images)
}

/// Mistral's templates want nine letters and digits.
const ID: &str = "call00001";

fn call(arguments: &str) -> ToolCall {
    ToolCall {
        id: ID.to_owned(),
        name: "look".to_owned(),
        arguments: object(arguments).unwrap_or_default(),
    }
}

fn object(text: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(text).ok()
}

/// How many pictures a prompt has; none twice.
pub(crate) fn images(segments: &[Segment]) -> usize {
    let mut images: Vec<usize> = segments.iter().filter_map(image).collect();
    let all = images.len();
    images.sort_unstable();
    images.dedup();
    assert_eq!(images.len(), all, "a picture came twice");
    all
}

fn image(segment: &Segment) -> Option<usize> {
    match segment {
        Segment::Image(image) => Some(*image),
        _ => None,
    }
}

/// All text of a prompt.
pub(crate) fn text(segments: &[Segment]) -> String {
    segments
        .iter()
        .map(|segment| match segment {
            Segment::Text { text, .. } => text.as_str(),
            _ => "",
        })
        .collect()
}

/// Neighbours of one kind in one piece.
pub(crate) fn joined(said: Vec<Said>) -> Vec<Said> {
    let mut joined: Vec<Said> = Vec::new();
    for said in said {
        match (joined.last_mut(), said) {
            (Some(Said::Text(before)), Said::Text(more))
            | (Some(Said::Arguments(before)), Said::Arguments(more)) => before.push_str(&more),
            (_, said) => joined.push(said),
        }
    }
    joined
}
