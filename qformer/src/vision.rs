//! The frozen vision transformer: pixels to patch embeddings.
//!
//! EVA-CLIP's ViT-g/14 as BLIP-2 uses it (Fang et al. 2022, arXiv:2211.07636;
//! Li et al. 2023, arXiv:2301.12597, section 3.1): pre-norm blocks, one fused
//! query, key and value layer, learned absolute positions, and a LayerNorm
//! over all tokens at the end. Reference: transformers 5.23,
//! `models/blip_2/modeling_blip_2.py`, `Blip2VisionModel`, whose tensor names
//! are kept; BLIP's `BlipVisionModel` is the same. CLIP's towers, which LAVIS also uses, differ by
//! the config's `hidden_act`, `patch_bias` and `pre_layernorm` (LAVIS, `models/clip_vit.py`), and
//! in their own checkpoints by their names (`models/clip/modeling_clip.py`, `CLIPVisionModel`).

use candle_core::{D, Tensor};

use crate::block::{BlockConfig, Blocks, Names};
use crate::checkpoint::Weights;
use crate::config::VisionConfig;
use crate::linear::Linear;
use crate::norm::LayerNorm;
use crate::workers::among_workers;
use crate::{Error, Result, operations};

/// `vision_model.*` of a checkpoint.
#[derive(Debug)]
pub struct VisionModel {
    embeddings: Embeddings,
    layers: Blocks,
    post_layernorm: LayerNorm,
}

impl VisionModel {
    pub(crate) fn load(weights: &Weights, config: &VisionConfig) -> Result<Self> {
        Self::load_named(weights, config, Names::Blip)
    }

    pub(crate) fn load_named(
        weights: &Weights,
        config: &VisionConfig,
        names: Names,
    ) -> Result<Self> {
        config.validate()?;
        let layers = weights.pp(names.tower().layers);
        let block = BlockConfig::from(config);
        Ok(Self {
            embeddings: Embeddings::load(weights, config, names)?,
            layers: Blocks::load(&layers, config.num_hidden_layers, &block, names)?,
            post_layernorm: LayerNorm::load(
                &weights.pp(names.tower().post_layernorm),
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
        Ok(self.post_layernorm.forward(&self.hidden(pixels)?)?)
    }

    /// The class token's row of [`VisionModel::forward`], `[batch, hidden_size]`.
    ///
    /// # Errors
    /// As [`VisionModel::forward`]'s.
    pub fn class_token(&self, pixels: &Tensor) -> Result<Tensor> {
        let class = self.hidden(pixels)?.narrow(1, 0, 1)?.squeeze(1)?;
        Ok(self.post_layernorm.forward(&class)?)
    }

    /// One transformer block alone, from 0, to measure it: `[batch, positions, hidden_size]` to
    /// the same shape.
    ///
    /// # Errors
    /// There is no such block, `hidden` has another shape, or the device fails.
    pub fn block(&self, index: usize, hidden: &Tensor) -> Result<Tensor> {
        Ok(among_workers(hidden.device(), || {
            self.layers.forward_one(index, hidden)
        })?)
    }

    /// What comes before the last LayerNorm.
    fn hidden(&self, pixels: &Tensor) -> Result<Tensor> {
        among_workers(pixels.device(), || {
            let embeddings =
                operations::timed("patch embedding", || self.embeddings.forward(pixels));
            Ok(self.layers.forward(&embeddings?, None)?)
        })
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
    fn load(weights: &Weights, config: &VisionConfig, names: Names) -> Result<Self> {
        let (width, patch_size) = (config.hidden_size, config.patch_size);
        let tower = names.tower();
        let patch = weights.pp(tower.patch_embedding);
        // A convolution whose stride is its size is a linear layer over patches.
        let weight = patch
            .get("weight", &[width, 3, patch_size, patch_size])?
            .reshape((width, 3 * patch_size * patch_size))?;
        let bias = config
            .patch_bias
            .then(|| patch.get("bias", &[width]))
            .transpose()?;
        let pre_layernorm = weights.pp(tower.pre_layernorm);
        let positions = config.positions();
        let (class_shape, position_shape) = match names.has_batch_dimension() {
            true => (vec![1, 1, width], vec![1, positions, width]),
            false => (vec![width], vec![positions, width]),
        };
        let position_embedding = weights
            .get(tower.position_embedding, &position_shape)?
            .reshape((1, positions, width))?;
        let class_embedding = weights
            .get(tower.class_embedding, &class_shape)?
            .reshape((1, 1, width))?;
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
