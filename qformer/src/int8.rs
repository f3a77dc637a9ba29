//! Products in 8 bits on a CPU.
//!
//! Weights have a scale for each output, which they are stored or quantized with. Inputs are quantized as they come, each
//! row by its own smallest and largest value (dynamic quantization, as ONNX Runtime calls it). What is summed up is whole
//! numbers, so the only errors are those of the two roundings.

use std::cell::Cell;
use std::ops::Range;

use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions, PackedAMatrix};
use rten_tensor::{Matrix, NdTensorView};

use crate::kernels;
use crate::product::gemm;
use crate::product::packed::{Kernel, LINE, Panels, side_by_side};
use crate::product::vnni::{STEP, Vnni};
use crate::product::{Cut, Dims, Finish, Norm, PackedWeights, Part, multiply};

/// A matrix in 8 bits: `value = number * scale of its row`.
#[derive(Debug, Clone)]
pub(crate) struct Int8Weight {
    /// `[outputs, inputs]`.
    pub values: Vec<i8>,
    /// `[outputs]`.
    pub scales: Vec<f32>,
}

/// An [`Int8Weight`], laid out as the machine's matrix product reads it.
pub(crate) enum Int8Matrix {
    /// By AVX-512's VNNI instructions.
    Vnni(VnniMatrix),
    /// By whatever else the machine has, through `rten-gemm`.
    Gemm(GemmMatrix),
}

impl Int8Matrix {
    pub fn new(weight: Int8Weight, outputs: usize, inputs: usize) -> candle_core::Result<Self> {
        let found = (weight.values.len(), weight.scales.len());
        if found != (outputs * inputs, outputs) || outputs * inputs == 0 {
            candle_core::bail!(
                "{found:?} weights and scales for {inputs} inputs and {outputs} outputs"
            );
        }
        Ok(match Vnni::is_available() {
            true => Self::Vnni(VnniMatrix::new(&weight, outputs, inputs)),
            false => Self::Gemm(GemmMatrix::new(weight, outputs, inputs)?),
        })
    }

    pub fn dims(&self) -> Dims {
        match self {
            Self::Vnni(matrix) => matrix.dims(),
            Self::Gemm(matrix) => matrix.dims(),
        }
    }

    /// [`multiply`].
    pub fn multiply(
        &self,
        x: &[f32],
        norm: Option<Norm>,
        output: &mut [f32],
        finish: Finish,
    ) -> candle_core::Result<()> {
        match self {
            Self::Vnni(matrix) => multiply(matrix, x, norm, output, finish),
            Self::Gemm(matrix) => multiply(matrix, x, norm, output, finish),
        }
    }
}

/// What sums of products are worth.
struct Columns {
    /// `[outputs]`, and 0 where panels have more columns.
    scales: Vec<f32>,
    /// What the numbers of each output add up to, scaled; likewise.
    values: Vec<f32>,
}

impl Columns {
    /// For `count` columns, at least as many as there are outputs.
    fn new(weight: &Int8Weight, inputs: usize, count: usize) -> Self {
        let rows = weight.values.chunks_exact(inputs).zip(&weight.scales);
        let values = rows.map(|(row, scale)| {
            let sum: i32 = row.iter().map(|&value| i32::from(value)).sum();
            sum as f32 * scale
        });
        let mut values: Vec<f32> = values.collect();
        let mut scales = weight.scales.clone();
        values.resize(count, 0.0);
        scales.resize(count, 0.0);
        Self { scales, values }
    }

    /// Sums `[height, columns]` to f32, of rows with these zeros and scales.
    fn dequantize(
        &self,
        sums: &[i32],
        zeros: &[(u8, f32)],
        columns: Range<usize>,
        output: &mut Vec<f32>,
    ) {
        output.resize(sums.len(), 0.0);
        let (scales, values) = (&self.scales[columns.clone()], &self.values[columns]);
        kernels::dequantize(sums, zeros, scales, values, output);
    }
}

/// Rows of `inputs` values, after `norm`, in numbers up to `levels`, `[rows, width]` and 0 where rows are longer than their
/// inputs; and the number that stands for 0 in each row, and its scale.
fn quantized(
    x: &[f32],
    norm: Option<Norm>,
    inputs: usize,
    levels: f32,
    width: usize,
    numbers: &mut Vec<u8>,
) -> Vec<(u8, f32)> {
    numbers.clear();
    numbers.resize(x.len() / inputs * width, 0);
    let mut normed = vec![0.0; if norm.is_some() { inputs } else { 0 }];
    x.chunks_exact(inputs)
        .zip(numbers.chunks_exact_mut(width))
        .map(|(x, numbers)| {
            let x = match norm {
                Some(norm) => {
                    norm.run(x, &mut normed);
                    &normed
                }
                None => x,
            };
            kernels::quantize(x, levels, &mut numbers[..inputs])
        })
        .collect()
}

/// Buffers of a product, taken and not borrowed: where a product waits for its threads, another may begin on this one.
#[derive(Default)]
struct Buffers {
    sums: Vec<i32>,
    values: Vec<f32>,
}

impl Buffers {
    fn with(work: impl FnOnce(&mut Self)) {
        thread_local!(static BUFFERS: Cell<Buffers> = Cell::default());
        let mut buffers = BUFFERS.take();
        work(&mut buffers);
        BUFFERS.set(buffers);
    }
}

pub(crate) struct VnniMatrix {
    panels: Panels<Vnni>,
    columns: Columns,
}

/// Rows of inputs in 8 bits.
pub(crate) struct VnniRows {
    /// `[lines, height]`.
    numbers: Vec<[[u8; STEP]; LINE]>,
    /// The number that stands for 0 in each row, and the scale.
    zeros: Vec<(u8, f32)>,
}

impl VnniMatrix {
    fn new(weight: &Int8Weight, outputs: usize, inputs: usize) -> Self {
        Self {
            panels: Panels::new(inputs, outputs, |output, step| {
                word(&weight.values[output * inputs..][..inputs], step)
            }),
            columns: Columns::new(weight, inputs, outputs.next_multiple_of(Vnni::columns())),
        }
    }
}

/// The numbers of a row that one step takes, 0 where there are no more.
fn word<T: Copy + Default>(row: &[T], step: usize) -> [T; STEP] {
    let rest = &row[step * STEP..];
    match rest.first_chunk() {
        Some(word) => *word,
        None => std::array::from_fn(|i| rest.get(i).copied().unwrap_or_default()),
    }
}

impl PackedWeights for VnniMatrix {
    type Rows<'x> = VnniRows;

    fn dims(&self) -> Dims {
        self.panels.dims
    }

    fn cut(&self, rows: usize, threads: usize) -> Cut {
        self.panels.cut(rows, threads)
    }

    fn rows(&self, x: &[f32], norm: Option<Norm>) -> candle_core::Result<VnniRows> {
        thread_local!(static NUMBERS: Cell<Vec<u8>> = const { Cell::new(Vec::new()) });
        const LEVELS: f32 = 255.0;
        let inputs = self.panels.dims.inputs;
        let width = inputs.next_multiple_of(STEP);
        let mut numbers = NUMBERS.take();
        let zeros = quantized(x, norm, inputs, LEVELS, width, &mut numbers);
        let rows = numbers.chunks_exact(width).map(|row| row.as_chunks().0);
        let mut packed = Vec::with_capacity(zeros.len() * width.div_ceil(STEP * LINE));
        side_by_side(width / STEP, rows, &mut packed);
        NUMBERS.set(numbers);
        Ok(VnniRows {
            numbers: packed,
            zeros,
        })
    }

    fn product(
        &self,
        stretches: &[VnniRows],
        panels: Range<usize>,
        mut take: impl FnMut(Part),
    ) -> candle_core::Result<()> {
        let width = self.panels.dims.columns;
        let numbers = stretches.iter().map(|rows| rows.numbers.as_slice());
        Buffers::with(|Buffers { sums, values }| {
            self.panels
                .product(numbers, panels, sums, |stretch, panel, sums| {
                    let values = sums.map(|sums| {
                        let columns = panel * width..(panel + 1) * width;
                        let zeros = &stretches[stretch].zeros;
                        self.columns.dequantize(sums, zeros, columns, values);
                        &mut values[..]
                    });
                    take(Part {
                        stretch,
                        panel,
                        values,
                        width,
                    });
                });
        });
        Ok(())
    }
}

thread_local! {
    /// Kept: making it asks the processor what it can, which takes long on virtual machines.
    static GEMM: GemmExecutor<u8, i8, i32> = GemmExecutor::new();
}

pub(crate) struct GemmMatrix {
    panels: gemm::Panels<i8>,
    columns: Columns,
}

/// Rows of inputs in 8 bits.
pub(crate) struct GemmRows {
    numbers: PackedAMatrix<u8>,
    /// The number that stands for 0 in each row, and the scale.
    zeros: Vec<(u8, f32)>,
}

impl GemmMatrix {
    fn new(weight: Int8Weight, outputs: usize, inputs: usize) -> candle_core::Result<Self> {
        let panels = GEMM.with(|gemm| {
            let pack = |weight: Matrix<i8>| gemm.prepack_b(weight);
            gemm::Panels::new(&weight.values, outputs, inputs, gemm.kernel_name(), pack)
        })?;
        Ok(Self {
            panels,
            columns: Columns::new(&weight, inputs, outputs),
        })
    }
}

impl PackedWeights for GemmMatrix {
    type Rows<'x> = GemmRows;

    fn dims(&self) -> Dims {
        self.panels.dims
    }

    fn cut(&self, rows: usize, threads: usize) -> Cut {
        self.panels.cut(rows, threads)
    }

    fn rows(&self, x: &[f32], norm: Option<Norm>) -> candle_core::Result<GemmRows> {
        // Without instructions for it two products are summed in 16 bits: 7 of the 8 bits leave room.
        let levels = match GEMM.with(GemmExecutor::may_saturate) {
            true => 127.0,
            false => 255.0,
        };
        let inputs = self.panels.dims.inputs;
        let mut numbers = Vec::new();
        let zeros = quantized(x, norm, inputs, levels, inputs, &mut numbers);
        let view = NdTensorView::try_from_data([x.len() / inputs, inputs], numbers.as_slice())
            .map_err(candle_core::Error::wrap)?;
        Ok(GemmRows {
            numbers: GEMM.with(|gemm| gemm.prepack_a(view)),
            zeros,
        })
    }

    fn product(
        &self,
        stretches: &[GemmRows],
        panels: Range<usize>,
        mut take: impl FnMut(Part),
    ) -> candle_core::Result<()> {
        let mut made = Ok(());
        Buffers::with(|Buffers { sums, values }| {
            for panel in panels {
                let weights = &self.panels.packed[panel];
                let (first, width) = (panel * self.panels.dims.columns, weights.cols());
                for (stretch, rows) in stretches.iter().enumerate() {
                    sums.resize(rows.zeros.len() * width, 0);
                    // The zeros are taken out below: told of them, rten-gemm 0.27 takes those of the first rows for all.
                    let product = GEMM.with(|gemm| {
                        gemm.gemm(
                            sums,
                            GemmInputA::Packed(&rows.numbers),
                            GemmInputB::Packed(weights),
                            GemmOptions::default(),
                        )
                    });
                    if let Err(error) = product {
                        made = Err(candle_core::Error::wrap(error));
                        return;
                    }
                    let columns = first..first + width;
                    self.columns.dequantize(sums, &rows.zeros, columns, values);
                    take(Part {
                        stretch,
                        panel,
                        values: Some(values),
                        width,
                    });
                }
            }
        });
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::product::Residual;

    /// Laid out both ways; what there are no instructions for is only slower.
    fn matrices(weight: &Int8Weight, outputs: usize, inputs: usize) -> [Int8Matrix; 2] {
        [
            Int8Matrix::Vnni(VnniMatrix::new(weight, outputs, inputs)),
            Int8Matrix::Gemm(GemmMatrix::new(weight.clone(), outputs, inputs).unwrap()),
        ]
    }

    /// The sums in f64, of the numbers that 8 bits leave of weights and rows.
    fn exact(x: &[f32], weight: &Int8Weight, outputs: usize, inputs: usize) -> Vec<f64> {
        let products = |row: &[f32], output: usize| -> f64 {
            let of_output = &weight.values[output * inputs..][..inputs];
            let sum: f64 = row
                .iter()
                .zip(of_output)
                .map(|(&x, &w)| f64::from(x) * f64::from(w))
                .sum();
            sum * f64::from(weight.scales[output])
        };
        x.chunks(inputs)
            .flat_map(|row| (0..outputs).map(move |output| products(row, output)))
            .collect()
    }

    #[test]
    fn errors_are_those_of_rounding_the_inputs() {
        for (rows, inputs, outputs) in [(1, 8, 5), (5, 33, 17), (40, 600, 100), (130, 64, 900)] {
            let number = |i: usize| ((i * 7919 + 13) % 251) as i32 - 125;
            let weight = Int8Weight {
                values: (0..outputs * inputs).map(|i| number(i) as i8).collect(),
                scales: (0..outputs).map(|i| 0.001 * (i + 1) as f32).collect(),
            };
            // Rows of very different sizes and middles, which must not blur each other.
            let x: Vec<f32> = (0..rows * inputs)
                .map(|i| (i / inputs, number(3 * i + 1) as f32))
                .map(|(row, x)| (x + 30.0 * (row % 9) as f32) * 10f32.powi(row as i32 % 7 - 3))
                .collect();
            let bias: Vec<f32> = (0..outputs).map(|i| i as f32).collect();
            let expected = exact(&x, &weight, outputs, inputs);
            let matrices = matrices(&weight, outputs, inputs);
            let residual = vec![100.0; rows * outputs];
            let finishes = [
                (None, Residual::None),
                (Some(&bias[..]), Residual::None),
                (Some(&bias), Residual::Rows(&residual)),
            ];
            let each = finishes.into_iter();
            for ((bias, residual), matrix) in
                each.flat_map(|finish| matrices.iter().map(move |matrix| (finish, matrix)))
            {
                let mut found = vec![7.0; rows * outputs];
                let finish = Finish {
                    bias,
                    activation: None,
                    residual,
                };
                matrix.multiply(&x, None, &mut found, finish).unwrap();
                for (i, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
                    let (row, output) = (i / outputs, i % outputs);
                    let of_row = &x[row * inputs..][..inputs];
                    let range = of_row.iter().fold(0.0, |a: f32, x| a.max(x.abs())) * 2.0;
                    // Half a step for each input, times its weight.
                    let weights: i32 = weight.values[output * inputs..][..inputs]
                        .iter()
                        .map(|w| i32::from(*w).abs())
                        .sum();
                    let most = f64::from(range / 127.0 / 2.0)
                        * f64::from(weights)
                        * f64::from(weight.scales[output]);
                    let expected = expected
                        + bias.map_or(0.0, |bias| f64::from(bias[output]))
                        + match residual {
                            Residual::None => 0.0,
                            _ => 100.0,
                        };
                    let off = (f64::from(found) - expected).abs();
                    assert!(off <= most * 1.01 + 1e-3, "{row} {output}: {off} > {most}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        let weight = Int8Weight {
            values: vec![1; 8],
            scales: vec![1.0],
        };
        for (matrix, bad) in matrices(&weight, 1, 8).iter().flat_map(|matrix| {
            [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].map(|bad| (matrix, bad))
        }) {
            let mut x = vec![1.0; 16];
            x[3] = bad;
            let mut found = vec![0.0; 2];
            let finish = Finish::default();
            matrix.multiply(&x, None, &mut found, finish).unwrap();
            assert!(
                !found[0].is_finite() && (found[1] - 8.0).abs() < 0.05,
                "{found:?}"
            );
        }
    }
}
