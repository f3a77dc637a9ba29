//! The Q-Former: learned queries that read a picture, and in InstructBLIP the
//! user's instruction beside it.
//!
//! BLIP-2 (Li et al. 2023, arXiv:2301.12597, section 3.1): BERT's post-norm
//! layers over the query embeddings, every n-th of which also attends to the
//! ViT's output. InstructBLIP (Dai et al. 2023, arXiv:2305.06500, section 2.3):
//! queries and text share the self-attention; the text has feed-forward layers
//! of its own and never attends to the picture. References: transformers 5.23,
//! `models/blip_2/modeling_blip_2.py`, `Blip2QFormerModel`, and
//! `models/instructblip/modeling_instructblip.py`, `InstructBlipQFormerModel`,
//! whose tensor names are kept.

use candle_core::Tensor;
use rayon::prelude::*;

use crate::attention::attention_to;
use crate::checkpoint::Weights;
use crate::config::{self, QFormerConfig};
use crate::linear::Linear;
use crate::norm::LayerNorm;
use crate::{Error, Result};

/// `query_tokens` and `qformer.*` of a checkpoint.
#[derive(Debug)]
pub struct QFormerModel {
    /// `[1, queries, hidden_size]`, after the embeddings' LayerNorm.
    queries: Tensor,
    /// Where the Q-Former reads text.
    embeddings: Option<Embeddings>,
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
        let (queries, embeddings) = if config.use_qformer_text_input {
            let embeddings = Embeddings::load(&weights.pp("embeddings"), config)?;
            (
                embeddings.layernorm.forward(&query_tokens)?,
                Some(embeddings),
            )
        } else {
            let layernorm =
                LayerNorm::load(&weights.pp("layernorm"), width, config.layer_norm_eps)?;
            (layernorm.forward(&query_tokens)?, None)
        };
        let layers = weights.pp("encoder.layer");
        Ok(Self {
            queries,
            embeddings,
            layers: (0..config.num_hidden_layers)
                .into_par_iter()
                .map(|layer| Layer::load(&layers.pp(layer), config, layer))
                .collect::<Result<_>>()?,
        })
    }

    /// Whether this Q-Former reads text.
    pub fn reads_text(&self) -> bool {
        self.embeddings.is_some()
    }

    /// ViT output `[batch, positions, encoder_hidden_size]` to query
    /// embeddings `[batch, queries, hidden_size]`.
    ///
    /// # Errors
    /// `vision` has another shape, or the device fails.
    pub fn forward(&self, vision: &Tensor) -> Result<Tensor> {
        let mut hidden = self.queries(vision.dim(0)?)?;
        for layer in &self.layers {
            hidden = layer.forward_queries(&layer.attention.forward(&hidden)?, vision)?;
        }
        Ok(hidden)
    }

    /// [`QFormerModel::forward`] beside a text for each picture: token ids, as
    /// [`WordPiece::encode`](crate::WordPiece::encode) gives them. Texts of a
    /// batch may differ in length, and what is beside a text changes nothing.
    ///
    /// # Errors
    /// [`Error::Text`] where this Q-Former reads none, their number is not the
    /// batch, or one is longer than its positions or holds an id beyond its
    /// vocabulary. `vision` has another shape, or the device fails.
    pub fn forward_with_texts(
        &self,
        vision: &Tensor,
        texts: &[impl AsRef<[u32]>],
    ) -> Result<Tensor> {
        let refused = |reason: String| Error::Text { reason };
        let Some(embeddings) = &self.embeddings else {
            return Err(refused("this Q-Former reads no text".to_owned()));
        };
        let batch = vision.dim(0)?;
        if texts.len() != batch {
            return Err(refused(format!(
                "{} texts for {batch} pictures",
                texts.len()
            )));
        }
        let queries = self.queries(batch)?;
        let n_queries = queries.dim(1)?;
        let Some(text) = embeddings.forward(texts)? else {
            return self.forward(vision);
        };
        let n_keys: Vec<usize> = texts
            .iter()
            .map(|text| n_queries + text.as_ref().len())
            .collect();
        let mut hidden = Tensor::cat(&[queries, text], 1)?;
        for layer in &self.layers {
            hidden = layer.forward(&hidden, n_queries, &n_keys, vision)?;
        }
        Ok(hidden.narrow(1, 0, n_queries)?.contiguous()?)
    }

    /// `[batch, queries, hidden_size]`.
    fn queries(&self, batch: usize) -> candle_core::Result<Tensor> {
        let (_, queries, width) = self.queries.dims3()?;
        self.queries
            .broadcast_as((batch, queries, width))?
            .contiguous()
    }
}

/// Word and position embeddings of text, and the LayerNorm of all rows.
#[derive(Debug)]
struct Embeddings {
    /// `[vocab_size, hidden_size]`.
    word_embeddings: Tensor,
    /// `[max_position_embeddings, hidden_size]`.
    position_embeddings: Tensor,
    layernorm: LayerNorm,
}

impl Embeddings {
    fn load(weights: &Weights, config: &QFormerConfig) -> Result<Self> {
        let width = config.hidden_size;
        let rows = |name: &str, rows| weights.pp(name).get("weight", &[rows, width]);
        Ok(Self {
            word_embeddings: rows("word_embeddings", config.vocab_size)?,
            position_embeddings: rows("position_embeddings", config.max_position_embeddings)?,
            layernorm: LayerNorm::load(&weights.pp("layernorm"), width, config.layer_norm_eps)?,
        })
    }

    /// Token ids to `[batch, longest text, hidden_size]`, padded on the right;
    /// none where all texts are empty.
    fn forward(&self, texts: &[impl AsRef<[u32]>]) -> Result<Option<Tensor>> {
        let refused = |reason: String| Error::Text { reason };
        let (vocab_size, width) = self.word_embeddings.dims2()?;
        let positions = self.position_embeddings.dim(0)?;
        let texts = texts.iter().map(AsRef::as_ref);
        let (batch, longest) = (texts.len(), texts.clone().map(<[u32]>::len).max());
        let longest = match longest {
            None | Some(0) => return Ok(None),
            Some(longest) if longest > positions => {
                return Err(refused(format!(
                    "{longest} tokens, and the Q-Former has {positions} positions"
                )));
            }
            Some(longest) => longest,
        };
        // Padding is attended to by nobody, so any id will do.
        let mut ids = vec![0; batch * longest];
        for (row, text) in ids.chunks_exact_mut(longest).zip(texts) {
            if let Some(id) = text.iter().find(|id| **id as usize >= vocab_size) {
                return Err(refused(format!(
                    "token {id}, and the Q-Former has {vocab_size} word embeddings"
                )));
            }
            row[..text.len()].copy_from_slice(text);
        }
        let ids = Tensor::from_vec(ids, batch * longest, self.word_embeddings.device())?;
        let words = self
            .word_embeddings
            .index_select(&ids, 0)?
            .reshape((batch, longest, width))?;
        let positions = self.position_embeddings.narrow(0, 0, longest)?;
        let rows = words.broadcast_add(&positions)?;
        Ok(Some(self.layernorm.forward(&rows)?))
    }
}

#[derive(Debug)]
struct Layer {
    attention: Attention,
    crossattention: Option<Attention>,
    query: FeedForward,
    text: Option<FeedForward>,
}

impl Layer {
    fn load(weights: &Weights, config: &QFormerConfig, layer: usize) -> Result<Self> {
        let crosses = layer.is_multiple_of(config.cross_attention_frequency);
        let attention = |name, keys| Attention::load(&weights.pp(name), config, keys);
        Ok(Self {
            attention: attention("attention", config.hidden_size)?,
            crossattention: crosses
                .then(|| attention("crossattention", config.encoder_hidden_size))
                .transpose()?,
            query: FeedForward::load(weights, config, "_query")?,
            text: config
                .use_qformer_text_input
                .then(|| FeedForward::load(weights, config, ""))
                .transpose()?,
        })
    }

    /// Queries and text `[batch, queries + text, hidden_size]`, of which entry
    /// `i` of the batch has `n_keys[i]` rows and padding.
    fn forward(
        &self,
        hidden: &Tensor,
        n_queries: usize,
        n_keys: &[usize],
        vision: &Tensor,
    ) -> candle_core::Result<Tensor> {
        let hidden = self.attention.forward_to(hidden, hidden, Some(n_keys))?;
        let n_text = hidden.dim(1)? - n_queries;
        let queries = self.forward_queries(&hidden.narrow(1, 0, n_queries)?, vision)?;
        let text = hidden.narrow(1, n_queries, n_text)?;
        let text = match &self.text {
            Some(feed_forward) => feed_forward.forward(&text)?,
            None => text,
        };
        Tensor::cat(&[queries, text], 1)
    }

    /// What comes after the self-attention for the queries.
    fn forward_queries(&self, hidden: &Tensor, vision: &Tensor) -> candle_core::Result<Tensor> {
        match &self.crossattention {
            Some(crossattention) => self
                .query
                .forward(&crossattention.forward_to(hidden, vision, None)?),
            None => self.query.forward(hidden),
        }
    }
}

#[derive(Debug)]
struct FeedForward {
    intermediate: Linear,
    output: Output,
}

impl FeedForward {
    /// Loads `intermediate{suffix}` and `output{suffix}`.
    fn load(weights: &Weights, config: &QFormerConfig, suffix: &str) -> Result<Self> {
        let inner = config.intermediate_size;
        let intermediate = weights.pp(format!("intermediate{suffix}.dense"));
        Ok(Self {
            intermediate: Linear::load(&intermediate, config.hidden_size, inner, true)?,
            output: Output::load(&weights.pp(format!("output{suffix}")), config, inner)?,
        })
    }

    fn forward(&self, hidden: &Tensor) -> candle_core::Result<Tensor> {
        let inner = self.intermediate.forward_gelu(hidden)?;
        self.output.forward(&inner, hidden)
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

    /// Attention of all rows to each other.
    fn forward(&self, hidden: &Tensor) -> candle_core::Result<Tensor> {
        self.forward_to(hidden, hidden, None)
    }

    /// Attention to the first `n_keys[i]` rows of `attended` in entry `i` of
    /// the batch, to all where none are given.
    fn forward_to(
        &self,
        hidden: &Tensor,
        attended: &Tensor,
        n_keys: Option<&[usize]>,
    ) -> candle_core::Result<Tensor> {
        let mixed = attention_to(
            &self.query.forward(hidden)?,
            &self.key.forward(attended)?,
            &self.value.forward(attended)?,
            self.heads,
            n_keys,
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
