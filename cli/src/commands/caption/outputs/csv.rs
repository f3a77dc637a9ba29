//! Comma-separated values (RFC 4180), with a header.

use std::io::{BufRead, Read, Seek, SeekFrom};

use anyhow::{Context, Result, bail};
use csv::{ReaderBuilder, StringRecord, Writer};

use super::super::rows::Row;

/// Several captions are a JSON array in their column.
const COLUMNS: [&str; 6] = ["image", "caption", "error", "score", "key", "captions"];

pub(super) fn header() -> Result<Vec<u8>> {
    write(COLUMNS)
}

/// A row's record.
pub(super) fn record(row: &Row) -> Result<Vec<u8>> {
    let score = row.score.map(|score| score.to_string());
    let captions = row.captions.as_ref().map(serde_json::to_string);
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    write([
        row.image.clone(),
        text(&row.caption),
        text(&row.error),
        score.unwrap_or_default(),
        text(&row.key),
        captions.transpose()?.unwrap_or_default(),
    ])
}

fn write<T: AsRef<[u8]>>(fields: impl IntoIterator<Item = T>) -> Result<Vec<u8>> {
    let mut writer = Writer::from_writer(Vec::new());
    writer.write_record(fields)?;
    writer
        .into_inner()
        .map_err(|error| error.into_error().into())
}

/// Reads rows up to the last whole record, and tells how many bytes they are, with the header.
pub(super) fn recover(mut file: impl BufRead + Seek, mut add: impl FnMut(Row)) -> Result<u64> {
    let length = whole_records(&mut file)?;
    file.seek(SeekFrom::Start(0))?;
    if length == 0 {
        let mut torn = Vec::new();
        file.take(256).read_to_end(&mut torn)?;
        match header()?.starts_with(&torn) {
            true => return Ok(0),
            false => bail!("its columns are not those of `qbridge caption`"),
        }
    }
    let mut reader = ReaderBuilder::new().from_reader(file.take(length));
    if reader.headers()? != &StringRecord::from(COLUMNS.as_slice()) {
        bail!("its columns are not those of `qbridge caption`");
    }
    for (record, number) in reader.records().zip(1..) {
        let record = record.with_context(|| format!("record {number}"))?;
        let field = |i: usize| record.get(i).filter(|field| !field.is_empty());
        let captions = field(5).map(serde_json::from_str).transpose();
        add(Row {
            image: field(0).unwrap_or_default().to_owned(),
            caption: field(1).map(str::to_owned),
            error: field(2).map(str::to_owned),
            captions: captions.with_context(|| format!("record {number}: its captions"))?,
            ..Row::default()
        });
    }
    Ok(length)
}

/// Bytes up to the last line break that is outside quotes: a doubled quote opens and closes them.
fn whole_records(file: &mut impl BufRead) -> Result<u64> {
    let (mut position, mut whole, mut quoted) = (0, 0, false);
    loop {
        let bytes = file.fill_buf()?;
        if bytes.is_empty() {
            return Ok(whole);
        }
        for byte in bytes {
            position += 1;
            match byte {
                b'"' => quoted = !quoted,
                b'\n' if !quoted => whole = position,
                _ => {}
            }
        }
        let n = bytes.len();
        file.consume(n);
    }
}
