//! LayerNorm with weight and bias over the last dimension.

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};
use rayon::prelude::*;

use crate::checkpoint::Weights;
use crate::linear::{runs_here, values};
use crate::operations::timed_tensor;
use crate::product::Norm;

/// Rows a thread takes at a time.
const ROWS: usize = 16;

#[derive(Debug)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
    /// Weight and bias again, for this crate's own CPU code.
    values: Option<(Vec<f32>, Vec<f32>)>,
}

impl LayerNorm {
    /// Loads `weight` and `bias`, both `[width]`.
    pub fn load(weights: &Weights, width: usize, eps: f64) -> crate::Result<Self> {
        let weight = weights.get("weight", &[width])?;
        let bias = weights.get("bias", &[width])?;
        let values = match runs_here(&weight) {
            true => Some((weight.to_vec1()?, bias.to_vec1()?)),
            false => None,
        };
        Ok(Self {
            weight,
            bias,
            eps: eps as f32,
            values,
        })
    }

    /// This norm of rows, where this crate's own CPU code is to be had.
    pub fn rows(&self) -> Option<Norm<'_>> {
        let (weight, bias) = self.values.as_ref()?;
        Some(Norm {
            weight,
            bias,
            eps: self.eps,
        })
    }

    /// `[..., width]` to the same shape.
    pub fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        timed_tensor("LayerNorm", || {
            let x = x.contiguous()?;
            match self.rows().filter(|_| runs_here(&x)) {
                Some(norm) => x.apply_op1_no_bwd(&Rows(norm)),
                None => candle_nn::ops::layer_norm(&x, &self.weight, &self.bias, self.eps),
            }
        })
    }
}

struct Rows<'a>(Norm<'a>);

impl CustomOp1 for Rows<'_> {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let width = self.0.weight.len();
        if layout.dims().last() != Some(&width) {
            candle_core::bail!("rows of {width} expected, found shape {:?}", layout.dims());
        }
        let input = values(x, layout)?;
        let mut output = vec![0.0; input.len()];
        input
            .par_chunks(ROWS * width)
            .zip(output.par_chunks_mut(ROWS * width))
            .for_each(|(input, output)| self.0.run(input, output));
        Ok((CpuStorage::F32(output), layout.shape().clone()))
    }
}
