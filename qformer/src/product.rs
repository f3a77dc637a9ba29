//! Products with weights that are laid out once, at load, as the machine's matrix product reads them (`rten-gemm`: on
//! AVX-512 twice as fast as candle's product), in f32 or in 8 bits.
//!
//! A product is made tile by tile, and whatever follows it (bias, activation, residual) is done to a tile by the thread that
//! made it, while it is in that core's cache.

use std::cell::Cell;

use rayon::prelude::*;
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions, PackedBMatrix};
use rten_tensor::{Matrix, NdTensorView};

use crate::config::Activation;
use crate::int8::Int8Matrix;
use crate::kernels;
use crate::tiles::{Tile, tiles};

/// Rows of a tile: a multiple of what rten-gemm's kernels take at a time (6 in f32 and 8 in 8 bits on x86-64), and few
/// enough for the tiles of one picture to be shared out evenly.
pub(crate) const TILE_ROWS: usize = 48;
/// Most columns of a tile, for the same reason.
const TILE_COLUMNS: usize = 384;
/// Columns that the widest of rten-gemm's kernels takes at a time.
const KERNEL_COLUMNS: usize = 32;
/// Weights of a tile, in bytes, that stay in a core's L2 from one tile of the same columns to the next.
const TILE_WEIGHTS: usize = 768 << 10;

thread_local! {
    /// Kept: making it asks the processor what it can, which takes long on virtual machines.
    static GEMM: GemmExecutor<f32> = GemmExecutor::new();
}

/// What is done to a product.
#[derive(Clone, Copy, Default)]
pub(crate) struct Finish<'a> {
    /// `[outputs]`, added to each row.
    pub bias: Option<&'a [f32]>,
    /// Applied after the bias.
    pub activation: Option<Activation>,
    /// `[rows, outputs]`, added at last.
    pub residual: Option<&'a [f32]>,
}

impl Finish<'_> {
    /// Finishes a tile of a matrix with rows of `outputs` values.
    pub fn run(&self, tile: &mut Tile, outputs: usize) {
        for (row, values) in tile.rows.iter_mut().enumerate() {
            if let Some(bias) = self.bias {
                kernels::add(values, &bias[tile.column..]);
            }
            match self.activation {
                Some(Activation::Gelu) => kernels::gelu(values),
                Some(Activation::QuickGelu) => kernels::quick_gelu(values),
                None => (),
            }
            if let Some(residual) = self.residual {
                kernels::add(
                    values,
                    &residual[(tile.row + row) * outputs + tile.column..],
                );
            }
        }
    }
}

/// `[inputs, outputs]`.
pub(crate) enum WeightMatrix {
    F32(Panels<f32>),
    Int8(Int8Matrix),
}

impl WeightMatrix {
    /// From `[outputs, inputs]`.
    pub fn new(weight: &[f32], outputs: usize, inputs: usize) -> candle_core::Result<Self> {
        let panels = Panels::new(weight, outputs, inputs, |weight| {
            GEMM.with(|gemm| gemm.prepack_b(weight))
        })?;
        Ok(WeightMatrix::F32(panels))
    }

    pub fn inputs(&self) -> usize {
        match self {
            WeightMatrix::F32(panels) => panels.inputs,
            WeightMatrix::Int8(matrix) => matrix.panels().inputs,
        }
    }

    pub fn outputs(&self) -> usize {
        match self {
            WeightMatrix::F32(panels) => panels.outputs,
            WeightMatrix::Int8(matrix) => matrix.panels().outputs,
        }
    }

    /// `x` `[rows, inputs]` times these weights, finished, into `output` `[rows, outputs]`.
    pub fn multiply(
        &self,
        x: &[f32],
        output: &mut [f32],
        finish: Finish,
    ) -> candle_core::Result<()> {
        match self {
            WeightMatrix::F32(panels) => multiply(panels, x, output, finish),
            WeightMatrix::Int8(matrix) => matrix.multiply(x, output, finish),
        }
    }
}

fn multiply(
    panels: &Panels<f32>,
    x: &[f32],
    output: &mut [f32],
    finish: Finish,
) -> candle_core::Result<()> {
    thread_local!(static PRODUCT: Cell<Vec<f32>> = const { Cell::new(Vec::new()) });
    let (inputs, outputs) = (panels.inputs, panels.outputs);
    let rows: Vec<&[f32]> = x.chunks(TILE_ROWS * inputs).collect();
    panels
        .tiles(output)
        .into_par_iter()
        .try_for_each(|mut tile| {
            let x = rows[tile.row / TILE_ROWS];
            let x = NdTensorView::try_from_data([x.len() / inputs, inputs], x)
                .map_err(candle_core::Error::wrap)?;
            let panel = panels.of(&tile);
            // Taken, not borrowed: where a product waits for its threads, another tile may begin on this one.
            let mut product = PRODUCT.take();
            product.resize(tile.rows.len() * panel.cols(), 0.0);
            GEMM.with(|gemm| {
                gemm.gemm(
                    &mut product,
                    GemmInputA::Unpacked(x),
                    GemmInputB::Packed(panel),
                    GemmOptions::default(),
                )
            })
            .map_err(candle_core::Error::wrap)?;
            for (values, product) in tile.rows.iter_mut().zip(product.chunks_exact(panel.cols())) {
                values.copy_from_slice(product);
            }
            PRODUCT.set(product);
            finish.run(&mut tile, outputs);
            Ok(())
        })
}

/// `[inputs, outputs]`, the columns of each tile packed for themselves.
pub(crate) struct Panels<T> {
    packed: Vec<PackedBMatrix<T>>,
    /// Columns of each, but perhaps fewer of the last.
    columns: usize,
    pub inputs: usize,
    pub outputs: usize,
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
            candle_core::bail!(
                "{} weights for {inputs} inputs and {outputs} outputs",
                weight.len()
            );
        }
        let most =
            (TILE_WEIGHTS / (inputs * size_of::<T>())).clamp(2 * KERNEL_COLUMNS, TILE_COLUMNS);
        let columns = outputs
            .div_ceil(outputs.div_ceil(most))
            .next_multiple_of(KERNEL_COLUMNS);
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
            columns,
            inputs,
            outputs,
        })
    }

    /// The tiles of a product `[rows, outputs]`.
    pub fn tiles<'a>(&self, output: &'a mut [f32]) -> Vec<Tile<'a>> {
        tiles(output, self.outputs, TILE_ROWS, self.columns)
    }

    /// The weights of a tile's columns.
    pub fn of(&self, tile: &Tile) -> &PackedBMatrix<T> {
        &self.packed[tile.column / self.columns]
    }
}
