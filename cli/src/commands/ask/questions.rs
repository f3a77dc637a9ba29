//! What is asked: on the command line, or as JSON lines.

use std::io::{self, BufRead, Read};
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use super::super::answers::{Named, Row};
use crate::args::repeated;

/// Longest line that is read.
const MAX_LINE: u64 = 1 << 20;

/// What some programs of Windows begin a file with.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// Whole numbers from here on are read as such that are near them.
const MAX_NUMBER: f64 = 9_007_199_254_740_992.0;

/// A question about pictures.
#[derive(Debug, Clone)]
pub struct Question {
    /// What its row says beside the answer.
    pub line: Option<u64>,
    /// Likewise.
    pub id: Option<Value>,
    /// At least one.
    pub pictures: Vec<Source>,
    /// The question itself.
    pub text: String,
    /// Answers to choose from; none where the model says what it likes.
    pub choices: Vec<String>,
}

/// Where a picture is.
#[derive(Debug, Clone)]
pub enum Source {
    /// In a file.
    File(PathBuf),
    /// At an http or https URL.
    Url(String),
    /// Here.
    Here(Named),
}

impl Source {
    /// A file or a URL.
    pub fn named(name: PathBuf) -> Source {
        match name.to_str() {
            Some(url) if is_url(url) => Source::Url(url.to_owned()),
            _ => Source::File(name),
        }
    }

    /// What it is called.
    pub fn name(&self) -> String {
        match self {
            Source::File(path) => path.display().to_string(),
            Source::Url(url) => url.clone(),
            Source::Here(named) => named.name.clone(),
        }
    }
}

/// Whether a picture is fetched. Schemes are written in either case.
fn is_url(name: &str) -> bool {
    let scheme = name.split_once("://").map_or("", |(scheme, _)| scheme);
    ["http", "https"]
        .iter()
        .any(|known| scheme.eq_ignore_ascii_case(known))
}

impl Question {
    /// Its row, without an answer.
    pub fn row(&self) -> Row {
        Row {
            line: self.line,
            id: self.id.clone(),
            images: self.pictures.iter().map(Source::name).collect(),
            question: Some(self.text.clone()),
            ..Row::default()
        }
    }
}

/// A line, as docs/ask.md describes it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    #[serde(default)]
    id: Option<Value>,
    #[serde(default)]
    image: Option<String>,
    #[serde(default)]
    images: Vec<String>,
    question: String,
    #[serde(default)]
    choices: Vec<String>,
}

/// Reads JSON lines to the end, or until `take` wants no more. A line that holds no question is a row that says so.
pub fn read_lines(
    mut reader: impl BufRead,
    mut take: impl FnMut(io::Result<Result<Question, Box<Row>>>) -> bool,
) {
    for number in 1.. {
        let asked = match next_line(&mut reader) {
            Ok(None) => return,
            Ok(Some(line)) => {
                let line = line
                    .strip_prefix(BOM)
                    .filter(|_| number == 1)
                    .unwrap_or(&line);
                if line.trim_ascii().is_empty() {
                    continue;
                }
                Ok(question(number, line))
            }
            Err(error) => Err(error),
        };
        let is_over = asked.is_err();
        if !take(asked) || is_over {
            return;
        }
    }
}

/// The bytes of the next line, no more than one over the limit.
fn next_line(reader: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let n = reader.take(MAX_LINE + 1).read_until(b'\n', &mut line)?;
    if n == 0 {
        return Ok(None);
    }
    if n as u64 > MAX_LINE && line.last() != Some(&b'\n') {
        reader.skip_until(b'\n')?;
    }
    Ok(Some(line))
}

fn question(number: u64, line: &[u8]) -> Result<Question, Box<Row>> {
    let row = Row {
        line: Some(number),
        ..Row::default()
    };
    if line.len() as u64 > MAX_LINE {
        return Err(row
            .failed(format!("line {number}: over {MAX_LINE} bytes"))
            .into());
    }
    let value: Value = match serde_json::from_slice(line) {
        Ok(value) => value,
        Err(error) => {
            // It speaks of the first line, which is all that it was shown.
            let error = error.to_string().replace(" at line 1 column", " at column");
            return Err(row
                .failed(format!("line {number}: not JSON: {error}"))
                .into());
        }
    };
    let row = row_of(row, &value);
    let named = match wrong(&value) {
        Some(reason) => Err(reason),
        None => match serde_json::from_value(value) {
            Ok(fields) => named(fields),
            Err(error) => Err(error.to_string()),
        },
    };
    match named {
        Ok(question) => Ok(Question {
            line: row.line,
            id: row.id,
            ..question
        }),
        Err(reason) => Err(row.failed(format!("line {number}: {reason}")).into()),
    }
}

/// A row with what can be told of a line, whether it is a question or not.
fn row_of(row: Row, value: &Value) -> Row {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let images = match (value.get("image"), value.get("images")) {
        (Some(image), _) => text(image).into_iter().collect(),
        (None, Some(Value::Array(images))) => images.iter().filter_map(text).collect(),
        (None, _) => Vec::new(),
    };
    let id = value
        .get("id")
        .filter(|id| !id.is_null() && !is_inexact(id));
    Row {
        id: id.cloned(),
        images,
        question: value.get("question").and_then(text),
        ..row
    }
}

/// Whether a number in it would not come back as it was.
fn is_inexact(value: &Value) -> bool {
    match value {
        Value::Number(number) if number.is_f64() => number
            .as_f64()
            .is_some_and(|number| number.abs() >= MAX_NUMBER),
        Value::Array(values) => values.iter().any(is_inexact),
        Value::Object(fields) => fields.values().any(is_inexact),
        _ => false,
    }
}

/// What is wrong with the kinds of a line's values, if anything is.
fn wrong(value: &Value) -> Option<String> {
    let Value::Object(fields) = value else {
        return Some("an object is expected, with image and question".to_owned());
    };
    let is_list = |value: &Value| {
        let values = value.as_array();
        values.is_some_and(|values| values.iter().all(Value::is_string))
    };
    fields.iter().find_map(|(name, value)| match name.as_str() {
        "id" if is_inexact(value) => {
            Some("id is a number that would not come back as it is: make it a string".to_owned())
        }
        "image" if !value.is_string() && !value.is_null() => {
            Some("image must be a string".to_owned())
        }
        "question" if !value.is_string() => Some("question must be a string".to_owned()),
        "images" | "choices" if !is_list(value) => {
            Some(format!("{name} must be a list of strings"))
        }
        _ => None,
    })
}

fn named(fields: Fields) -> Result<Question, String> {
    let images = match (fields.image, fields.images) {
        (Some(image), images) if images.is_empty() => vec![image],
        (None, images) if !images.is_empty() => images,
        (None, _) => return Err("image is missing".to_owned()),
        (Some(_), _) => return Err("image and images: give one of them".to_owned()),
    };
    let is_empty = |text: &String| text.trim().is_empty();
    if images.iter().any(is_empty) || fields.choices.iter().any(is_empty) {
        return Err("an image or a choice is empty".to_owned());
    }
    if let Some(twice) = repeated(&fields.choices) {
        return Err(format!("choices: {twice:?} is there twice"));
    }
    Ok(Question {
        line: None,
        id: fields.id,
        pictures: (images.into_iter())
            .map(|name| Source::named(name.into()))
            .collect(),
        text: fields.question,
        choices: fields.choices,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn read(lines: &[u8]) -> Vec<Result<Question, Box<Row>>> {
        let mut found = Vec::new();
        read_lines(lines, |asked| {
            found.push(asked.unwrap());
            true
        });
        found
    }

    #[test]
    fn lines_are_questions() {
        let found = read(
            b"{\"image\": \"a.png\", \"question\": \"what?\"}\n\n  \r\n\
            {\"id\": [7], \"images\": [\"a.png\", \"https://b.example/c\"], \"question\": \"which?\", \"choices\": [\"a\", \"b, c\"]}",
        );
        let [Ok(first), Ok(second)] = found.as_slice() else {
            unreachable!("{found:?}");
        };
        assert_eq!(
            (first.line, &first.id, first.text.as_str()),
            (Some(1), &None, "what?")
        );
        assert!(matches!(&first.pictures[..], [Source::File(path)] if path.ends_with("a.png")));
        assert_eq!(
            (second.line, &second.id),
            (Some(4), &Some(serde_json::json!([7])))
        );
        assert!(matches!(
            &second.pictures[..],
            [Source::File(_), Source::Url(_)]
        ));
        assert_eq!(second.choices, ["a", "b, c"]);
    }

    #[test]
    fn a_mark_of_byte_order_is_no_part_of_the_first_line() {
        let line = "{\"id\": 18446744073709551615, \"image\": \"HTTPS://b.example/c\", \"question\": \"what?\"}";
        let found = read(format!("\u{feff}{line}\n\u{feff}{line}").as_bytes());
        let [Ok(first), Err(_)] = found.as_slice() else {
            unreachable!("{found:?}");
        };
        assert_eq!(first.id, Some(u64::MAX.into()));
        assert!(matches!(&first.pictures[..], [Source::Url(_)]));
    }

    #[test]
    fn a_line_that_is_no_question_says_why_and_the_next_is_read() {
        let long = format!(
            "{{\"id\": 1, \"question\": \"{}\"}}",
            "x".repeat(MAX_LINE as usize)
        );
        for (line, told) in [
            ("nonsense", "line 1: not JSON: expected ident at column 2"),
            ("[]", "line 1: an object is expected"),
            (
                "[\"x\", \"a.png\", [], \"what?\", []]",
                "an object is expected",
            ),
            (
                "{\"image\": 3, \"question\": \"what?\"}",
                "line 1: image must be a string",
            ),
            (
                "{\"image\": \"a.png\", \"question\": null}",
                "question must be a string",
            ),
            (
                "{\"images\": \"a.png\", \"question\": \"what?\"}",
                "images must be a list of strings",
            ),
            (
                "{\"image\": \"a\", \"question\": \"what?\", \"choices\": [\"yes\", \"yes \"]}",
                "choices: \"yes \" is there twice",
            ),
            (
                "{\"id\": 18446744073709551616, \"image\": \"a.png\", \"question\": \"what?\"}",
                "id is a number that would not come back as it is",
            ),
            ("{\"question\": \"what?\"}", "line 1: image is missing"),
            ("{\"image\": \"a.png\"}", "line 1: missing field `question`"),
            (
                "{\"image\": \"a.png\", \"question\": \"what?\", \"choice\": []}",
                "unknown field `choice`",
            ),
            (
                "{\"image\": \"a\", \"images\": [\"b\"], \"question\": \"what?\"}",
                "give one of them",
            ),
            (
                "{\"image\": \"a\", \"question\": \"what?\", \"choices\": [\" \"]}",
                "is empty",
            ),
            (&long, "line 1: over 1048576 bytes"),
        ] {
            let text = format!("{line}\n{{\"image\": \"a.png\", \"question\": \"what?\"}}\n");
            let found = read(text.as_bytes());
            let [Err(row), Ok(next)] = found.as_slice() else {
                unreachable!("{found:?}");
            };
            let error = row.error.as_deref().unwrap();
            assert!(error.contains(told), "{error}");
            assert_eq!((row.line, next.line), (Some(1), Some(2)));
        }
        let [Err(row)] = &read(b"{\"id\": \"q7\", \"image\": 3}")[..] else {
            unreachable!();
        };
        assert_eq!(row.id, Some("q7".into()));
        let [Err(row)] =
            &read(b"{\"question\": \"what?\", \"images\": [\"a.png\"], \"more\": 1}")[..]
        else {
            unreachable!();
        };
        assert_eq!(row.question.as_deref(), Some("what?"));
        assert_eq!(row.images, ["a.png"]);
        let [Err(row)] = &read(b"{\"question\": \"\xff\"}")[..] else {
            unreachable!();
        };
        assert!(row.error.as_deref().unwrap().contains("line 1: not JSON"));
    }
}
