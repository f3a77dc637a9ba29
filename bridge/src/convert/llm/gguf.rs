//! Writes GGUF version 3: metadata and the table of tensors first, then the tensors one
//! after the other, so that none has to be in memory beside another.
//!
//! Format: `docs/gguf.md` of ggml.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::quant::TensorType;
use crate::{Error, Result};

/// Alignment of tensors in the file, the format's default.
const ALIGNMENT: u64 = 32;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    F32s(Vec<f32>),
    I32s(Vec<i32>),
    U8s(Vec<u8>),
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Value::U32(value)
    }
}

impl From<f32> for Value {
    fn from(value: f32) -> Self {
        Value::F32(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Value::Bool(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::Text(value.to_owned())
    }
}

/// Keys and values in the order they are written.
#[derive(Debug, Clone, Default)]
pub(super) struct Metadata(Vec<(String, Value)>);

impl Metadata {
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        self.0.push((key.into(), value.into()));
    }

    pub fn extend(&mut self, other: Metadata) {
        self.0.extend(other.0);
    }
}

/// What the table says of one tensor.
#[derive(Debug, Clone)]
pub(super) struct TensorEntry {
    pub name: String,
    /// Outermost dimension first; the file has it the other way round.
    pub shape: Vec<usize>,
    pub kind: TensorType,
    pub bytes: u64,
}

/// A GGUF in the making, under a name of its own until it is whole.
pub(super) struct Writer {
    target: PathBuf,
    partial: PathBuf,
    file: BufWriter<File>,
    finished: bool,
}

impl Writer {
    /// Writes the header; the tensors must follow in the order of `tensors`.
    pub fn create(target: &Path, metadata: &Metadata, tensors: &[TensorEntry]) -> Result<Writer> {
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let partial = target.with_file_name(name);
        let file = File::create(&partial).map_err(Error::io(&partial))?;
        let mut writer = Writer {
            target: target.to_owned(),
            partial,
            file: BufWriter::with_capacity(1 << 20, file),
            finished: false,
        };
        writer.write(&header(metadata, tensors))?;
        Ok(writer)
    }

    /// Appends bytes of the current tensor.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io(&self.partial))
    }

    /// Ends a tensor of `bytes` bytes: the next one begins aligned.
    pub fn end_tensor(&mut self, bytes: u64) -> Result<()> {
        let padding = bytes.next_multiple_of(ALIGNMENT) - bytes;
        self.write(&[0; ALIGNMENT as usize][..padding as usize])
    }

    /// Gives the file its name.
    pub fn finish(mut self) -> Result<()> {
        let synced = self
            .file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all());
        synced.map_err(Error::io(&self.partial))?;
        std::fs::rename(&self.partial, &self.target).map_err(Error::io(&self.target))?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.finished {
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}

fn header(metadata: &Metadata, tensors: &[TensorEntry]) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    put_u64(&mut bytes, tensors.len() as u64);
    put_u64(&mut bytes, metadata.0.len() as u64);
    for (key, value) in &metadata.0 {
        put_text(&mut bytes, key);
        put_value(&mut bytes, value);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        put_text(&mut bytes, &tensor.name);
        put_u32(&mut bytes, tensor.shape.len() as u32);
        for &size in tensor.shape.iter().rev() {
            put_u64(&mut bytes, size as u64);
        }
        put_u32(&mut bytes, tensor.kind as u32);
        put_u64(&mut bytes, offset);
        offset += tensor.bytes.next_multiple_of(ALIGNMENT);
    }
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
    bytes
}

/// The numbers are `gguf_type` of `gguf.h`.
fn put_value(bytes: &mut Vec<u8>, value: &Value) {
    let array = |bytes: &mut Vec<u8>, kind: u32, length: usize| {
        put_u32(bytes, 9);
        put_u32(bytes, kind);
        put_u64(bytes, length as u64);
    };
    match value {
        Value::U32(value) => {
            put_u32(bytes, 4);
            put_u32(bytes, *value);
        }
        Value::F32(value) => {
            put_u32(bytes, 6);
            bytes.extend(value.to_le_bytes());
        }
        Value::Bool(value) => {
            put_u32(bytes, 7);
            bytes.push(u8::from(*value));
        }
        Value::Text(value) => {
            put_u32(bytes, 8);
            put_text(bytes, value);
        }
        Value::Texts(values) => {
            array(bytes, 8, values.len());
            values.iter().for_each(|value| put_text(bytes, value));
        }
        Value::F32s(values) => {
            array(bytes, 6, values.len());
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        Value::I32s(values) => {
            array(bytes, 5, values.len());
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        Value::U8s(values) => {
            array(bytes, 0, values.len());
            bytes.extend(values);
        }
    }
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    put_u64(bytes, text.len() as u64);
    bytes.extend(text.as_bytes());
}

fn put_u32(bytes: &mut Vec<u8>, value: u32) {
    bytes.extend(value.to_le_bytes());
}

fn put_u64(bytes: &mut Vec<u8>, value: u64) {
    bytes.extend(value.to_le_bytes());
}
