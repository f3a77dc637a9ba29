//! The Q-Former: learned queries that read a picture.
//!
//! BLIP-2 (Li et al. 2023, arXiv:2301.12597, section 3.1): BERT's post-norm
//! layers over the query embeddings, every n-th of which also attends to the
//! ViT's output. Reference: transformers 5.23,
//! `models/blip_2/modeling_blip_2.py`, `Blip2QFormerModel`, whose tensor names
//! are kept. Only the branch of the queries is here; text needs the layers'
//! `intermediate` and `output` beside it.

use candle_core::Tensor;
use rayon::prelude::*;

use crate::Result;
use crate::attention::attention;
use crate::checkpoint::Weights;
use crate::config::{self, QFormerConfig};
use crate::linear::Linear;
use crate::norm::LayerNorm;

/// `query_tokens` and `qformer.*` of a checkpoint.
#[derive(Debug)]
pub struct QFormerModel {
    /// `[1, queries, hidden_size]`, after the embeddings' LayerNorm.
    queries: Tensor,
    layers: Vec<Layer>,
}

impl QFormerModel {
    /// `weights` is the root of the checkpoint.
    pub(crate) fn load(
        weights: &Weights,
        config: &QFormerConfig,
        num_query_tokens: usize,
    ) -> Result<Self> {
        config.validate()?;
        config::size("num_query_tokens", num_query_tokens)?;
        let width = config.hidden_size;
        let query_tokens = weights.get("query_tokens", &[1, num_query_tokens, width])?;
        let weights = weights.pp("qformer");
        let layernorm = LayerNorm::load(&weights.pp("layernorm"), width, config.layer_norm_eps)?;
        let layers = weights.pp("encoder.layer");
        Ok(Self {
            queries: layernorm.forward(&query_tokens)?,
            layers: (0..config.num_hidden_layers)
                .into_par_iter()
                .map(|layer| Layer::load(&layers.pp(layer), config, layer))
                .collect::<Result<_>>()?,
        })
    }

    /// ViT output `[batch, positions, encoder_hidden_size]` to query
    /// embeddings `[batch, queries, hidden_size]`.
    ///
    /// # Errors
    /// `vision` has another shape, or the device fails.
    pub fn forward(&self, vision: &Tensor) -> Result<Tensor> {
        let batch = vision.dim(0)?;
        let (_, queries, width) = self.queries.dims3()?;
        let mut hidden = self
            .queries
            .broadcast_as((batch, queries, width))?
            .contiguous()?;
        for layer in &self.layers {
            hidden = layer.forward(&hidden, vision)?;
        }
        Ok(hidden)
    }
}

#[derive(Debug)]
struct Layer {
    attention: Attention,
    crossattention: Option<Attention>,
    intermediate_query: Linear,
    output_query: Output,
}

impl Layer {
    fn load(weights: &Weights, config: &QFormerConfig, layer: usize) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let crosses = layer.is_multiple_of(config.cross_attention_frequency);
        let load = |name, keys| Attention::load(&weights.pp(name), config, keys);
        Ok(Self {
            attention: load("attention", width)?,
            crossattention: crosses
                .then(|| load("crossattention", config.encoder_hidden_size))
                .transpose()?,
            intermediate_query: Linear::load(
                &weights.pp("intermediate_query.dense"),
                width,
                inner,
                true,
            )?,
            output_query: Output::load(&weights.pp("output_query"), config, inner)?,
        })
    }

    fn forward(&self, hidden: &Tensor, vision: &Tensor) -> candle_core::Result<Tensor> {
        let mut hidden = self.attention.forward(hidden, hidden)?;
        if let Some(crossattention) = &self.crossattention {
            hidden = crossattention.forward(&hidden, vision)?;
        }
        let inner = self.intermediate_query.forward_gelu(&hidden)?;
        self.output_query.forward(&inner, &hidden)
    }
}

#[derive(Debug)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Output,
    heads: usize,
}

impl Attention {
    /// `keys` is the width of what is attended to.
    fn load(weights: &Weights, config: &QFormerConfig, keys: usize) -> Result<Self> {
        let width = config.hidden_size;
        let inner = weights.pp("attention");
        let linear = |name, inputs| Linear::load(&inner.pp(name), inputs, width, true);
        Ok(Self {
            query: linear("query", width)?,
            key: linear("key", keys)?,
            value: linear("value", keys)?,
            output: Output::load(&weights.pp("output"), config, width)?,
            heads: config.num_attention_heads,
        })
    }

    fn forward(&self, hidden: &Tensor, attended: &Tensor) -> candle_core::Result<Tensor> {
        let mixed = attention(
            &self.query.forward(hidden)?,
            &self.key.forward(attended)?,
            &self.value.forward(attended)?,
            self.heads,
        )?;
        self.output.forward(&mixed, hidden)
    }
}

/// The end of each sub-layer: `LayerNorm(dense(x) + residual)`.
#[derive(Debug)]
struct Output {
    dense: Linear,
    layer_norm: LayerNorm,
}

impl Output {
    fn load(weights: &Weights, config: &QFormerConfig, inputs: usize) -> Result<Self> {
        let width = config.hidden_size;
        Ok(Self {
            dense: Linear::load(&weights.pp("dense"), inputs, width, true)?,
            layer_norm: LayerNorm::load(&weights.pp("LayerNorm"), width, config.layer_norm_eps)?,
        })
    }

    fn forward(&self, x: &Tensor, residual: &Tensor) -> candle_core::Result<Tensor> {
        self.layer_norm
            .forward(&self.dense.forward_add(x, residual)?)
    }
}
