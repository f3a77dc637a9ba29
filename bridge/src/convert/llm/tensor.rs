//! One tensor of the GGUF: where its rows come from, and how they are changed, cast and
//! written, a few megabytes at a time.

use std::cell::OnceCell;
use std::ops::Range;
use std::rc::Rc;

use rayon::prelude::*;
use safetensors::Dtype;

use super::gguf::{TensorEntry, Writer};
use super::quant::{LlmQuant, Role, TensorType};
use crate::convert::TensorSource;
use crate::{Error, Result, llama};

/// Elements that are in memory at a time, twice as f32 and once as stored.
const CHUNK: usize = 8 << 20;
/// Elements that one thread quantizes at a time.
const TASK: usize = 1 << 18;

/// A tensor of the GGUF.
pub(super) struct OutputTensor {
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    pub role: Role,
    pub content: Content,
    pub scale: Scale,
}

pub(super) enum Content {
    /// Rows of tensors of the checkpoint, one after the other.
    Rows(Vec<Part>),
    /// The gains themselves: `ffn.act.scales`.
    Gains(Rc<ReluGains>),
}

/// Rows of one tensor of the checkpoint.
pub(super) struct Part {
    pub name: String,
    pub rows: Range<usize>,
    /// Rows of a head whose first and second half are to alternate, which is how
    /// llama.cpp wants what rotary embeddings turn.
    pub interleave: Option<usize>,
}

/// What each row is multiplied with.
pub(super) enum Scale {
    None,
    Constant(f32),
    Gains(Rc<ReluGains>),
}

impl OutputTensor {
    /// A tensor as the checkpoint has it.
    pub fn plain(
        name: impl Into<String>,
        source: impl Into<String>,
        shape: &[usize],
        role: Role,
    ) -> Self {
        let rows = shape.first().copied().unwrap_or(0);
        OutputTensor::of_parts(name, vec![Part::whole(source, rows)], shape, role)
    }

    pub fn of_parts(
        name: impl Into<String>,
        parts: Vec<Part>,
        shape: &[usize],
        role: Role,
    ) -> Self {
        OutputTensor {
            name: name.into(),
            shape: shape.to_vec(),
            role,
            content: Content::Rows(parts),
            scale: Scale::None,
        }
    }

    pub fn scaled(mut self, scale: Scale) -> Self {
        self.scale = scale;
        self
    }

    /// Elements of a row. A vector has rows of one.
    fn cols(&self) -> usize {
        self.shape[1..].iter().product()
    }

    pub fn entry(&self, quant: LlmQuant) -> TensorEntry {
        let cols = self.cols();
        let kind = quant.tensor_type(self.role, cols);
        TensorEntry {
            name: self.name.clone(),
            shape: self.shape.clone(),
            kind,
            bytes: (self.shape[0] * kind.row_bytes(cols)) as u64,
        }
    }

    /// Checks that the checkpoint has what this tensor is made of; bytes to be read.
    pub fn check(&self, source: &dyn TensorSource) -> Result<u64> {
        let Content::Rows(parts) = &self.content else {
            return Ok(0);
        };
        let mut bytes = 0;
        for part in parts {
            let info = stored(source, &part.name)?;
            let mut expected = self.shape.clone();
            expected[0] = part.rows.end;
            if info.shape != expected {
                return Err(Error::Convert {
                    path: info.path,
                    reason: format!(
                        "tensor {} has shape {:?}, and by the configuration it must be {expected:?}: weights and config.json are of different models",
                        part.name, info.shape
                    ),
                });
            }
            bytes += (part.rows.len() * self.cols() * element_bytes(info.dtype)) as u64;
        }
        Ok(bytes)
    }

    /// Reads, casts and writes the tensor.
    pub fn write(
        &self,
        source: &dyn TensorSource,
        kind: TensorType,
        writer: &mut Writer,
        progress: &dyn Fn(u64),
    ) -> Result<()> {
        let cols = self.cols();
        match &self.content {
            Content::Gains(gains) => writer.write(&cast(gains.get(source)?, cols, kind)),
            Content::Rows(parts) => {
                let mut first = 0;
                for part in parts {
                    self.write_part(source, part, first, kind, writer, progress)?;
                    first += part.rows.len();
                }
                Ok(())
            }
        }
    }

    /// `first` is the part's first row in this tensor.
    fn write_part(
        &self,
        source: &dyn TensorSource,
        part: &Part,
        first: usize,
        kind: TensorType,
        writer: &mut Writer,
        progress: &dyn Fn(u64),
    ) -> Result<()> {
        let cols = self.cols();
        let unit = part.interleave.unwrap_or(1);
        let rows_at_once = (CHUNK / cols.max(1)).max(1).next_multiple_of(unit);
        let mut start = part.rows.start;
        while start < part.rows.end {
            let rows = start..(start + rows_at_once).min(part.rows.end);
            let mut values = read_rows(source, &part.name, rows.clone(), cols, progress)?;
            if let Some(head) = part.interleave {
                values = interleave_halves(&values, head, cols);
            }
            let row = first + rows.start - part.rows.start;
            match &self.scale {
                Scale::None => {}
                Scale::Constant(factor) => values.iter_mut().for_each(|value| *value *= factor),
                Scale::Gains(gains) => {
                    let gains = &gains.get(source)?[row..row + rows.len()];
                    for (values, gain) in values.chunks_mut(cols).zip(gains) {
                        values.iter_mut().for_each(|value| *value *= gain);
                    }
                }
            }
            self.check_range(source, part, &values, kind)?;
            writer.write(&cast(&values, cols, kind))?;
            start = rows.end;
        }
        Ok(())
    }

    fn check_range(
        &self,
        source: &dyn TensorSource,
        part: &Part,
        values: &[f32],
        kind: TensorType,
    ) -> Result<()> {
        let max = kind.max();
        // False for NaN as well.
        let fits = |value: &f32| value.abs() <= max;
        let Some(value) = values.par_iter().find_any(|&value| !fits(value)) else {
            return Ok(());
        };
        let reason = if value.is_finite() {
            format!(
                "tensor {} holds {value}, which is beyond what {kind:?} can hold: convert to BF16 or F32",
                part.name
            )
        } else {
            format!(
                "tensor {} holds {value}: the checkpoint is damaged; fetch it again",
                part.name
            )
        };
        Err(Error::Convert {
            path: stored(source, &part.name)?.path,
            reason,
        })
    }
}

impl Part {
    pub fn whole(name: impl Into<String>, rows: usize) -> Part {
        Part::slice(name, 0..rows)
    }

    pub fn slice(name: impl Into<String>, rows: Range<usize>) -> Part {
        Part {
            name: name.into(),
            rows,
            interleave: None,
        }
    }
}

/// The header of a tensor that must be there, with elements that can be read.
pub(super) fn stored(source: &dyn TensorSource, name: &str) -> Result<super::TensorInfo> {
    let info = source.info(name).ok_or_else(|| {
        Error::from(qformer::Error::MissingTensor {
            files: source.describe(),
            tensor: name.to_owned(),
        })
    })?;
    if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
        return Err(Error::from(qformer::Error::DType {
            path: info.path,
            tensor: name.to_owned(),
            found: info.dtype,
        }));
    }
    Ok(info)
}

fn element_bytes(dtype: Dtype) -> usize {
    if dtype == Dtype::F32 { 4 } else { 2 }
}

/// Rows of a tensor as f32.
fn read_rows(
    source: &dyn TensorSource,
    name: &str,
    rows: Range<usize>,
    cols: usize,
    progress: &dyn Fn(u64),
) -> Result<Vec<f32>> {
    let dtype = stored(source, name)?.dtype;
    let size = element_bytes(dtype);
    let mut bytes = vec![0; rows.len() * cols * size];
    source.read(name, (rows.start * cols * size) as u64, &mut bytes)?;
    let values = match dtype {
        Dtype::F16 => floats(&bytes, |bytes| half::f16::from_le_bytes(bytes).to_f32()),
        Dtype::BF16 => floats(&bytes, |bytes| half::bf16::from_le_bytes(bytes).to_f32()),
        _ => floats(&bytes, f32::from_le_bytes),
    };
    progress(bytes.len() as u64);
    Ok(values)
}

fn floats<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32 + Sync) -> Vec<f32> {
    let (elements, _) = bytes.as_chunks::<N>();
    elements.par_iter().map(|&element| read(element)).collect()
}

/// In each head of `head` rows, rows `i` and `i + head/2` become rows `2i` and `2i + 1`:
/// Hugging Face turns the two halves of a head against each other, llama.cpp neighbours.
fn interleave_halves(values: &[f32], head: usize, cols: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for head_rows in values.chunks(head * cols) {
        let (left, right) = head_rows.split_at(head / 2 * cols);
        for (left, right) in left.chunks(cols).zip(right.chunks(cols)) {
            out.extend_from_slice(left);
            out.extend_from_slice(right);
        }
    }
    out
}

/// Rows of `cols` elements as the bytes of a GGUF tensor.
fn cast(values: &[f32], cols: usize, kind: TensorType) -> Vec<u8> {
    let row_bytes = kind.row_bytes(cols);
    let mut bytes = vec![0; values.len() / cols * row_bytes];
    let rows = (TASK / cols).max(1);
    bytes
        .par_chunks_mut(rows * row_bytes)
        .zip(values.par_chunks(rows * cols))
        .for_each(|(bytes, values)| llama::quantize_rows(kind, values, cols, bytes));
    bytes
}

/// Gains that let GELU stand in for ReLU: `relu(x)` is nearly `gelu(k x) / k`, off by at
/// most `0.17 / k`. Row `j` of a layer's `fc1` gets the largest power of two `k` for which
/// no input whatever can bring `k x` beyond half of f16's range.
///
/// The input is a LayerNorm's output `γ x̂ + β` over `n` values, and `x̂` has mean 0 and
/// length at most `√n`, so a row `w` with bias `b` gives at most
/// `√n ‖γw - mean(γw)‖ + |β·w + b|`.
pub(super) struct ReluGains {
    pub weight: String,
    pub bias: String,
    pub norm_weight: String,
    pub norm_bias: String,
    pub rows: usize,
    pub cols: usize,
    pub gains: OnceCell<Vec<f32>>,
}

impl ReluGains {
    /// Beyond this the stand-in gains nothing: llama.cpp's CPU backend reads GELU from a
    /// table in f16 there.
    const MAX: f32 = 4096.0;
    /// Below this it would be worse than an overflow that no real input has caused.
    const MIN: f32 = 16.0;
    const F16_HALF_RANGE: f32 = 32752.0;

    /// One gain a row.
    fn get(&self, source: &dyn TensorSource) -> Result<&[f32]> {
        if let Some(gains) = self.gains.get() {
            return Ok(gains);
        }
        let vector = |name: &str, n: usize| read_rows(source, name, 0..n, 1, &|_| {});
        let gamma = vector(&self.norm_weight, self.cols)?;
        let beta = vector(&self.norm_bias, self.cols)?;
        let bias = vector(&self.bias, self.rows)?;
        let mut gains = Vec::with_capacity(self.rows);
        let rows_at_once = (CHUNK / self.cols).max(1);
        let mut start = 0;
        while start < self.rows {
            let rows = start..(start + rows_at_once).min(self.rows);
            let weight = read_rows(source, &self.weight, rows.clone(), self.cols, &|_| {})?;
            gains.par_extend(
                weight
                    .par_chunks(self.cols)
                    .zip(&bias[rows.clone()])
                    .map(|(row, &bias)| Self::gain(row, bias, &gamma, &beta)),
            );
            start = rows.end;
        }
        Ok(self.gains.get_or_init(|| gains))
    }

    fn gain(row: &[f32], bias: f32, gamma: &[f32], beta: &[f32]) -> f32 {
        let n = row.len() as f64;
        let (mut sum, mut squares, mut shift) = (0f64, 0f64, f64::from(bias));
        let mut largest = 0f32;
        for ((&w, &gamma), &beta) in row.iter().zip(gamma).zip(beta) {
            let scaled = f64::from(w) * f64::from(gamma);
            sum += scaled;
            squares += scaled * scaled;
            shift += f64::from(w) * f64::from(beta);
            largest = largest.max(w.abs());
        }
        let length = (squares - sum * sum / n).max(0.0).sqrt();
        let reach = (n.sqrt() * length + shift.abs()) as f32;
        // The weights themselves are multiplied too.
        let gain = Self::F16_HALF_RANGE / reach.max(largest).max(f32::MIN_POSITIVE);
        gain.log2().floor().exp2().clamp(Self::MIN, Self::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_each_head_alternate() {
        let rows: Vec<f32> = (0..8).flat_map(|row| [row as f32, 10.0]).collect();
        let mixed = interleave_halves(&rows, 4, 2);
        let order: Vec<f32> = mixed.iter().step_by(2).copied().collect();
        assert_eq!(order, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        assert!(mixed.iter().skip(1).step_by(2).all(|&value| value == 10.0));
    }

    #[test]
    fn no_input_brings_a_gained_row_beyond_f16() {
        // The worst input of a LayerNorm for a row is the row itself, centred.
        let n = 64;
        let gamma: Vec<f32> = (0..n).map(|i| 1.0 + (i % 3) as f32).collect();
        let beta: Vec<f32> = (0..n).map(|i| (i % 5) as f32 - 2.0).collect();
        for size in [1e-3, 0.1, 1.0, 4.0] {
            let row: Vec<f32> = (0..n)
                .map(|i| size * ((i * 37 % 11) as f32 - 4.0))
                .collect();
            let gain = ReluGains::gain(&row, -3.0, &gamma, &beta);
            assert_eq!(gain.log2().fract(), 0.0);
            let scaled: Vec<f32> = row.iter().zip(&gamma).map(|(w, g)| w * g).collect();
            let mean = scaled.iter().sum::<f32>() / n as f32;
            let centred: Vec<f32> = scaled.iter().map(|value| value - mean).collect();
            let length = centred
                .iter()
                .map(|value| value * value)
                .sum::<f32>()
                .sqrt();
            let worst: f32 = (0..n)
                .map(|i| row[i] * (gamma[i] * centred[i] / length * (n as f32).sqrt() + beta[i]))
                .sum::<f32>()
                - 3.0;
            assert!(gain * worst.abs() <= 65504.0, "{gain} times {worst}");
            if gain < ReluGains::MAX {
                assert!(4.0 * gain * worst.abs() > 32752.0, "{gain} could be larger");
            }
        }
    }

    #[test]
    fn gains_have_bounds() {
        let gain = |weight| ReluGains::gain(&[weight, -weight], 0.0, &[1.0, 1.0], &[0.0, 0.0]);
        assert_eq!(gain(0.0), ReluGains::MAX);
        assert_eq!(gain(1e6), ReluGains::MIN);
    }
}
