//! The Q-Former: learned queries that read a picture, and in InstructBLIP the
//! user's instruction beside it.
//!
//! BLIP-2 (Li et al. 2023, arXiv:2301.12597, section 3.1): BERT's post-norm
//! layers over the query embeddings, every n-th of which also attends to the
//! ViT's output. InstructBLIP (Dai et al. 2023, arXiv:2305.06500, section 2.3):
//! queries and text share the self-attention; the text has feed-forward layers
//! of its own and never attends to the picture. In BLIP-2's first stage it is the
//! same, under one of three masks ([`Mask`]). References: transformers 5.23,
//! `models/blip_2/modeling_blip_2.py`, `Blip2QFormerModel`, and
//! `models/instructblip/modeling_instructblip.py`, `InstructBlipQFormerModel`,
//! whose tensor names are kept.

use candle_core::Tensor;

use crate::attention::{Visible, attention_to};
use crate::checkpoint::Weights;
use crate::config::{self, QFormerConfig};
use crate::linear::Linear;
use crate::mask::Mask;
use crate::norm::LayerNorm;
use crate::operations::timed_tensor;
use crate::workers::{among_workers, load_layers};
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

/// Whose names the word and position embeddings of a Q-Former that reads text have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TextNames {
    /// `InstructBlipQFormerModel`: inside of `qformer.embeddings`, the LayerNorm too.
    InstructBlip,
    /// `Blip2ForImageTextRetrieval`: `embeddings` beside `qformer`, which has the LayerNorm.
    Stage1,
}

/// Keys and values of the self-attention of what was computed already.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    /// Of each layer, `[batch, rows, hidden_size]`.
    layers: Vec<(Tensor, Tensor)>,
    n_queries: usize,
}

impl Cache {
    /// The entries of these batch indices, in this order.
    pub fn select(&self, indices: &[u32]) -> candle_core::Result<Self> {
        let Some((keys, _)) = self.layers.first() else {
            return Ok(self.clone());
        };
        let indices = Tensor::new(indices, keys.device())?;
        let select = |x: &Tensor| x.index_select(&indices, 0);
        let layers = self.layers.iter();
        Ok(Self {
            layers: layers
                .map(|(keys, values)| Ok((select(keys)?, select(values)?)))
                .collect::<candle_core::Result<_>>()?,
            n_queries: self.n_queries,
        })
    }

    /// Tokens of text behind the queries.
    fn n_text(&self) -> candle_core::Result<usize> {
        match self.layers.first() {
            Some((keys, _)) => Ok(keys.dim(1)? - self.n_queries),
            None => Ok(0),
        }
    }
}

impl QFormerModel {
    /// `weights` is the root of the checkpoint.
    pub(crate) fn load(
        weights: &Weights,
        config: &QFormerConfig,
        num_query_tokens: usize,
        names: TextNames,
    ) -> Result<Self> {
        config.validate()?;
        config::size("num_query_tokens", num_query_tokens)?;
        let width = config.hidden_size;
        let query_tokens = weights.get("query_tokens", &[1, num_query_tokens, width])?;
        let root = weights;
        let weights = weights.pp("qformer");
        let (tables, layernorm) = match (config.use_qformer_text_input, names) {
            (true, TextNames::InstructBlip) => {
                let embeddings = weights.pp("embeddings");
                (embeddings.clone(), embeddings.pp("layernorm"))
            }
            _ => (root.pp("embeddings"), weights.pp("layernorm")),
        };
        let layernorm = LayerNorm::load(&layernorm, width, config.layer_norm_eps)?;
        let queries = layernorm.forward(&query_tokens)?;
        let embeddings = config
            .use_qformer_text_input
            .then(|| Embeddings::load(&tables, layernorm, config))
            .transpose()?;
        let layers = weights.pp("encoder.layer");
        Ok(Self {
            queries,
            embeddings,
            layers: load_layers(config.num_hidden_layers, |layer| {
                Layer::load(&layers.pp(layer), config, layer)
            })?,
        })
    }

    /// Whether this Q-Former reads text.
    pub fn reads_text(&self) -> bool {
        self.embeddings.is_some()
    }

    /// The longest text that it reads; 0 where it reads none.
    pub fn max_text(&self) -> usize {
        let positions = |embeddings: &Embeddings| embeddings.position_embeddings.dims()[0];
        self.embeddings.as_ref().map_or(0, positions)
    }

    /// ViT output `[batch, positions, encoder_hidden_size]` to query
    /// embeddings `[batch, queries, hidden_size]`.
    ///
    /// # Errors
    /// `vision` has another shape, or the device fails.
    pub fn forward(&self, vision: &Tensor) -> Result<Tensor> {
        Ok(self.forward_cached(vision)?.0)
    }

    /// [`QFormerModel::forward`], and what text under [`Mask::MultimodalCausal`] sees of it.
    pub(crate) fn forward_cached(&self, vision: &Tensor) -> Result<(Tensor, Cache)> {
        among_workers(vision.device(), || {
            let mut hidden = self.queries(vision.dim(0)?)?;
            let mut layers = Vec::with_capacity(self.layers.len());
            for layer in &self.layers {
                let (keys, values) = layer.attention.keys_and_values(&hidden)?;
                let attended = layer.attention.attend(&hidden, &keys, &values, None)?;
                hidden = layer.forward_queries(&attended, vision)?;
                layers.push((keys, values));
            }
            let n_queries = self.queries.dim(1)?;
            Ok((hidden, Cache { layers, n_queries }))
        })
    }

    /// [`QFormerModel::forward`] beside a text for each picture: token ids, as
    /// [`WordPiece::encode`](crate::WordPiece::encode) gives them. Texts of a
    /// batch may differ in length, and what is beside a text changes nothing.
    /// One picture, `[1, positions, encoder_hidden_size]`, may have several texts.
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
        let hidden = self.forward_masked(vision, texts, Mask::Bidirectional)?;
        let n_queries = self.queries.dim(1)?;
        Ok(hidden.narrow(1, 0, n_queries)?.contiguous()?)
    }

    /// Queries and, behind them, text under a mask, as
    /// [`QFormerModel::forward_with_texts`] takes both: `[texts, queries + longest text,
    /// hidden_size]`. Rows behind a shorter text mean nothing.
    ///
    /// # Errors
    /// As [`QFormerModel::forward_with_texts`].
    pub fn forward_masked(
        &self,
        vision: &Tensor,
        texts: &[impl AsRef<[u32]>],
        mask: Mask,
    ) -> Result<Tensor> {
        let embeddings = self.text_embeddings()?;
        let pictures = vision.dim(0)?;
        if texts.len() != pictures && pictures != 1 {
            return Err(refused(format!(
                "{} texts for {pictures} pictures",
                texts.len()
            )));
        }
        let queries = self.queries(texts.len().max(pictures))?;
        let n_queries = queries.dim(1)?;
        let Some(text) = embeddings.forward(texts)? else {
            let (_, rows, width) = vision.dims3()?;
            return self.forward(&vision.broadcast_as((queries.dim(0)?, rows, width))?);
        };
        let lengths = lengths(texts, n_queries);
        let visible = |entry: usize, row| mask.visible(row, n_queries, lengths[entry]);
        among_workers(vision.device(), || {
            let mut hidden = Tensor::cat(&[queries, text], 1)?;
            for layer in &self.layers {
                hidden = layer.forward(&hidden, &visible, n_queries, vision)?;
            }
            Ok(hidden)
        })
    }

    /// Texts alone, as they are under [`Mask::Unimodal`]: `[texts, longest text,
    /// hidden_size]`. Rows behind a shorter text mean nothing.
    ///
    /// # Errors
    /// As [`QFormerModel::forward_with_texts`], and where all texts are empty.
    pub fn forward_text(&self, texts: &[impl AsRef<[u32]>]) -> Result<Tensor> {
        let rows = self.text_embeddings()?.forward(texts)?;
        let mut hidden = rows.ok_or_else(|| refused("no text is given".to_owned()))?;
        let lengths = lengths(texts, 0);
        let visible = |entry: usize, row| Mask::Unimodal.visible(row, 0, lengths[entry]);
        for layer in &self.layers {
            let attention = &layer.attention;
            hidden =
                layer.forward_text(&attention.forward_to(&hidden, &hidden, Some(&visible))?)?;
        }
        Ok(hidden)
    }

    /// One more token for each entry of the cache, under [`Mask::MultimodalCausal`]:
    /// `[batch, 1, hidden_size]`. The cache takes it up.
    pub(crate) fn forward_token(&self, ids: &[u32], cache: &mut Cache) -> Result<Tensor> {
        let embeddings = self.text_embeddings()?;
        let mut hidden = embeddings.rows(ids, 1, cache.n_text()?)?;
        for (layer, (keys, values)) in self.layers.iter().zip(&mut cache.layers) {
            let (key, value) = layer.attention.keys_and_values(&hidden)?;
            *keys = Tensor::cat(&[&*keys, &key], 1)?;
            *values = Tensor::cat(&[&*values, &value], 1)?;
            // All that is there comes before this token.
            let attended = layer.attention.attend(&hidden, keys, values, None)?;
            hidden = layer.forward_text(&attended)?;
        }
        Ok(hidden)
    }

    /// `[batch, queries, hidden_size]`.
    fn queries(&self, batch: usize) -> candle_core::Result<Tensor> {
        let (_, queries, width) = self.queries.dims3()?;
        self.queries
            .broadcast_as((batch, queries, width))?
            .contiguous()
    }

    fn text_embeddings(&self) -> Result<&Embeddings> {
        self.embeddings
            .as_ref()
            .ok_or_else(|| refused("this Q-Former reads no text".to_owned()))
    }
}

fn refused(reason: String) -> Error {
    Error::Text { reason }
}

/// Where each text ends that begins at row `start`.
fn lengths(texts: &[impl AsRef<[u32]>], start: usize) -> Vec<usize> {
    let texts = texts.iter();
    texts.map(|text| start + text.as_ref().len()).collect()
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
    fn load(weights: &Weights, layernorm: LayerNorm, config: &QFormerConfig) -> Result<Self> {
        let width = config.hidden_size;
        let rows = |name: &str, rows| weights.pp(name).get("weight", &[rows, width]);
        Ok(Self {
            word_embeddings: rows("word_embeddings", config.vocab_size)?,
            position_embeddings: rows("position_embeddings", config.max_position_embeddings)?,
            layernorm,
        })
    }

    /// Token ids to `[batch, longest text, hidden_size]`, padded on the right;
    /// none where all texts are empty.
    fn forward(&self, texts: &[impl AsRef<[u32]>]) -> Result<Option<Tensor>> {
        let texts = texts.iter().map(AsRef::as_ref);
        let (batch, longest) = (texts.len(), texts.clone().map(<[u32]>::len).max());
        let longest = match longest {
            None | Some(0) => return Ok(None),
            Some(longest) => longest,
        };
        // Padding is attended to by nobody, so any id will do.
        let mut ids = vec![0; batch * longest];
        for (row, text) in ids.chunks_exact_mut(longest).zip(texts) {
            row[..text.len()].copy_from_slice(text);
        }
        self.rows(&ids, longest, 0).map(Some)
    }

    /// Token ids, `length` of each text, to `[texts, length, hidden_size]`; the first of each
    /// stands at `position`.
    fn rows(&self, ids: &[u32], length: usize, position: usize) -> Result<Tensor> {
        let (vocab_size, width) = self.word_embeddings.dims2()?;
        let (n_tokens, positions) = (position + length, self.position_embeddings.dim(0)?);
        if n_tokens > positions {
            return Err(refused(format!(
                "{n_tokens} tokens, and the Q-Former has {positions} positions"
            )));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab_size) {
            return Err(refused(format!(
                "token {id}, and the Q-Former has {vocab_size} word embeddings"
            )));
        }
        let texts = ids.len() / length;
        let ids = Tensor::new(ids, self.word_embeddings.device())?;
        let words = self
            .word_embeddings
            .index_select(&ids, 0)?
            .reshape((texts, length, width))?;
        let positions = self.position_embeddings.narrow(0, position, length)?;
        let rows = words.broadcast_add(&positions)?;
        Ok(self.layernorm.forward(&rows)?)
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

    /// Queries and text `[batch, queries + text, hidden_size]`.
    fn forward(
        &self,
        hidden: &Tensor,
        visible: &Visible,
        n_queries: usize,
        vision: &Tensor,
    ) -> candle_core::Result<Tensor> {
        let hidden = self.attention.forward_to(hidden, hidden, Some(visible))?;
        let n_text = hidden.dim(1)? - n_queries;
        let queries = self.forward_queries(&hidden.narrow(1, 0, n_queries)?, vision)?;
        let text = self.forward_text(&hidden.narrow(1, n_queries, n_text)?)?;
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

    /// What comes after the self-attention for text.
    fn forward_text(&self, hidden: &Tensor) -> candle_core::Result<Tensor> {
        match &self.text {
            Some(feed_forward) => feed_forward.forward(hidden),
            None => Ok(hidden.clone()),
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
        let inner = timed_tensor("feed-forward: first", || {
            self.intermediate.forward_gelu(hidden)
        })?;
        self.output
            .forward("feed-forward: second, residual", &inner, hidden)
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

    /// Attention to `attended`, of whose rows each sees what `visible` tells, or all of them.
    /// One picture may be attended to by all entries of the batch.
    fn forward_to(
        &self,
        hidden: &Tensor,
        attended: &Tensor,
        visible: Option<&Visible>,
    ) -> candle_core::Result<Tensor> {
        let (keys, values) = self.keys_and_values(attended)?;
        let (batch, (_, rows, width)) = (hidden.dim(0)?, keys.dims3()?);
        let for_all = |x: &Tensor| match x.dim(0)? {
            1 if batch > 1 => x.broadcast_as((batch, rows, width)),
            _ => Ok(x.clone()),
        };
        self.attend(hidden, &for_all(&keys)?, &for_all(&values)?, visible)
    }

    /// Both `[batch, rows, hidden_size]`.
    fn keys_and_values(&self, attended: &Tensor) -> candle_core::Result<(Tensor, Tensor)> {
        let product =
            |linear: &Linear| timed_tensor("attention: keys, values", || linear.forward(attended));
        Ok((product(&self.key)?, product(&self.value)?))
    }

    fn attend(
        &self,
        hidden: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        visible: Option<&Visible>,
    ) -> candle_core::Result<Tensor> {
        let queries = timed_tensor("attention: queries", || self.query.forward(hidden))?;
        let mixed = attention_to(&queries, keys, values, self.heads, visible)?;
        self.output
            .forward("attention: output, residual", &mixed, hidden)
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

    /// `name` is what the product is called where operations are recorded.
    fn forward(
        &self,
        name: &'static str,
        x: &Tensor,
        residual: &Tensor,
    ) -> candle_core::Result<Tensor> {
        let sum = timed_tensor(name, || self.dense.forward_add(x, residual))?;
        self.layer_norm.forward(&sum)
    }
}
