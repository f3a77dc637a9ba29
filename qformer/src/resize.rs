//! Pillow's antialiased bicubic resize of 8-bit RGB pictures, bit for bit.
//!
//! Models of the BLIP family were trained on `PIL.Image.resize((S, S), BICUBIC)`: a separable
//! convolution whose kernel is stretched by the reduction factor, whose weights are fixed-point
//! integers, and whose two passes round to 8 bits in between. The rounding makes the order of the
//! passes visible in the result, so the order is Pillow's too.
//!
//! Sources: Keys, "Cubic convolution interpolation for digital image processing" (1981), with
//! a = -0.5; Pillow's `src/libImaging/Resample.c` for the rounding; the order of the passes was
//! measured on Pillow 13.0.0 over 4,300 shapes, because the sources before it always went
//! horizontally first. `tests/tests/pixels.rs` holds the pictures that prove it.

use pulp::Arch;
use rayon::prelude::*;

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

/// Squashes an RGB picture of `width` x `height` pixels (rows of `3 * width` bytes, top first) to
/// `size` x `size`; the aspect ratio is not kept.
///
/// `pixels` holds `3 * width * height` bytes, neither side is zero, and the result holds
/// `3 * size * size` bytes.
pub(crate) fn bicubic_square(pixels: &[u8], width: usize, height: usize, size: usize) -> Vec<u8> {
    debug_assert_eq!(pixels.len(), CHANNELS * width * height);
    if vertical_first(width, height, size) {
        let narrow = vertical(pixels, width, height, size);
        return horizontal(&narrow, width, size, size);
    }
    match (width == size, height == size) {
        (true, true) => pixels.to_vec(),
        (true, false) => vertical(pixels, width, height, size),
        (false, true) => horizontal(pixels, width, height, size),
        (false, false) => vertical(&horizontal(pixels, width, height, size), size, height, size),
    }
}

/// Whether Pillow 13 runs the vertical pass first: where rows are lost, and more than twice as many
/// of them as columns.
fn vertical_first(width: usize, height: usize, size: usize) -> bool {
    width != size && height > size && height + size > 2 * width
}

/// The weights of one output position: `weights[i]` belongs to input position `first + i`.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// The weights of every output position for a line of `input` values brought to `output` values.
fn taps(input: usize, output: usize) -> Vec<Taps> {
    let scale = input as f64 / output as f64;
    let stretch = scale.max(1.0);
    let support = CUBIC_SUPPORT * stretch;
    let shrink = 1.0 / stretch;
    (0..output)
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

/// Brings each row of `width` pixels to `size` pixels.
fn horizontal(pixels: &[u8], width: usize, height: usize, size: usize) -> Vec<u8> {
    let mut taps = taps(width, size);
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
        Arch::new().dispatch(|| horizontal_row(row, &taps, out));
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

/// One row of the horizontal pass; the weights stand once for each channel.
#[inline(always)]
fn horizontal_row(row: &[u8], taps: &[Taps], out: &mut [u8]) {
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

/// Brings `height` rows of `width` pixels to `size` rows.
fn vertical(pixels: &[u8], width: usize, height: usize, size: usize) -> Vec<u8> {
    let taps = taps(height, size);
    let stride = CHANNELS * width;
    let mut resized = vec![0; stride * size];
    let row = |(out, taps): (&mut [u8], &Taps)| {
        let mut sums = vec![HALF; stride];
        Arch::new().dispatch(|| vertical_row(&pixels[stride * taps.first..], taps, &mut sums, out));
    };
    if width * work(&taps) < PARALLEL_WORK {
        resized.chunks_exact_mut(stride).zip(&taps).for_each(row);
    } else {
        resized
            .par_chunks_exact_mut(stride)
            .zip(&taps)
            .for_each(row);
    }
    resized
}

/// One row of the vertical pass from the rows that begin at its first tap.
#[inline(always)]
fn vertical_row(rows: &[u8], taps: &Taps, sums: &mut [i32], out: &mut [u8]) {
    for (row, weight) in rows.chunks_exact(sums.len()).zip(&taps.weights) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += i32::from(*value) * weight;
        }
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = pixel(*sum);
    }
}

/// Multiplications of one line of pixels.
fn work(taps: &[Taps]) -> usize {
    CHANNELS * taps.iter().map(|taps| taps.weights.len()).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

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
            for taps in taps(input, output) {
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
