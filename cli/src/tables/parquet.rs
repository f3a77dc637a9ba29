//! Parquet: rows are copied column by column, with whatever is in them.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use parquet::basic::{Compression, Repetition, Type as PhysicalType};
use parquet::column::reader::{ColumnReader, get_typed_column_reader};
use parquet::data_type::{
    BoolType, ByteArrayType, DataType, DoubleType, FixedLenByteArrayType, FloatType, Int32Type,
    Int64Type, Int96Type,
};
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::{Type, TypePtr};

use super::{Kept, SCORES, Scores, rounded};

/// Descriptions of the schema by other programs, which do not know of columns that are added.
const SCHEMAS: [&str; 3] = ["ARROW:schema", "huggingface", "pandas"];

pub(super) fn columns(path: &Path) -> Result<Vec<String>> {
    guarded(path, || {
        let reader = SerializedFileReader::new(File::open(path)?)?;
        let schema = reader.metadata().file_metadata().schema();
        let fields = schema.get_fields().iter();
        Ok(fields.map(|field| field.name().to_owned()).collect())
    })
}

pub(super) fn copy(path: &Path, out: File, has_scores: bool, kept: Kept) -> Result<()> {
    guarded(path, || copy_file(path, out, has_scores, kept))
}

/// The library checks much of what a damaged file says, but not all of it.
fn guarded<T>(path: &Path, read: impl FnOnce() -> Result<T>) -> Result<T> {
    let done = catch_unwind(AssertUnwindSafe(read));
    let done = done.unwrap_or_else(|_| Err(anyhow!("the file is damaged")));
    done.with_context(|| path.display().to_string())
}

fn copy_file(path: &Path, out: File, has_scores: bool, kept: Kept) -> Result<()> {
    let reader = SerializedFileReader::new(File::open(path)?)?;
    let metadata = reader.metadata().file_metadata();
    let mut schema = metadata.schema_descr().root_schema_ptr();
    let mut described = metadata.key_value_metadata().cloned();
    if has_scores {
        schema = with_scores(&schema)?;
        if let Some(described) = &mut described {
            described.retain(|pair| !SCHEMAS.contains(&pair.key.as_str()));
        }
    }
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_key_value_metadata(described)
        .build();
    let mut writer = SerializedFileWriter::new(out, schema, Arc::new(properties))?;
    let mut number = 0_u64;
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group)?;
        let n_rows = u64::try_from(group.metadata().num_rows())?;
        let rows = number..number + n_rows;
        number = rows.end;
        let scores: Vec<Option<Scores>> = rows.map(kept).collect();
        if scores.iter().all(Option::is_none) {
            continue;
        }
        let mut new = writer.next_row_group()?;
        for i in 0..group.num_columns() {
            let descriptor = group.metadata().column(i).column_descr_ptr();
            let reader = group.get_column_reader(i)?;
            copy_column(reader, descriptor.max_def_level(), &scores, &mut new)?;
        }
        if has_scores {
            let scores: Vec<Scores> = scores.into_iter().flatten().collect();
            write_scores(&mut new, scores.iter().map(|scores| scores.similarity))?;
            write_scores(&mut new, scores.iter().map(|scores| scores.probability))?;
        }
        new.close()?;
    }
    Ok(writer.into_inner()?.sync_all()?)
}

fn with_scores(schema: &TypePtr) -> Result<TypePtr> {
    let mut fields = schema.get_fields().to_vec();
    for name in SCORES {
        let field = Type::primitive_type_builder(name, PhysicalType::DOUBLE)
            .with_repetition(Repetition::OPTIONAL)
            .build()?;
        fields.push(Arc::new(field));
    }
    let builder = Type::group_type_builder(schema.name()).with_fields(fields);
    Ok(Arc::new(builder.build()?))
}

type Group<'a> = SerializedRowGroupWriter<'a, File>;

fn copy_column(
    reader: ColumnReader,
    most: i16,
    kept: &[Option<Scores>],
    group: &mut Group,
) -> Result<()> {
    use ColumnReader as Of;
    let copy = match reader {
        Of::BoolColumnReader(_) => copy_typed::<BoolType>,
        Of::Int32ColumnReader(_) => copy_typed::<Int32Type>,
        Of::Int64ColumnReader(_) => copy_typed::<Int64Type>,
        Of::Int96ColumnReader(_) => copy_typed::<Int96Type>,
        Of::FloatColumnReader(_) => copy_typed::<FloatType>,
        Of::DoubleColumnReader(_) => copy_typed::<DoubleType>,
        Of::ByteArrayColumnReader(_) => copy_typed::<ByteArrayType>,
        Of::FixedLenByteArrayColumnReader(_) => copy_typed::<FixedLenByteArrayType>,
    };
    copy(reader, most, kept, group)
}

/// Copies the rows of one column that are kept: their values, with the levels that say where in a row each stands; `most`
/// is the definition level of a value that is there.
fn copy_typed<T: DataType>(
    reader: ColumnReader,
    most: i16,
    kept: &[Option<Scores>],
    group: &mut Group,
) -> Result<()> {
    let mut column = group
        .next_column()?
        .context("the schema has no more columns")?;
    let mut reader = get_typed_column_reader::<T>(reader);
    let (mut values, mut definition, mut repetition) = (Vec::new(), Vec::new(), Vec::new());
    let mut n_rows = 0;
    while n_rows < kept.len() {
        let left = kept.len() - n_rows;
        let levels = (Some(&mut definition), Some(&mut repetition));
        let (n, ..) = reader.read_records(left, levels.0, levels.1, &mut values)?;
        if n == 0 {
            bail!("a column ends before row {n_rows} of its group");
        }
        n_rows += n;
    }
    let n_levels = definition.len().max(repetition.len());
    // A column that is in every row has no levels.
    let n_levels = if n_levels == 0 {
        values.len()
    } else {
        n_levels
    };
    let mut new = (Vec::new(), Vec::new(), Vec::new());
    let mut values = values.into_iter();
    let mut row = 0;
    for level in 0..n_levels {
        let starts = repetition.get(level).is_none_or(|&level| level == 0);
        row += usize::from(starts && level > 0);
        let is_value = definition.get(level).is_none_or(|&level| level == most);
        let value = if is_value { values.next() } else { None };
        if kept.get(row).is_some_and(Option::is_some) {
            new.0.extend(value);
            new.1.extend(definition.get(level));
            new.2.extend(repetition.get(level));
        }
    }
    let levels = |levels: &Vec<i16>| (!levels.is_empty()).then(|| levels.clone());
    column.typed::<T>().write_batch(
        &new.0,
        levels(&new.1).as_deref(),
        levels(&new.2).as_deref(),
    )?;
    Ok(column.close()?)
}

fn write_scores(group: &mut Group, scores: impl Iterator<Item = Option<f32>>) -> Result<()> {
    let scores: Vec<Option<f32>> = scores.collect();
    let definition: Vec<i16> = scores
        .iter()
        .map(|score| i16::from(score.is_some()))
        .collect();
    let values: Vec<f64> = scores.into_iter().flatten().map(rounded).collect();
    let mut column = group
        .next_column()?
        .context("the schema has no more columns")?;
    (column.typed::<DoubleType>()).write_batch(&values, Some(&definition), None)?;
    Ok(column.close()?)
}
