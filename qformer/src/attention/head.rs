//! Attention in one head on a CPU.
//!
//! Keys and values are laid out once for all queries: keys transposed, both in panels as wide as the accumulators of a
//! [`product`], two registers. A few rows of queries at a time then go all the way from scores to their output, so that the
//! scores never leave the core's cache.

use std::cell::Cell;
use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use crate::kernels::exponents;

/// Rows of a [`product`]: with two registers a row, 12 accumulators, which leaves AVX2 enough of its 16 for the operands.
const ROWS: usize = 6;
/// Registers a row.
const REGISTERS: usize = 2;
/// Steps of a [`product`] that are taken at a time.
const LINE: usize = 8;
/// Rows of queries whose scores are in cache at a time.
const QUERIES: usize = 8 * ROWS;

/// Rows of one head, `stride` values apart.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub values: &'a [f32],
    pub stride: usize,
    pub count: usize,
    pub width: usize,
}

impl<'a> Rows<'a> {
    fn row(&self, row: usize) -> &'a [f32] {
        &self.values[row * self.stride..][..self.width]
    }
}

/// `softmax(scale * q * k^T) * v` of some of a head's rows of queries.
pub(super) struct Head<'a, 'b> {
    pub q: Rows<'a>,
    pub k: Rows<'a>,
    pub v: Rows<'a>,
    pub scale: f32,
    /// What each row of `q` sees of the keys, at least one; all of them where none is given.
    pub seen: Option<&'a [Range<usize>]>,
    /// A row for each of `q`'s.
    pub output: &'a mut [&'b mut [f32]],
}

impl Head<'_, '_> {
    pub fn run(self) {
        Arch::new().dispatch(self);
    }
}

/// Kept for the next head of this thread.
#[derive(Default)]
struct Buffers {
    keys: Vec<f32>,
    values: Vec<f32>,
    scores: Vec<f32>,
}

impl WithSimd for Head<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        thread_local!(static BUFFERS: Cell<Buffers> = Cell::default());
        let columns = REGISTERS * S::F32_LANES;
        let (keys, width) = (self.k.count, self.q.width);
        let mut buffers = BUFFERS.take();
        transposed(&self.k, self.scale, columns, &mut buffers.keys);
        side_by_side(&self.v, columns, &mut buffers.values);
        let stride = keys.next_multiple_of(columns);
        // Whatever was there is written over.
        buffers.scores.resize(QUERIES * stride, 0.0);
        let scores = &mut buffers.scores;
        let mut sums = [0.0; QUERIES];
        for (block, output) in self.output.chunks_mut(QUERIES).enumerate() {
            let first = block * QUERIES;
            let panels = buffers.keys.chunks_exact(width * columns);
            for (panel, column) in panels.zip((0..stride).step_by(columns)) {
                for row in (0..output.len()).step_by(ROWS) {
                    let count = ROWS.min(output.len() - row);
                    let q = |i: usize| self.q.row(first + row + i.min(count - 1));
                    let tile = product(simd, std::array::from_fn::<_, ROWS, _>(q), panel);
                    for (i, registers) in tile[..count].iter().enumerate() {
                        let scores = &mut scores[(row + i) * stride + column..][..columns];
                        store(simd, registers, scores);
                    }
                }
            }
            for (row, sum) in sums[..output.len()].iter_mut().enumerate() {
                let scores = &mut scores[row * stride..][..keys];
                let seen = self.seen.map_or(0..keys, |seen| seen[first + row].clone());
                *sum = exponents(&mut scores[seen.clone()]);
                scores[..seen.start].fill(0.0);
                scores[seen.end..].fill(0.0);
            }
            let panels = buffers.values.chunks_exact(keys * columns);
            for (panel, column) in panels.zip((0..width).step_by(columns)) {
                for row in (0..output.len()).step_by(ROWS) {
                    let count = ROWS.min(output.len() - row);
                    let weights = |i: usize| &scores[(row + i.min(count - 1)) * stride..][..keys];
                    let tile = product(simd, std::array::from_fn::<_, ROWS, _>(weights), panel);
                    for (i, registers) in tile[..count].iter().enumerate() {
                        let scale = simd.splat_f32s(1.0 / sums[row + i]);
                        let mut scaled = *registers;
                        for register in &mut scaled {
                            *register = simd.mul_f32s(*register, scale);
                        }
                        let output = &mut output[row + i][column..];
                        let end = columns.min(output.len());
                        store(simd, &scaled, &mut output[..end]);
                    }
                }
            }
        }
        BUFFERS.set(buffers);
    }
}

/// `rows` times a panel `[n, registers of columns]`, each row being of n values.
#[inline(always)]
fn product<S: Simd>(simd: S, rows: [&[f32]; ROWS], panel: &[f32]) -> [[S::f32s; REGISTERS]; ROWS] {
    let mut sums = [[simd.splat_f32s(0.0); REGISTERS]; ROWS];
    let (registers, _) = S::as_simd_f32s(panel);
    let (registers, _) = registers.as_chunks::<REGISTERS>();
    let n = registers.len();
    let (lines, rest) = registers.as_chunks::<LINE>();
    let (row_lines, row_rests) = (
        rows.map(|row| row[..n].as_chunks::<LINE>().0),
        rows.map(|row| row[..n].as_chunks::<LINE>().1),
    );
    // Whether a row has a value is asked once a line: for each value it would be as many instructions as the sums are.
    for (i, registers) in lines.iter().enumerate() {
        let rows = row_lines.map(|row| &row[i]);
        for (step, registers) in registers.iter().enumerate() {
            add(simd, rows.map(|row| row[step]), registers, &mut sums);
        }
    }
    for (step, registers) in rest.iter().enumerate() {
        add(simd, row_rests.map(|row| row[step]), registers, &mut sums);
    }
    sums
}

/// The products of a value of each row with a row of a panel, to `sums`.
#[inline(always)]
fn add<S: Simd>(
    simd: S,
    values: [f32; ROWS],
    registers: &[S::f32s; REGISTERS],
    sums: &mut [[S::f32s; REGISTERS]; ROWS],
) {
    for (x, sums) in values.into_iter().zip(sums) {
        let x = simd.splat_f32s(x);
        for (sum, register) in sums.iter_mut().zip(registers) {
            *sum = simd.mul_add_e_f32s(x, *register, *sum);
        }
    }
}

/// Writes the first values of registers.
#[inline(always)]
fn store<S: Simd>(simd: S, registers: &[S::f32s; REGISTERS], values: &mut [f32]) {
    let (whole, rest) = S::as_mut_simd_f32s(values);
    let count = whole.len();
    whole.copy_from_slice(&registers[..count]);
    if !rest.is_empty() {
        simd.partial_store_f32s(rest, registers[count]);
    }
}

/// Panels of `columns` rows, transposed, times `scale`: `[panels, width, columns]`, 0 where there are no more rows.
#[inline(always)]
fn transposed(rows: &Rows, scale: f32, columns: usize, panels: &mut Vec<f32>) {
    let size = rows.width * columns;
    panels.resize(rows.count.div_ceil(columns) * size, 0.0);
    for (panel, first) in panels.chunks_exact_mut(size).zip((0..).step_by(columns)) {
        let count = columns.min(rows.count - first);
        for column in 0..count {
            let row = rows.row(first + column);
            for (x, panel) in row.iter().zip(panel.chunks_exact_mut(columns)) {
                panel[column] = scale * x;
            }
        }
        for panel in panel.chunks_exact_mut(columns) {
            panel[count..].fill(0.0);
        }
    }
}

/// Panels of `columns` columns: `[panels, rows, columns]`, 0 where there are no more columns.
#[inline(always)]
fn side_by_side(rows: &Rows, columns: usize, panels: &mut Vec<f32>) {
    let size = rows.count * columns;
    panels.resize(rows.width.div_ceil(columns) * size, 0.0);
    for (panel, first) in panels.chunks_exact_mut(size).zip((0..).step_by(columns)) {
        for (row, panel) in panel.chunks_exact_mut(columns).enumerate() {
            let row = &rows.row(row)[first..];
            let count = columns.min(row.len());
            panel[..count].copy_from_slice(&row[..count]);
            panel[count..].fill(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `output` of `Head`s of these sizes, and what it should be, in f64.
    fn check<S: Simd>(simd: S, queries: usize, keys: usize, width: usize) {
        let number = |i: usize| ((i * 7919 + 13) % 251) as f32 / 60.0 - 2.0;
        let stride = width + 3;
        let values: Vec<f32> = (0..3 * keys.max(queries) * stride).map(number).collect();
        let rows = |index: usize, count| Rows {
            values: &values[index * keys.max(queries) * stride..],
            stride,
            count,
            width,
        };
        let (q, k, v) = (rows(0, queries), rows(1, keys), rows(2, keys));
        let seen: Vec<_> = (0..queries)
            .map(|row| row % keys / 2..row % keys + 1)
            .collect();
        for seen in [None, Some(seen.as_slice())] {
            let mut output = vec![7.0; queries * width];
            let mut rows: Vec<&mut [f32]> = output.chunks_exact_mut(width).collect();
            Head {
                q,
                k,
                v,
                scale: 0.05,
                seen,
                output: &mut rows,
            }
            .with_simd(simd);
            for row in 0..queries {
                let seen = seen.map_or(0..keys, |seen| seen[row].clone());
                let dot = |key| -> f64 {
                    let products = q.row(row).iter().zip(k.row(key));
                    products.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
                };
                let weights: Vec<f64> = seen.clone().map(|key| (0.05 * dot(key)).exp()).collect();
                let total: f64 = weights.iter().sum();
                for column in 0..width {
                    let weighted = weights.iter().zip(seen.clone());
                    let expected: f64 = weighted
                        .map(|(weight, key)| weight / total * f64::from(v.row(key)[column]))
                        .sum();
                    let found = f64::from(output[row * width + column]);
                    assert!(
                        (found - expected).abs() < 1e-5,
                        "{row} {column}: {found} {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn every_instruction_set_attends_alike() {
        for (queries, keys, width) in [
            (1, 1, 1),
            (5, 17, 8),
            (50, 33, 24),
            (61, 70, 88),
            (13, 64, 64),
        ] {
            check(pulp::Scalar::new(), queries, keys, width);
            #[cfg(target_arch = "x86_64")]
            {
                if let Some(simd) = pulp::x86::V3::try_new() {
                    check(simd, queries, keys, width);
                }
                if let Some(simd) = pulp::x86::V4::try_new() {
                    check(simd, queries, keys, width);
                }
            }
        }
    }
}
