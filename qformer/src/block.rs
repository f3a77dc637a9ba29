//! The pre-norm transformer block that the vision towers and CLIP's text tower are
//! made of: attention and an MLP, each behind a LayerNorm and added to its input.

use std::sync::{Mutex, PoisonError};

use candle_core::{D, Tensor};

use crate::Result;
use crate::attention::{Rows, Visible, attend_rows, attention_to};
use crate::checkpoint::Weights;
use crate::config::{Activation, VisionConfig};
use crate::linear::{Linear, Packed, runs_here};
use crate::norm::LayerNorm;
use crate::operations::{timed, timed_tensor};
use crate::product::{Norm, Residual};
use crate::workers::load_layers;

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
struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    projection: Linear,
    heads: usize,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    /// Width of the MLP in between.
    inner: usize,
    activation: Activation,
}

impl Block {
    fn load(weights: &Weights, config: &BlockConfig, names: Names) -> Result<Self> {
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
            inner,
            activation: config.activation,
        })
    }

    /// `[batch, rows, width]` to the same shape; each row sees what `visible` tells, or
    /// all of them.
    fn forward(&self, hidden: &Tensor, visible: Option<&Visible>) -> candle_core::Result<Tensor> {
        let width = hidden.dim(D::Minus1)?;
        let normed = self.norm1.forward(hidden)?;
        let qkv = timed_tensor(QKV, || self.qkv.forward(&normed))?;
        let mixed = attention_to(
            &qkv.narrow(2, 0, width)?,
            &qkv.narrow(2, width, width)?,
            &qkv.narrow(2, 2 * width, width)?,
            self.heads,
            visible,
        )?;
        let hidden = timed_tensor(PROJECTION, || self.projection.forward_add(&mixed, hidden))?;
        let normed = self.norm2.forward(&hidden)?;
        let inner = timed_tensor(FC1, || self.fc1.forward_activated(&normed, self.activation))?;
        timed_tensor(FC2, || self.fc2.forward_add(&inner, &hidden))
    }

    /// [`Block::forward`] in place and in this crate's own CPU code: `hidden` is of `shape`
    /// `[batch, rows, width]`.
    fn run(
        &self,
        hidden: &mut [f32],
        shape: (usize, usize, usize),
        visible: Option<&Visible>,
        buffers: &mut Buffers,
    ) -> candle_core::Result<()> {
        let (Some([norm1, norm2]), Some([qkv_layer, projection, fc1, fc2])) = self.on_rows() else {
            candle_core::bail!("a block that computes by candle's operations");
        };
        let (batch, rows, width) = shape;
        if width != norm1.weight.len() || hidden.is_empty() {
            let expected = norm1.weight.len();
            candle_core::bail!("rows of {expected} values expected, found shape {shape:?}");
        }
        let (qkv, mixed, inner) = buffers.sized(batch * rows, width, self.inner);
        timed(QKV, || {
            qkv_layer.run(hidden, Some(norm1), qkv, None, Residual::None)
        })?;
        let part = |index: usize| Rows {
            values: &qkv[index * width..],
            batch_stride: rows * 3 * width,
            row_stride: 3 * width,
            batch,
            rows,
            width,
        };
        attend_rows([part(0), part(1), part(2)], self.heads, visible, mixed)?;
        timed(PROJECTION, || {
            projection.run(mixed, None, hidden, None, Residual::Output)
        })?;
        let activation = Some(self.activation);
        timed(FC1, || {
            fc1.run(hidden, Some(norm2), inner, activation, Residual::None)
        })?;
        timed(FC2, || fc2.run(inner, None, hidden, None, Residual::Output))
    }

    /// Its norms and its layers on rows in memory, each where this crate's own CPU code is to be had.
    fn on_rows(&self) -> (Option<[Norm<'_>; 2]>, Option<[&Packed; 4]>) {
        let norms = (self.norm1.rows()).zip(self.norm2.rows());
        let first = (self.qkv.rows()).zip(self.projection.rows());
        let layers = first.zip((self.fc1.rows()).zip(self.fc2.rows()));
        (
            norms.map(|(first, second)| [first, second]),
            layers.map(|((qkv, projection), (fc1, fc2))| [qkv, projection, fc1, fc2]),
        )
    }
}

/// What the products of a block are called where operations are recorded.
const QKV: &str = "attention: q, k, v";
const PROJECTION: &str = "attention: projection, residual";
const FC1: &str = "MLP: fc1";
const FC2: &str = "MLP: fc2, residual";

/// What blocks write in between, kept from one to the next.
#[derive(Debug, Default)]
struct Buffers {
    qkv: Vec<f32>,
    mixed: Vec<f32>,
    inner: Vec<f32>,
}

impl Buffers {
    /// Queries, keys and values of `rows` rows, what attention mixes, and the MLP's inner values.
    fn sized(
        &mut self,
        rows: usize,
        width: usize,
        inner: usize,
    ) -> (&mut [f32], &mut [f32], &mut [f32]) {
        self.qkv.resize(rows * 3 * width, 0.0);
        self.mixed.resize(rows * width, 0.0);
        self.inner.resize(rows * inner, 0.0);
        (&mut self.qkv, &mut self.mixed, &mut self.inner)
    }

    fn bytes(&self) -> usize {
        let buffers = [&self.qkv, &self.mixed, &self.inner];
        buffers
            .iter()
            .map(|buffer| size_of::<f32>() * buffer.capacity())
            .sum()
    }
}

/// Blocks in a row.
#[derive(Debug)]
pub(crate) struct Blocks {
    blocks: Vec<Block>,
    /// Of the last pass: their pages are there already. Passes at the same time each have their own.
    buffers: Mutex<Buffers>,
}

/// Buffers of more bytes are let go after a pass: next to one that needs so many, mapping them takes no time.
const MOST_KEPT: usize = 64 << 20;

impl Blocks {
    /// The first `count` of `weights`.
    pub fn load(
        weights: &Weights,
        count: usize,
        config: &BlockConfig,
        names: Names,
    ) -> Result<Self> {
        Ok(Self {
            blocks: load_layers(count, |index| {
                Block::load(&weights.pp(index), config, names)
            })?,
            buffers: Mutex::default(),
        })
    }

    /// `[batch, rows, width]` to the same shape; each row sees what `visible` tells, or all of
    /// them.
    pub fn forward(
        &self,
        hidden: &Tensor,
        visible: Option<&Visible>,
    ) -> candle_core::Result<Tensor> {
        self.forward_through(&self.blocks, hidden, visible)
    }

    /// [`Blocks::forward`] through one block, if there are so many.
    pub fn forward_one(&self, index: usize, hidden: &Tensor) -> candle_core::Result<Tensor> {
        match self.blocks.get(index..=index) {
            Some(block) => self.forward_through(block, hidden, None),
            None => candle_core::bail!("block {index} of {}", self.blocks.len()),
        }
    }

    fn forward_through(
        &self,
        blocks: &[Block],
        hidden: &Tensor,
        visible: Option<&Visible>,
    ) -> candle_core::Result<Tensor> {
        let on_rows = |block: &Block| matches!(block.on_rows(), (Some(_), Some(_)));
        if !runs_here(hidden) || !blocks.iter().all(on_rows) {
            return blocks.iter().try_fold(hidden.clone(), |hidden, block| {
                block.forward(&hidden, visible)
            });
        }
        let shape = hidden.dims3()?;
        let mut values = hidden.flatten_all()?.to_vec1::<f32>()?;
        let kept = || self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffers = std::mem::take(&mut *kept());
        for block in blocks {
            block.run(&mut values, shape, visible, &mut buffers)?;
        }
        if buffers.bytes() <= MOST_KEPT {
            *kept() = buffers;
        }
        Tensor::from_vec(values, shape, hidden.device())
    }
}
