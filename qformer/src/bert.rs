//! BERT's post-norm layers (Devlin et al. 2019, arXiv:1810.04805), which attend to a picture
//! too, and may remember keys and values: the text models of BLIP.

use candle_core::{D, Tensor};

use crate::Result;
use crate::attention::{Visible, attention_to};
use crate::checkpoint::Weights;
use crate::config::Activation;
use crate::linear::Linear;
use crate::norm::LayerNorm;

/// Sizes of a layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LayerConfig {
    pub width: usize,
    pub inner: usize,
    pub heads: usize,
    /// Width of what the cross-attention attends to.
    pub attended_width: usize,
    pub activation: Activation,
    pub eps: f64,
}

/// Keys and values, both `[entries, rows, width]`.
#[derive(Debug, Clone)]
pub(crate) struct KeysAndValues {
    keys: Tensor,
    values: Tensor,
}

impl KeysAndValues {
    /// Where they are.
    pub fn device(&self) -> &candle_core::Device {
        self.keys.device()
    }

    /// Those of the entries of `indices`, u32.
    pub fn select(&self, indices: &Tensor) -> candle_core::Result<Self> {
        let select = |x: &Tensor| x.contiguous()?.index_select(indices, 0);
        Ok(Self {
            keys: select(&self.keys)?,
            values: select(&self.values)?,
        })
    }

    fn append(&self, other: &Self) -> candle_core::Result<Self> {
        Ok(Self {
            keys: Tensor::cat(&[&self.keys, &other.keys], 1)?,
            values: Tensor::cat(&[&self.values, &other.values], 1)?,
        })
    }
}

/// `attention.*`, `crossattention.*`, `intermediate.*` and `output.*`.
#[derive(Debug)]
pub(crate) struct Layer {
    /// Query, key and value in one.
    qkv: Linear,
    attention_output: Output,
    query: Linear,
    /// Key and value in one.
    key_value: Linear,
    crossattention_output: Output,
    intermediate: Linear,
    output: Output,
    heads: usize,
    activation: Activation,
}

impl Layer {
    pub fn load(weights: &Weights, config: &LayerConfig) -> Result<Self> {
        let LayerConfig { width, inner, .. } = *config;
        let (attention, cross) = (weights.pp("attention"), weights.pp("crossattention"));
        let output =
            |weights: &Weights, inputs| Output::load(&weights.pp("output"), config, inputs);
        let names = ["query", "key", "value"];
        Ok(Self {
            qkv: Linear::load_joined(&attention.pp("self"), &names, width, width)?,
            attention_output: output(&attention, width)?,
            query: Linear::load(&cross.pp("self.query"), width, width, true)?,
            key_value: Linear::load_joined(
                &cross.pp("self"),
                &names[1..],
                config.attended_width,
                width,
            )?,
            crossattention_output: output(&cross, width)?,
            intermediate: Linear::load(&weights.pp("intermediate.dense"), width, inner, true)?,
            output: output(weights, inner)?,
            heads: config.heads,
            activation: config.activation,
        })
    }

    /// The self-attention of `hidden` `[texts, rows, width]`, each row of which sees what
    /// `visible` tells; behind `past`, which takes it up, where that is given.
    pub fn attend(
        &self,
        hidden: &Tensor,
        past: Option<&mut Option<KeysAndValues>>,
        visible: Option<&Visible>,
    ) -> candle_core::Result<Tensor> {
        let width = hidden.dim(D::Minus1)?;
        let qkv = self.qkv.forward(hidden)?;
        let mut seen = KeysAndValues {
            keys: qkv.narrow(2, width, width)?,
            values: qkv.narrow(2, 2 * width, width)?,
        };
        if let Some(past) = past {
            if let Some(past) = past.as_ref() {
                seen = past.append(&seen)?;
            }
            *past = Some(seen.clone());
        }
        let queries = qkv.narrow(2, 0, width)?;
        let mixed = attention_to(&queries, &seen.keys, &seen.values, self.heads, visible)?;
        self.attention_output.forward(&mixed, hidden)
    }

    /// What the cross-attention reads of `attended` `[entries, rows, attended_width]`.
    pub fn cross_keys_and_values(&self, attended: &Tensor) -> candle_core::Result<KeysAndValues> {
        let both = self.key_value.forward(attended)?;
        let width = both.dim(D::Minus1)? / 2;
        Ok(KeysAndValues {
            keys: both.narrow(2, 0, width)?,
            values: both.narrow(2, width, width)?,
        })
    }

    /// The cross-attention of `hidden` `[texts, rows, width]`, in which each entry of `attended`
    /// is read by equally many texts, one behind the other.
    pub fn cross(
        &self,
        hidden: &Tensor,
        attended: &KeysAndValues,
        visible: Option<&Visible>,
    ) -> candle_core::Result<Tensor> {
        let (texts, rows, width) = hidden.dims3()?;
        let entries = attended.keys.dim(0)?;
        if texts % entries.max(1) != 0 {
            candle_core::bail!("{texts} texts to {entries} entries");
        }
        // The texts of one entry are rows of one attention: its keys and values need no copies.
        let queries = self.query.forward(hidden)?;
        let queries = queries.reshape((entries, texts / entries * rows, width))?;
        let mixed = attention_to(
            &queries,
            &attended.keys,
            &attended.values,
            self.heads,
            visible,
        )?;
        let mixed = mixed.reshape((texts, rows, width))?;
        self.crossattention_output.forward(&mixed, hidden)
    }

    /// What comes after the attention.
    pub fn feed_forward(&self, hidden: &Tensor) -> candle_core::Result<Tensor> {
        let inner = self
            .intermediate
            .forward_activated(hidden, self.activation)?;
        self.output.forward(&inner, hidden)
    }
}

/// The end of each sub-layer: `LayerNorm(dense(x) + residual)`.
#[derive(Debug)]
struct Output {
    dense: Linear,
    layer_norm: LayerNorm,
}

impl Output {
    fn load(weights: &Weights, config: &LayerConfig, inputs: usize) -> Result<Self> {
        let width = config.width;
        Ok(Self {
            dense: Linear::load(&weights.pp("dense"), inputs, width, true)?,
            layer_norm: LayerNorm::load(&weights.pp("LayerNorm"), width, config.eps)?,
        })
    }

    fn forward(&self, x: &Tensor, residual: &Tensor) -> candle_core::Result<Tensor> {
        self.layer_norm
            .forward(&self.dense.forward_add(x, residual)?)
    }
}
