//! Pillow's antialiased bicubic resize of 8-bit RGB pictures, bit for bit.
//!
//! Models of the BLIP family and of CLIP's were trained on `PIL.Image.resize(.., BICUBIC)`: a separable
//! convolution whose kernel is stretched by the reduction factor, whose weights are fixed-point
//! integers, and whose two passes round to 8 bits in between. The rounding makes the order of the
//! passes visible in the result, so the order is Pillow's too.
//!
//! Sources: Keys, "Cubic convolution interpolation for digital image processing" (1981), with
//! a = -0.5; Pillow 13.0.0's `src/libImaging/Resample.c` for the rounding and the order of the
//! passes, which before it was always horizontal first. `tests/tests/pixels.rs` holds the pictures
//! that prove it.

use std::ops::Range;

use rayon::prelude::*;

use crate::kernels::widest;

/// Bytes of an RGB pixel.
const CHANNELS: usize = 3;
/// The free parameter of the cubic kernel; Pillow's is -0.5 (Catmull-Rom), OpenCV's is -0.75.
const CUBIC_A: f64 = -0.5;
/// The kernel is zero beyond this distance, in pixels of the coarser grid.
const CUBIC_SUPPORT: f64 = 2.0;
/// Fraction bits of a weight: 32 less 8 for the pixel and 2 for sums beyond the range of 0 to 1.
const WEIGHT_BITS: u32 = 32 - 8 - 2;
/// Sums kept side by side in the horizontal pass, whole pixels of them, so that the compiler can use
/// vector instructions.
const LANES: usize = 8 * CHANNELS;
/// Below this many multiplications a pass is not worth a second thread.
const PARALLEL_WORK: usize = 1 << 20;

/// Width and height of a picture, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub width: usize,
    pub height: usize,
}

/// The part of a resized picture that is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub left: usize,
    pub top: usize,
    pub size: Size,
}

/// Resizes an RGB picture of size `from` (rows of `3 * width` bytes, top first) to size `to`, of
/// which `window` is computed, and nothing beside it.
///
/// `pixels` holds `3 * width * height` bytes, no side is zero, the window lies inside `to`, and the
/// result holds the window's `3 * width * height` bytes.
pub(crate) fn bicubic(pixels: &[u8], from: Size, to: Size, window: Window) -> Vec<u8> {
    debug_assert_eq!(pixels.len(), CHANNELS * from.width * from.height);
    let columns = (from.width != to.width || window.size.width != to.width).then(|| {
        let range = window.left..window.left + window.size.width;
        taps(from.width, to.width, range)
    });
    let rows = (from.height != to.height || window.size.height != to.height).then(|| {
        let range = window.top..window.top + window.size.height;
        taps(from.height, to.height, range)
    });
    match (columns, rows) {
        (None, None) => pixels.to_vec(),
        (None, Some(rows)) => vertical(pixels, from.width, &rows),
        (Some(columns), None) => horizontal(pixels, from.width, columns),
        (Some(columns), Some(rows)) if vertical_first(from, to) => {
            horizontal(&vertical(pixels, from.width, &rows), from.width, columns)
        }
        (Some(columns), Some(mut rows)) => {
            let first = rows.first().map_or(0, |taps| taps.first);
            let end = rows
                .last()
                .map_or(first, |taps| taps.first + taps.weights.len());
            for taps in &mut rows {
                taps.first -= first;
            }
            let stride = CHANNELS * from.width;
            let used = &pixels[stride * first..stride * end];
            vertical(
                &horizontal(used, from.width, columns),
                window.size.width,
                &rows,
            )
        }
    }
}

/// Whether Pillow 13 runs the vertical pass first: where rows are lost, and more than twice as many
/// of them as columns.
fn vertical_first(from: Size, to: Size) -> bool {
    from.width != to.width
        && from.height > to.height
        && from.height + 2 * to.width > to.height + 2 * from.width
}

/// The weights of one output position: `weights[i]` belongs to input position `first + i`.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// The weights of the output positions `range` for a line of `input` values brought to `output`
/// values.
fn taps(input: usize, output: usize, range: Range<usize>) -> Vec<Taps> {
    let scale = input as f64 / output as f64;
    let stretch = scale.max(1.0);
    let support = CUBIC_SUPPORT * stretch;
    let shrink = 1.0 / stretch;
    range
        .map(|position| {
            let center = (position as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(input);
            let exact: Vec<f64> = (first..end)
                .map(|at| cubic((at as f64 - center + 0.5) * shrink))
                .collect();
            let sum: f64 = exact.iter().sum();
            let weights = exact
                .iter()
                .map(|weight| fixed_point(if sum == 0.0 { *weight } else { weight / sum }))
                .collect();
            Taps { first, weights }
        })
        .collect()
}

/// The cubic convolution kernel at distance `x`.
fn cubic(x: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        ((CUBIC_A + 2.0) * x - (CUBIC_A + 3.0)) * x * x + 1.0
    } else if x < CUBIC_SUPPORT {
        (((x - 5.0) * x + 8.0) * x - 4.0) * CUBIC_A
    } else {
        0.0
    }
}

/// A weight in units of 2^-22, halves rounded away from zero.
fn fixed_point(weight: f64) -> i32 {
    let half = if weight < 0.0 { -0.5 } else { 0.5 };
    (half + weight * f64::from(1u32 << WEIGHT_BITS)) as i32
}

/// A sum in units of 2^-22, which already holds the half for rounding, as a pixel value.
fn pixel(sum: i32) -> u8 {
    (sum >> WEIGHT_BITS).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (WEIGHT_BITS - 1);

/// Brings each row of `width` pixels to one for each of `taps`.
fn horizontal(pixels: &[u8], width: usize, mut taps: Vec<Taps>) -> Vec<u8> {
    let (size, height) = (taps.len(), pixels.len() / (CHANNELS * width));
    let work = height * work(&taps);
    for taps in &mut taps {
        taps.weights = taps
            .weights
            .iter()
            .flat_map(|weight| [*weight; CHANNELS])
            .collect();
    }
    let mut resized = vec![0; CHANNELS * size * height];
    let row = |(out, row): (&mut [u8], &[u8])| {
        horizontal_row(row, &taps, out);
    };
    let (out_stride, stride) = (CHANNELS * size, CHANNELS * width);
    if work < PARALLEL_WORK {
        resized
            .chunks_exact_mut(out_stride)
            .zip(pixels.chunks_exact(stride))
            .for_each(row);
    } else {
        resized
            .par_chunks_exact_mut(out_stride)
            .zip(pixels.par_chunks_exact(stride))
            .for_each(row);
    }
    resized
}

widest! {
    /// One row of the horizontal pass; the weights stand once for each channel.
    fn horizontal_row<'a>(row: &'a [u8], taps: &'a [Taps], out: &'a mut [u8]) {
        for (out, taps) in out.chunks_exact_mut(CHANNELS).zip(taps) {
            let window = &row[CHANNELS * taps.first..][..taps.weights.len()];
            let (values, last_values) = window.as_chunks::<LANES>();
            let (weights, last_weights) = taps.weights.as_chunks::<LANES>();
            let mut sums = [0; LANES];
            for (values, weights) in values.iter().zip(weights) {
                for lane in 0..LANES {
                    sums[lane] += i32::from(values[lane]) * weights[lane];
                }
            }
            for ((sum, value), weight) in sums.iter_mut().zip(last_values).zip(last_weights) {
                *sum += i32::from(*value) * weight;
            }
            for (channel, out) in out.iter_mut().enumerate() {
                let sum: i32 = sums.iter().skip(channel).step_by(CHANNELS).sum();
                *out = pixel(HALF + sum);
            }
        }
    }
}

/// Brings rows of `width` pixels to one for each of `taps`.
fn vertical(pixels: &[u8], width: usize, taps: &[Taps]) -> Vec<u8> {
    let stride = CHANNELS * width;
    let mut resized = vec![0; stride * taps.len()];
    let row = |(out, taps): (&mut [u8], &Taps)| {
        let mut sums = vec![HALF; stride];
        vertical_row(&pixels[stride * taps.first..], taps, &mut sums, out);
    };
    if width * work(taps) < PARALLEL_WORK {
        resized.chunks_exact_mut(stride).zip(taps).for_each(row);
    } else {
        resized.par_chunks_exact_mut(stride).zip(taps).for_each(row);
    }
    resized
}

widest! {
    /// One row of the vertical pass from the rows that begin at its first tap.
    fn vertical_row<'a>(rows: &'a [u8], taps: &'a Taps, sums: &'a mut [i32], out: &'a mut [u8]) {
        for (row, weight) in rows.chunks_exact(sums.len()).zip(&taps.weights) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += i32::from(*value) * weight;
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = pixel(*sum);
        }
    }
}

/// Multiplications of one line of pixels.
fn work(taps: &[Taps]) -> usize {
    CHANNELS * taps.iter().map(|taps| taps.weights.len()).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Squashed to `size` x `size`.
    fn bicubic_square(pixels: &[u8], width: usize, height: usize, size: usize) -> Vec<u8> {
        let to = Size {
            width: size,
            height: size,
        };
        let whole = Window {
            left: 0,
            top: 0,
            size: to,
        };
        bicubic(pixels, Size { width, height }, to, whole)
    }

    #[test]
    fn a_window_is_a_part_of_the_whole() {
        let from = Size {
            width: 37,
            height: 53,
        };
        let pixels: Vec<u8> = (0..CHANNELS * from.width * from.height)
            .map(|i| (i * i % 251) as u8)
            .collect();
        // Smaller, larger, taller by far, unchanged in one direction, unchanged in both.
        for (width, height) in [(24, 34), (60, 86), (36, 9), (37, 20), (11, 53), (37, 53)] {
            let to = Size { width, height };
            let whole = Window {
                left: 0,
                top: 0,
                size: to,
            };
            let whole = bicubic(&pixels, from, to, whole);
            let window = Window {
                left: width / 4,
                top: height / 5,
                size: Size {
                    width: width / 2,
                    height: height / 3,
                },
            };
            let expected: Vec<u8> = (window.top..window.top + window.size.height)
                .flat_map(|row| {
                    let start = CHANNELS * (row * width + window.left);
                    whole[start..start + CHANNELS * window.size.width].to_vec()
                })
                .collect();
            assert_eq!(bicubic(&pixels, from, to, window), expected, "{to:?}");
        }
    }

    #[test]
    fn weights_sum_to_one_and_stay_inside() {
        for (input, output) in [
            (1, 224),
            (3, 7),
            (224, 224),
            (640, 224),
            (10_000, 3),
            (65_535, 1),
        ] {
            for taps in taps(input, output, 0..output) {
                assert!(!taps.weights.is_empty());
                assert!(taps.first + taps.weights.len() <= input);
                let sum: i64 = taps.weights.iter().copied().map(i64::from).sum();
                let slack = taps.weights.len() as i64;
                assert!(
                    (sum - (1 << WEIGHT_BITS)).abs() <= slack,
                    "{input} to {output}: {sum}"
                );
            }
        }
    }

    #[test]
    fn a_plain_picture_stays_plain() {
        for (width, height) in [(1, 1), (2, 900), (900, 2), (31, 17), (500, 400)] {
            let plain = [7, 130, 250].repeat(width * height);
            assert_eq!(
                bicubic_square(&plain, width, height, 48),
                [7, 130, 250].repeat(48 * 48)
            );
        }
    }

    #[test]
    fn the_largest_sums_fit() {
        // A hard edge is the worst case for overshoot; an overflowing sum would wrap round.
        for width in [2, 40, 4000] {
            let edge: Vec<u8> = (0..width)
                .flat_map(|x| [if 2 * x < width { 0 } else { 255 }; 3])
                .collect();
            let resized = bicubic_square(&edge, width, 1, 16);
            assert_eq!((resized[0], resized[3 * 15]), (0, 255));
        }
    }
}
