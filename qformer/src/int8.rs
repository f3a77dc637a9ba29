//! Products in 8 bits on a CPU.
//!
//! Weights have a scale for each output, which they are stored or quantized with. Inputs are quantized as they come, each
//! row by its own smallest and largest value (dynamic quantization, as ONNX Runtime calls it). What is summed up is whole
//! numbers, so the only errors are those of the two roundings.

use rayon::prelude::*;
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmUninitOptions, PackedBMatrix};
use rten_tensor::NdTensorView;

use crate::kernels;
use crate::operations::timed;

/// Rows that a thread quantizes at a time.
const ROWS: usize = 8;

/// A matrix in 8 bits: `value = number * scale of its row`.
#[derive(Debug, Clone)]
pub(crate) struct Int8Weight {
    /// `[outputs, inputs]`.
    pub values: Vec<i8>,
    /// `[outputs]`.
    pub scales: Vec<f32>,
}

/// An [`Int8Weight`], laid out as the machine's matrix product reads it.
pub(crate) struct Int8Matrix {
    /// `[inputs, outputs]`.
    weight_t: PackedBMatrix<i8>,
    /// `[outputs]`, what the numbers of each add up to.
    sums: Vec<i32>,
    scales: Vec<f32>,
}

impl Int8Matrix {
    pub fn new(weight: Int8Weight, outputs: usize, inputs: usize) -> candle_core::Result<Self> {
        let view = NdTensorView::try_from_data([outputs, inputs], weight.values.as_slice())
            .map_err(candle_core::Error::wrap)?;
        Ok(Self {
            weight_t: gemm().prepack_b(view.transposed()),
            sums: weight
                .values
                .chunks_exact(inputs.max(1))
                .map(|row| row.iter().map(|&value| i32::from(value)).sum())
                .collect(),
            scales: weight.scales,
        })
    }

    pub fn inputs(&self) -> usize {
        self.weight_t.rows()
    }

    pub fn outputs(&self) -> usize {
        self.weight_t.cols()
    }

    /// `x * weight_t + bias` into `output`, added to what is there where `add`.
    pub fn multiply(
        &self,
        x: &[f32],
        bias: Option<&[f32]>,
        output: &mut [f32],
        add: bool,
    ) -> candle_core::Result<()> {
        let (inputs, outputs) = (self.inputs(), self.outputs());
        let rows = x.len() / inputs;
        let gemm = gemm();
        // Without VNNI two products are summed in 16 bits: 7 of the 8 bits leave room.
        let levels = if gemm.may_saturate() { 127.0 } else { 255.0 };
        let (mut numbers, mut zeros, mut scales) =
            (vec![0; x.len()], vec![0; rows], vec![0.0; rows]);
        timed("8 bits: rows to numbers", || {
            x.par_chunks(ROWS * inputs)
                .zip(numbers.par_chunks_mut(ROWS * inputs))
                .zip(zeros.par_chunks_mut(ROWS))
                .zip(scales.par_chunks_mut(ROWS))
                .for_each(|(((x, numbers), zeros), scales)| {
                    kernels::quantize(x, inputs, levels, numbers, zeros, scales);
                });
        });
        let numbers = NdTensorView::try_from_data([rows, inputs], numbers.as_slice())
            .map_err(candle_core::Error::wrap)?;
        // The zeros are taken out below: told of them, rten-gemm 0.27 takes those of the first rows for all.
        let mut sums: Vec<i32> = Vec::with_capacity(rows * outputs);
        let sums = gemm
            .gemm_uninit(
                &mut sums.spare_capacity_mut()[..rows * outputs],
                GemmInputA::Unpacked(numbers),
                GemmInputB::Packed(&self.weight_t),
                GemmUninitOptions::default(),
            )
            .map_err(candle_core::Error::wrap)?;
        let columns = kernels::Columns {
            sums: &self.sums,
            scales: &self.scales,
            bias,
        };
        timed("8 bits: sums to values", || {
            sums.par_chunks(ROWS * outputs)
                .zip(output.par_chunks_mut(ROWS * outputs))
                .zip(zeros.par_chunks(ROWS).zip(scales.par_chunks(ROWS)))
                .for_each(|((sums, output), (zeros, scales))| {
                    kernels::dequantize(sums, zeros, scales, &columns, output, add);
                });
        });
        Ok(())
    }
}

fn gemm() -> GemmExecutor<u8, i8, i32> {
    GemmExecutor::new()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        for (rows, inputs, outputs) in [(1, 8, 5), (5, 33, 17), (40, 600, 100), (130, 64, 40)] {
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
            let matrix = Int8Matrix::new(weight.clone(), outputs, inputs).unwrap();
            for (bias, add) in [(None, false), (Some(&bias[..]), false), (Some(&bias), true)] {
                let mut found = vec![100.0; rows * outputs];
                matrix.multiply(&x, bias, &mut found, add).unwrap();
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
                        + if add { 100.0 } else { 0.0 };
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
        let matrix = Int8Matrix::new(weight, 1, 8).unwrap();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![1.0; 16];
            x[3] = bad;
            let mut found = vec![0.0; 2];
            matrix.multiply(&x, None, &mut found, false).unwrap();
            assert!(
                !found[0].is_finite() && (found[1] - 8.0).abs() < 0.05,
                "{found:?}"
            );
        }
    }
}
