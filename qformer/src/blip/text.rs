//! BLIP's text models: one BERT as encoder and, with a head, as decoder.

use candle_core::Tensor;

use super::config::BlipTextConfig;
use crate::Result;
use crate::bert::{KeysAndValues, Layer, LayerConfig};
use crate::checkpoint::Weights;
use crate::embeddings::TokenEmbeddings;
use crate::generate::Step;
use crate::linear::Linear;
use crate::norm::LayerNorm;
use crate::workers::load_layers;

/// `BlipTextModel`, without its pooler.
#[derive(Debug)]
pub(super) struct TextModel {
    embeddings: TokenEmbeddings,
    layer_norm: LayerNorm,
    layers: Vec<Layer>,
}

impl TextModel {
    /// `attended_width` is the width of what the cross-attention attends to.
    pub fn load(weights: &Weights, config: &BlipTextConfig, attended_width: usize) -> Result<Self> {
        let width = config.hidden_size;
        let embeddings = weights.pp("embeddings");
        let rows = |name: &str, rows| embeddings.get(name, &[rows, width]);
        let layers = weights.pp("encoder.layer");
        let layer = LayerConfig {
            width,
            inner: config.intermediate_size,
            heads: config.num_attention_heads,
            attended_width,
            activation: config.hidden_act,
            eps: config.layer_norm_eps,
        };
        Ok(Self {
            embeddings: TokenEmbeddings::new(
                rows("word_embeddings.weight", config.vocab_size)?,
                rows("position_embeddings.weight", config.max_position_embeddings)?,
            ),
            layer_norm: LayerNorm::load(&embeddings.pp("LayerNorm"), width, config.layer_norm_eps)?,
            layers: load_layers(config.num_hidden_layers, |index| {
                Layer::load(&layers.pp(index), &layer)
            })?,
        })
    }

    /// Token ids of texts to `[texts, longest text, width]`, every token seeing its whole text
    /// and, where it is given, what stands in `attended` `[entries, rows, attended_width]`, each
    /// entry of which is read by equally many texts. Rows behind a shorter text mean nothing.
    pub fn encode(&self, texts: &[Vec<u32>], attended: Option<&Tensor>) -> Result<Tensor> {
        let whole = |text: usize, _| 0..texts[text].len();
        let mut hidden = self.layer_norm.forward(&self.embeddings.texts(texts)?)?;
        for layer in &self.layers {
            hidden = layer.attend(&hidden, None, Some(&whole))?;
            if let Some(attended) = attended {
                hidden = layer.cross(&hidden, &layer.cross_keys_and_values(attended)?, None)?;
            }
            hidden = layer.feed_forward(&hidden)?;
        }
        Ok(hidden)
    }
}

/// `BlipTextLMHeadModel`.
#[derive(Debug)]
pub(super) struct TextDecoder {
    bert: TextModel,
    transform: Linear,
    transform_norm: LayerNorm,
    decoder: Linear,
    config: BlipTextConfig,
}

impl TextDecoder {
    pub fn load(weights: &Weights, config: &BlipTextConfig, attended_width: usize) -> Result<Self> {
        let (width, vocab_size) = (config.hidden_size, config.vocab_size);
        let bert = weights.pp("bert");
        let head = weights.pp("cls.predictions");
        let transform = head.pp("transform");
        // Tied to the word embeddings, and left out where both were saved as one.
        let decoder = match head.contains("decoder.weight") {
            true => head.pp("decoder"),
            false => bert.pp("embeddings.word_embeddings"),
        };
        let bias = match head.contains("decoder.bias") {
            true => head.get("decoder.bias", &[vocab_size])?,
            false => head.get("bias", &[vocab_size])?,
        };
        let eps = config.layer_norm_eps;
        Ok(Self {
            bert: TextModel::load(&bert, config, attended_width)?,
            transform: Linear::load(&transform.pp("dense"), width, width, true)?,
            transform_norm: LayerNorm::load(&transform.pp("LayerNorm"), width, eps)?,
            decoder: Linear::load_with(&decoder, width, vocab_size, Some(bias))?,
            config: config.clone(),
        })
    }

    /// `[.., width]` to `[.., vocab_size]`.
    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let hidden = self
            .transform
            .forward_activated(hidden, self.config.hidden_act)?;
        Ok(self
            .decoder
            .forward(&self.transform_norm.forward(&hidden)?)?)
    }

    /// Begins to decode beside `attended` `[entries, rows, attended_width]`, of whose entry `i`
    /// the first `lengths[i]` rows are seen, or all.
    pub fn start(&self, attended: &Tensor, lengths: Option<Vec<usize>>) -> Result<Decoding<'_>> {
        let layers = &self.bert.layers;
        Ok(Decoding {
            decoder: self,
            cross: layers
                .iter()
                .map(|layer| layer.cross_keys_and_values(attended))
                .collect::<candle_core::Result<_>>()?,
            entries: (0..attended.dim(0)?).collect(),
            lengths,
            past: vec![None; layers.len()],
            n_past: 0,
        })
    }

    /// Scores of candidate texts beside one entry, `attended` `[1, rows, attended_width]`: for
    /// each the sum over its tokens but the first of their log-probabilities, smoothed as the
    /// config says. Candidates are read as they are, `[DEC] .. [SEP]`.
    pub fn scores(&self, attended: &Tensor, candidates: &[Vec<u32>]) -> Result<Vec<f32>> {
        let longest = candidates.iter().map(Vec::len).max().unwrap_or(0);
        let causal = |_: usize, row: usize| 0..row + 1;
        let mut hidden = self
            .bert
            .layer_norm
            .forward(&self.bert.embeddings.texts(candidates)?)?;
        for layer in &self.bert.layers {
            hidden = layer.attend(&hidden, None, Some(&causal))?;
            hidden = layer.cross(&hidden, &layer.cross_keys_and_values(attended)?, None)?;
            hidden = layer.feed_forward(&hidden)?;
        }
        let smoothing = f64::from(self.config.label_smoothing);
        let mut scores = Vec::with_capacity(candidates.len());
        for (index, candidate) in candidates.iter().enumerate() {
            let rows = hidden.narrow(0, index, 1)?.narrow(1, 0, longest - 1)?;
            let logits = self.logits(&rows.squeeze(0)?)?;
            let log_probs = candle_nn::ops::log_softmax(
                &logits.to_dtype(candle_core::DType::F32)?,
                candle_core::D::Minus1,
            )?
            .to_vec2::<f32>()?;
            let score: f64 = candidate
                .iter()
                .skip(1)
                .zip(&log_probs)
                .map(|(id, row)| {
                    let own = f64::from(row[*id as usize]);
                    match smoothing > 0.0 {
                        true => {
                            let all: f64 = row.iter().map(|value| f64::from(*value)).sum();
                            (1.0 - smoothing) * own + smoothing * all / row.len() as f64
                        }
                        false => own,
                    }
                })
                .sum();
            scores.push(score as f32);
        }
        Ok(scores)
    }
}

/// A decoder in the middle of several texts.
pub(super) struct Decoding<'a> {
    decoder: &'a TextDecoder,
    /// Of each layer, for `entries`.
    cross: Vec<KeysAndValues>,
    entries: Vec<usize>,
    /// Rows that are seen of each entry that there was at first.
    lengths: Option<Vec<usize>>,
    /// Of each layer, a row for each text in the making.
    past: Vec<Option<KeysAndValues>>,
    n_past: usize,
}

impl Decoding<'_> {
    /// The logits `[rows, vocab_size]` that follow each row of a step.
    pub fn step(&mut self, step: &Step) -> Result<Tensor> {
        let bert = &self.decoder.bert;
        let device = self.cross.first().map(KeysAndValues::device);
        let device = device.unwrap_or(&candle_core::Device::Cpu).clone();
        if !step.parents.is_empty() {
            let parents = Tensor::new(step.parents, &device)?;
            for past in self.past.iter_mut().flatten() {
                *past = past.select(&parents)?;
            }
        }
        self.keep(&rows_of(step.entries), &device)?;
        let lengths = self.lengths.as_ref();
        let entries = &self.entries;
        let seen = lengths.map(|lengths| move |entry: usize, _: usize| 0..lengths[entries[entry]]);
        let seen = seen.as_ref().map(|seen| seen as &crate::attention::Visible);
        let n_past = self.n_past;
        let causal = move |_: usize, row: usize| 0..n_past + row + 1;
        let rows = bert.embeddings.rows(step.tokens, step.length, n_past)?;
        let mut hidden = bert.layer_norm.forward(&rows)?;
        for ((layer, past), cross) in bert.layers.iter().zip(&mut self.past).zip(&self.cross) {
            hidden = layer.attend(&hidden, Some(past), Some(&causal))?;
            hidden = layer.cross(&hidden, cross, seen)?;
            hidden = layer.feed_forward(&hidden)?;
        }
        self.n_past += step.length;
        let last = hidden.narrow(1, step.length - 1, 1)?.squeeze(1)?;
        self.decoder.logits(&last)
    }

    /// Leaves the keys and values of these entries alone, which are among those that there are.
    fn keep(&mut self, entries: &[usize], device: &candle_core::Device) -> Result<()> {
        if self.entries == entries {
            return Ok(());
        }
        let places: Vec<u32> = entries
            .iter()
            .filter_map(|entry| self.entries.iter().position(|kept| kept == entry))
            .map(|place| place as u32)
            .collect();
        let places = Tensor::new(places, device)?;
        for cross in &mut self.cross {
            *cross = cross.select(&places)?;
        }
        self.entries = entries.to_vec();
        Ok(())
    }
}

/// The entries that rows belong to, once each where all have equally many rows, else once for
/// each row.
fn rows_of(entries: &[usize]) -> Vec<usize> {
    let counts: Vec<usize> = entries
        .chunk_by(|a, b| a == b)
        .map(<[usize]>::len)
        .collect();
    match counts.iter().all(|count| count == &counts[0]) {
        true => entries
            .chunk_by(|a, b| a == b)
            .map(|rows| rows[0])
            .collect(),
        false => entries.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_gathered_by_entry_where_that_is_possible() {
        assert_eq!(rows_of(&[0, 0, 2, 2]), [0, 2]);
        assert_eq!(rows_of(&[3]), [3]);
        assert_eq!(rows_of(&[0, 0, 2]), [0, 0, 2]);
    }
}
