//! The pre-norm transformer block that the vision towers and CLIP's text tower are
//! made of: attention and an MLP, each behind a LayerNorm and added to its input.

use candle_core::{D, Tensor};

use crate::Result;
use crate::attention::{Visible, attention_to};
use crate::checkpoint::Weights;
use crate::config::{Activation, VisionConfig};
use crate::linear::Linear;
use crate::norm::LayerNorm;
use crate::operations::timed_tensor;

/// Sizes of a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockConfig {
    pub width: usize,
    pub inner: usize,
    pub heads: usize,
    pub activation: Activation,
    pub eps: f64,
    pub qkv_bias: bool,
}

impl From<&VisionConfig> for BlockConfig {
    fn from(config: &VisionConfig) -> Self {
        Self {
            width: config.hidden_size,
            inner: config.intermediate_size,
            heads: config.num_attention_heads,
            activation: config.hidden_act,
            eps: config.layer_norm_eps,
            qkv_bias: config.qkv_bias,
        }
    }
}

/// What a checkpoint calls the parts of a block.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Names {
    /// transformers' `Blip2EncoderLayer` and `BlipEncoderLayer`.
    Blip,
    /// transformers' `CLIPEncoderLayer`.
    Clip,
    /// OpenAI's and open_clip's `ResidualAttentionBlock`.
    OpenClip,
}

/// What a checkpoint calls the parts of a vision tower.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TowerNames {
    pub patch_embedding: &'static str,
    pub class_embedding: &'static str,
    pub position_embedding: &'static str,
    pub pre_layernorm: &'static str,
    pub layers: &'static str,
    pub post_layernorm: &'static str,
}

impl Names {
    pub fn tower(self) -> TowerNames {
        match self {
            Names::Blip => TowerNames {
                patch_embedding: "embeddings.patch_embedding",
                class_embedding: "embeddings.class_embedding",
                position_embedding: "embeddings.position_embedding",
                pre_layernorm: "embeddings.pre_layernorm",
                layers: "encoder.layers",
                post_layernorm: "post_layernorm",
            },
            Names::Clip => TowerNames {
                patch_embedding: "embeddings.patch_embedding",
                class_embedding: "embeddings.class_embedding",
                position_embedding: "embeddings.position_embedding.weight",
                // The reference's own spelling.
                pre_layernorm: "pre_layrnorm",
                layers: "encoder.layers",
                post_layernorm: "post_layernorm",
            },
            Names::OpenClip => TowerNames {
                patch_embedding: "conv1",
                class_embedding: "class_embedding",
                position_embedding: "positional_embedding",
                pre_layernorm: "ln_pre",
                layers: "transformer.resblocks",
                post_layernorm: "ln_post",
            },
        }
    }

    /// Whether class and position embeddings lead with dimensions of 1.
    pub fn has_batch_dimension(self) -> bool {
        matches!(self, Names::Blip)
    }
}

#[derive(Debug)]
pub(crate) struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    projection: Linear,
    heads: usize,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl Block {
    pub fn load(weights: &Weights, config: &BlockConfig, names: Names) -> Result<Self> {
        let BlockConfig { width, inner, .. } = *config;
        let (norms, attention, projection, fcs) = match names {
            Names::Blip => (
                ["layer_norm1", "layer_norm2"],
                "self_attn",
                "projection",
                ["mlp.fc1", "mlp.fc2"],
            ),
            Names::Clip => (
                ["layer_norm1", "layer_norm2"],
                "self_attn",
                "out_proj",
                ["mlp.fc1", "mlp.fc2"],
            ),
            Names::OpenClip => (
                ["ln_1", "ln_2"],
                "attn",
                "out_proj",
                ["mlp.c_fc", "mlp.c_proj"],
            ),
        };
        let attention = weights.pp(attention);
        let norm = |name| LayerNorm::load(&weights.pp(name), width, config.eps);
        let qkv = match names {
            Names::Blip => Linear::load(&attention.pp("qkv"), width, 3 * width, config.qkv_bias)?,
            Names::Clip => {
                Linear::load_joined(&attention, &["q_proj", "k_proj", "v_proj"], width, width)?
            }
            Names::OpenClip => {
                let bias = attention.get("in_proj_bias", &[3 * width])?;
                let weight = attention.get("in_proj_weight", &[3 * width, width])?;
                Linear::new(&weight, Some(bias))?
            }
        };
        Ok(Self {
            norm1: norm(norms[0])?,
            qkv,
            projection: Linear::load(&attention.pp(projection), width, width, true)?,
            heads: config.heads,
            norm2: norm(norms[1])?,
            fc1: Linear::load(&weights.pp(fcs[0]), width, inner, true)?,
            fc2: Linear::load(&weights.pp(fcs[1]), inner, width, true)?,
            activation: config.activation,
        })
    }

    /// `[batch, rows, width]` to the same shape; each row sees what `visible` tells, or
    /// all of them.
    pub fn forward(
        &self,
        hidden: &Tensor,
        visible: Option<&Visible>,
    ) -> candle_core::Result<Tensor> {
        let width = hidden.dim(D::Minus1)?;
        let normed = self.norm1.forward(hidden)?;
        let qkv = timed_tensor("attention: q, k, v", || self.qkv.forward(&normed))?;
        let mixed = attention_to(
            &qkv.narrow(2, 0, width)?,
            &qkv.narrow(2, width, width)?,
            &qkv.narrow(2, 2 * width, width)?,
            self.heads,
            visible,
        )?;
        let hidden = timed_tensor("attention: projection, residual", || {
            self.projection.forward_add(&mixed, hidden)
        })?;
        let normed = self.norm2.forward(&hidden)?;
        let inner = timed_tensor("MLP: fc1", || {
            self.fc1.forward_activated(&normed, self.activation)
        })?;
        timed_tensor("MLP: fc2, residual", || {
            self.fc2.forward_add(&inner, &hidden)
        })
    }
}
