//! Products in f32.
//!
//! The kernel is for 32 registers of 16 values. With AVX2's 16 of 8, `rten-gemm`'s is about as fast with large weights and
//! faster with small ones.

use std::cell::Cell;
use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::gemm::GemmF32;
use super::packed::{Kernel, LINE, Panels, Tile, by_height, fetch, fetch_soon, side_by_side};
use super::{Cut, Dims, Finish, Norm, PackedWeights, Part};

/// Registers that a row of a tile has its sums in.
const REGISTERS: usize = 2;

/// Whether this processor has what the kernel is for.
fn is_available() -> bool {
    Arch::new().dispatch(Shape) == [14, 32]
}

/// With the widest vectors of the machine.
struct Widest;

impl Kernel for Widest {
    type Inputs = f32;
    type Weights = f32;
    type Sum = f32;

    const STEP: usize = 1;

    fn columns() -> usize {
        Arch::new().dispatch(Shape)[1]
    }

    fn rows() -> usize {
        Arch::new().dispatch(Shape)[0]
    }

    fn multiply(tile: &Tile<f32, f32>, sums: &mut [f32], on_top: bool) {
        Arch::new().dispatch(Multiply { tile, sums, on_top });
    }
}

/// Most rows, and the columns, of a tile whose sums fill the registers but for two of weights and one of an input.
struct Shape;

impl WithSimd for Shape {
    type Output = [usize; 2];

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> [usize; 2] {
        let rows = if S::REGISTER_COUNT < 32 { 6 } else { 14 };
        [rows, REGISTERS * S::F32_LANES]
    }
}

/// [`Kernel::multiply`].
struct Multiply<'a> {
    tile: &'a Tile<'a, f32, f32>,
    sums: &'a mut [f32],
    on_top: bool,
}

impl WithSimd for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let height = self.sums.len() / (REGISTERS * S::F32_LANES);
        by_height!(height, ROWS => multiply::<S, ROWS>(simd, self));
    }
}

#[inline(always)]
fn multiply<S: Simd, const ROWS: usize>(simd: S, product: Multiply) {
    let tile = product.tile;
    let (sums, _) = S::as_mut_simd_f32s(product.sums);
    let (sums, _) = sums.as_chunks_mut::<REGISTERS>();
    // All loops over it are of a known number of rows, or the compiler would keep it in memory.
    let mut registers = [[simd.splat_f32s(0.0); REGISTERS]; ROWS];
    if product.on_top {
        registers.copy_from_slice(sums);
    }
    let (panel, _) = S::as_simd_f32s(tile.panel);
    let (panel, _) = panel.as_chunks::<REGISTERS>();
    let (panel, _) = panel.as_chunks::<LINE>();
    let (rows, _) = tile.rows.as_chunks::<ROWS>();
    let next = rows.iter().skip(1).chain(rows.last());
    let lines = rows.iter().zip(next).zip(panel);
    for (((rows, next), panel), ahead) in lines.zip(tile.ahead(rows.len())) {
        fetch(ahead);
        for (step, weights) in panel.iter().enumerate() {
            if let Some(line) = next.get(step) {
                fetch_soon(line);
            }
            for (row, registers) in rows.iter().zip(&mut registers) {
                let input = simd.splat_f32s(row[step]);
                for (sum, weights) in registers.iter_mut().zip(weights) {
                    *sum = simd.mul_add_e_f32s(input, *weights, *sum);
                }
            }
        }
    }
    sums.copy_from_slice(&registers);
}

/// Weights in f32.
pub(crate) enum F32Matrix {
    Packed(PackedF32),
    Gemm(GemmF32),
}

impl F32Matrix {
    /// From `[outputs, inputs]`.
    pub fn new(weight: &[f32], outputs: usize, inputs: usize) -> candle_core::Result<Self> {
        if weight.len() != outputs * inputs || weight.is_empty() {
            let found = weight.len();
            candle_core::bail!("{found} weights for {inputs} inputs and {outputs} outputs");
        }
        Ok(match is_available() {
            true => Self::Packed(PackedF32::new(weight, outputs, inputs)),
            false => Self::Gemm(GemmF32::new(weight, outputs, inputs)?),
        })
    }

    pub fn dims(&self) -> Dims {
        match self {
            Self::Packed(matrix) => matrix.dims(),
            Self::Gemm(matrix) => matrix.dims(),
        }
    }

    /// [`multiply`](super::multiply).
    pub fn multiply(
        &self,
        x: &[f32],
        norm: Option<Norm>,
        output: &mut [f32],
        finish: Finish,
    ) -> candle_core::Result<()> {
        match self {
            Self::Packed(matrix) => super::multiply(matrix, x, norm, output, finish),
            Self::Gemm(matrix) => super::multiply(matrix, x, norm, output, finish),
        }
    }
}

/// Weights in f32 for this crate's own kernel.
pub(crate) struct PackedF32(Panels<Widest>);

impl PackedF32 {
    /// From `[outputs, inputs]`.
    fn new(weight: &[f32], outputs: usize, inputs: usize) -> Self {
        let weight = |output, input| weight[output * inputs + input];
        Self(Panels::new(inputs, outputs, weight))
    }
}

impl PackedWeights for PackedF32 {
    /// `[lines, height]`.
    type Rows<'x> = Vec<[f32; LINE]>;

    fn dims(&self) -> Dims {
        self.0.dims
    }

    fn cut(&self, rows: usize, threads: usize) -> Cut {
        self.0.cut(rows, threads)
    }

    fn rows(&self, x: &[f32], norm: Option<Norm>) -> candle_core::Result<Vec<[f32; LINE]>> {
        thread_local!(static NORMED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) });
        let inputs = self.0.dims.inputs;
        let mut packed = Vec::with_capacity(x.len() / inputs * inputs.div_ceil(LINE));
        match norm {
            Some(norm) => {
                let mut normed = NORMED.take();
                normed.resize(x.len(), 0.0);
                norm.run(x, &mut normed);
                side_by_side(inputs, normed.chunks_exact(inputs), &mut packed);
                NORMED.set(normed);
            }
            None => side_by_side(inputs, x.chunks_exact(inputs), &mut packed),
        }
        Ok(packed)
    }

    fn product(
        &self,
        stretches: &[Vec<[f32; LINE]>],
        panels: Range<usize>,
        mut take: impl FnMut(Part),
    ) -> candle_core::Result<()> {
        thread_local!(static SUMS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) });
        let mut buffer = SUMS.take();
        let stretches = stretches.iter().map(Vec::as_slice);
        let width = self.0.dims.columns;
        self.0
            .product(stretches, panels, &mut buffer, |stretch, panel, values| {
                take(Part {
                    stretch,
                    panel,
                    values,
                    width,
                });
            });
        SUMS.set(buffer);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::product::Residual;

    fn check<S: Simd>(simd: S) {
        let [most, columns] = Shape.with_simd(simd);
        let number = |i: usize| ((i * 7919 + 13) % 251) as f32 / 60.0 - 2.0;
        for (height, lines) in (1..=most).flat_map(|height| [(height, 1), (height, 3)]) {
            let line = |i| std::array::from_fn(|step| number(LINE * i + step));
            let rows: Vec<[f32; LINE]> = (0..lines * height).map(line).collect();
            let panel = (0..lines * LINE * columns).map(|i| number(3 * i + 1));
            let panel: Vec<f32> = panel.collect();
            let tile = Tile {
                rows: &rows,
                panel: &panel,
                ahead: &panel[..1],
            };
            for on_top in [false, true] {
                let mut sums = vec![5.0; height * columns];
                Multiply {
                    tile: &tile,
                    sums: &mut sums,
                    on_top,
                }
                .with_simd(simd);
                for (i, found) in sums.iter().enumerate() {
                    let (row, column) = (i / columns, i % columns);
                    let products = (0..lines * LINE).map(|step| {
                        let input = rows[step / LINE * height + row][step % LINE];
                        f64::from(input) * f64::from(panel[step * columns + column])
                    });
                    let expected = products.sum::<f64>() + if on_top { 5.0 } else { 0.0 };
                    assert!((f64::from(*found) - expected).abs() < 1e-4, "{height} {i}");
                }
            }
        }
    }

    #[test]
    fn every_instruction_set_multiplies_alike() {
        check(pulp::Scalar::new());
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(simd) = pulp::x86::V3::try_new() {
                check(simd);
            }
            if let Some(simd) = pulp::x86::V4::try_new() {
                check(simd);
            }
        }
    }

    #[test]
    fn products_are_right_laid_out_either_way() {
        let number = |i: usize| ((i * 7919 + 13) % 251) as f32 / 250.0 - 0.5;
        // The last two with weights that are shared out, and with more steps than go at once.
        for (rows, inputs, outputs) in [(1, 8, 5), (5, 33, 17), (257, 100, 70), (30, 1700, 500)] {
            let weight: Vec<f32> = (0..outputs * inputs).map(number).collect();
            let x: Vec<f32> = (0..rows * inputs).map(|i| number(3 * i + 1)).collect();
            let bias: Vec<f32> = (0..outputs).map(number).collect();
            for matrix in [
                F32Matrix::Packed(PackedF32::new(&weight, outputs, inputs)),
                F32Matrix::Gemm(GemmF32::new(&weight, outputs, inputs).unwrap()),
            ] {
                let mut found = vec![1.0; rows * outputs];
                let finish = Finish {
                    bias: Some(&bias),
                    activation: None,
                    residual: Residual::Output,
                };
                matrix.multiply(&x, None, &mut found, finish).unwrap();
                for (i, found) in found.iter().enumerate() {
                    let (row, output) = (i / outputs, i % outputs);
                    let inputs = x[row * inputs..][..inputs]
                        .iter()
                        .zip(&weight[output * inputs..]);
                    let product: f64 = inputs.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                    let expected = product + f64::from(bias[output]) + 1.0;
                    assert!(
                        (f64::from(*found) - expected).abs() < 1e-4,
                        "{row} {output}"
                    );
                }
            }
        }
    }
}
