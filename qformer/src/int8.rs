//! Products in 8 bits on a CPU.
//!
//! Weights have a scale for each output, which they are stored or quantized with. Inputs are quantized as they come, each
//! row by its own smallest and largest value (dynamic quantization, as ONNX Runtime calls it). What is summed up is whole
//! numbers, so the only errors are those of the two roundings.

use std::cell::Cell;

use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions, PackedAMatrix};
use rten_tensor::NdTensorView;

use crate::kernels;
use crate::product::{Dims, Norm, PackedWeights, Panels, kernel_rows};

thread_local! {
    /// Kept: making it asks the processor what it can, which takes long on virtual machines.
    static GEMM: GemmExecutor<u8, i8, i32> = GemmExecutor::new();
}

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
    panels: Panels<i8>,
    /// `[outputs]`.
    scales: Vec<f32>,
    /// `[outputs]`, what the numbers of each add up to, scaled.
    values: Vec<f32>,
}

/// Rows of inputs in 8 bits.
pub(crate) struct Rows {
    numbers: PackedAMatrix<u8>,
    /// The number that stands for 0 in each row, and the scale.
    zeros: Vec<(u8, f32)>,
}

impl Int8Matrix {
    pub fn new(weight: Int8Weight, outputs: usize, inputs: usize) -> candle_core::Result<Self> {
        let panels = Panels::new(&weight.values, outputs, inputs, |weight| {
            GEMM.with(|gemm| gemm.prepack_b(weight))
        })?;
        let rows = weight.values.chunks_exact(inputs).zip(&weight.scales);
        let values = rows.map(|(row, scale)| {
            let sum: i32 = row.iter().map(|&value| i32::from(value)).sum();
            sum as f32 * scale
        });
        Ok(Self {
            panels,
            values: values.collect(),
            scales: weight.scales,
        })
    }
}

impl PackedWeights for Int8Matrix {
    type Rows<'x> = Rows;

    fn dims(&self) -> Dims {
        self.panels.dims
    }

    fn kernel_rows(&self) -> usize {
        GEMM.with(|gemm| kernel_rows(gemm.kernel_name()))
    }

    fn rows(&self, x: &[f32], norm: Option<Norm>) -> candle_core::Result<Rows> {
        thread_local!(static NUMBERS: Cell<Vec<u8>> = const { Cell::new(Vec::new()) });
        let inputs = self.panels.dims.inputs;
        // Without VNNI two products are summed in 16 bits: 7 of the 8 bits leave room.
        let levels = match GEMM.with(GemmExecutor::may_saturate) {
            true => 127.0,
            false => 255.0,
        };
        let mut numbers = NUMBERS.take();
        numbers.resize(x.len(), 0);
        let mut normed = vec![0.0; if norm.is_some() { inputs } else { 0 }];
        let zeros = x
            .chunks_exact(inputs)
            .zip(numbers.chunks_exact_mut(inputs))
            .map(|(x, numbers)| match norm {
                Some(norm) => {
                    norm.run(x, &mut normed);
                    kernels::quantize(&normed, levels, numbers)
                }
                None => kernels::quantize(x, levels, numbers),
            })
            .collect();
        let view = NdTensorView::try_from_data([x.len() / inputs, inputs], numbers.as_slice())
            .map_err(candle_core::Error::wrap)?;
        let packed = GEMM.with(|gemm| gemm.prepack_a(view));
        NUMBERS.set(numbers);
        Ok(Rows {
            numbers: packed,
            zeros,
        })
    }

    fn product(
        &self,
        rows: &Rows,
        panel: usize,
        mut take: impl FnMut(usize, &mut [f32]),
    ) -> candle_core::Result<()> {
        thread_local!(static SUMS: Cell<(Vec<i32>, Vec<f32>)> = Cell::default());
        let first = panel * self.panels.dims.columns;
        let panel = &self.panels.packed[panel];
        let columns = first..first + panel.cols();
        // Taken, not borrowed: where a product waits for its threads, another may begin on this one.
        let (mut sums, mut values) = SUMS.take();
        sums.resize(rows.zeros.len() * columns.len(), 0);
        values.resize(columns.len(), 0.0);
        // The zeros are taken out below: told of them, rten-gemm 0.27 takes those of the first rows for all.
        let made = GEMM.with(|gemm| {
            gemm.gemm(
                &mut sums,
                GemmInputA::Packed(&rows.numbers),
                GemmInputB::Packed(panel),
                GemmOptions::default(),
            )
        });
        made.map_err(candle_core::Error::wrap)?;
        let products = sums.chunks_exact(columns.len()).zip(&rows.zeros);
        for (row, (sums, (zero, scale))) in products.enumerate() {
            kernels::dequantize(
                sums,
                *zero,
                *scale,
                &self.scales[columns.clone()],
                &self.values[columns.clone()],
                &mut values,
            );
            take(row, &mut values);
        }
        SUMS.set((sums, values));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::product::{Finish, Residual, multiply};

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
            let matrix = Int8Matrix::new(weight.clone(), outputs, inputs).unwrap();
            let residual = vec![100.0; rows * outputs];
            for (bias, residual) in [
                (None, Residual::None),
                (Some(&bias[..]), Residual::None),
                (Some(&bias), Residual::Rows(&residual)),
            ] {
                let mut found = vec![7.0; rows * outputs];
                let finish = Finish {
                    bias,
                    activation: None,
                    residual,
                };
                multiply(&matrix, &x, None, &mut found, finish).unwrap();
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
        let matrix = Int8Matrix::new(weight, 1, 8).unwrap();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![1.0; 16];
            x[3] = bad;
            let mut found = vec![0.0; 2];
            let finish = Finish::default();
            multiply(&matrix, &x, None, &mut found, finish).unwrap();
            assert!(
                !found[0].is_finite() && (found[1] - 8.0).abs() < 0.05,
                "{found:?}"
            );
        }
    }
}
