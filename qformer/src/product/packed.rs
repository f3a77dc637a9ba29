//! How weights and rows are laid out for a kernel of this crate's own, and in which order it takes them.
//!
//! A thread takes a block of rows and some panels of columns. A panel's weights are read from memory once a block and asked
//! for while the panel before is multiplied; the block's rows stay in the core's L2 from one panel to the next.

use std::ops::{Deref, DerefMut, Range};

use rayon::prelude::*;

use super::{Cut, Dims, MOST_BYTES, together};

/// Steps whose inputs of one row lie next to each other, which is a line of the cache.
pub(crate) const LINE: usize = 16;
/// In bytes.
const CACHE_LINE: usize = 64;
/// Lines of a block of rows that are multiplied with a panel before the next ones: few enough for the block's part of them
/// to stay in a core's L2.
const MOST_LINES: usize = 96;
/// Most panels that a thread multiplies a block with; where a product takes more lines than those, their sums are kept.
const MOST_PANELS: usize = 12;
/// Most rows of a block.
const MOST_ROWS: usize = 280;
/// Most rows of a block where rows are shared out and not panels: the fewer, the sooner all threads are done.
const MOST_OWN_ROWS: usize = 128;
/// Rows of such a block that are enough for all weights to be read for it.
const FEWEST_ROWS: usize = 56;
/// Fewest such blocks for each thread.
const BLOCKS_PER_THREAD: usize = 2;

/// Multiplies a few rows by the columns of a panel, in steps of one or more inputs.
pub(crate) trait Kernel {
    /// Inputs of a row in one step.
    type Inputs: Copy + Default + Send + Sync;
    /// Weights of a column in one step.
    type Weights: Copy + Default + Send + Sync;
    /// What products are summed up in.
    type Sum: Copy + Default + Send;

    /// Inputs of one step.
    const STEP: usize;

    /// Columns of a panel.
    fn columns() -> usize;

    /// Most rows at a time.
    fn rows() -> usize;

    /// The product of a tile into `sums` `[height, columns]`, or on top of them.
    fn multiply(tile: &Tile<Self::Inputs, Self::Weights>, sums: &mut [Self::Sum], on_top: bool);
}

/// What a kernel multiplies at a time.
pub(crate) struct Tile<'a, I, W> {
    /// `[lines, height]`.
    pub rows: &'a [[I; LINE]],
    /// `[lines, LINE, columns]`.
    pub panel: &'a [W],
    /// Weights that are wanted next: to be [`fetch`]ed on the way.
    pub ahead: &'a [W],
}

impl<'a, I, W> Tile<'a, I, W> {
    /// What to fetch before each of so many lines.
    #[inline(always)]
    pub fn ahead(&self, lines: usize) -> impl Iterator<Item = &'a [W]> {
        let each = self.ahead.len().div_ceil(LINE * lines.max(1)).max(1) * LINE;
        self.ahead.chunks(each).chain(std::iter::repeat(&[][..]))
    }
}

/// Asks for values that are wanted at once, for L1.
#[inline(always)]
pub(crate) fn fetch_soon<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in values.chunks(CACHE_LINE / size_of::<T>()) {
        safe_arch::prefetch_t0(&line[0]);
    }
    let _ = values;
}

/// Asks for values, so that they are in L2 when they are wanted. Left to itself, the processor waits for a panel's weights
/// while it multiplies the first rows with them.
#[inline(always)]
pub(crate) fn fetch<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in values.chunks(CACHE_LINE / size_of::<T>()) {
        safe_arch::prefetch_t1(&line[0]);
    }
    let _ = values;
}

/// Values that begin where a line of the cache does: vectors that lie across two take twice as long to load.
struct Aligned<T> {
    values: Vec<T>,
    start: usize,
}

impl<T: Copy + Default> Aligned<T> {
    fn new(len: usize) -> Self {
        let values = vec![T::default(); len + CACHE_LINE / size_of::<T>()];
        let start = values.as_ptr().align_offset(CACHE_LINE);
        // Where that cannot be told, it is slower and nothing else.
        Self {
            start: if start < values.len() - len { start } else { 0 },
            values,
        }
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.values[self.start..]
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.values[self.start..]
    }
}

/// Weights in panels.
pub(crate) struct Panels<K: Kernel> {
    /// `[panels, lines, LINE, columns]`, 0 where there are no more columns or steps.
    weights: Aligned<K::Weights>,
    lines: usize,
    /// Of the matrix.
    pub dims: Dims,
}

impl<K: Kernel> Panels<K> {
    /// Of `[inputs, outputs]`; `weight` tells an output's weights of a step.
    pub fn new(
        inputs: usize,
        outputs: usize,
        weight: impl Fn(usize, usize) -> K::Weights + Sync,
    ) -> Self {
        let columns = K::columns();
        let steps = inputs.div_ceil(K::STEP);
        let lines = steps.div_ceil(LINE);
        let size = lines * LINE * columns;
        let panels = outputs.div_ceil(columns);
        let mut weights = Aligned::new(panels * size);
        let dims = Dims {
            inputs,
            outputs,
            columns,
            bytes: panels * size * size_of::<K::Weights>(),
        };
        let panels = weights[..panels * size]
            .par_chunks_exact_mut(size)
            .enumerate();
        panels.for_each(|(panel, weights)| {
            let outputs = panel * columns..outputs.min((panel + 1) * columns);
            // A line of each column at a time, while what is written is in cache.
            for (line, weights) in weights.chunks_exact_mut(LINE * columns).enumerate() {
                for (column, output) in outputs.clone().enumerate() {
                    let weights = weights.chunks_exact_mut(columns);
                    for (step, weights) in (line * LINE..steps).zip(weights) {
                        weights[column] = weight(output, step);
                    }
                }
            }
        });
        Self {
            weights,
            lines,
            dims,
        }
    }

    /// [`super::PackedWeights::cut`].
    pub fn cut(&self, rows: usize, threads: usize) -> Cut {
        // Stretches, and blocks of them, that are all about as large.
        let even = |count: usize, most: usize| count.div_ceil(count.div_ceil(most));
        let blocks = rows
            .div_ceil(MOST_OWN_ROWS)
            .max(BLOCKS_PER_THREAD * threads);
        let own = rows.div_ceil(blocks.next_multiple_of(threads));
        let by_panel = self.dims.bytes > MOST_BYTES || own < FEWEST_ROWS;
        let block = if by_panel { even(rows, MOST_ROWS) } else { own };
        let height = even(block, K::rows());
        Cut {
            height,
            stretches: block.div_ceil(height),
            panels: by_panel.then(|| together(self.dims.panels(), 1, MOST_PANELS, threads)),
        }
    }

    /// Hands the sums `[height, columns]` of each stretch `[lines, height]` with each of the panels to `take`, with the
    /// numbers of both, and tells it before. `sums` is a buffer.
    pub fn product<'a>(
        &self,
        stretches: impl Iterator<Item = &'a [[K::Inputs; LINE]]> + Clone,
        panels: Range<usize>,
        sums: &mut Vec<K::Sum>,
        mut take: impl FnMut(usize, usize, Option<&mut [K::Sum]>),
    ) where
        K::Inputs: 'a,
    {
        let columns = K::columns();
        let size = K::rows() * columns;
        let count = stretches.clone().count();
        let parts = self.lines.div_ceil(MOST_LINES);
        let part_lines = self.lines.div_ceil(parts);
        // All lines at once: the sums of one tile are enough.
        let (kept, tiles) = match parts {
            1 => (1, 0),
            _ => (MOST_PANELS, count),
        };
        sums.resize(size * (kept * tiles).max(1), K::Sum::default());
        let lines = |part: usize| part * part_lines..self.lines.min((part + 1) * part_lines);
        let weights = |panel: usize, part: usize| {
            let lines = lines(part);
            let panel = &self.weights[panel * self.lines * LINE * columns..];
            &panel[lines.start * LINE * columns..lines.end * LINE * columns]
        };
        let groups = panels.clone().step_by(kept);
        let groups = groups.map(|first| first..panels.end.min(first + kept));
        let passes = groups.flat_map(|group| {
            (0..parts).flat_map(move |part| {
                let first = group.start;
                group.clone().map(move |panel| (panel, panel - first, part))
            })
        });
        let mut passes = passes.peekable();
        while let Some((panel, in_group, part)) = passes.next() {
            let next = passes.peek().map(|(panel, _, part)| (*panel, *part));
            // What follows these panels is likely to be this thread's as well.
            let next = next.or_else(|| (panel + 1 < self.dims.panels()).then_some((panel + 1, 0)));
            let next = next.map_or(&[][..], |(panel, part)| weights(panel, part));
            let mut next = next.chunks((next.len().div_ceil(count * LINE) * LINE).max(1));
            for (stretch, rows) in stretches.clone().enumerate() {
                let height = rows.len() / self.lines;
                let lines = lines(part);
                let tile = Tile {
                    rows: &rows[lines.start * height..lines.end * height],
                    panel: weights(panel, part),
                    ahead: next.next().unwrap_or_default(),
                };
                let place = in_group * tiles + if tiles > 0 { stretch } else { 0 };
                let sums = &mut sums[place * size..][..height * columns];
                let is_last = part + 1 == parts;
                if is_last {
                    take(stretch, panel, None);
                }
                K::multiply(&tile, sums, part > 0);
                if is_last {
                    take(stretch, panel, Some(sums));
                }
            }
        }
    }
}

/// Writes rows of `steps` steps as a kernel reads them: `[lines, height]`.
#[inline(always)]
pub(crate) fn side_by_side<'a, T: Copy + Default + 'a>(
    steps: usize,
    rows: impl Iterator<Item = &'a [T]> + Clone,
    packed: &mut Vec<[T; LINE]>,
) {
    packed.clear();
    for first in (0..steps).step_by(LINE) {
        packed.extend(rows.clone().map(|row| {
            let rest = &row[first..];
            match rest.first_chunk() {
                Some(line) => *line,
                None => std::array::from_fn(|i| rest.get(i).copied().unwrap_or_default()),
            }
        }));
    }
}

/// Code that is generic over a number of rows, `$rows`, for each that a tile may have.
macro_rules! by_height {
    ($height:expr, $rows:ident => $code:expr) => {
        by_height!($height, $rows => $code, [1 2 3 4 5 6 7 8 9 10 11 12 13 14])
    };
    ($height:expr, $rows:ident => $code:expr, [$($count:literal)*]) => {
        match $height {
            $($count => {
                const $rows: usize = $count;
                $code
            })*
            height => unreachable!("{height} rows at a time"),
        }
    };
}
pub(crate) use by_height;

#[cfg(test)]
mod tests {
    use super::*;

    /// Of small numbers, whose sums are exact.
    struct Small;

    impl Kernel for Small {
        type Inputs = i32;
        type Weights = i32;
        type Sum = i32;

        const STEP: usize = 1;

        fn columns() -> usize {
            8
        }

        fn rows() -> usize {
            3
        }

        fn multiply(tile: &Tile<i32, i32>, sums: &mut [i32], on_top: bool) {
            let height = sums.len() / Self::columns();
            for (i, sum) in sums.iter_mut().enumerate() {
                let (row, column) = (i / Self::columns(), i % Self::columns());
                let inputs = tile.rows.iter().skip(row).step_by(height).flatten();
                let weights = tile.panel.iter().skip(column).step_by(Self::columns());
                let product: i32 = inputs.zip(weights).map(|(x, w)| x * w).sum();
                *sum = product + if on_top { *sum } else { 0 };
            }
        }
    }

    #[test]
    fn products_of_any_size_are_whole() {
        let outputs = 20 * Small::columns() + 5;
        let panels_in_all = outputs.div_ceil(Small::columns());
        for steps in [1, 17, LINE * MOST_LINES, LINE * MOST_LINES + 1, 1300] {
            let weight = |output: usize, step: usize| ((output * 31 + step * 7) % 23) as i32 - 11;
            let input = |row: usize, step: usize| ((row * 13 + step * 5) % 19) as i32 - 9;
            let panels = Panels::<Small>::new(steps, outputs, weight);
            let stretches = [0..3, 3..6, 6..8].map(|rows| {
                let values = |row| (0..steps).map(|step| input(row, step)).collect();
                let rows: Vec<Vec<i32>> = rows.map(values).collect();
                let mut packed = Vec::new();
                side_by_side(steps, rows.iter().map(Vec::as_slice), &mut packed);
                packed
            });
            let mut parts = 0;
            let rows = stretches.iter().map(Vec::as_slice);
            panels.product(
                rows,
                2..panels_in_all,
                &mut vec![7],
                |stretch, panel, sums| {
                    let Some(sums) = sums else { return };
                    parts += 1;
                    for (i, sum) in sums.iter().enumerate() {
                        let row = 3 * stretch + i / Small::columns();
                        let output = panel * Small::columns() + i % Small::columns();
                        let products =
                            (0..steps).map(|step| input(row, step) * weight(output, step));
                        let expected = if output < outputs { products.sum() } else { 0 };
                        assert_eq!(*sum, expected, "{steps} steps, row {row}, output {output}");
                    }
                },
            );
            assert_eq!(parts, 3 * (panels_in_all - 2));
        }
    }

    #[test]
    fn rows_and_panels_are_cut_into_parts_that_cover_them() {
        for (inputs, outputs) in [(8, 8), (64, 1000), (900, 1000)] {
            let panels = Panels::<Small>::new(inputs, outputs, |_, _| 1);
            for (rows, threads) in (1..700).flat_map(|rows| [(rows, 1), (rows, 2), (rows, 64)]) {
                let cut = panels.cut(rows, threads);
                assert!((1..=Small::rows()).contains(&cut.height));
                assert!(
                    cut.stretches >= 1 && cut.stretches * cut.height < MOST_ROWS + Small::rows()
                );
                // All weights for each block only where they are few and the rows many.
                let (few, by_rows) = (panels.dims.bytes <= MOST_BYTES, cut.panels.is_none());
                if !few || rows < FEWEST_ROWS {
                    assert!(!by_rows, "{rows} rows");
                } else if rows >= BLOCKS_PER_THREAD * threads * FEWEST_ROWS {
                    assert!(by_rows, "{rows} rows, {threads} threads");
                }
                assert!(
                    cut.panels
                        .is_none_or(|panels| (1..=MOST_PANELS).contains(&panels))
                );
            }
        }
    }

    #[test]
    fn what_is_aligned_begins_a_line_of_the_cache() {
        for len in [1, 16, 1000] {
            let mut values = Aligned::<f32>::new(len);
            assert!(values.len() >= len);
            assert!(values.as_ptr().addr().is_multiple_of(CACHE_LINE));
            values[len - 1] = 1.0;
        }
    }
}
