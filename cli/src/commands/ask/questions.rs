//! What is asked: on the command line, or as JSON lines.

use std::io::{self, BufRead, Read};
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use super::super::answers::{Named, Row};

/// Longest line that is read.
const MAX_LINE: u64 = 1 << 20;

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
            Some(url) if url.starts_with("http://") || url.starts_with("https://") => {
                Source::Url(url.to_owned())
            }
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
            Ok(Some(line)) if line.trim_ascii().is_empty() => continue,
            Ok(Some(line)) => Ok(question(number, &line)),
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
    let row = Row {
        id: value.get("id").filter(|id| !id.is_null()).cloned(),
        ..row
    };
    let named = match serde_json::from_value(value) {
        Ok(fields) => named(fields),
        Err(error) => Err(error.to_string()),
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
    fn a_line_that_is_no_question_says_why_and_the_next_is_read() {
        let long = format!(
            "{{\"id\": 1, \"question\": \"{}\"}}",
            "x".repeat(MAX_LINE as usize)
        );
        for (line, told) in [
            ("nonsense", "line 1: not JSON: expected ident at column 2"),
            ("[]", "line 1: "),
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
        let [Err(row)] = &read(b"{\"question\": \"\xff\"}")[..] else {
            unreachable!();
        };
        assert!(row.error.as_deref().unwrap().contains("line 1: not JSON"));
    }
}
