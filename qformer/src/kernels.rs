//! Element-wise loops over f32 rows on a CPU.
//!
//! Plain loops that the compiler turns into vector code, run with the widest
//! instructions of the machine (`pulp` picks them when the program runs).
//! Errors stay within a few units in the last place.

use std::ops::Range;

use pulp::Arch;

/// Partial sums side by side: enough for two AVX-512 registers to be busy,
/// and kinder to rounding than one running sum.
const LANES: usize = 32;

/// `x / 2 * (1 + erf(x / sqrt(2)))` in place.
pub(crate) fn gelu(values: &mut [f32]) {
    Arch::new().dispatch(|| gelu_loop(values));
}

#[inline(always)]
fn gelu_loop(values: &mut [f32]) {
    for x in values {
        *x = 0.5 * *x * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2));
    }
}

/// `x * sigmoid(1.702 * x)` in place.
pub(crate) fn quick_gelu(values: &mut [f32]) {
    Arch::new().dispatch(|| quick_gelu_loop(values));
}

#[inline(always)]
fn quick_gelu_loop(values: &mut [f32]) {
    for x in values {
        let scaled = 1.702 * *x;
        // `exp` of what is not positive: it cannot overflow.
        let e = exp(-scaled.abs());
        *x *= if scaled < 0.0 { e } else { 1.0 } / (1.0 + e);
    }
}

/// Softmax of each row of `width` values, in place.
pub(crate) fn softmax(values: &mut [f32], width: usize) {
    Arch::new().dispatch(|| {
        for row in values.chunks_exact_mut(width) {
            softmax_row(row);
        }
    });
}

/// Softmax of a stretch of each row of `width` values, in place; the rest of the row becomes 0.
pub(crate) fn softmax_within(values: &mut [f32], width: usize, stretches: &[Range<usize>]) {
    Arch::new().dispatch(|| {
        for (row, stretch) in values.chunks_exact_mut(width).zip(stretches) {
            softmax_row(&mut row[stretch.clone()]);
            row[..stretch.start].fill(0.0);
            row[stretch.end..].fill(0.0);
        }
    });
}

#[inline(always)]
fn softmax_row(row: &mut [f32]) {
    let max = lanes(
        row,
        f32::NEG_INFINITY,
        |max, x| if x > max { x } else { max },
    )
    .into_iter()
    .fold(f32::NEG_INFINITY, f32::max);
    for x in row.iter_mut() {
        *x = exp(*x - max);
    }
    let scale = 1.0 / total(lanes(row, 0.0, |sum, x| sum + x));
    for x in row {
        *x *= scale;
    }
}

/// LayerNorm of each row of `weight.len()` values of `input` into `output`.
pub(crate) fn layer_norm(
    input: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    output: &mut [f32],
) {
    let width = weight.len();
    Arch::new().dispatch(|| {
        let rows = input.chunks_exact(width);
        for (row, output) in rows.zip(output.chunks_exact_mut(width)) {
            layer_norm_row(row, weight, bias, eps, output);
        }
    });
}

/// In two passes: `E[x^2] - E[x]^2` loses digits where the mean is far from 0.
#[inline(always)]
fn layer_norm_row(row: &[f32], weight: &[f32], bias: &[f32], eps: f32, output: &mut [f32]) {
    let width = row.len() as f32;
    let mean = total(lanes(row, 0.0, |sum, x| sum + x)) / width;
    let squares = lanes(row, 0.0, |sum, x| sum + (x - mean) * (x - mean));
    let scale = 1.0 / (total(squares) / width + eps).sqrt();
    for (((y, x), weight), bias) in output.iter_mut().zip(row).zip(weight).zip(bias) {
        *y = (x - mean) * scale * weight + bias;
    }
}

/// Rows of `width` values in 8 bits: `x = (number - zero) * scale`, numbers from 0 to `levels`, with 0 among what they
/// stand for. A row with a value that is no number, or infinite, has such a scale.
pub(crate) fn quantize(
    input: &[f32],
    width: usize,
    levels: f32,
    numbers: &mut [u8],
    zeros: &mut [u8],
    scales: &mut [f32],
) {
    Arch::new().dispatch(|| {
        let rows = input
            .chunks_exact(width)
            .zip(numbers.chunks_exact_mut(width));
        for (((row, numbers), zero), scale) in rows.zip(zeros).zip(scales) {
            (*zero, *scale) = quantize_row(row, levels, numbers);
        }
    });
}

#[inline(always)]
fn quantize_row(row: &[f32], levels: f32, numbers: &mut [u8]) -> (u8, f32) {
    let min = lanes(row, 0.0, |min, x| if x < min { x } else { min });
    let max = lanes(row, 0.0, |max, x| if x > max { x } else { max });
    let min = min.into_iter().fold(0.0, f32::min);
    let max = max.into_iter().fold(0.0, f32::max);
    // 0 unless something is NaN or infinite, and then NaN.
    let poison = total(lanes(row, 0.0, |sum, x| sum + x * 0.0));
    let range = max - min;
    let steps = if range > 0.0 { levels / range } else { 0.0 };
    let zero = (-min * steps).round_ties_even();
    for (number, x) in numbers.iter_mut().zip(row) {
        *number = to_u8(x * steps + zero, levels);
    }
    (to_u8(zero, levels), range / levels + poison)
}

/// The nearest whole number from 0 to `levels`, which is at most 255.
#[inline(always)]
fn to_u8(x: f32, levels: f32) -> u8 {
    // 1.5 * 2^23: beside it, f32 has no room for fractions, and the lowest byte counts.
    const MAGIC: f32 = 12_582_912.0;
    let x = if x > 0.0 { x } else { 0.0 };
    let x = if x < levels { x } else { levels };
    (x + MAGIC).to_bits() as u8
}

/// What each column of a product in 8 bits needs to become f32.
pub(crate) struct Columns<'a> {
    /// Of its weights' numbers.
    pub sums: &'a [i32],
    pub scales: &'a [f32],
    pub bias: Option<&'a [f32]>,
}

/// Rows of whole sums to f32: `(sum - zero * sum of the column) * scale of the row * scale of the column + bias`, added
/// to what is there where `add`.
pub(crate) fn dequantize(
    sums: &[i32],
    zeros: &[u8],
    scales: &[f32],
    columns: &Columns,
    output: &mut [f32],
    add: bool,
) {
    let width = columns.scales.len();
    Arch::new().dispatch(|| {
        let rows = sums.chunks_exact(width).zip(output.chunks_exact_mut(width));
        for (((sums, output), zero), scale) in rows.zip(zeros).zip(scales) {
            dequantize_row(sums, i32::from(*zero), *scale, columns, output, add);
        }
    });
}

#[inline(always)]
fn dequantize_row(
    sums: &[i32],
    zero: i32,
    scale: f32,
    columns: &Columns,
    output: &mut [f32],
    add: bool,
) {
    let products = sums
        .iter()
        .zip(columns.sums)
        .zip(columns.scales)
        .map(|((sum, of_column), of_scale)| (sum - zero * of_column) as f32 * (scale * of_scale));
    let cells = output.iter_mut().zip(products);
    match (columns.bias, add) {
        (None, false) => cells.for_each(|(y, product)| *y = product),
        (None, true) => cells.for_each(|(y, product)| *y += product),
        (Some(bias), false) => cells
            .zip(bias)
            .for_each(|((y, product), bias)| *y = product + bias),
        (Some(bias), true) => cells
            .zip(bias)
            .for_each(|((y, product), bias)| *y += product + bias),
    }
}

#[inline(always)]
fn lanes(row: &[f32], start: f32, fold: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    let mut lanes = [start; LANES];
    let mut chunks = row.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = fold(*lane, *x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = fold(*lane, *x);
    }
    lanes
}

#[inline(always)]
fn total(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Error function: an odd rational approximation on `[-4, 4]`, beyond which
/// f32 knows only 1 (coefficients of Eigen's `generic_fast_erf_float`).
#[inline(always)]
fn erf(x: f32) -> f32 {
    // Written so that NaN stays NaN, which `clamp` would not vectorize.
    let x = if x > 4.0 { 4.0 } else { x };
    let x = if x < -4.0 { -4.0 } else { x };
    let x2 = x * x;
    let mut p = -2.726_142_3e-10_f32;
    p = p * x2 + 2.770_681_4e-8;
    p = p * x2 + -2.101_024e-6;
    p = p * x2 + -5.692_506_4e-5;
    p = p * x2 + -7.349_906_3e-4;
    p = p * x2 + -2.954_6e-3;
    p = p * x2 + -1.609_603_3e-2;
    let mut q = -1.456_607_2e-5_f32;
    q = q * x2 + -2.133_740_6e-4;
    q = q * x2 + -1.682_827_e-3;
    q = q * x2 + -7.373_329e-3;
    q = q * x2 + -1.426_473_9e-2;
    x * p / q
}

/// `e^x` for `x <= 0` (Cephes' `expf`): `2^n` times a polynomial in the rest.
/// Below -87 the result is the smallest normal number instead of a smaller one.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Adding it leaves the sum's nearest integer in the lowest mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -87.0 { -87.0 } else { x };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut p = 1.987_569_1e-4_f32;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    let exponent = rounded
        .to_bits()
        .wrapping_sub(ROUND.to_bits())
        .wrapping_add(127)
        << 23;
    p * f32::from_bits(exponent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(from: f32, to: f32) -> impl Iterator<Item = f32> {
        let n = 400_000;
        (0..=n).map(move |i| from + (to - from) * i as f32 / n as f32)
    }

    #[test]
    fn quick_gelu_is_the_sigmoid_s() {
        for i in -4000..=4000 {
            let x = i as f32 / 100.0;
            let exact = f64::from(x) / (1.0 + (-1.702 * f64::from(x)).exp());
            let mut y = [x; 37];
            quick_gelu(&mut y);
            assert!(
                y.iter()
                    .all(|y| (f64::from(*y) - exact).abs() <= 1e-6 * exact.abs().max(1e-6)),
                "quick_gelu({x}) = {}, not {exact}",
                y[0]
            );
        }
    }

    #[test]
    fn gelu_is_the_exact_one() {
        for x in grid(-12.0, 12.0) {
            let exact = 0.5
                * f64::from(x)
                * (1.0 + candle_core::cpu::erf::erf_f64(f64::from(x) / 2f64.sqrt()));
            let mut y = [x];
            gelu(&mut y);
            let error = (f64::from(y[0]) - exact).abs();
            assert!(
                error < 4e-7 * f64::from(x.abs()).max(0.5),
                "gelu({x}) = {}, not {exact}",
                y[0]
            );
        }
    }

    #[test]
    fn exp_is_exact_to_the_last_places() {
        for x in grid(-87.0, 0.0) {
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 3e-7, "exp({x})");
        }
        assert!(exp(-1e9) < 2e-38);
        assert!(exp(f32::NEG_INFINITY) < 2e-38);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn softmax_of_any_width_sums_to_one() {
        for width in [1, 2, 15, 31, 32, 33, 64, 257] {
            let mut row: Vec<f32> = (0..width).map(|i| ((i * 37) % 23) as f32 - 40.0).collect();
            let max = row.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
            let sum: f64 = row.iter().map(|x| f64::from(x - max).exp()).sum();
            let exact: Vec<f64> = row.iter().map(|x| f64::from(x - max).exp() / sum).collect();
            softmax(&mut row, width);
            for (x, exact) in row.iter().zip(exact) {
                assert!((f64::from(*x) - exact).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn layer_norm_survives_a_large_mean() {
        let row: Vec<f32> = (0..100).map(|i| 4096.0 + (i % 7) as f32).collect();
        let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / 100.0;
        let variance = row
            .iter()
            .map(|x| (f64::from(*x) - mean).powi(2))
            .sum::<f64>()
            / 100.0;
        let (weight, bias) = (vec![2.0; 100], vec![0.5; 100]);
        let mut output = vec![0.0; 100];
        layer_norm(&row, &weight, &bias, 1e-6, &mut output);
        for (x, y) in row.iter().zip(output) {
            let exact = (f64::from(*x) - mean) / (variance + 1e-6).sqrt() * 2.0 + 0.5;
            assert!((f64::from(y) - exact).abs() < 1e-3, "{y} {exact}");
        }
    }

    #[test]
    fn not_a_number_is_not_hidden() {
        let mut row = [1.0, f32::NAN, 2.0];
        gelu(&mut row);
        assert!(row[1].is_nan() && !row[0].is_nan());
        softmax(&mut row, 3);
        assert!(row.iter().all(|x| x.is_nan()));
    }
}
