//! Products by `rten-gemm`, for processors that this crate has no kernel of its own for.

use std::borrow::Cow;
use std::cell::Cell;
use std::ops::Range;

use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions, PackedBMatrix};
use rten_tensor::{Matrix, NdTensorView};

use super::{Cut, Dims, MOST_BYTES, Norm, PackedWeights, Part, together};

/// Most rows that are multiplied at a time: rten-gemm splits more of them, and its threads then wait for each other.
const MOST_ROWS: usize = 64;
/// Most columns of a panel.
const MOST_COLUMNS: usize = 384;
/// Columns that the widest of rten-gemm's kernels takes at a time.
const COLUMNS_STEP: usize = 32;
/// Weights of a panel, in bytes, that stay in a core's L2 from one stretch of rows to the next.
const PANEL_BYTES: usize = 768 << 10;

thread_local! {
    /// Kept: making it asks the processor what it can, which takes long on virtual machines.
    static GEMM: GemmExecutor<f32> = GemmExecutor::new();
}

/// Rows that a kernel of rten-gemm's takes at a time, which it does not tell.
fn kernel_rows(name: &str) -> usize {
    match name {
        "x86_64-f32-avx512" | "x86_64-f32-fma" | "x86_64-u8i8i32-avx2" => 6,
        _ => 8,
    }
}

/// `[inputs, outputs]`, packed panel by panel.
pub(crate) struct Panels<T> {
    pub packed: Vec<PackedBMatrix<T>>,
    pub dims: Dims,
    kernel_rows: usize,
}

impl<T> Panels<T> {
    /// From `[outputs, inputs]`, `pack` being what packs `[inputs, columns]` for the kernel of this name.
    pub fn new(
        weight: &[T],
        outputs: usize,
        inputs: usize,
        kernel: &str,
        pack: impl Fn(Matrix<T>) -> PackedBMatrix<T>,
    ) -> candle_core::Result<Self> {
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
            kernel_rows: kernel_rows(kernel),
        })
    }

    /// [`PackedWeights::cut`].
    pub fn cut(&self, rows: usize, threads: usize) -> Cut {
        let by_panel = self.dims.bytes > MOST_BYTES;
        // Threads that are to share rows, where those of different panels are not multiplied at the same time anyhow.
        let threads = match by_panel {
            true => threads.div_ceil(self.dims.panels()),
            false => threads,
        };
        Cut {
            height: together(rows, self.kernel_rows, MOST_ROWS, threads),
            stretches: 1,
            panels: by_panel.then_some(1),
        }
    }
}

/// Weights in f32.
pub(crate) struct GemmF32(Panels<f32>);

impl GemmF32 {
    /// From `[outputs, inputs]`.
    pub fn new(weight: &[f32], outputs: usize, inputs: usize) -> candle_core::Result<Self> {
        GEMM.with(|gemm| {
            let pack = |weight: Matrix<f32>| gemm.prepack_b(weight);
            Ok(Self(Panels::new(
                weight,
                outputs,
                inputs,
                gemm.kernel_name(),
                pack,
            )?))
        })
    }
}

impl PackedWeights for GemmF32 {
    type Rows<'x> = Cow<'x, [f32]>;

    fn dims(&self) -> Dims {
        self.0.dims
    }

    fn cut(&self, rows: usize, threads: usize) -> Cut {
        self.0.cut(rows, threads)
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
        stretches: &[Cow<'_, [f32]>],
        panels: Range<usize>,
        mut take: impl FnMut(Part),
    ) -> candle_core::Result<()> {
        thread_local!(static PRODUCT: Cell<Vec<f32>> = const { Cell::new(Vec::new()) });
        let inputs = self.0.dims.inputs;
        // Taken, not borrowed: where a product waits for its threads, another may begin on this one.
        let mut product = PRODUCT.take();
        for panel in panels {
            let weights = &self.0.packed[panel];
            let width = weights.cols();
            for (stretch, rows) in stretches.iter().enumerate() {
                let count = rows.len() / inputs;
                let rows = NdTensorView::try_from_data([count, inputs], &rows[..])
                    .map_err(candle_core::Error::wrap)?;
                product.resize(count * width, 0.0);
                let made = GEMM.with(|gemm| {
                    gemm.gemm(
                        &mut product,
                        GemmInputA::Unpacked(rows),
                        GemmInputB::Packed(weights),
                        GemmOptions::default(),
                    )
                });
                made.map_err(candle_core::Error::wrap)?;
                take(Part {
                    stretch,
                    panel,
                    values: Some(&mut product),
                    width,
                });
            }
        }
        PRODUCT.set(product);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_shared_out_evenly() {
        let cut = |rows, kernel_rows, threads| together(rows, kernel_rows, MOST_ROWS, threads);
        // The rows of one picture: 129 for one thread and 128 for the other, and 131 and 126.
        assert_eq!(cut(257, 8, 2), 64);
        assert_eq!(cut(257, 6, 2), 42);
        assert_eq!(cut(1, 8, 2), 64);
        for rows in 1..600 {
            for threads in [1, 2, 7, 64] {
                let count = cut(rows, 8, threads);
                assert!(count.is_multiple_of(8) && (8..=MOST_ROWS).contains(&count));
            }
        }
    }
}
