//! CLIP's text tower.

use candle_core::Tensor;

use super::config::ClipTextConfig;
use crate::Result;
use crate::block::{BlockConfig, Blocks, Names};
use crate::checkpoint::Weights;
use crate::embeddings::TokenEmbeddings;
use crate::norm::LayerNorm;

/// `text_model.*` of a checkpoint.
#[derive(Debug)]
pub(super) struct TextModel {
    embeddings: TokenEmbeddings,
    layers: Blocks,
    final_layer_norm: LayerNorm,
    eos_token_id: i64,
}

impl TextModel {
    /// `weights` is `text_model`, of open_clip the root.
    pub fn load(weights: &Weights, config: &ClipTextConfig, names: Names) -> Result<Self> {
        let width = config.hidden_size;
        let (token, position, layers, norm) = match names {
            Names::OpenClip => (
                "token_embedding.weight",
                "positional_embedding",
                "transformer.resblocks",
                "ln_final",
            ),
            Names::Blip | Names::Clip => (
                "embeddings.token_embedding.weight",
                "embeddings.position_embedding.weight",
                "encoder.layers",
                "final_layer_norm",
            ),
        };
        let layers = weights.pp(layers);
        let block = BlockConfig {
            width,
            inner: config.intermediate_size,
            heads: config.num_attention_heads,
            activation: config.hidden_act,
            eps: config.layer_norm_eps,
            qkv_bias: true,
        };
        Ok(Self {
            embeddings: TokenEmbeddings::new(
                weights.get(token, &[config.vocab_size, width])?,
                weights.get(position, &[config.max_position_embeddings, width])?,
            ),
            layers: Blocks::load(&layers, config.num_hidden_layers, &block, names)?,
            final_layer_norm: LayerNorm::load(&weights.pp(norm), width, config.layer_norm_eps)?,
            eos_token_id: config.eos_token_id,
        })
    }

    /// Token ids of texts, none of them empty, to what stands at the token that ends each,
    /// `[texts, hidden_size]`.
    pub fn forward(&self, texts: &[Vec<u32>]) -> Result<Tensor> {
        // Nothing looks behind the end of a text: padding changes nothing.
        let hidden = self.embeddings.texts(texts)?;
        let (_, longest, width) = hidden.dims3()?;
        let causal = |_, row| 0..row + 1;
        let hidden = self.layers.forward(&hidden, Some(&causal))?;
        let ends: Vec<u32> = texts
            .iter()
            .enumerate()
            .map(|(text, ids)| (text * longest + self.end(ids)) as u32)
            .collect();
        let ends = Tensor::new(ends, hidden.device())?;
        let pooled = hidden
            .reshape((texts.len() * longest, width))?
            .index_select(&ends, 0)?;
        Ok(self.final_layer_norm.forward(&pooled)?)
    }

    /// Where a text is read: at the first end token. The configs of OpenAI's own checkpoints
    /// call that 2, which it is not, and the reference then takes the largest id, as OpenAI's
    /// code does.
    fn end(&self, ids: &[u32]) -> usize {
        match self.eos_token_id {
            2 => (0..ids.len())
                .rev()
                .max_by_key(|place| ids[*place])
                .unwrap_or(0),
            end => ids.iter().position(|id| i64::from(*id) == end).unwrap_or(0),
        }
    }
}
