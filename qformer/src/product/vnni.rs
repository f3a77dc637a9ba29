//! Products in 8 bits by AVX-512's VNNI instructions, which multiply 64 pairs of numbers and add up each four of them.
//!
//! `multiversion` looks for the instructions when the program runs, so that none of this needs `unsafe`.

use multiversion::multiversion;
use multiversion::target::match_target;

use super::packed::{Kernel, LINE, Tile};

/// Numbers of one step.
pub(crate) const STEP: usize = 4;
const COLUMNS: usize = 32;
const ROWS: usize = 14;

/// Inputs from 0 to 255, weights from -128 to 127.
pub(crate) struct Vnni;

impl Vnni {
    /// Whether this processor has the instructions.
    pub fn is_available() -> bool {
        is_available()
    }
}

impl Kernel for Vnni {
    type Inputs = [u8; STEP];
    type Weights = [i8; STEP];
    type Sum = i32;

    const STEP: usize = STEP;

    fn columns() -> usize {
        COLUMNS
    }

    fn rows() -> usize {
        ROWS
    }

    fn multiply(tile: &Tile<[u8; STEP], [i8; STEP]>, sums: &mut [i32], on_top: bool) {
        multiply(tile, sums, on_top);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vnni"))]
fn is_available() -> bool {
    match_target! {
        "x86_64+avx512f+avx512vnni" => true,
        _ => false,
    }
}

/// [`Kernel::multiply`].
#[multiversion(targets("x86_64+avx512f+avx512vnni"))]
fn multiply(tile: &Tile<[u8; STEP], [i8; STEP]>, sums: &mut [i32], on_top: bool) {
    match_target! {
        "x86_64+avx512f+avx512vnni" => x86::multiply(tile, sums, on_top),
        _ => portable(tile, sums, on_top),
    }
}

fn portable(tile: &Tile<[u8; STEP], [i8; STEP]>, sums: &mut [i32], on_top: bool) {
    if !on_top {
        sums.fill(0);
    }
    let lines = tile.rows.chunks_exact(sums.len() / COLUMNS);
    for (rows, panel) in lines.zip(tile.panel.chunks_exact(LINE * COLUMNS)) {
        for (row, sums) in rows.iter().zip(sums.chunks_exact_mut(COLUMNS)) {
            for (inputs, weights) in row.iter().zip(panel.chunks_exact(COLUMNS)) {
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    let products = inputs.iter().zip(weights);
                    *sum += products
                        .map(|(input, weight)| i32::from(*input) * i32::from(*weight))
                        .sum::<i32>();
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512i, _mm512_dpbusd_epi32, _mm512_set1_epi32, _mm512_setzero_si512,
    };

    use pulp::bytemuck::cast;

    use super::{COLUMNS, STEP};
    use crate::product::packed::{LINE, Tile, by_height, fetch, fetch_soon};

    /// Sums of a register.
    const LANES: usize = 16;
    const REGISTERS: usize = COLUMNS / LANES;

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn multiply(tile: &Tile<[u8; STEP], [i8; STEP]>, sums: &mut [i32], on_top: bool) {
        let height = sums.len() / COLUMNS;
        by_height!(height, ROWS => multiply_rows::<ROWS>(tile, sums, on_top));
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn multiply_rows<const ROWS: usize>(
        tile: &Tile<[u8; STEP], [i8; STEP]>,
        sums: &mut [i32],
        on_top: bool,
    ) {
        let (sums, _) = sums.as_chunks_mut::<LANES>();
        let (sums, _) = sums.as_chunks_mut::<REGISTERS>();
        let mut registers = [[_mm512_setzero_si512(); REGISTERS]; ROWS];
        if on_top {
            for (registers, sums) in registers.iter_mut().zip(&*sums) {
                *registers = sums.map(cast);
            }
        }
        let (panel, _) = tile.panel.as_chunks::<LANES>();
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
                let weights: [__m512i; REGISTERS] = weights.map(cast);
                for (row, registers) in rows.iter().zip(&mut registers) {
                    let inputs = _mm512_set1_epi32(i32::from_le_bytes(row[step]));
                    for (sum, weights) in registers.iter_mut().zip(weights) {
                        *sum = _mm512_dpbusd_epi32(*sum, inputs, weights);
                    }
                }
            }
        }
        for (sums, registers) in sums.iter_mut().zip(registers) {
            *sums = registers.map(cast);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_exact() {
        let number = |i: usize| ((i * 7919 + 13) % 256) as u8;
        for (height, lines) in (1..=ROWS).flat_map(|height| [(height, 1), (height, 3)]) {
            let inputs = |i| std::array::from_fn(|k| number(STEP * i + k));
            let line = |i| std::array::from_fn(|step| inputs(LINE * i + step));
            let rows: Vec<[[u8; STEP]; LINE]> = (0..lines * height).map(line).collect();
            let panel: Vec<[i8; STEP]> = (0..lines * LINE * COLUMNS)
                .map(|i| std::array::from_fn(|k| number(5 * i + k + 7) as i8))
                .collect();
            let tile = Tile {
                rows: &rows,
                panel: &panel,
                ahead: &panel[..9],
            };
            for (multiply, on_top) in [
                (Vnni::multiply as fn(&_, &mut _, _), false),
                (Vnni::multiply, true),
                (portable, false),
                (portable, true),
            ] {
                let mut sums = vec![1000; height * COLUMNS];
                multiply(&tile, &mut sums, on_top);
                for (i, found) in sums.iter().enumerate() {
                    let (row, column) = (i / COLUMNS, i % COLUMNS);
                    let products = (0..lines * LINE).flat_map(|step| {
                        let inputs = rows[step / LINE * height + row][step % LINE].map(i32::from);
                        let weights = panel[step * COLUMNS + column].map(i32::from);
                        (0..STEP).map(move |k| inputs[k] * weights[k])
                    });
                    let expected = products.sum::<i32>() + if on_top { 1000 } else { 0 };
                    assert_eq!(*found, expected, "{height} rows, {lines} lines, {i}");
                }
            }
        }
    }
}
