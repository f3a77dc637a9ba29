//! Position embeddings for pictures of another size than the ViT was trained
//! on.

use crate::checkpoint::{Values, Weight};
use crate::{Error, Result};

/// How the grids lie over each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Their patches' corners (torch's `align_corners=True`): LAVIS's CLIP.
    Corners,
    /// Their outer edges (`align_corners=False`): LAVIS's EVA-CLIP, and
    /// `interpolate_pos_encoding` of Hugging Face.
    Edges,
}

/// torch's coefficient of the bicubic kernel; Pillow's is -0.5.
const A: f64 = -0.75;

/// A position embedding `[1, 1 + from * from, width]` for a grid of `to` x `to`
/// patches, `[1, 1 + to * to, width]`: the patches' positions resized
/// bicubically, without antialiasing, as torch's `interpolate(mode="bicubic")`
/// does; the class token's, which is first, kept.
///
/// Reference: LAVIS, `models/eva_vit.py` and `models/clip_vit.py`,
/// `interpolate_pos_embed`; PyTorch, `native/UpSample.h`.
///
/// # Errors
/// The rows are not those of a square grid and a class token.
pub fn resized(weight: &Weight, to: usize, align: Align) -> Result<Weight<'static>> {
    let (from, width) = match weight.shape.as_slice() {
        [1, rows, width] if grid(*rows).is_some_and(|grid| grid > 0) => {
            (grid(*rows).unwrap_or(0), *width)
        }
        found => {
            return Err(Error::Shape {
                path: weight.path.clone(),
                tensor: weight.name.clone(),
                expected: vec![1, 1 + to * to, found.last().copied().unwrap_or(0)],
                found: found.to_vec(),
            });
        }
    };
    let values = interpolate(&weight.to_f32()?, width, from, to, align);
    Ok(Weight {
        name: weight.name.clone(),
        shape: vec![1, 1 + to * to, width],
        values: Values::Computed(values),
        path: weight.path.clone(),
    })
}

/// Side of the square grid that, with a class token, has this many rows.
pub(crate) fn grid(rows: usize) -> Option<usize> {
    let patches = rows.checked_sub(1)?;
    let side = patches.isqrt();
    (side * side == patches).then_some(side)
}

fn interpolate(positions: &[f32], width: usize, from: usize, to: usize, align: Align) -> Vec<f32> {
    let (class, patches) = positions.split_at(width.min(positions.len()));
    let taps: Vec<[(usize, f64); 4]> = (0..to)
        .map(|target| taps(target, from, to, align))
        .collect();
    let mut output = class.to_vec();
    output.reserve(to * to * width);
    for row_taps in &taps {
        for column_taps in &taps {
            let start = output.len();
            output.resize(start + width, 0.0);
            let mut sums = vec![0.0; width];
            for (row, row_weight) in row_taps {
                for (column, column_weight) in column_taps {
                    let weight = row_weight * column_weight;
                    let patch = (row * from + column) * width;
                    for (sum, value) in sums.iter_mut().zip(&patches[patch..patch + width]) {
                        *sum += weight * f64::from(*value);
                    }
                }
            }
            for (output, sum) in output[start..].iter_mut().zip(&sums) {
                *output = *sum as f32;
            }
        }
    }
    output
}

/// The four source places that a target place is made of, with their weights.
/// Places beyond the border are the border's.
fn taps(target: usize, from: usize, to: usize, align: Align) -> [(usize, f64); 4] {
    let place = match align {
        Align::Corners if to > 1 => target as f64 * (from - 1) as f64 / (to - 1) as f64,
        Align::Corners => 0.0,
        Align::Edges => (target as f64 + 0.5) * from as f64 / to as f64 - 0.5,
    };
    let floor = place.floor();
    let t = place - floor;
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
    std::array::from_fn(|tap| {
        let index = floor + tap as f64 - 1.0;
        // A float's cast clamps what is negative to zero.
        ((index as usize).min(from - 1), weights[tap])
    })
}
