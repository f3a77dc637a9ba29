//! Parquet files with a column of pictures, as Hugging Face's datasets writes them.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{ConvertedType, LogicalType, Repetition, Type as PhysicalType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::record::reader::TreeBuilder;
use parquet::schema::types::{SchemaDescriptor, Type, TypePtr};

use super::{Item, Picture, Visitor, display, unreadable, url};
use crate::input::open;

/// Rows that are decoded at once: each holds a whole picture.
const ROWS_AT_ONCE: usize = 8;

/// The column that is taken where none is named.
const DEFAULT_COLUMN: &str = "image";

/// Tells of the pictures in a Parquet file, by the number of their row. The column holds their bytes, or groups of `bytes`
/// and `path`, or paths and URLs; paths are relative to the file.
pub(super) fn walk(
    path: &Path,
    column: Option<&str>,
    visitor: &mut dyn Visitor,
) -> ControlFlow<()> {
    walk_with_text(path, column, None, visitor)
}

/// As [`walk`], with the text of each row from the column `text`.
pub(crate) fn walk_with_text(
    path: &Path,
    column: Option<&str>,
    text: Option<&str>,
    visitor: &mut dyn Visitor,
) -> ControlFlow<()> {
    // The library checks much of what a damaged file says, but not all of it.
    let walked = catch_unwind(AssertUnwindSafe(|| walk_file(path, column, text, visitor)));
    let failure = match walked {
        Ok(Ok(flow)) => return flow,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the file is damaged".to_owned(),
    };
    unreadable(visitor, &display(path), failure)
}

fn walk_file(
    path: &Path,
    column: Option<&str>,
    text: Option<&str>,
    visitor: &mut dyn Visitor,
) -> Result<ControlFlow<()>, ParquetError> {
    let reader = SerializedFileReader::new(open(path)?)?;
    let schema = reader.metadata().file_metadata().schema();
    let mut fields = vec![find_column(schema, column)?];
    fields.extend(text.map(|name| find_text(schema, name)).transpose()?);
    let projection = Type::group_type_builder(schema.name())
        .with_fields(fields)
        .build()?;
    let columns = Arc::new(SchemaDescriptor::new(Arc::new(projection)));
    let mut number = 0_u64;
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group)?;
        let n_rows = u64::try_from(group.metadata().num_rows()).unwrap_or_default();
        let rows = number..number.saturating_add(n_rows);
        number = rows.end;
        let name = |row: u64| format!("{}#{row}", display(path));
        // A group that nothing is wanted of is not read.
        let Some(first) = rows.clone().find(|&row| visitor.wants(&name(row))) else {
            continue;
        };
        let mut pictures = TreeBuilder::new()
            .with_batch_size(ROWS_AT_ONCE)
            .as_iter(columns.clone(), group.as_ref())?;
        for row in rows {
            let Some(fields) = pictures.next() else {
                return Err(ParquetError::General(format!("it ends before row {row}")));
            };
            let fields = fields?;
            if row < first || row > first && !visitor.wants(&name(row)) {
                continue;
            }
            let mut columns = fields.into_columns().into_iter().map(|(_, field)| field);
            let picture = columns.next().and_then(|field| picture(field, path));
            let picture = picture.unwrap_or_else(|| {
                Picture::Unreadable(format!("{}: no picture in this row", name(row)))
            });
            let text = match columns.next() {
                Some(Field::Str(text)) => Some(text),
                _ => None,
            };
            let flow = visitor.take(Item {
                name: name(row),
                key: None,
                text,
                picture,
            });
            if flow.is_break() {
                return Ok(flow);
            }
        }
    }
    Ok(match number {
        0 => unreadable(visitor, &display(path), "no rows in this file"),
        _ => ControlFlow::Continue(()),
    })
}

fn find_column(schema: &Type, named: Option<&str>) -> Result<TypePtr, ParquetError> {
    let fields = schema.get_fields();
    let names = || {
        let names: Vec<&str> = fields.iter().map(|field| field.name()).collect();
        names.join(", ")
    };
    let by_name = |name: &str| fields.iter().find(|field| field.name() == name);
    let only = |holds: fn(&TypePtr) -> bool| {
        let mut found = fields.iter().filter(|field| holds(field));
        found.next().filter(|_| found.next().is_none())
    };
    let problem = match named {
        Some(name) => match by_name(name) {
            Some(field) if holds_bytes(field) || holds_text(field) => return Ok(field.clone()),
            Some(_) => format!("column {name} holds neither bytes nor text"),
            None => format!("there is no column {name} among {}", names()),
        },
        None => {
            let usual = by_name(DEFAULT_COLUMN);
            let usual = usual.filter(|field| holds_bytes(field) || holds_text(field));
            match usual
                .or_else(|| only(holds_bytes))
                .or_else(|| only(holds_text))
            {
                Some(field) => return Ok(field.clone()),
                None => format!(
                    "which column holds the pictures? Say --image-column with one of {}",
                    names()
                ),
            }
        }
    };
    Err(ParquetError::General(problem))
}

fn find_text(schema: &Type, name: &str) -> Result<TypePtr, ParquetError> {
    let fields = schema.get_fields();
    match fields.iter().find(|field| field.name() == name) {
        Some(field) if holds_text(field) => Ok(field.clone()),
        Some(_) => Err(ParquetError::General(format!(
            "column {name} holds no text"
        ))),
        None => {
            let names: Vec<&str> = fields.iter().map(|field| field.name()).collect();
            let names = names.join(", ");
            Err(ParquetError::General(format!(
                "there is no column {name} among {names}"
            )))
        }
    }
}

/// Bytes, or a group with bytes in it.
fn holds_bytes(field: &TypePtr) -> bool {
    match field.is_primitive() {
        true => is_binary(field) && !is_text(field),
        false => {
            let mut parts = field.get_fields().iter();
            !is_repeated(field)
                && parts
                    .any(|part| part.name() == "bytes" && part.is_primitive() && is_binary(part))
        }
    }
}

fn holds_text(field: &TypePtr) -> bool {
    field.is_primitive() && is_binary(field) && is_text(field)
}

fn is_binary(field: &TypePtr) -> bool {
    field.get_physical_type() == PhysicalType::BYTE_ARRAY && !is_repeated(field)
}

fn is_text(field: &TypePtr) -> bool {
    let info = field.get_basic_info();
    info.converted_type() == ConvertedType::UTF8
        || info.logical_type_ref() == Some(&LogicalType::String)
}

fn is_repeated(field: &TypePtr) -> bool {
    let info = field.get_basic_info();
    info.has_repetition() && info.repetition() == Repetition::REPEATED
}

fn picture(field: Field, file: &Path) -> Option<Picture> {
    match field {
        Field::Group(group) => {
            let mut parts = group.into_columns();
            let mut take = |name: &str| {
                let at = parts.iter().position(|(part, _)| part == name)?;
                in_field(parts.swap_remove(at).1, file)
            };
            take("bytes").or_else(|| take("path"))
        }
        field => in_field(field, file),
    }
}

fn in_field(field: Field, file: &Path) -> Option<Picture> {
    match field {
        Field::Bytes(bytes) => Some(Picture::Bytes(Arc::from(bytes.data()))),
        Field::Str(text) => Some(match url(text.as_ref()) {
            Some(url) => Picture::Url(url.to_owned()),
            None => Picture::File(file.with_file_name(text)),
        }),
        _ => None,
    }
}
