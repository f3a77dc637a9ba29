//! Products with weights that are laid out once, at load, as the machine's matrix product reads them (`rten-gemm`: on
//! AVX-512 twice as fast as candle's product), in f32 or in 8 bits.
//!
//! What comes before a product (LayerNorm, rounding to 8 bits) and what follows it (bias, activation, residual) is done a
//! few rows at a time by the thread that multiplies them, while they are in its core's cache.

use std::borrow::Cow;
use std::cell::Cell;

use rayon::prelude::*;
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions, PackedBMatrix};
use rten_tensor::{Matrix, NdTensorView};

use crate::config::Activation;
use crate::kernels;
use crate::tiles::tiles;

/// Most rows that are multiplied at a time: rten-gemm splits more of them, and its threads then wait for each other.
const MOST_ROWS: usize = 64;
/// Most columns of a panel, which are multiplied at a time.
const MOST_COLUMNS: usize = 384;
/// Columns that the widest of rten-gemm's kernels takes at a time.
const COLUMNS_STEP: usize = 32;
/// Weights of a panel, in bytes, that stay in a core's L2 from one stretch of rows to the next.
const PANEL_BYTES: usize = 768 << 10;
/// Up to so many bytes of weights, each stretch of rows is multiplied with all of them; more of them would be read anew
/// from beyond L2 for each.
const MOST_BYTES: usize = 3 << 20;

thread_local! {
    /// Kept: making it asks the processor what it can, which takes long on virtual machines.
    static GEMM: GemmExecutor<f32> = GemmExecutor::new();
}

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

impl Finish<'_> {
    /// Finishes `values`, which begin at `column` of the row `row` of a product with rows of `outputs` values.
    fn run(
        &self,
        values: &mut [f32],
        row: usize,
        column: usize,
        outputs: usize,
        output: &mut [f32],
    ) {
        if let Some(bias) = self.bias {
            kernels::add(values, &bias[column..]);
        }
        match self.activation {
            Some(Activation::Gelu) => kernels::gelu(values),
            Some(Activation::QuickGelu) => kernels::quick_gelu(values),
            None => (),
        }
        match self.residual {
            Residual::None => output.copy_from_slice(values),
            Residual::Output => kernels::add(output, values),
            Residual::Rows(rows) => {
                output.copy_from_slice(&rows[row * outputs + column..][..values.len()]);
                kernels::add(output, values);
            }
        }
    }
}

/// Weights `[inputs, outputs]` in panels, each of some columns.
pub(crate) trait PackedWeights: Sync {
    /// Rows of inputs as the product reads them.
    type Rows<'x>: Send + Sync;

    fn dims(&self) -> Dims;

    /// Rows that the kernel takes at a time.
    fn kernel_rows(&self) -> usize;

    /// `x` `[rows, inputs]`, after `norm`, as the product reads it.
    fn rows<'x>(&self, x: &'x [f32], norm: Option<Norm>) -> candle_core::Result<Self::Rows<'x>>;

    /// Hands each row of the product with a panel to `take`, with its number.
    fn product(
        &self,
        rows: &Self::Rows<'_>,
        panel: usize,
        take: impl FnMut(usize, &mut [f32]),
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
    let Dims {
        inputs,
        outputs,
        columns,
        bytes,
    } = weights.dims();
    let by_panel = bytes > MOST_BYTES;
    // Threads that are to share rows, where those of different panels are not multiplied at the same time anyhow.
    let threads = match rayon::current_num_threads() {
        threads if by_panel => threads.div_ceil(outputs.div_ceil(columns)),
        threads => threads,
    };
    let count = stretch(x.len() / inputs, weights.kernel_rows(), threads);
    let stretches = x.par_chunks(count * inputs);
    if by_panel {
        let stretches = stretches.map(|x| weights.rows(x, norm));
        let stretches = stretches.collect::<candle_core::Result<Vec<_>>>()?;
        let tiles = tiles(output, outputs, count, columns).into_par_iter();
        return tiles.try_for_each(|mut tile| {
            let rows = &stretches[tile.row / count];
            weights.product(rows, tile.column / columns, |row, values| {
                let output = &mut *tile.rows[row];
                finish.run(values, tile.row + row, tile.column, outputs, output);
            })
        });
    }
    stretches
        .zip(output.par_chunks_mut(count * outputs))
        .enumerate()
        .try_for_each(|(stretch, (x, output))| {
            let rows = weights.rows(x, norm)?;
            (0..outputs.div_ceil(columns)).try_for_each(|panel| {
                weights.product(&rows, panel, |row, values| {
                    let output = &mut output[row * outputs + panel * columns..][..values.len()];
                    finish.run(
                        values,
                        stretch * count + row,
                        panel * columns,
                        outputs,
                        output,
                    );
                })
            })
        })
}

/// How many of `rows` rows are multiplied at a time: a multiple of `step`, so many that the busiest of `threads` threads has
/// the fewest, and the more the better.
fn stretch(rows: usize, step: usize, threads: usize) -> usize {
    let busiest = |count: usize| {
        let last = (rows - 1) % count + 1;
        let (full, rest) = ((rows - 1) / count / threads, (rows - 1) / count % threads);
        full * count + if rest == 0 { last } else { count }
    };
    let counts = (1..=MOST_ROWS / step).rev().map(|steps| steps * step);
    counts.min_by_key(|count| busiest(*count)).unwrap_or(step)
}

/// Rows that a kernel of rten-gemm's takes at a time, which it does not tell.
pub(crate) fn kernel_rows(name: &str) -> usize {
    match name {
        "x86_64-f32-avx512" | "x86_64-f32-fma" | "x86_64-u8i8i32-avx2" => 6,
        _ => 8,
    }
}

/// Weights in f32.
pub(crate) struct F32Matrix {
    panels: Panels<f32>,
}

impl F32Matrix {
    /// From `[outputs, inputs]`.
    pub fn new(weight: &[f32], outputs: usize, inputs: usize) -> candle_core::Result<Self> {
        let panels = Panels::new(weight, outputs, inputs, |weight| {
            GEMM.with(|gemm| gemm.prepack_b(weight))
        })?;
        Ok(Self { panels })
    }
}

impl PackedWeights for F32Matrix {
    type Rows<'x> = Cow<'x, [f32]>;

    fn dims(&self) -> Dims {
        self.panels.dims
    }

    fn kernel_rows(&self) -> usize {
        GEMM.with(|gemm| kernel_rows(gemm.kernel_name()))
    }

    fn rows<'x>(&self, x: &'x [f32], norm: Option<Norm>) -> candle_core::Result<Cow<'x, [f32]>> {
        Ok(match norm {
            Some(norm) => {
                let mut normed = vec![0.0; x.len()];
                norm.run(x, &mut normed);
                Cow::Owned(normed)
            }
            None => Cow::Borrowed(x),
        })
    }

    fn product(
        &self,
        rows: &Cow<'_, [f32]>,
        panel: usize,
        mut take: impl FnMut(usize, &mut [f32]),
    ) -> candle_core::Result<()> {
        thread_local!(static PRODUCT: Cell<Vec<f32>> = const { Cell::new(Vec::new()) });
        let inputs = self.panels.dims.inputs;
        let panel = &self.panels.packed[panel];
        let count = rows.len() / inputs;
        let rows = NdTensorView::try_from_data([count, inputs], &rows[..])
            .map_err(candle_core::Error::wrap)?;
        // Taken, not borrowed: where a product waits for its threads, another may begin on this one.
        let mut product = PRODUCT.take();
        product.resize(count * panel.cols(), 0.0);
        let made = GEMM.with(|gemm| {
            gemm.gemm(
                &mut product,
                GemmInputA::Unpacked(rows),
                GemmInputB::Packed(panel),
                GemmOptions::default(),
            )
        });
        made.map_err(candle_core::Error::wrap)?;
        for (row, values) in product.chunks_exact_mut(panel.cols()).enumerate() {
            take(row, values);
        }
        PRODUCT.set(product);
        Ok(())
    }
}

/// `[inputs, outputs]`, packed panel by panel.
pub(crate) struct Panels<T> {
    pub packed: Vec<PackedBMatrix<T>>,
    pub dims: Dims,
}

impl<T> Panels<T> {
    /// From `[outputs, inputs]`, `pack` being what packs `[inputs, columns]`.
    pub fn new(
        weight: &[T],
        outputs: usize,
        inputs: usize,
        pack: impl Fn(Matrix<T>) -> PackedBMatrix<T>,
    ) -> candle_core::Result<Self> {
        if weight.len() != outputs * inputs || weight.is_empty() {
            let found = weight.len();
            candle_core::bail!("{found} weights for {inputs} inputs and {outputs} outputs");
        }
        let most = PANEL_BYTES / (inputs * size_of::<T>());
        let most = most.clamp(2 * COLUMNS_STEP, MOST_COLUMNS);
        let even = outputs.div_ceil(outputs.div_ceil(most));
        let columns = even.next_multiple_of(COLUMNS_STEP);
        let packed = weight
            .chunks(columns * inputs)
            .map(|weight| {
                NdTensorView::try_from_data([weight.len() / inputs, inputs], weight)
                    .map(|weight| pack(weight.transposed()))
                    .map_err(candle_core::Error::wrap)
            })
            .collect::<candle_core::Result<_>>()?;
        Ok(Self {
            packed,
            dims: Dims {
                inputs,
                outputs,
                columns,
                bytes: size_of_val(weight),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights that remember nothing but their sizes: each product's value is its row's first input and its own column.
    struct Places(Dims);

    impl PackedWeights for Places {
        type Rows<'x> = &'x [f32];

        fn dims(&self) -> Dims {
            self.0
        }

        fn kernel_rows(&self) -> usize {
            8
        }

        fn rows<'x>(&self, x: &'x [f32], _: Option<Norm>) -> candle_core::Result<&'x [f32]> {
            Ok(x)
        }

        fn product(
            &self,
            rows: &&[f32],
            panel: usize,
            mut take: impl FnMut(usize, &mut [f32]),
        ) -> candle_core::Result<()> {
            let columns =
                panel * self.0.columns..((panel + 1) * self.0.columns).min(self.0.outputs);
            for (row, inputs) in rows.chunks(self.0.inputs).enumerate() {
                let values = columns.clone().map(|column| inputs[0] + column as f32);
                take(row, &mut values.collect::<Vec<_>>());
            }
            Ok(())
        }
    }

    #[test]
    fn every_value_has_its_place_whichever_way() {
        let (inputs, outputs, columns) = (3, 70, 32);
        for rows in [1, 7, 48, 257] {
            let x: Vec<f32> = (0..rows * inputs)
                .map(|i| 100.0 * (i / inputs) as f32)
                .collect();
            let bias = vec![0.25; outputs];
            let residual: Vec<f32> = (0..rows * outputs).map(|i| i as f32 * 1000.0).collect();
            for bytes in [1, MOST_BYTES + 1] {
                let weights = Places(Dims {
                    inputs,
                    outputs,
                    columns,
                    bytes,
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
                        assert_eq!(*value, product + added, "{rows} rows, {bytes} bytes, {i}");
                    }
                }
            }
        }
    }

    #[test]
    fn stretches_are_shared_out_evenly() {
        // The rows of one picture: 129 for one thread and 128 for the other, and 131 and 126.
        assert_eq!(stretch(257, 8, 2), 64);
        assert_eq!(stretch(257, 6, 2), 42);
        assert_eq!(stretch(1, 8, 2), 64);
        for rows in 1..600 {
            for threads in [1, 2, 7, 64] {
                let count = stretch(rows, 8, threads);
                assert!(count.is_multiple_of(8) && (8..=MOST_ROWS).contains(&count));
            }
        }
    }
}
