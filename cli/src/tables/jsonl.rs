//! JSON lines. A row that is kept is its line, letter for letter.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use super::{Cells, Kept, SCORES, rounded};

/// Bytes of a line, at most: rows are read whole.
const LONGEST: u64 = 1 << 30;

/// Reads every line that is not empty, as an object or as what is wrong with it.
pub(super) fn walk(
    path: &Path,
    mut take: impl FnMut(u64, Result<Map<String, Value>, String>) -> ControlFlow<()>,
) -> Result<ControlFlow<()>> {
    let mut number = 0;
    let flow = lines(path, |line| {
        let row = serde_json::from_str(line).map_err(|error| error.to_string());
        number += 1;
        Ok(take(number - 1, row))
    })?;
    Ok(flow)
}

/// Picture and text of an object.
pub(super) fn cells(row: &Map<String, Value>, image: &str, text: &str) -> Cells {
    let cell = |name: &str| match row.get(name) {
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Null) => Ok(None),
        Some(other) => Err(format!("{name} holds no text but {}", kind(other))),
        None => Err(format!("it has no {name}")),
    };
    match cell(image)? {
        Some(image) => Ok((image, cell(text)?)),
        None => Err(format!("{image} is null")),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

pub(super) fn copy(path: &Path, out: &mut dyn Write, has_scores: bool, kept: Kept) -> Result<()> {
    let mut number = 0;
    let _ = lines(path, |line| {
        let row = number;
        number += 1;
        let Some(scores) = kept(row) else {
            return Ok(ControlFlow::Continue(()));
        };
        let line = line.trim();
        if !has_scores {
            writeln!(out, "{line}")?;
            return Ok(ControlFlow::Continue(()));
        }
        let Some(open) = line.strip_suffix('}') else {
            bail!("row {row} has changed meanwhile");
        };
        let object: Map<String, Value> = serde_json::from_str(line)?;
        if let Some(name) = SCORES.iter().find(|name| object.contains_key(**name)) {
            bail!("row {row} has a field {name} already, so leave out --scores");
        }
        let comma = if object.is_empty() { "" } else { "," };
        let score = |score: Option<f32>| serde_json::to_string(&score.map(rounded));
        writeln!(
            out,
            "{}{comma}\"{}\":{},\"{}\":{}}}",
            open.trim_end(),
            SCORES[0],
            score(scores.similarity)?,
            SCORES[1],
            score(scores.probability)?
        )?;
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(())
}

/// Every line that is not empty.
fn lines(
    path: &Path,
    mut take: impl FnMut(&str) -> Result<ControlFlow<()>>,
) -> Result<ControlFlow<()>> {
    let named = || path.display().to_string();
    let mut reader = BufReader::new(File::open(path).with_context(named)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut limited = std::io::Read::take(&mut reader, LONGEST);
        let n = limited.read_until(b'\n', &mut line).with_context(named)?;
        if n == 0 {
            return Ok(ControlFlow::Continue(()));
        }
        let text = String::from_utf8_lossy(&line);
        if text.trim().is_empty() {
            continue;
        }
        if take(&text).with_context(named)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
}
