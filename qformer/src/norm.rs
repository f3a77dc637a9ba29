//! LayerNorm with weight and bias over the last dimension.

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};
use rayon::prelude::*;

use crate::checkpoint::Weights;
use crate::kernels;
use crate::linear::{runs_here, values};
use crate::operations::timed_tensor;

/// Rows a thread takes at a time.
const ROWS: usize = 16;

#[derive(Debug)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl LayerNorm {
    /// Loads `weight` and `bias`, both `[width]`.
    pub fn load(weights: &Weights, width: usize, eps: f64) -> crate::Result<Self> {
        Ok(Self {
            weight: weights.get("weight", &[width])?,
            bias: weights.get("bias", &[width])?,
            eps: eps as f32,
        })
    }

    /// `[..., width]` to the same shape.
    pub fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        timed_tensor("LayerNorm", || {
            let x = x.contiguous()?;
            if runs_here(&x) {
                x.apply_op1_no_bwd(&Rows {
                    weight: self.weight.to_vec1()?,
                    bias: self.bias.to_vec1()?,
                    eps: self.eps,
                })
            } else {
                candle_nn::ops::layer_norm(&x, &self.weight, &self.bias, self.eps)
            }
        })
    }
}

struct Rows {
    weight: Vec<f32>,
    bias: Vec<f32>,
    eps: f32,
}

impl CustomOp1 for Rows {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let width = self.weight.len();
        if layout.dims().last() != Some(&width) {
            candle_core::bail!("rows of {width} expected, found shape {:?}", layout.dims());
        }
        let input = values(x, layout)?;
        let mut output = vec![0.0; input.len()];
        input
            .par_chunks(ROWS * width)
            .zip(output.par_chunks_mut(ROWS * width))
            .for_each(|(input, output)| {
                kernels::layer_norm(input, &self.weight, &self.bias, self.eps, output);
            });
        Ok((CpuStorage::F32(output), layout.shape().clone()))
    }
}
