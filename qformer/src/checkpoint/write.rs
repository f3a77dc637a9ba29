//! Weights to a safetensors file, one tensor in memory at a time.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensorError};

use super::RawTensor;
use crate::{Error, Result};

/// Element type of written weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightType {
    /// Half precision. A tensor with a value beyond its range, 65504, is kept
    /// in f32.
    F16,
    /// f32's range with 8 bits of precision.
    Bf16,
    /// Single precision.
    F32,
    /// The matrices of linear layers in 8 bits, each row with a scale of its
    /// own; everything else as [`WeightType::F16`].
    Int8,
}

impl WeightType {
    /// Of what is not in 8 bits.
    fn dtype(self) -> Dtype {
        match self {
            WeightType::F16 | WeightType::Int8 => Dtype::F16,
            WeightType::Bf16 => Dtype::BF16,
            WeightType::F32 => Dtype::F32,
        }
    }
}

/// What stands behind the name of a tensor in 8 bits to name its scales: f32,
/// one for each row. A value is its number times its row's scale.
pub(super) const SCALE_SUFFIX: &str = "_scale";
/// Symmetric: -128 is not used.
const INT8_MAX: f32 = 127.0;

/// Whether a tensor is the matrix of a linear layer, and no table of embeddings.
pub(super) fn is_linear(name: &str, shape: &[usize]) -> bool {
    shape.len() == 2 && name.ends_with(".weight") && !name.contains("embedding")
}

/// A tensor to be written.
#[derive(Debug)]
pub struct Weight<'a> {
    /// Name in Hugging Face's checkpoints.
    pub name: String,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Elements, innermost dimension contiguous.
    pub values: Values<'a>,
    /// The file that it comes from.
    pub path: PathBuf,
}

/// Where a weight's elements come from.
#[derive(Debug)]
pub enum Values<'a> {
    /// As they lie in a file.
    Stored(RawTensor<'a>),
    /// Made from what lies there.
    Computed(Vec<f32>),
}

impl<'a> From<RawTensor<'a>> for Weight<'a> {
    fn from(tensor: RawTensor<'a>) -> Self {
        Weight {
            name: tensor.name.to_owned(),
            shape: tensor.shape.to_vec(),
            path: tensor.path.to_owned(),
            values: Values::Stored(tensor),
        }
    }
}

impl Weight<'_> {
    /// Bytes that it takes as `weight_type`, or as it is stored.
    pub fn size(&self, weight_type: Option<WeightType>) -> u64 {
        if weight_type == Some(WeightType::Int8) && self.is_linear() {
            let (rows, elements) = (self.shape[0], self.shape.iter().product::<usize>());
            return (elements + rows * size_of::<f32>()) as u64;
        }
        let width = match weight_type {
            Some(weight_type) => weight_type.dtype().bitsize() / 8,
            None => self.stored_dtype().bitsize() / 8,
        };
        self.shape.iter().product::<usize>() as u64 * width as u64
    }

    fn is_linear(&self) -> bool {
        is_linear(&self.name, &self.shape)
    }

    fn stored_dtype(&self) -> Dtype {
        match &self.values {
            Values::Stored(tensor) => tensor.dtype,
            Values::Computed(_) => Dtype::F32,
        }
    }

    pub(crate) fn to_f32(&self) -> Result<Cow<'_, [f32]>> {
        match &self.values {
            Values::Stored(tensor) => Ok(Cow::Owned(tensor.to_f32()?)),
            Values::Computed(values) => Ok(Cow::Borrowed(values)),
        }
    }

    /// The type to write: the one asked for if the values fit.
    fn check(&self, weight_type: Option<WeightType>) -> Result<Dtype> {
        let largest = self.to_f32()?.iter().fold(0.0, |largest: f32, value| {
            // NaN must not be lost, as `f32::max` would.
            if value.is_finite() {
                largest.max(value.abs())
            } else {
                f32::INFINITY
            }
        });
        if largest.is_infinite() {
            return Err(Error::NotFinite {
                path: self.path.clone(),
                tensor: self.name.clone(),
            });
        }
        match weight_type {
            None => Ok(self.stored_dtype()),
            // CLIP's temperature: a logarithm, whose rounding would change all probabilities.
            _ if self.shape.is_empty() => Ok(Dtype::F32),
            Some(WeightType::Int8) if self.is_linear() => Ok(Dtype::I8),
            Some(WeightType::F16 | WeightType::Int8) if largest > f16::MAX.to_f32() => {
                Ok(Dtype::F32)
            }
            Some(weight_type) => Ok(weight_type.dtype()),
        }
    }
}

/// Elements of f32, f16 or bf16 from their little-endian bytes; none where the
/// type is another.
pub fn to_f32(bytes: &[u8], dtype: Dtype) -> Vec<f32> {
    let pairs = || bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    match dtype {
        Dtype::F32 => bytes
            .chunks_exact(4)
            .map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
            .collect(),
        Dtype::F16 => pairs()
            .map(|pair| f16::from_le_bytes(pair).to_f32())
            .collect(),
        Dtype::BF16 => pairs()
            .map(|pair| bf16::from_le_bytes(pair).to_f32())
            .collect(),
        _ => Vec::new(),
    }
}

/// The scale of each row of `cols` values.
pub(super) fn scales(values: &[f32], cols: usize) -> Vec<f32> {
    let largest = |row: &[f32]| row.iter().fold(0.0, |largest: f32, v| largest.max(v.abs()));
    values
        .chunks(cols.max(1))
        .map(|row| largest(row) / INT8_MAX)
        .collect()
}

/// Rows of `cols` values in 8 bits.
pub(super) fn quantize(values: &[f32], cols: usize) -> Vec<u8> {
    let rows = values.chunks(cols.max(1)).zip(scales(values, cols));
    let mut bytes = Vec::with_capacity(values.len());
    for (row, scale) in rows {
        let steps = if scale > 0.0 { scale.recip() } else { 0.0 };
        bytes.extend(row.iter().map(|value| {
            // 1.5 * 2^23: beside it, f32 has no room for fractions. `round_ties_even` would be a call for each value.
            const MAGIC: f32 = 12_582_912.0;
            let steps = (value * steps).clamp(-INT8_MAX, INT8_MAX) + MAGIC - MAGIC;
            steps as i8 as u8
        }));
    }
    bytes
}

/// Rows of `cols` numbers of 8 bits, each times its row's scale.
pub(super) fn dequantize(bytes: &[u8], scales: &[f32], cols: usize) -> Vec<f32> {
    let rows = bytes.chunks(cols.max(1)).zip(scales);
    rows.flat_map(|(row, scale)| row.iter().map(move |byte| f32::from(*byte as i8) * scale))
        .collect()
}

fn from_f32(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F16 => {
            let mut halves = vec![f16::ZERO; values.len()];
            halves.convert_from_f32_slice(values);
            halves
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        }
        Dtype::BF16 => {
            let mut halves = vec![bf16::ZERO; values.len()];
            halves.convert_from_f32_slice(values);
            halves
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        }
        _ => values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
    }
}

/// Writes `weights` to the safetensors file `path`: as `weight_type`, or, where
/// none is given, in the type that each is stored in. `progress` is told the
/// bytes of each tensor as it is written. Gives the names of the tensors that
/// f16 cannot hold and that were therefore written as f32. A tensor in 8 bits
/// has its scales beside it, `NAME_scale`.
///
/// # Errors
/// A tensor is of no weight's type or holds a value that is not finite, or the
/// file cannot be written.
pub fn write_weights(
    weights: &[&Weight],
    weight_type: Option<WeightType>,
    path: &Path,
    progress: &dyn Fn(u64),
) -> Result<Vec<String>> {
    let mut typed = weights
        .iter()
        .map(|weight| Ok((*weight, weight.check(weight_type)?)))
        .collect::<Result<Vec<_>>>()?;
    // So that every tensor is aligned to its elements.
    typed.sort_by_key(|(_, dtype)| Reverse(dtype.bitsize()));
    let mut infos = Vec::with_capacity(typed.len());
    let mut end = 0;
    let mut add = |name: String, dtype: Dtype, shape: Vec<usize>| {
        let start = end;
        end += shape.iter().product::<usize>() * (dtype.bitsize() / 8);
        let info = TensorInfo {
            dtype,
            shape,
            data_offsets: (start, end),
        };
        infos.push((name, info));
    };
    let scaled = || typed.iter().filter(|(_, dtype)| *dtype == Dtype::I8);
    for (weight, _) in scaled() {
        let name = format!("{}{SCALE_SUFFIX}", weight.name);
        add(name, Dtype::F32, vec![weight.shape[0]]);
    }
    for (weight, dtype) in &typed {
        add(weight.name.clone(), *dtype, weight.shape.clone());
    }
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let header = Metadata::new(Some(metadata), infos).and_then(|metadata| {
        serde_json::to_vec(&metadata).map_err(SafeTensorError::InvalidHeaderDeserialization)
    });
    let mut header = header.map_err(|source| Error::Safetensors {
        path: path.to_owned(),
        source,
    })?;
    // Elements begin at a multiple of 8 bytes.
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut file = BufWriter::new(File::create(path).map_err(Error::io(path))?);
    let mut write = |bytes: &[u8]| file.write_all(bytes).map_err(Error::io(path));
    write(&(header.len() as u64).to_le_bytes())?;
    write(&header)?;
    for (weight, _) in scaled() {
        let scales = from_f32(&scales(&weight.to_f32()?, weight.shape[1]), Dtype::F32);
        write(&scales)?;
        progress(scales.len() as u64);
    }
    let mut kept = Vec::new();
    for (weight, dtype) in typed {
        let asked = weight_type.map(WeightType::dtype);
        if dtype == Dtype::F32 && asked == Some(Dtype::F16) && !weight.shape.is_empty() {
            kept.push(weight.name.clone());
        }
        let bytes = match &weight.values {
            Values::Stored(tensor) if tensor.dtype == dtype => tensor.read()?,
            _ if dtype == Dtype::I8 => quantize(&weight.to_f32()?, weight.shape[1]),
            _ => from_f32(&weight.to_f32()?, dtype),
        };
        write(&bytes)?;
        progress(bytes.len() as u64);
    }
    file.flush().map_err(Error::io(path))?;
    Ok(kept)
}
