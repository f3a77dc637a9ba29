//! The frozen vision transformer: pixels to patch embeddings.
//!
//! EVA-CLIP's ViT-g/14 as BLIP-2 uses it (Fang et al. 2022, arXiv:2211.07636;
//! Li et al. 2023, arXiv:2301.12597, section 3.1): pre-norm blocks, one fused
//! query, key and value layer, learned absolute positions, and a LayerNorm
//! over all tokens at the end. Reference: transformers 5.23,
//! `models/blip_2/modeling_blip_2.py`, `Blip2VisionModel`, whose tensor names
//! are kept. CLIP's towers, which LAVIS also uses, differ by the config's
//! `hidden_act`, `patch_bias` and `pre_layernorm` (LAVIS, `models/clip_vit.py`).

use candle_core::{D, Tensor};
use rayon::prelude::*;

use crate::attention::attention;
use crate::checkpoint::Weights;
use crate::config::{Activation, VisionConfig};
use crate::linear::Linear;
use crate::norm::LayerNorm;
use crate::{Error, Result};

/// `vision_model.*` of a checkpoint.
#[derive(Debug)]
pub struct VisionModel {
    embeddings: Embeddings,
    layers: Vec<Layer>,
    post_layernorm: LayerNorm,
}

impl VisionModel {
    pub(crate) fn load(weights: &Weights, config: &VisionConfig) -> Result<Self> {
        config.validate()?;
        let layers = weights.pp("encoder.layers");
        Ok(Self {
            embeddings: Embeddings::load(&weights.pp("embeddings"), config)?,
            layers: (0..config.num_hidden_layers)
                .into_par_iter()
                .map(|layer| Layer::load(&layers.pp(layer), config))
                .collect::<Result<_>>()?,
            post_layernorm: LayerNorm::load(
                &weights.pp("post_layernorm"),
                config.hidden_size,
                config.post_layernorm_eps.unwrap_or(config.layer_norm_eps),
            )?,
        })
    }

    /// Normalized pixels `[batch, 3, image_size, image_size]` to
    /// `last_hidden_state` `[batch, positions, hidden_size]`, the class token
    /// first, then the patches row by row.
    ///
    /// # Errors
    /// `pixels` has another shape, or the device fails.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let mut hidden = self.embeddings.forward(pixels)?;
        for layer in &self.layers {
            hidden = layer.forward(&hidden)?;
        }
        Ok(self.post_layernorm.forward(&hidden)?)
    }
}

#[derive(Debug)]
struct Embeddings {
    patch_embedding: Linear,
    /// `[1, 1, hidden_size]`, its position added.
    class_embedding: Tensor,
    /// `[1, patches, hidden_size]`.
    patch_positions: Tensor,
    pre_layernorm: Option<LayerNorm>,
    image_size: usize,
    patch_size: usize,
}

impl Embeddings {
    fn load(weights: &Weights, config: &VisionConfig) -> Result<Self> {
        let (width, patch_size) = (config.hidden_size, config.patch_size);
        let patch = weights.pp("patch_embedding");
        // A convolution whose stride is its size is a linear layer over patches.
        let weight = patch
            .get("weight", &[width, 3, patch_size, patch_size])?
            .reshape((width, 3 * patch_size * patch_size))?;
        let bias = config
            .patch_bias
            .then(|| patch.get("bias", &[width]))
            .transpose()?;
        let pre_layernorm = weights.pp("pre_layernorm");
        let positions = config.positions();
        let position_embedding = weights.get("position_embedding", &[1, positions, width])?;
        let class_embedding = weights.get("class_embedding", &[1, 1, width])?;
        Ok(Self {
            patch_embedding: Linear::new(&weight, bias)?,
            class_embedding: (class_embedding + position_embedding.narrow(1, 0, 1)?)?,
            patch_positions: position_embedding
                .narrow(1, 1, positions - 1)?
                .contiguous()?,
            pre_layernorm: config
                .pre_layernorm
                .then(|| LayerNorm::load(&pre_layernorm, width, config.layer_norm_eps))
                .transpose()?,
            image_size: config.image_size,
            patch_size,
        })
    }

    /// `[batch, 3, image_size, image_size]` to `[batch, positions, hidden_size]`.
    fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let size = self.image_size;
        let batch = match pixels.dims() {
            [batch, 3, height, width] if *batch > 0 && (*height, *width) == (size, size) => *batch,
            found => {
                return Err(Error::Pixels {
                    size,
                    found: found.to_vec(),
                });
            }
        };
        let (patch, grid) = (self.patch_size, size / self.patch_size);
        let pixels = pixels
            .to_device(self.class_embedding.device())?
            .to_dtype(self.class_embedding.dtype())?
            .narrow(2, 0, grid * patch)?
            .narrow(3, 0, grid * patch)?
            .contiguous()?;
        let patches = pixels
            .reshape((batch * 3, grid, patch, grid, patch))?
            .transpose(2, 3)?
            .reshape((batch, 3, grid * grid, patch * patch))?
            .transpose(1, 2)?
            .reshape((batch, grid * grid, 3 * patch * patch))?;
        let positions = self.patch_positions.broadcast_as((
            batch,
            grid * grid,
            self.patch_positions.dim(D::Minus1)?,
        ))?;
        let patches = self.patch_embedding.forward_add(&patches, &positions)?;
        let class = self
            .class_embedding
            .broadcast_as((batch, 1, patches.dim(D::Minus1)?))?;
        let embeddings = Tensor::cat(&[&class, &patches], 1)?;
        match &self.pre_layernorm {
            Some(norm) => Ok(norm.forward(&embeddings)?),
            None => Ok(embeddings),
        }
    }
}

#[derive(Debug)]
struct Layer {
    layer_norm1: LayerNorm,
    self_attn: Attention,
    layer_norm2: LayerNorm,
    mlp: Mlp,
}

impl Layer {
    fn load(weights: &Weights, config: &VisionConfig) -> Result<Self> {
        let norm =
            |name| LayerNorm::load(&weights.pp(name), config.hidden_size, config.layer_norm_eps);
        Ok(Self {
            layer_norm1: norm("layer_norm1")?,
            self_attn: Attention::load(&weights.pp("self_attn"), config)?,
            layer_norm2: norm("layer_norm2")?,
            mlp: Mlp::load(&weights.pp("mlp"), config)?,
        })
    }

    fn forward(&self, hidden: &Tensor) -> candle_core::Result<Tensor> {
        let normed = self.layer_norm1.forward(hidden)?;
        let hidden = self.self_attn.forward_add(&normed, hidden)?;
        let normed = self.layer_norm2.forward(&hidden)?;
        self.mlp.forward_add(&normed, &hidden)
    }
}

#[derive(Debug)]
struct Attention {
    qkv: Linear,
    projection: Linear,
    heads: usize,
}

impl Attention {
    fn load(weights: &Weights, config: &VisionConfig) -> Result<Self> {
        let width = config.hidden_size;
        Ok(Self {
            qkv: Linear::load(&weights.pp("qkv"), width, 3 * width, config.qkv_bias)?,
            projection: Linear::load(&weights.pp("projection"), width, width, true)?,
            heads: config.num_attention_heads,
        })
    }

    /// Attention over `x`, added to `residual`.
    fn forward_add(&self, x: &Tensor, residual: &Tensor) -> candle_core::Result<Tensor> {
        let width = x.dim(D::Minus1)?;
        let qkv = self.qkv.forward(x)?;
        let mixed = attention(
            &qkv.narrow(2, 0, width)?,
            &qkv.narrow(2, width, width)?,
            &qkv.narrow(2, 2 * width, width)?,
            self.heads,
        )?;
        self.projection.forward_add(&mixed, residual)
    }
}

#[derive(Debug)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl Mlp {
    fn load(weights: &Weights, config: &VisionConfig) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            fc1: Linear::load(&weights.pp("fc1"), width, inner, true)?,
            fc2: Linear::load(&weights.pp("fc2"), inner, width, true)?,
            activation: config.hidden_act,
        })
    }

    /// The MLP of `x`, added to `residual`.
    fn forward_add(&self, x: &Tensor, residual: &Tensor) -> candle_core::Result<Tensor> {
        let inner = self.fc1.forward_activated(x, self.activation)?;
        self.fc2.forward_add(&inner, residual)
    }
}
