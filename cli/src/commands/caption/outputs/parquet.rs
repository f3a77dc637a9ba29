//! Parquet. Such a file cannot be appended to, so rows are kept as JSON lines beside it (`FILE.partial`) until all are there.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, DataType, DoubleType};
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::record::{Field, ListAccessor};
use parquet::schema::parser::parse_message_type;

use super::super::rows::Row;
use super::beside;
use crate::batch::lines;

/// Columns, in the order in which they are written.
const SCHEMA: &str = "
    message captions {
        required binary image (STRING);
        optional binary caption (STRING);
        optional binary error (STRING);
        optional double score;
        optional binary key (STRING);
        optional group captions (LIST) { repeated group list { required binary element (STRING); } }
    }";

/// Rows that are held in memory at once.
const ROWS_IN_GROUP: usize = 10_000;

/// Where rows are kept until the file is written.
pub(super) fn journal(out: &Path) -> PathBuf {
    beside(out, ".partial")
}

/// Writes the Parquet file of the rows in a journal, at once in place of what was there.
pub(super) fn write(journal: &Path, out: &Path) -> Result<()> {
    let new = beside(out, ".new");
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .build();
    let schema = Arc::new(parse_message_type(SCHEMA)?);
    let file = File::create(&new)?;
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties))?;
    let mut lines = BufReader::new(File::open(journal)?).lines();
    loop {
        let rows = lines
            .by_ref()
            .take(ROWS_IN_GROUP)
            .map(|line| Ok(serde_json::from_str(&line?)?))
            .collect::<Result<Vec<Row>>>()?;
        if rows.is_empty() {
            break;
        }
        let mut group = writer.next_row_group()?;
        write_rows(&rows, &mut group)?;
        group.close()?;
    }
    writer.into_inner()?.sync_all()?;
    Ok(std::fs::rename(&new, out)?)
}

fn write_rows(rows: &[Row], group: &mut SerializedRowGroupWriter<'_, File>) -> Result<()> {
    let bytes = |text: &String| ByteArray::from(text.as_str());
    let texts =
        |field: fn(&Row) -> &Option<String>| move |row: &Row| field(row).as_ref().map(bytes);
    let images: Vec<ByteArray> = rows.iter().map(|row| bytes(&row.image)).collect();
    write_column::<ByteArrayType>(group, &images, None, None)?;
    write_optional::<ByteArrayType>(group, rows, texts(|row| &row.caption))?;
    write_optional::<ByteArrayType>(group, rows, texts(|row| &row.error))?;
    write_optional::<DoubleType>(group, rows, |row| row.score)?;
    write_optional::<ByteArrayType>(group, rows, texts(|row| &row.key))?;
    // Definition levels: 0 for no list, 1 for an empty one, 2 for an element.
    let (mut elements, mut definition, mut repetition) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        match row.captions.as_deref() {
            None | Some([]) => {
                definition.push(i16::from(row.captions.is_some()));
                repetition.push(0);
            }
            Some(captions) => {
                elements.extend(captions.iter().map(bytes));
                definition.extend(captions.iter().map(|_| 2));
                repetition.extend((0..captions.len()).map(|i| i16::from(i > 0)));
            }
        }
    }
    write_column::<ByteArrayType>(group, &elements, Some(&definition), Some(&repetition))
}

fn write_optional<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, File>,
    rows: &[Row],
    value: impl Fn(&Row) -> Option<T::T>,
) -> Result<()> {
    let values: Vec<Option<T::T>> = rows.iter().map(value).collect();
    let definition: Vec<i16> = values
        .iter()
        .map(|value| i16::from(value.is_some()))
        .collect();
    let values: Vec<T::T> = values.into_iter().flatten().collect();
    write_column::<T>(group, &values, Some(&definition), None)
}

fn write_column<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, File>,
    values: &[T::T],
    definition: Option<&[i16]>,
    repetition: Option<&[i16]>,
) -> Result<()> {
    let mut column = group
        .next_column()?
        .context("the schema has no more columns")?;
    column
        .typed::<T>()
        .write_batch(values, definition, repetition)?;
    Ok(column.close()?)
}

/// Where the file is finished and there is no journal, makes one of it, so that more rows can follow.
pub(super) fn reopen(out: &Path, journal: &Path) -> Result<()> {
    if journal.try_exists()? {
        return Ok(());
    }
    let file = match File::open(out) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let new = beside(journal, ".new");
    let mut writer = BufWriter::new(File::create(&new)?);
    for row in SerializedFileReader::new(file)?.get_row_iter(None)? {
        writer.write_all(&lines::line(&row_of(row?.into_columns())?)?)?;
    }
    writer.flush()?;
    Ok(std::fs::rename(&new, journal)?)
}

fn row_of(columns: Vec<(String, Field)>) -> Result<Row> {
    let mut row = Row::default();
    let mut has_image = false;
    for (name, field) in columns {
        match (name.as_str(), field) {
            (_, Field::Null) => {}
            ("image", Field::Str(text)) => {
                has_image = true;
                row.image = text;
            }
            ("caption", Field::Str(text)) => row.caption = Some(text),
            ("error", Field::Str(text)) => row.error = Some(text),
            ("score", Field::Double(score)) => row.score = Some(score),
            ("key", Field::Str(text)) => row.key = Some(text),
            ("captions", Field::ListInternal(list)) => {
                let captions = (0..list.len()).map(|i| list.get_string(i).cloned());
                row.captions = Some(captions.collect::<Result<_, _>>()?);
            }
            (name, _) => bail!("column {name} is none of `qbridge caption`"),
        }
    }
    match has_image {
        true => Ok(row),
        false => bail!("it has no column `image`"),
    }
}
