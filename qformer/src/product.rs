//! Products with weights that are laid out once, at load, as the machine's vector instructions read them, in f32
//! ([`float`]) or in 8 bits ([`crate::int8`]).
//!
//! A thread takes a block of rows and some panels of columns: a panel's weights are read from memory once a block, and the
//! block's rows stay in the core's L2 from one panel to the next. What comes before a product (LayerNorm, rounding to 8
//! bits) is done as rows are laid out, what follows it (bias, activation, residual) while a tile is still in L1.

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::config::Activation;
use crate::kernels;
use crate::tiles::{Tile, tiles};

pub(crate) mod float;
pub(crate) mod packed;
pub(crate) mod vnni;

/// Most columns of a panel.
const MOST_COLUMNS: usize = 128;
/// Most rows of a block.
const MOST_ROWS: usize = 280;
/// Rows of a block that are enough for all weights to be read for it.
const FEWEST_ROWS: usize = 56;
/// Blocks for each thread where there are rows enough, so that they are shared out evenly.
const BLOCKS_PER_THREAD: usize = 2;
/// Where there are fewer rows, parts of the columns for each thread.
const PARTS_PER_THREAD: usize = 4;

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
    part: Part<'a>,
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
        match self.finish.activation {
            Some(Activation::Gelu) => self.run(kernels::gelu),
            Some(Activation::QuickGelu) => self.run(kernels::quick_gelu),
            None => self.run(|x| x),
        }
    }
}

impl FinishPart<'_, '_> {
    #[inline(always)]
    fn run(self, activation: impl Fn(f32) -> f32) {
        const NO_BIAS: [f32; MOST_COLUMNS] = [0.0; MOST_COLUMNS];
        let width = self.part.width;
        // The last panel may be wider than what is left.
        let columns = width.min(self.outputs - self.column);
        let bias = match self.finish.bias {
            Some(bias) => &bias[self.column..][..columns],
            None => &NO_BIAS[..columns],
        };
        let rows = self.part.values.chunks_exact(width).zip(self.output);
        for (row, (values, output)) in (self.row..).zip(rows) {
            let (values, output) = (&values[..columns], &mut output[self.offset..][..columns]);
            let finished = |x, bias| activation(x + bias);
            match self.finish.residual {
                Residual::None => {
                    zipped(values, bias, &[], output, |x, bias, _, _| finished(x, bias))
                }
                Residual::Output => zipped(values, bias, &[], output, |x, bias, _, y| {
                    y + finished(x, bias)
                }),
                Residual::Rows(rows) => {
                    let rows = &rows[row * self.outputs + self.column..][..columns];
                    zipped(values, bias, rows, output, |x, bias, residual, _| {
                        residual + finished(x, bias)
                    });
                }
            }
        }
    }
}

/// Makes each of `output` of what is there and what is in the others, 0 where these are shorter.
#[inline(always)]
fn zipped(
    a: &[f32],
    b: &[f32],
    c: &[f32],
    output: &mut [f32],
    make: impl Fn(f32, f32, f32, f32) -> f32,
) {
    /// In stretches of one length: what is left of a vector loop's is done one by one.
    const LANES: usize = 16;
    let ((a, a_rest), (b, b_rest), (c, c_rest)) = (
        a.as_chunks::<LANES>(),
        b.as_chunks::<LANES>(),
        c.as_chunks::<LANES>(),
    );
    let (output, rest) = output.as_chunks_mut::<LANES>();
    for (i, output) in output.iter_mut().enumerate() {
        let (a, b, c) = (&a[i], &b[i], c.get(i).unwrap_or(&[0.0; LANES]));
        for lane in 0..LANES {
            output[lane] = make(a[lane], b[lane], c[lane], output[lane]);
        }
    }
    for (i, output) in rest.iter_mut().enumerate() {
        let c = c_rest.get(i).copied().unwrap_or_default();
        *output = make(a_rest[i], b_rest[i], c, *output);
    }
}

/// Weights `[inputs, outputs]` in panels, each of some columns.
pub(crate) trait PackedWeights: Sync {
    /// A stretch of rows of inputs, as the product reads them.
    type Rows: Send + Sync;

    fn dims(&self) -> Dims;

    /// `x` `[rows, inputs]`, after `norm`, as the product reads it.
    fn rows(&self, x: &[f32], norm: Option<Norm>) -> candle_core::Result<Self::Rows>;

    /// Hands the product of each stretch with each of the panels to `take`.
    fn product(
        &self,
        stretches: &[Self::Rows],
        panels: Range<usize>,
        take: impl FnMut(Part),
    ) -> candle_core::Result<()>;
}

/// Of [`PackedWeights`].
#[derive(Clone, Copy)]
pub(crate) struct Dims {
    pub inputs: usize,
    pub outputs: usize,
    /// Most rows of a stretch.
    pub rows: usize,
    /// Of a panel; the last may have fewer.
    pub columns: usize,
}

/// The product of a stretch of rows with a panel.
pub(crate) struct Part<'a> {
    /// Of those that were given.
    pub stretch: usize,
    pub panel: usize,
    /// `[rows of the stretch, width]`.
    pub values: &'a mut [f32],
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
    let threads = rayon::current_num_threads();
    let rows = x.len() / dims.inputs;
    // Blocks of about as many rows, a few for each thread.
    let blocks = (BLOCKS_PER_THREAD * threads).max(rows.div_ceil(MOST_ROWS));
    let block_rows = rows.div_ceil(blocks.next_multiple_of(threads));
    let own_rows = block_rows >= FEWEST_ROWS;
    let height = even(if own_rows { block_rows } else { rows }, dims.rows);
    let run = |stretches: &[W::Rows], tile: &mut Tile| {
        let first = tile.column / dims.columns;
        let columns = tile.rows.first().map_or(0, |row| row.len());
        let panels = first..first + columns.div_ceil(dims.columns);
        weights.product(stretches, panels, |part| {
            let (row, column) = (part.stretch * height, part.panel * dims.columns);
            let finish = FinishPart {
                finish: &finish,
                output: &mut tile.rows[row..],
                offset: column - tile.column,
                row: tile.row + row,
                column,
                outputs: dims.outputs,
                part,
            };
            pulp::Arch::new().dispatch(finish);
        })
    };
    if own_rows {
        // Each block is one thread's, and no other waits for its rows.
        let rows = block_rows.next_multiple_of(height);
        let blocks = x.par_chunks(rows * dims.inputs);
        let blocks = blocks.zip(output.par_chunks_mut(rows * dims.outputs));
        return blocks.enumerate().try_for_each(|(block, (x, output))| {
            let stretches = x.chunks(height * dims.inputs);
            let stretches = stretches.map(|x| weights.rows(x, norm));
            let mut tile = Tile {
                row: block * rows,
                column: 0,
                rows: output.chunks_exact_mut(dims.outputs).collect(),
            };
            let stretches = stretches.collect::<candle_core::Result<Vec<_>>>()?;
            run(&stretches, &mut tile)
        });
    }
    let stretches = x
        .par_chunks(height * dims.inputs)
        .map(|x| weights.rows(x, norm))
        .collect::<candle_core::Result<Vec<_>>>()?;
    let block_rows = height * even(stretches.len(), (MOST_ROWS / height).max(1));
    let parts = (PARTS_PER_THREAD * threads).div_ceil(rows.div_ceil(block_rows));
    let panels = dims.outputs.div_ceil(dims.columns);
    let columns = panels.div_ceil(parts) * dims.columns;
    let tiles = tiles(output, dims.outputs, block_rows, columns);
    tiles.into_par_iter().try_for_each(|mut tile| {
        let stretches = &stretches[tile.row / height..];
        let stretches = &stretches[..tile.rows.len().div_ceil(height)];
        run(stretches, &mut tile)
    })
}

/// How many of `count` go together, at most `most`, for all parts to be about as large.
fn even(count: usize, most: usize) -> usize {
    count.div_ceil(count.div_ceil(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights that remember nothing but their sizes: each product's value is its row's first input and its own column.
    struct Places(Dims);

    impl PackedWeights for Places {
        type Rows = Vec<f32>;

        fn dims(&self) -> Dims {
            self.0
        }

        fn rows(&self, x: &[f32], _: Option<Norm>) -> candle_core::Result<Vec<f32>> {
            Ok(x.to_vec())
        }

        fn product(
            &self,
            stretches: &[Vec<f32>],
            panels: Range<usize>,
            mut take: impl FnMut(Part),
        ) -> candle_core::Result<()> {
            let width = self.0.columns;
            for panel in panels {
                for (stretch, rows) in stretches.iter().enumerate() {
                    let rows = rows.chunks(self.0.inputs);
                    let columns = panel * width..(panel + 1) * width;
                    let values = rows.flat_map(|row| {
                        let columns = columns.clone();
                        columns.map(move |column| row[0] + column as f32)
                    });
                    take(Part {
                        stretch,
                        panel,
                        values: &mut values.collect::<Vec<_>>(),
                        width,
                    });
                }
            }
            Ok(())
        }
    }

    #[test]
    fn every_value_has_its_place() {
        let (inputs, outputs) = (3, 70);
        for (count, rows, columns) in [
            (1, 6, 32),
            (7, 6, 8),
            (48, 14, 16),
            (257, 14, 32),
            (700, 72, 128),
        ] {
            let x: Vec<f32> = (0..count * inputs)
                .map(|i| 100.0 * (i / inputs) as f32)
                .collect();
            let bias = vec![0.25; outputs];
            let residual: Vec<f32> = (0..count * outputs).map(|i| i as f32 * 10.0).collect();
            let weights = Places(Dims {
                inputs,
                outputs,
                rows,
                columns,
            });
            for kind in [Residual::None, Residual::Output, Residual::Rows(&residual)] {
                let mut output = residual.clone();
                let finish = Finish {
                    bias: Some(&bias),
                    activation: None,
                    residual: kind,
                };
                multiply(&weights, &x, None, &mut output, finish).unwrap();
                for (i, value) in output.iter().enumerate() {
                    let product = 100.0 * (i / outputs) as f32 + (i % outputs) as f32 + 0.25;
                    let added = match kind {
                        Residual::None => 0.0,
                        _ => residual[i],
                    };
                    assert_eq!(
                        *value,
                        product + added,
                        "{count} rows, {columns} columns, {i}"
                    );
                }
            }
        }
    }
}
