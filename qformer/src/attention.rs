//! Scaled dot-product attention over several heads ("Attention Is All You
//! Need", section 3.2).

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp3, D, Layout, Shape, Tensor};
use rayon::prelude::*;

mod head;

use head::Head;

use crate::linear::runs_here;
use crate::operations::{count_product, timed, timed_tensor};
use crate::tiles::{Tile, tiles};

/// `softmax(q * k^T / sqrt(width / heads)) * v` in each head.
///
/// `q` is `[batch, queries, width]`, `k` and `v` are `[batch, keys, width]`,
/// each with its heads side by side; so is the result,
/// `[batch, queries, width]`.
#[cfg(test)]
pub(crate) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
) -> candle_core::Result<Tensor> {
    attention_to(q, k, v, heads, None)
}

/// What attention is called where operations are recorded.
const NAME: &str = "attention: softmax(q kT) v";

/// The keys that a batch entry's row of queries attends to, which are at least one.
pub(crate) type Visible<'a> = dyn Fn(usize, usize) -> Range<usize> + Sync + 'a;

/// [`attention`] to the keys that `visible` tells; to all where none is given.
pub(crate) fn attention_to(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    visible: Option<&Visible>,
) -> candle_core::Result<Tensor> {
    timed_tensor(NAME, || {
        let (batch, queries, width) = q.dims3()?;
        count_product(2 * batch * queries, k.dim(1)?, width);
        if runs_here(q) {
            return q.apply_op3_no_bwd(k, v, &Attention { heads, visible });
        }
        portable(q, k, v, heads, visible)
    })
}

/// [`attention_to`] by candle's operations.
fn portable(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    visible: Option<&Visible>,
) -> candle_core::Result<Tensor> {
    let (batch, queries, width) = q.dims3()?;
    let split = |x: &Tensor| -> candle_core::Result<Tensor> {
        x.reshape((batch, x.dim(1)?, heads, width / heads))?
            .transpose(1, 2)?
            .contiguous()
    };
    let scale = 1.0 / ((width / heads) as f64).sqrt();
    let scores = (split(q)? * scale)?.matmul(&split(k)?.transpose(D::Minus2, D::Minus1)?)?;
    let scores = match visible {
        Some(visible) => {
            let seen = stretches(visible, batch, queries, k.dim(1)?)?;
            scores.broadcast_add(&mask(&seen, &scores)?)?
        }
        None => scores,
    };
    let weights = candle_nn::ops::softmax_last_dim(&scores)?;
    weights
        .matmul(&split(v)?)?
        .transpose(1, 2)?
        .reshape((batch, queries, width))
}

/// What each row of each batch entry sees, row after row, found to be among the keys.
fn stretches(
    visible: &Visible,
    batch: usize,
    queries: usize,
    keys: usize,
) -> candle_core::Result<Vec<Range<usize>>> {
    let rows = (0..batch).flat_map(|entry| (0..queries).map(move |row| (entry, row)));
    rows.map(|(entry, row)| match visible(entry, row) {
        seen if seen.start < seen.end && seen.end <= keys => Ok(seen),
        seen => candle_core::bail!("row {row} attends to {seen:?} of {keys} keys"),
    })
    .collect()
}

/// `[batch, 1, queries, keys]`, 0 for what is attended to and -inf for the rest, of
/// the dtype and device of `scores` `[batch, heads, queries, keys]`.
fn mask(seen: &[Range<usize>], scores: &Tensor) -> candle_core::Result<Tensor> {
    let (batch, _, queries, keys) = scores.dims4()?;
    let value = |is_seen| if is_seen { 0.0 } else { f32::NEG_INFINITY };
    let values: Vec<f32> = seen
        .iter()
        .flat_map(|seen| (0..keys).map(move |key| value(seen.contains(&key))))
        .collect();
    Tensor::from_vec(values, (batch, 1, queries, keys), scores.device())?.to_dtype(scores.dtype())
}

/// Heads, or parts of heads, for each thread, so that they are shared out evenly.
const TASKS_PER_THREAD: usize = 2;

struct Attention<'a> {
    heads: usize,
    visible: Option<&'a Visible<'a>>,
}

/// `[batch, rows, width]` whose rows may lie apart.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub values: &'a [f32],
    pub batch_stride: usize,
    pub row_stride: usize,
    pub batch: usize,
    pub rows: usize,
    pub width: usize,
}

impl<'a> Rows<'a> {
    fn new(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<Self> {
        let (batch, rows, width) = layout.shape().dims3()?;
        match layout.stride() {
            [batch_stride, row_stride, 1] => Ok(Self {
                values: &storage.as_slice::<f32>()?[layout.start_offset()..],
                batch_stride: *batch_stride,
                row_stride: *row_stride,
                batch,
                rows,
                width,
            }),
            _ => candle_core::bail!("contiguous rows expected, found {layout:?}"),
        }
    }

    /// The part of a head, `width` columns from `column` on, in the rows `rows` of the picture `batch`.
    fn head(
        &self,
        batch: usize,
        rows: Range<usize>,
        column: usize,
        width: usize,
    ) -> head::Rows<'a> {
        let start = batch * self.batch_stride + rows.start * self.row_stride + column;
        head::Rows {
            values: &self.values[start..],
            stride: self.row_stride,
            count: rows.len(),
            width,
        }
    }
}

/// [`attention_to`] on rows in memory, into `output` `[batch, queries, width]`.
pub(crate) fn attend_rows(
    rows: [Rows; 3],
    heads: usize,
    visible: Option<&Visible>,
    output: &mut [f32],
) -> candle_core::Result<()> {
    timed(NAME, || {
        let [q, k, _] = rows;
        count_product(2 * q.batch * q.rows, k.rows, q.width);
        attend(rows, heads, visible, output)
    })
}

fn attend(
    [q, k, v]: [Rows; 3],
    heads: usize,
    visible: Option<&Visible>,
    output: &mut [f32],
) -> candle_core::Result<()> {
    let (batch, queries, keys, width) = (q.batch, q.rows, k.rows, q.width);
    let alike =
        (k.batch, k.width) == (batch, width) && (v.batch, v.rows, v.width) == (batch, keys, width);
    if !alike || batch * queries * keys * width == 0 || !width.is_multiple_of(heads) {
        let shapes = [q, k, v].map(|rows| [rows.batch, rows.rows, rows.width]);
        candle_core::bail!("no attention with {heads} heads over {shapes:?}");
    }
    let seen = visible
        .map(|visible| stretches(visible, batch, queries, keys))
        .transpose()?;
    let head_width = width / heads;
    // A head's keys and values are laid out anew for each of its parts, so it has few.
    let wanted = TASKS_PER_THREAD * rayon::current_num_threads();
    let parts = wanted.div_ceil(batch * heads).min(queries);
    let tasks: Vec<(usize, Tile)> = output
        .chunks_exact_mut(queries * width)
        .enumerate()
        .flat_map(|(batch, output)| {
            let tiles = tiles(output, width, queries.div_ceil(parts), head_width);
            tiles.into_iter().map(move |tile| (batch, tile))
        })
        .collect();
    tasks.into_par_iter().for_each(|(batch, mut tile)| {
        let rows = tile.row..tile.row + tile.rows.len();
        let seen = seen
            .as_ref()
            .map(|seen| &seen[batch * queries..][rows.clone()]);
        // Keys that no row sees, such as padding, are left out.
        let last = seen.and_then(|seen| seen.iter().map(|seen| seen.end).max());
        let keys = 0..last.unwrap_or(keys);
        Head {
            q: q.head(batch, rows, tile.column, head_width),
            k: k.head(batch, keys.clone(), tile.column, head_width),
            v: v.head(batch, keys, tile.column, head_width),
            scale: 1.0 / (head_width as f32).sqrt(),
            seen,
            output: &mut tile.rows,
        }
        .run();
    });
    Ok(())
}

impl CustomOp3 for Attention<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let mut output = vec![0.0; q_layout.shape().elem_count()];
        let rows = [
            Rows::new(q, q_layout)?,
            Rows::new(k, k_layout)?,
            Rows::new(v, v_layout)?,
        ];
        attend(rows, self.heads, self.visible, &mut output)?;
        Ok((CpuStorage::F32(output), q_layout.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn fused_and_portable_attention_agree() {
        let device = Device::Cpu;
        for (batch, queries, keys, heads, head_width) in [
            (1, 1, 1, 1, 1),
            (2, 7, 5, 3, 8),
            (1, 257, 257, 2, 88),
            (3, 32, 50, 4, 64),
        ] {
            let width = heads * head_width;
            let q = Tensor::randn(0f32, 2.0, (batch, queries, width), &device).unwrap();
            let kv = Tensor::randn(0f32, 2.0, (batch, keys, 2 * width), &device).unwrap();
            let k = kv.narrow(2, 0, width).unwrap();
            let v = kv.narrow(2, width, width).unwrap();
            let fused = attention(&q, &k, &v, heads).unwrap();
            let double = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
            let portable = attention(&double(&q), &double(&k), &double(&v), heads).unwrap();
            assert_eq!(fused.dims(), portable.dims());
            let difference = (double(&fused) - portable).unwrap().abs().unwrap();
            let difference: f64 = difference.max_all().unwrap().to_scalar().unwrap();
            assert!(difference < 1e-4, "{difference}");
        }
    }

    #[test]
    fn only_what_is_visible_is_attended_to() {
        let device = Device::Cpu;
        let (batch, queries, keys, heads, width) = (3, 9, 7, 3, 24);
        let seen = |entry: usize, row: usize| match entry {
            0 => 0..keys,
            1 => row % keys..row % keys + 1,
            _ => row % 3..4 + row % 4,
        };
        let random = |rows| Tensor::randn(0f32, 2.0, (batch, rows, width), &device).unwrap();
        let (q, k, v) = (random(queries), random(keys), random(keys));
        let fused = attention_to(&q, &k, &v, heads, Some(&seen)).unwrap();
        let double = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
        let portable =
            attention_to(&double(&q), &double(&k), &double(&v), heads, Some(&seen)).unwrap();
        for (entry, row) in (0..batch).flat_map(|entry| (0..queries).map(move |row| (entry, row))) {
            let part = |x: &Tensor, rows: Range<usize>| {
                let entry = x.narrow(0, entry, 1).unwrap();
                entry.narrow(1, rows.start, rows.len()).unwrap()
            };
            let rows = seen(entry, row);
            let (k, v) = (part(&k, rows.clone()), part(&v, rows));
            let alone = attention(&part(&q, row..row + 1), &k, &v, heads);
            let alone = double(&alone.unwrap());
            for masked in [double(&fused), portable.clone()] {
                let difference = (part(&masked, row..row + 1) - &alone).unwrap();
                let difference = difference.abs().unwrap().max_all().unwrap();
                let difference: f64 = difference.to_scalar().unwrap();
                assert!(difference < 1e-5, "{entry} {row}: {difference}");
            }
        }
        for wrong in [0..0, 3..3, 0..keys + 1] {
            let visible = |_, row| if row == 4 { wrong.clone() } else { 0..1 };
            assert!(attention_to(&q, &k, &v, heads, Some(&visible)).is_err());
            let (q, k, v) = (double(&q), double(&k), double(&v));
            assert!(attention_to(&q, &k, &v, heads, Some(&visible)).is_err());
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_an_error() {
        let tensor =
            |shape: (usize, usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let q = tensor((1, 4, 8));
        assert!(attention(&q, &tensor((2, 4, 8)), &q, 2).is_err());
        assert!(attention(&q, &q, &tensor((1, 3, 8)), 2).is_err());
        assert!(attention(&q, &q, &q, 3).is_err());
    }
}
