//! The linear layer from query embeddings to the language model's space
//! (BLIP-2, section 3.2; `language_projection` in transformers).

use candle_core::{DType, Device, Tensor};
use qformer::checkpoint::Checkpoint;

use crate::Result;

/// `soft_prompt = queries * weight^T + bias`.
#[derive(Debug)]
pub struct Projection {
    weight_t: Tensor,
    bias: Tensor,
    n_embd: usize,
}

impl Projection {
    /// Loads `language_projection.{weight,bias}`; `query_width` is the
    /// Q-Former's hidden size.
    ///
    /// # Errors
    /// A tensor is missing, unreadable, or not `[n_embd, query_width]`.
    pub fn load(checkpoint: &Checkpoint, query_width: usize, device: &Device) -> Result<Self> {
        let name = "language_projection.weight";
        let n_embd = checkpoint.shape(name)?.first().copied().unwrap_or(0);
        let weight = checkpoint.tensor(name, &[n_embd, query_width], DType::F32, device)?;
        let bias = checkpoint.tensor("language_projection.bias", &[n_embd], DType::F32, device)?;
        Ok(Self {
            weight_t: weight.t()?,
            bias,
            n_embd,
        })
    }

    /// Width of a soft-prompt row: the language model's `n_embd`.
    pub fn n_embd(&self) -> usize {
        self.n_embd
    }

    /// Soft prompt `[batch, queries, n_embd]` (f32) of query embeddings
    /// `[batch, queries, query_width]`.
    ///
    /// # Errors
    /// `queries` has another shape.
    pub fn forward(&self, queries: &Tensor) -> Result<Tensor> {
        let (batch, n_queries, width) = queries.dims3()?;
        let rows = queries
            .to_dtype(DType::F32)?
            .reshape((batch * n_queries, width))?;
        Ok(rows
            .matmul(&self.weight_t)?
            .broadcast_add(&self.bias)?
            .reshape((batch, n_queries, self.n_embd))?)
    }
}
