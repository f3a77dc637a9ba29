//! Comma-separated values with a header.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result, bail};
use csv::{ByteRecord, ReaderBuilder, Writer};

use super::{Cells, Kept, SCORES, rounded};

pub(super) fn columns(path: &Path) -> Result<Vec<String>> {
    let named = || path.display().to_string();
    let mut reader = reader(path)?;
    let header = reader.byte_headers().with_context(named)?;
    Ok(header.iter().map(text).collect())
}

/// Reads every record: the cells of the two columns, or what is wrong with it.
pub(super) fn walk(
    path: &Path,
    [image, text_column]: [&str; 2],
    mut take: impl FnMut(u64, Cells) -> ControlFlow<()>,
) -> Result<ControlFlow<()>> {
    let header = columns(path)?;
    let place = |name: &str| {
        let place = header.iter().position(|column| column == name);
        place.with_context(|| {
            let (path, columns) = (path.display(), header.join(", "));
            format!("{path}: there is no column {name} among {columns}")
        })
    };
    let (image, text_column) = (place(image)?, place(text_column)?);
    let mut reader = reader(path)?;
    let mut record = ByteRecord::new();
    for number in 0.. {
        let cells = match reader.read_byte_record(&mut record) {
            Ok(false) => break,
            Ok(true) if record.len() != header.len() => Err(format!(
                "{} cells, and the header has {}",
                record.len(),
                header.len()
            )),
            Ok(true) => {
                let cell = |place| record.get(place).map_or(String::new(), text);
                match cell(image) {
                    image if image.is_empty() => Err("no picture in this row".to_owned()),
                    image => Ok((image, Some(cell(text_column)))),
                }
            }
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        if take(number, cells).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

pub(super) fn copy(path: &Path, out: &mut dyn Write, has_scores: bool, kept: Kept) -> Result<()> {
    let named = || path.display().to_string();
    let mut writer = csv::WriterBuilder::new().flexible(true).from_writer(out);
    let mut reader = reader(path)?;
    let header = reader.byte_headers().with_context(named)?.clone();
    let more = has_scores.then_some(SCORES.map(str::to_owned));
    write(&mut writer, &header, more)?;
    let mut record = ByteRecord::new();
    for number in 0.. {
        if !reader.read_byte_record(&mut record).with_context(named)? {
            break;
        }
        let Some(scores) = kept(number) else {
            continue;
        };
        if record.len() != header.len() {
            bail!("{}: row {number} has changed meanwhile", named());
        }
        let text = |score: Option<f32>| score.map_or(String::new(), |s| rounded(s).to_string());
        let more = [text(scores.similarity), text(scores.probability)];
        write(&mut writer, &record, has_scores.then_some(more))?;
    }
    Ok(writer.flush()?)
}

fn write<W: Write>(
    writer: &mut Writer<W>,
    record: &ByteRecord,
    more: Option<[String; 2]>,
) -> Result<()> {
    let more: Vec<String> = more.into_iter().flatten().collect();
    let more = more.iter().map(String::as_bytes);
    Ok(writer.write_record(record.iter().chain(more))?)
}

/// Rows may be longer or shorter than the header: what is wrong with one stops none of the others.
fn reader(path: &Path) -> Result<csv::Reader<std::fs::File>> {
    let reader = ReaderBuilder::new().flexible(true).from_path(path);
    reader.with_context(|| path.display().to_string())
}

fn text(cell: &[u8]) -> String {
    String::from_utf8_lossy(cell).into_owned()
}
