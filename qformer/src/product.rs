//! Products with weights that are laid out once, at load, as the machine's vector instructions read them, in f32 or in 8
//! bits: this crate's own where there is AVX-512 ([`packed`]), `rten-gemm`'s elsewhere ([`gemm`]).
//!
//! What comes before a product (LayerNorm, rounding to 8 bits) is done as rows are laid out, what follows it (bias,
//! activation, residual) while its values are still in the core's cache.

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::config::Activation;
use crate::kernels;
use crate::product::packed::fetch_soon;
use crate::tiles::{Tile, tiles};

pub(crate) mod float;
pub(crate) mod gemm;
pub(crate) mod packed;
pub(crate) mod vnni;

/// Up to so many bytes of weights, each block of rows is multiplied with all of them; more of them would be read anew from
/// beyond L2 for each.
const MOST_BYTES: usize = 3 << 20;
/// Values that are finished together, few enough for L1.
const L1_VALUES: usize = 4096;

/// LayerNorm of rows of `weight.len()` values.
#[derive(Clone, Copy)]
pub(crate) struct Norm<'a> {
    pub weight: &'a [f32],
    pub bias: &'a [f32],
    pub eps: f32,
}

impl Norm<'_> {
    /// Of rows of `input` into `output`.
    pub fn run(&self, input: &[f32], output: &mut [f32]) {
        kernels::layer_norm(input, self.weight, self.bias, self.eps, output);
    }
}

/// What a product is added to at last.
#[derive(Clone, Copy, Default)]
pub(crate) enum Residual<'a> {
    #[default]
    None,
    /// What is in the output.
    Output,
    /// `[rows, outputs]`.
    Rows(&'a [f32]),
}

/// What is done to a product.
#[derive(Clone, Copy, Default)]
pub(crate) struct Finish<'a> {
    /// `[outputs]`, added to each row.
    pub bias: Option<&'a [f32]>,
    /// Applied after the bias.
    pub activation: Option<Activation>,
    pub residual: Residual<'a>,
}

/// Finishes some rows and columns of a product into their place in the output.
struct FinishPart<'a, 'b> {
    finish: &'a Finish<'a>,
    /// `[rows, width]`.
    values: &'a mut [f32],
    width: usize,
    /// The part of each row of the output that begins with these columns.
    output: &'a mut [&'b mut [f32]],
    /// Where the columns are in these.
    offset: usize,
    /// The first row and column in the output, and how many columns that has.
    row: usize,
    column: usize,
    outputs: usize,
}

impl WithSimd for FinishPart<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        // The last panel may be wider than what is left.
        let columns = self.width.min(self.outputs - self.column);
        let together = (L1_VALUES / self.width).max(1);
        let parts = self.values.chunks_mut(together * self.width);
        let parts = parts.zip(self.output.chunks_mut(together));
        for (first, (values, output)) in (self.row..).step_by(together).zip(parts) {
            if let Some(bias) = self.finish.bias {
                let bias = &bias[self.column..][..columns];
                for row in values.chunks_exact_mut(self.width) {
                    combine(&mut row[..columns], bias, |x, bias| x + bias);
                }
            }
            match self.finish.activation {
                Some(Activation::Gelu) => {
                    for x in &mut *values {
                        *x = kernels::gelu(*x);
                    }
                }
                Some(Activation::QuickGelu) => {
                    for x in &mut *values {
                        *x = kernels::quick_gelu(*x);
                    }
                }
                None => (),
            }
            let rows = values.chunks_exact(self.width).zip(output);
            for (row, (values, output)) in (first..).zip(rows) {
                let (values, output) = (&values[..columns], &mut output[self.offset..][..columns]);
                match self.finish.residual {
                    Residual::None => combine(output, values, |_, x| x),
                    Residual::Output => combine(output, values, |y, x| y + x),
                    Residual::Rows(rows) => {
                        let rows = &rows[row * self.outputs + self.column..][..columns];
                        combine(output, rows, |_, y| y);
                        combine(output, values, |y, x| y + x);
                    }
                }
            }
        }
    }
}

/// Makes each of `values` of what is there and of its counterpart in `others`.
#[inline(always)]
fn combine(values: &mut [f32], others: &[f32], make: impl Fn(f32, f32) -> f32) {
    /// In stretches of one length: what is left of a vector loop's is done one by one.
    const LANES: usize = 16;
    let (values, rest) = values.as_chunks_mut::<LANES>();
    let (others, other_rest) = others.as_chunks::<LANES>();
    for (values, others) in values.iter_mut().zip(others) {
        // Written when all are made: one by one they might be among the others.
        let mut made = *values;
        for (x, other) in made.iter_mut().zip(others) {
            *x = make(*x, *other);
        }
        *values = made;
    }
    for (x, other) in rest.iter_mut().zip(other_rest) {
        *x = make(*x, *other);
    }
}

/// Weights `[inputs, outputs]` in panels, each of some columns.
pub(crate) trait PackedWeights: Sync {
    /// A stretch of rows of inputs, as the product reads them.
    type Rows<'x>: Send + Sync;

    fn dims(&self) -> Dims;

    /// How a product of `rows` rows is cut up for so many threads.
    fn cut(&self, rows: usize, threads: usize) -> Cut;

    /// `x` `[rows, inputs]`, after `norm`, as the product reads it.
    fn rows<'x>(&self, x: &'x [f32], norm: Option<Norm>) -> candle_core::Result<Self::Rows<'x>>;

    /// Hands the product of each stretch with each of the panels to `take`, which may be told of it before.
    fn product(
        &self,
        stretches: &[Self::Rows<'_>],
        panels: Range<usize>,
        take: impl FnMut(Part),
    ) -> candle_core::Result<()>;
}

/// Of [`PackedWeights`].
#[derive(Clone, Copy)]
pub(crate) struct Dims {
    pub inputs: usize,
    pub outputs: usize,
    /// Of a panel; the last may have fewer.
    pub columns: usize,
    /// Of all weights.
    pub bytes: usize,
}

impl Dims {
    pub fn panels(&self) -> usize {
        self.outputs.div_ceil(self.columns)
    }
}

/// Of a product.
#[derive(Clone, Copy)]
pub(crate) struct Cut {
    /// Rows of a stretch, which are laid out together.
    pub height: usize,
    /// Stretches of a block, which one thread multiplies.
    pub stretches: usize,
    /// How many panels one thread multiplies a block with; all of them where threads share rows alone.
    pub panels: Option<usize>,
}

/// The product of a stretch of rows with a panel.
pub(crate) struct Part<'a> {
    /// Of those that were given.
    pub stretch: usize,
    pub panel: usize,
    /// `[rows of the stretch, width]`; none where it is about to be computed, and there is time to prepare for it.
    pub values: Option<&'a mut [f32]>,
    /// At least the panel's columns; what more there is means nothing.
    pub width: usize,
}

/// `x` `[rows, inputs]`, after `norm`, times `weights`, finished, into `output` `[rows, outputs]`.
pub(crate) fn multiply<W: PackedWeights>(
    weights: &W,
    x: &[f32],
    norm: Option<Norm>,
    output: &mut [f32],
    finish: Finish,
) -> candle_core::Result<()> {
    if x.is_empty() {
        return Ok(());
    }
    let dims = weights.dims();
    let Cut {
        height,
        stretches,
        panels,
    } = weights.cut(x.len() / dims.inputs, rayon::current_num_threads());
    let run = |stretches: &[W::Rows<'_>], tile: &mut Tile| {
        let first = tile.column / dims.columns;
        let columns = tile.rows.first().map_or(0, |row| row.len());
        let panels = first..first + columns.div_ceil(dims.columns);
        weights.product(stretches, panels, |part| {
            let (row, column) = (part.stretch * height, part.panel * dims.columns);
            let offset = column - tile.column;
            let output = &mut tile.rows[row..];
            let Some(values) = part.values else {
                // From one row to the next there is no line of the cache that the processor would fetch by itself.
                for row in output.iter().take(height) {
                    let columns = dims.columns.min(row.len() - offset);
                    fetch_soon(&row[offset..][..columns]);
                }
                return;
            };
            pulp::Arch::new().dispatch(FinishPart {
                finish: &finish,
                values,
                width: part.width,
                output,
                offset,
                row: tile.row + row,
                column,
                outputs: dims.outputs,
            });
        })
    };
    let laid_out = |x| weights.rows(x, norm);
    let block = stretches * height;
    if let Some(panels) = panels {
        let rows = x.par_chunks(height * dims.inputs).map(laid_out);
        let rows = rows.collect::<candle_core::Result<Vec<_>>>()?;
        let tiles = tiles(output, dims.outputs, block, panels * dims.columns);
        return tiles.into_par_iter().try_for_each(|mut tile| {
            let rows = &rows[tile.row / height..];
            run(&rows[..stretches.min(rows.len())], &mut tile)
        });
    }
    // A block is one thread's, and no other waits for its rows.
    x.par_chunks(block * dims.inputs)
        .zip(output.par_chunks_mut(block * dims.outputs))
        .enumerate()
        .try_for_each(|(index, (x, output))| {
            let rows = x.chunks(height * dims.inputs).map(laid_out);
            let rows = rows.collect::<candle_core::Result<Vec<_>>>()?;
            let mut tile = Tile {
                row: index * block,
                column: 0,
                rows: output.chunks_exact_mut(dims.outputs).collect(),
            };
            run(&rows, &mut tile)
        })
}

/// How many of `count` go together, `most` at most and a multiple of `step`: so many that the busiest of `threads` threads
/// has the fewest, and the more the better.
pub(crate) fn together(count: usize, step: usize, most: usize, threads: usize) -> usize {
    let busiest = |size: usize| {
        let last = (count - 1) % size + 1;
        let (full, rest) = ((count - 1) / size / threads, (count - 1) / size % threads);
        full * size + if rest == 0 { last } else { size }
    };
    let sizes = (1..=most / step).rev().map(|steps| steps * step);
    sizes.min_by_key(|size| busiest(*size)).unwrap_or(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights that remember nothing but their sizes: each product's value is its row's first input and its own column.
    struct Places {
        dims: Dims,
        cut: Cut,
    }

    impl PackedWeights for Places {
        type Rows<'x> = &'x [f32];

        fn dims(&self) -> Dims {
            self.dims
        }

        fn cut(&self, _: usize, _: usize) -> Cut {
            self.cut
        }

        fn rows<'x>(&self, x: &'x [f32], _: Option<Norm>) -> candle_core::Result<&'x [f32]> {
            Ok(x)
        }

        fn product(
            &self,
            stretches: &[&[f32]],
            panels: Range<usize>,
            mut take: impl FnMut(Part),
        ) -> candle_core::Result<()> {
            let width = self.dims.columns;
            for panel in panels {
                for (stretch, rows) in stretches.iter().enumerate() {
                    let rows = rows.chunks(self.dims.inputs);
                    let columns = panel * width..(panel + 1) * width;
                    let values = rows.flat_map(|row| {
                        let columns = columns.clone();
                        columns.map(move |column| row[0] + column as f32)
                    });
                    let mut values: Vec<f32> = values.collect();
                    for values in [None, Some(&mut values[..])] {
                        take(Part {
                            stretch,
                            panel,
                            values,
                            width,
                        });
                    }
                }
            }
            Ok(())
        }
    }

    #[test]
    fn every_value_has_its_place_whichever_way() {
        let (inputs, outputs) = (3, 70);
        for (count, height, stretches, columns) in [
            (1, 6, 1, 32),
            (7, 6, 1, 8),
            (48, 14, 3, 16),
            (257, 14, 5, 32),
            (257, 42, 1, 64),
            (700, 14, 20, 128),
        ] {
            let x: Vec<f32> = (0..count * inputs)
                .map(|i| 100.0 * (i / inputs) as f32)
                .collect();
            let bias = vec![0.25; outputs];
            let residual: Vec<f32> = (0..count * outputs).map(|i| i as f32 * 10.0).collect();
            for (panels, bias) in [
                (None, None),
                (None, Some(&bias[..])),
                (Some(1), Some(&bias)),
                (Some(2), Some(&bias)),
            ] {
                let weights = Places {
                    dims: Dims {
                        inputs,
                        outputs,
                        columns,
                        bytes: 0,
                    },
                    cut: Cut {
                        height,
                        stretches,
                        panels,
                    },
                };
                for kind in [Residual::None, Residual::Output, Residual::Rows(&residual)] {
                    let mut output = residual.clone();
                    let finish = Finish {
                        bias,
                        activation: None,
                        residual: kind,
                    };
                    multiply(&weights, &x, None, &mut output, finish).unwrap();
                    for (i, value) in output.iter().enumerate() {
                        let product = 100.0 * (i / outputs) as f32 + (i % outputs) as f32;
                        let added = match kind {
                            Residual::None => 0.0,
                            _ => residual[i],
                        };
                        assert_eq!(
                            *value,
                            product + bias.map_or(0.0, |bias| bias[0]) + added,
                            "{count} rows, {columns} columns, {panels:?} panels, {i}"
                        );
                    }
                }
            }
        }
    }
}
