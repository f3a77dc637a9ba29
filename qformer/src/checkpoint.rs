//! Weights on disk: safetensors files, and what `torch.save` writes.
//!
//! A checkpoint directory holds `model.safetensors`, or
//! `model.safetensors.index.json` with the shards it names, or the same as
//! `pytorch_model.bin` (Hugging Face's layout); a bundle is a list of files. Opening reads the headers alone and
//! checks them whole, so that a file cut short or damaged is refused before
//! anything is computed.
//!
//! Files are read tensor by tensor and not memory-mapped. Every weight is
//! converted or packed once, into memory that products read, so a map would be
//! a second copy of it, which counts as the process's own for as long as the
//! system keeps it, and a file that is cut short would end the process.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensorError};
use serde::Deserialize;

pub use self::write::{Values, Weight, WeightType, to_f32, write_weights};
use crate::int8::Int8Weight;
use crate::linear::has_own_code;
use crate::{Error, Result};

mod pickle;
mod pth;
mod write;

/// What weights are computed with.
#[derive(Debug, Clone)]
pub struct Compute {
    /// Element type: f32 to be exact, and on a CPU also the fastest.
    pub dtype: DType,
    /// How linear layers multiply.
    pub products: Products,
    /// Where.
    pub device: Device,
}

impl Compute {
    /// In f32, products as the weights are stored.
    pub fn on(device: &Device) -> Self {
        Compute {
            dtype: DType::F32,
            products: Products::default(),
            device: device.clone(),
        }
    }
}

/// How linear layers multiply on a CPU in f32; elsewhere all do in what they compute in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Products {
    /// In 8 bits where the weights are stored so, else in f32.
    #[default]
    AsStored,
    /// In f32, whatever they are stored in.
    F32,
    /// In 8 bits; weights stored otherwise are quantized while they are loaded.
    Int8,
}

/// A file of a checkpoint directory, and the index of its shards.
const LAYOUTS: [(&str, &str, Format); 2] = [
    (
        "model.safetensors",
        "model.safetensors.index.json",
        Format::Safetensors,
    ),
    (
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        Format::Torch,
    ),
];

/// Bytes of a safetensors header; published ones have less than 1 MB.
const MAX_HEADER: u64 = 100_000_000;

/// How the text begins that a clone without Git LFS has in place of a large file.
const LFS_POINTER: &[u8; 23] = b"version https://git-lfs";

#[derive(Debug, Clone, Copy)]
enum Format {
    Safetensors,
    Torch,
}

/// The tensors of one model, in one file or several.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<Source>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Source {
    path: PathBuf,
    file: File,
}

#[derive(Debug)]
struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Bytes of the file.
    range: Range<u64>,
    /// Whether somebody asked for it by name.
    is_used: AtomicBool,
}

/// A tensor as it lies in its file.
#[derive(Debug, Clone, Copy)]
pub struct RawTensor<'a> {
    /// Name in the checkpoint.
    pub name: &'a str,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost dimension first.
    pub shape: &'a [usize],
    /// The file that holds it.
    pub path: &'a Path,
    source: &'a File,
    range: &'a Range<u64>,
}

impl RawTensor<'_> {
    /// The elements' bytes, little-endian, innermost dimension contiguous.
    ///
    /// # Errors
    /// The file cannot be read, or was cut short since it was opened.
    pub fn read(&self) -> Result<Vec<u8>> {
        let n = self.range.end - self.range.start;
        let n = usize::try_from(n).map_err(|_| Error::Io {
            path: self.path.to_owned(),
            source: std::io::ErrorKind::OutOfMemory.into(),
        })?;
        let mut bytes = vec![0; n];
        self.read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// The tensor has fewer bytes, or its file cannot be read.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let n = self.range.end - self.range.start;
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > n) {
            return Err(Error::Io {
                path: self.path.to_owned(),
                source: std::io::ErrorKind::UnexpectedEof.into(),
            });
        }
        read_at(self.source, buffer, self.range.start + offset).map_err(Error::io(self.path))
    }

    /// Whether both are the same bytes of the same file, as tied weights are in what
    /// `torch.save` wrote.
    pub(crate) fn is_same_as(&self, other: &RawTensor) -> bool {
        (self.path, self.range, self.dtype, self.shape)
            == (other.path, other.range, other.dtype, other.shape)
    }

    fn expect_shape(&self, expected: &[usize]) -> Result<()> {
        if self.shape == expected {
            return Ok(());
        }
        Err(Error::Shape {
            path: self.path.to_owned(),
            tensor: self.name.to_owned(),
            expected: expected.to_vec(),
            found: self.shape.to_vec(),
        })
    }

    /// The elements of an f32, f16 or bf16 tensor.
    ///
    /// # Errors
    /// [`Error::DType`] for another, and when the file cannot be read.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        match self.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => Ok(to_f32(&self.read()?, self.dtype)),
            found => Err(Error::DType {
                path: self.path.to_owned(),
                tensor: self.name.to_owned(),
                found,
            }),
        }
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, PathBuf>,
}

impl Checkpoint {
    /// Opens a directory in Hugging Face's layout.
    ///
    /// # Errors
    /// There is no checkpoint, a shard is missing, a file is damaged, or the
    /// index and its shards disagree; each names the file.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        for (single, index, format) in LAYOUTS {
            let single = dir.join(single);
            if single.exists() {
                return Self::read(&[single], format);
            }
            let index = dir.join(index);
            if index.exists() {
                return Self::from_index(&index, format);
            }
        }
        std::fs::read_dir(dir).map_err(Error::io(dir))?;
        Err(Error::NoCheckpoint {
            dir: dir.to_owned(),
        })
    }

    /// Opens a file that `torch.save` wrote: a state dictionary, or a
    /// dictionary that has one as `model`. Code in its pickle is never run.
    ///
    /// # Errors
    /// The file is missing, cut short, damaged, or holds something else.
    pub fn from_pth(path: &Path) -> Result<Self> {
        Self::read(&[path], Format::Torch)
    }

    /// Opens safetensors files as one checkpoint.
    ///
    /// # Errors
    /// A file is missing or damaged, or two of them hold the same tensor.
    pub fn from_files<P: AsRef<Path>>(paths: &[P]) -> Result<Self> {
        Self::read(paths, Format::Safetensors)
    }

    fn read<P: AsRef<Path>>(paths: &[P], format: Format) -> Result<Self> {
        let mut checkpoint = Self {
            files: Vec::with_capacity(paths.len()),
            tensors: BTreeMap::new(),
        };
        for path in paths {
            checkpoint.add_file(path.as_ref(), format)?;
        }
        Ok(checkpoint)
    }

    fn from_index(path: &Path, format: Format) -> Result<Self> {
        let invalid = |reason: String| Error::Index {
            path: path.to_owned(),
            reason,
        };
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let index: Index =
            serde_json::from_str(&text).map_err(|error| invalid(error.to_string()))?;
        let dir = path.parent().unwrap_or(Path::new(""));
        let mut shards: Vec<&PathBuf> = index.weight_map.values().collect();
        shards.sort();
        shards.dedup();
        let mut paths = Vec::with_capacity(shards.len());
        for shard in shards {
            let mut parts = shard.components();
            if !matches!(
                (parts.next(), parts.next()),
                (Some(Component::Normal(_)), None)
            ) {
                return Err(invalid(format!(
                    "{} is not the name of a file beside the index",
                    shard.display()
                )));
            }
            let file = dir.join(shard);
            if !file.is_file() {
                return Err(invalid(format!(
                    "the shard {} is missing: fetch it too",
                    file.display()
                )));
            }
            paths.push(file);
        }
        let checkpoint = Self::read(&paths, format)?;
        for (tensor, shard) in &index.weight_map {
            let file = dir.join(shard);
            let found = checkpoint.tensors.get(tensor);
            if found.is_none_or(|entry| checkpoint.files[entry.file].path != file) {
                return Err(invalid(format!(
                    "{} does not hold the tensor {tensor}",
                    file.display()
                )));
            }
        }
        Ok(checkpoint)
    }

    fn add_file(&mut self, path: &Path, format: Format) -> Result<()> {
        let source = File::open(path).map_err(Error::io(path))?;
        let mut beginning = [0; LFS_POINTER.len()];
        if read_at(&source, &mut beginning, 0).is_ok() && &beginning == LFS_POINTER {
            return Err(Error::LfsPointer {
                path: path.to_owned(),
            });
        }
        let file = self.files.len();
        let entries: Vec<(String, Entry)> = match format {
            Format::Safetensors => {
                let (start, metadata) = read_header(path, &source)?;
                let entry = |info: &TensorInfo| Entry {
                    file,
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                    range: start + info.data_offsets.0 as u64..start + info.data_offsets.1 as u64,
                    is_used: AtomicBool::new(false),
                };
                metadata
                    .tensors()
                    .into_iter()
                    .map(|(name, info)| (name, entry(info)))
                    .collect()
            }
            Format::Torch => pth::tensors(&source)
                .map_err(|reason| Error::Torch {
                    path: path.to_owned(),
                    reason,
                })?
                .into_iter()
                .map(|tensor| {
                    let entry = Entry {
                        file,
                        dtype: tensor.dtype,
                        shape: tensor.shape,
                        range: tensor.range,
                        is_used: AtomicBool::new(false),
                    };
                    (tensor.name, entry)
                })
                .collect(),
        };
        self.files.push(Source {
            path: path.to_owned(),
            file: source,
        });
        for (name, entry) in entries {
            if let Some(other) = self.tensors.get(&name) {
                return Err(Error::DuplicateTensor {
                    tensor: name,
                    first: self.files[other.file].path.clone(),
                    second: path.to_owned(),
                });
            }
            self.tensors.insert(name, entry);
        }
        Ok(())
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Names of the tensors that nobody has asked for, sorted: after a model was loaded, what it
    /// does without.
    pub fn unused(&self) -> impl Iterator<Item = &str> {
        self.tensors
            .iter()
            .filter(|(_, entry)| !entry.is_used.load(Ordering::Relaxed))
            .map(|(name, _)| name.as_str())
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// All tensors as they lie in their files, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = RawTensor<'_>> {
        self.tensors
            .iter()
            .map(|(name, entry)| self.raw_entry(name, entry))
    }

    /// Bytes that the weights take once they are loaded to compute in f32 on a CPU, the matrices of linear layers as
    /// `products` says. A little less than it is: rows are padded.
    pub fn loaded_bytes(&self, products: Products) -> u64 {
        self.iter()
            .map(|tensor| {
                let elements = tensor.shape.iter().product::<usize>() as u64;
                let is_int8 = match products {
                    Products::F32 => false,
                    Products::AsStored => tensor.dtype == Dtype::I8,
                    Products::Int8 => write::is_linear(tensor.name, tensor.shape),
                };
                match is_int8 {
                    true => elements,
                    false => elements * size_of::<f32>() as u64,
                }
            })
            .sum()
    }

    /// One tensor as it lies in its file.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn raw(&self, name: &str) -> Result<RawTensor<'_>> {
        match self.tensors.get_key_value(name) {
            Some((name, entry)) => {
                entry.is_used.store(true, Ordering::Relaxed);
                Ok(self.raw_entry(name, entry))
            }
            None => Err(Error::MissingTensor {
                files: self.describe(),
                tensor: name.to_owned(),
            }),
        }
    }

    /// Shape of a tensor, outermost dimension first.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(self.raw(name)?.shape)
    }

    /// Element type of a tensor in its file.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn dtype(&self, name: &str) -> Result<Dtype> {
        Ok(self.raw(name)?.dtype)
    }

    /// Copies a weight to `device` as `dtype`.
    ///
    /// # Errors
    /// There is no such tensor, its shape is not `shape`, or its elements in
    /// the file are not f32, f16, bf16 or 8 bits with their scales.
    pub fn tensor(
        &self,
        name: &str,
        shape: &[usize],
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let raw = self.raw(name)?;
        raw.expect_shape(shape)?;
        // candle's own cast would keep both at once.
        let tensor = match (raw.dtype, dtype) {
            (Dtype::F16, DType::F16) | (Dtype::BF16, DType::BF16) => {
                Tensor::from_raw_buffer(&raw.read()?, dtype, shape, &Device::Cpu)?
            }
            (Dtype::I8, _) => {
                Tensor::from_vec(self.dequantized(&raw)?, shape, &Device::Cpu)?.to_dtype(dtype)?
            }
            _ => Tensor::from_vec(raw.to_f32()?, shape, &Device::Cpu)?.to_dtype(dtype)?,
        };
        Ok(tensor.to_device(device)?)
    }

    /// A matrix `[rows, columns]` in 8 bits as it is stored, or made of what is.
    fn int8(&self, name: &str, [rows, columns]: [usize; 2]) -> Result<Int8Weight> {
        let raw = self.raw(name)?;
        raw.expect_shape(&[rows, columns])?;
        if raw.dtype != Dtype::I8 {
            let values = raw.to_f32()?;
            return Ok(Int8Weight {
                scales: write::scales(&values, columns),
                values: as_i8(&write::quantize(&values, columns)),
            });
        }
        Ok(Int8Weight {
            scales: self.scales(&raw)?,
            values: as_i8(&raw.read()?),
        })
    }

    /// The values of a matrix in 8 bits.
    fn dequantized(&self, raw: &RawTensor) -> Result<Vec<f32>> {
        let scales = self.scales(raw)?;
        let columns = raw.shape.last().copied().unwrap_or(1);
        Ok(write::dequantize(&raw.read()?, &scales, columns))
    }

    /// The scales of a matrix in 8 bits, one for each row.
    fn scales(&self, raw: &RawTensor) -> Result<Vec<f32>> {
        let [rows, _] = raw.shape else {
            return Err(Error::DType {
                path: raw.path.to_owned(),
                tensor: raw.name.to_owned(),
                found: raw.dtype,
            });
        };
        let scale = self.raw(&format!("{}{}", raw.name, write::SCALE_SUFFIX))?;
        scale.expect_shape(&[*rows])?;
        scale.to_f32()
    }

    /// The tensors as `compute` says, to be taken by name and prefix.
    pub(crate) fn weights<'a>(&'a self, compute: &'a Compute) -> Weights<'a> {
        Weights {
            checkpoint: self,
            prefix: String::new(),
            compute,
        }
    }

    fn raw_entry<'a>(&'a self, name: &'a str, entry: &'a Entry) -> RawTensor<'a> {
        let file = &self.files[entry.file];
        RawTensor {
            name,
            dtype: entry.dtype,
            shape: &entry.shape,
            path: &file.path,
            source: &file.file,
            range: &entry.range,
        }
    }

    /// The files, for messages.
    pub fn describe(&self) -> String {
        let paths: Vec<_> = self
            .files
            .iter()
            .map(|file| file.path.display().to_string())
            .collect();
        paths.join(", ")
    }
}

/// A place in a checkpoint's tree of names, as in `encoder.layers.0`.
#[derive(Clone)]
pub(crate) struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    prefix: String,
    compute: &'a Compute,
}

impl Weights<'_> {
    /// The place one name deeper.
    pub fn pp(&self, name: impl std::fmt::Display) -> Self {
        Self {
            prefix: self.name(&name.to_string()),
            ..self.clone()
        }
    }

    /// The tensor of this name here.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.checkpoint.tensor(
            &self.name(name),
            shape,
            self.compute.dtype,
            &self.compute.device,
        )
    }

    /// Whether the tensor of this name is here.
    pub fn contains(&self, name: &str) -> bool {
        self.checkpoint.contains(&self.name(name))
    }

    /// The matrix of this name where products with it are to be in 8 bits.
    pub fn int8(&self, name: &str, shape: [usize; 2]) -> Result<Option<Int8Weight>> {
        let name = self.name(name);
        let is_int8 = match self.compute.products {
            Products::F32 => false,
            Products::AsStored => self.checkpoint.dtype(&name)? == Dtype::I8,
            Products::Int8 => true,
        };
        // Elsewhere there is no such product.
        if is_int8 && has_own_code(&self.compute.device, self.compute.dtype) {
            return self.checkpoint.int8(&name, shape).map(Some);
        }
        Ok(None)
    }

    fn name(&self, name: &str) -> String {
        if self.prefix.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.prefix)
        }
    }
}

fn as_i8(bytes: &[u8]) -> Vec<i8> {
    bytes.iter().map(|&byte| byte as i8).collect()
}

#[cfg(unix)]
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !buffer.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_read(file, buffer, offset)?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        buffer = &mut buffer[n..];
        offset += n as u64;
    }
    Ok(())
}

/// Where the tensors of a safetensors file begin, and its header.
fn read_header(path: &Path, file: &File) -> Result<(u64, Metadata)> {
    let invalid = |source| Error::Safetensors {
        path: path.to_owned(),
        source,
    };
    let size = file.metadata().map_err(Error::io(path))?.len();
    let mut length = [0; size_of::<u64>()];
    if size < length.len() as u64 {
        return Err(invalid(SafeTensorError::HeaderTooSmall));
    }
    read_at(file, &mut length, 0).map_err(Error::io(path))?;
    let n = u64::from_le_bytes(length);
    if n > MAX_HEADER {
        return Err(invalid(SafeTensorError::HeaderTooLarge));
    }
    let start = length.len() as u64 + n;
    if start > size {
        return Err(invalid(SafeTensorError::InvalidHeaderLength));
    }
    let mut header = vec![0; n as usize];
    read_at(file, &mut header, length.len() as u64).map_err(Error::io(path))?;
    // Deserializing checks that offsets are in order and fit the shapes.
    let metadata: Metadata = serde_json::from_slice(&header)
        .map_err(|error| invalid(SafeTensorError::InvalidHeaderDeserialization(error)))?;
    if metadata.data_len() as u64 != size - start {
        return Err(invalid(SafeTensorError::MetadataIncompleteBuffer));
    }
    Ok((start, metadata))
}
