//! Loops over f32 rows on a CPU.
//!
//! Plain loops that the compiler turns into vector code, run with the widest
//! instructions of the machine (`pulp` picks them when the program runs).
//! Errors stay within a few units in the last place. `mul_add` is one
//! instruction wherever there are such vectors.

/// Partial sums side by side: enough for two AVX-512 registers to be busy,
/// and kinder to rounding than one running sum.
const LANES: usize = 32;

/// A function whose body is compiled once for each instruction set, and run with the widest that the machine has.
///
/// A closure would do, were it certain to be inlined where it is called: one that is not runs with the narrowest
/// instructions, and nothing but the clock tells.
macro_rules! widest {
    (
        $(#[$doc:meta])*
        $visible:vis fn $name:ident<$life:lifetime>($($parameter:ident: $of:ty),* $(,)?) $(-> $output:ty)? $body:block
    ) => {
        $(#[$doc])*
        $visible fn $name<$life>($($parameter: $of),*) $(-> $output)? {
            struct Loop<$life> {
                $($parameter: $of),*
            }
            impl<$life> pulp::WithSimd for Loop<$life> {
                type Output = $crate::kernels::output!($($output)?);
                #[inline(always)]
                fn with_simd<S: pulp::Simd>(self, _: S) -> Self::Output {
                    let Self { $($parameter),* } = self;
                    $body
                }
            }
            pulp::Arch::new().dispatch(Loop { $($parameter),* })
        }
    };
}
macro_rules! output {
    () => {
        ()
    };
    ($output:ty) => {
        $output
    };
}
pub(crate) use {output, widest};

/// `x / 2 * (1 + erf(x / sqrt(2)))`.
#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// `x * sigmoid(1.702 * x)`.
#[inline(always)]
pub(crate) fn quick_gelu(x: f32) -> f32 {
    let scaled = 1.702 * x;
    // `exp` of what is not positive: it cannot overflow.
    let e = exp(-scaled.abs());
    x * (if scaled < 0.0 { e } else { 1.0 } / (1.0 + e))
}

/// `e^(x - the largest)` of a row, in place; returns what they add up to.
#[inline(always)]
pub(crate) fn exponents(row: &mut [f32]) -> f32 {
    let max = reduced(row, f32::NEG_INFINITY, larger, larger);
    let mut sums = [0.0; LANES];
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            chunk[lane] = exp(chunk[lane] - max);
            sums[lane] += chunk[lane];
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest) {
        *x = exp(*x - max);
        *sum += *x;
    }
    folded(sums, |a, b| a + b)
}

widest! {
    /// LayerNorm of each row of `weight.len()` values of `input` into `output`.
    pub(crate) fn layer_norm<'a>(
        input: &'a [f32],
        weight: &'a [f32],
        bias: &'a [f32],
        eps: f32,
        output: &'a mut [f32],
    ) {
        let width = weight.len();
        let rows = input.chunks_exact(width);
        for (row, output) in rows.zip(output.chunks_exact_mut(width)) {
            layer_norm_row(row, weight, bias, eps, output);
        }
    }
}

/// In two passes: `E[x^2] - E[x]^2` loses digits where the mean is far from 0.
#[inline(always)]
fn layer_norm_row(row: &[f32], weight: &[f32], bias: &[f32], eps: f32, output: &mut [f32]) {
    let width = row.len() as f32;
    let plus = |a, b| a + b;
    let mean = reduced(row, 0.0, plus, plus) / width;
    let squares = reduced(row, 0.0, |sum, x| (x - mean).mul_add(x - mean, sum), plus);
    let scale = 1.0 / (squares / width + eps).sqrt();
    for (((y, x), weight), bias) in output.iter_mut().zip(row).zip(weight).zip(bias) {
        *y = ((x - mean) * scale).mul_add(*weight, *bias);
    }
}

widest! {
    /// A row in 8 bits: `x = (number - zero) * scale`, numbers from 0 to `levels`, with 0 among what they stand for.
    /// Returns zero and scale; a row with a value that is no number, or infinite, has such a scale.
    pub(crate) fn quantize<'a>(row: &'a [f32], levels: f32, numbers: &'a mut [u8]) -> (u8, f32) {
        let min = reduced(row, 0.0, smaller, smaller);
        let max = reduced(row, 0.0, larger, larger);
        // 0 unless something is NaN or infinite, and then NaN.
        let poison = reduced(row, 0.0, |sum, x| x.mul_add(0.0, sum), |a, b| a + b);
        let range = max - min;
        let steps = if range > 0.0 { levels / range } else { 0.0 };
        let zero = (-min * steps).round_ties_even();
        for (number, x) in numbers.iter_mut().zip(row) {
            *number = to_u8(x.mul_add(steps, zero), levels);
        }
        (to_u8(zero, levels), range / levels + poison)
    }
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

widest! {
    /// Rows of whole sums, of numbers of [`quantize`]'s, to f32:
    /// `(sum - zero * sum of the column's numbers) * scale of the row * scale of the column`.
    ///
    /// `column_values` are the columns' sums times their scales: what is lost by subtracting in f32 is less than 8 bits lose.
    pub(crate) fn dequantize<'a>(
        sums: &'a [i32],
        rows: &'a [(u8, f32)],
        column_scales: &'a [f32],
        column_values: &'a [f32],
        output: &'a mut [f32],
    ) {
        let columns = column_scales.len();
        let sums = sums.chunks_exact(columns).zip(output.chunks_exact_mut(columns));
        for ((sums, output), (zero, scale)) in sums.zip(rows) {
            let zero = -f32::from(*zero) * scale;
            // Stretches of one length: what is left of a vector loop's is done one by one.
            let (sums, rest_sums) = sums.as_chunks::<LANES>();
            let (output, rest_output) = output.as_chunks_mut::<LANES>();
            let (scales, rest_scales) = column_scales.as_chunks::<LANES>();
            let (values, rest_values) = column_values.as_chunks::<LANES>();
            for (((output, sums), scales), values) in output.iter_mut().zip(sums).zip(scales).zip(values) {
                let mut made = [0.0; LANES];
                for lane in 0..LANES {
                    made[lane] = (sums[lane] as f32 * scale).mul_add(scales[lane], zero * values[lane]);
                }
                *output = made;
            }
            let rest = rest_output.iter_mut().zip(rest_sums).zip(rest_scales).zip(rest_values);
            for (((output, sum), of_scale), value) in rest {
                *output = (*sum as f32 * scale).mul_add(*of_scale, zero * value);
            }
        }
    }
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if b < a { b } else { a }
}

/// All of a row, folded in by `fold` to partial results, and those joined by `join`.
#[inline(always)]
fn reduced(
    row: &[f32],
    start: f32,
    fold: impl Fn(f32, f32) -> f32,
    join: impl Fn(f32, f32) -> f32,
) -> f32 {
    let mut lanes = [start; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = fold(lanes[lane], chunk[lane]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = fold(*lane, *x);
    }
    folded(lanes, join)
}

/// In halves: one lane after the other would wait for itself 32 times.
#[inline(always)]
fn folded(mut lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = join(lanes[i], lanes[i + half]);
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
    let mut p = 2.726_142_3e-10_f32;
    p = p.mul_add(x2, -2.770_681_4e-8);
    p = p.mul_add(x2, 2.101_024e-6);
    p = p.mul_add(x2, 5.692_506_4e-5);
    p = p.mul_add(x2, 7.349_906_3e-4);
    p = p.mul_add(x2, 2.954_6e-3);
    p = p.mul_add(x2, 1.609_603_3e-2);
    let mut q = 1.456_607_2e-5_f32;
    q = q.mul_add(x2, 2.133_740_6e-4);
    q = q.mul_add(x2, 1.682_827_e-3);
    q = q.mul_add(x2, 7.373_329e-3);
    q = q.mul_add(x2, 1.426_473_9e-2);
    x * p * reciprocal(q)
}

/// `1 / x` for `x > 0` to the last places, by Newton's method: a division takes AVX-512 as long as sixteen products.
#[inline(always)]
fn reciprocal(x: f32) -> f32 {
    // Subtracting the bits turns the exponent over; off by an eighth at most.
    let mut y = f32::from_bits(0x7ef3_11c7_u32.wrapping_sub(x.to_bits()));
    for _ in 0..3 {
        y *= x.mul_add(-y, 2.0);
    }
    y
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
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    let mut p = 1.987_569_1e-4_f32;
    p = p.mul_add(r, 1.398_199_9e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    let p = p.mul_add(r * r, r + 1.0);
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
            let y = quick_gelu(x);
            assert!(
                (f64::from(y) - exact).abs() <= 1e-6 * exact.abs().max(1e-6),
                "quick_gelu({x}) = {y}, not {exact}"
            );
        }
    }

    #[test]
    fn gelu_is_the_exact_one() {
        for x in grid(-12.0, 12.0) {
            let exact = 0.5
                * f64::from(x)
                * (1.0 + candle_core::cpu::erf::erf_f64(f64::from(x) / 2f64.sqrt()));
            let y = gelu(x);
            let error = (f64::from(y) - exact).abs();
            assert!(
                error < 4e-7 * f64::from(x.abs()).max(0.5),
                "gelu({x}) = {y}, not {exact}"
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
    fn exponents_of_any_width_are_softmax_s() {
        for width in [1, 2, 15, 31, 32, 33, 64, 257] {
            let mut row: Vec<f32> = (0..width).map(|i| ((i * 37) % 23) as f32 - 40.0).collect();
            let max = row.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
            let exact: Vec<f64> = row.iter().map(|x| f64::from(x - max).exp()).collect();
            let sum = exponents(&mut row);
            assert!((f64::from(sum) / exact.iter().sum::<f64>() - 1.0).abs() < 1e-6);
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
        assert!(gelu(f32::NAN).is_nan() && quick_gelu(f32::NAN).is_nan());
        assert!(exponents(&mut row).is_nan());
    }
}
