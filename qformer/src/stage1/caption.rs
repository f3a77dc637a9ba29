//! Image-grounded text generation (ITG): captions by the Q-Former itself.
//!
//! The queries read the picture once. A caption begins with `[DEC]`; each token of it sees the
//! queries and the tokens before it, by their keys and values, which are kept, and never the
//! picture itself.
//!
//! Source: LAVIS, `blip2_qformer.py`, `generate`, and `Qformer.py`, `BertLMHeadModel`. Beams
//! are those of transformers 5.23 ([`BeamSearch`]).

use candle_core::{D, DType, Tensor};

use crate::beam::{BeamSearch, Step, log_softmax};
use crate::checkpoint::Weights;
use crate::config::QFormerConfig;
use crate::linear::Linear;
use crate::model::QFormerModel;
use crate::norm::LayerNorm;
use crate::{Error, Result, WordPiece};

/// What captions begin with.
const BEGIN: &str = "[DEC]";

/// What ends them.
const END: &str = "[SEP]";

/// Most sequences that are computed together, beams of all pictures.
const MAX_ROWS: usize = 1 << 12;

/// How captions are chosen. LAVIS's own are the default: its `max_length` of 30 and `min_length`
/// of 10 count `[DEC]`.
#[derive(Debug, Clone, PartialEq)]
pub struct CaptionOptions {
    /// Most tokens, `[SEP]` included.
    pub max_tokens: usize,
    /// Tokens before a caption may end.
    pub min_tokens: usize,
    /// Beams; the likeliest token each time where it is 1.
    pub num_beams: usize,
    /// A caption's score is divided by the power of its length to this.
    pub length_penalty: f32,
}

impl Default for CaptionOptions {
    fn default() -> Self {
        Self {
            max_tokens: 29,
            min_tokens: 9,
            num_beams: 3,
            length_penalty: 1.0,
        }
    }
}

/// A caption.
#[derive(Debug, Clone, PartialEq)]
pub struct Caption {
    /// Its tokens, `[SEP]` included where it ended by itself.
    pub ids: Vec<u32>,
    /// Its text.
    pub text: String,
    /// The mean log-probability of its tokens.
    pub mean_logprob: f32,
}

/// `cls.predictions` of a checkpoint: BERT's head over the vocabulary.
#[derive(Debug)]
pub(super) struct LanguageHead {
    dense: Linear,
    layer_norm: LayerNorm,
    decoder: Linear,
    begin: u32,
    end: u32,
}

impl LanguageHead {
    pub fn load(weights: &Weights, config: &QFormerConfig, tokenizer: &WordPiece) -> Result<Self> {
        let token = |token| {
            tokenizer.token_id(token).ok_or_else(|| Error::Text {
                reason: format!("the tokenizer lacks {token}, which captions need"),
            })
        };
        let (width, n_vocab) = (config.hidden_size, config.vocab_size);
        let predictions = weights.pp("cls.predictions");
        let (transform, decoder) = (predictions.pp("transform"), predictions.pp("decoder"));
        let bias = decoder.get("bias", &[n_vocab])?;
        // Tied, unless it says otherwise.
        let matrix = match decoder.contains("weight") {
            true => decoder,
            false => weights.pp("embeddings.word_embeddings"),
        };
        Ok(Self {
            dense: Linear::load(&transform.pp("dense"), width, width, true)?,
            layer_norm: LayerNorm::load(&transform.pp("LayerNorm"), width, config.layer_norm_eps)?,
            decoder: Linear::load_with(&matrix, width, n_vocab, Some(bias))?,
            begin: token(BEGIN)?,
            end: token(END)?,
        })
    }

    /// The token that captions begin with.
    pub fn begin(&self) -> u32 {
        self.begin
    }

    /// Rows of text `[..., width]` to log-probabilities of what follows each, row by row.
    fn log_probs(&self, hidden: &Tensor) -> Result<Vec<Vec<f32>>> {
        let transformed = self.layer_norm.forward(&self.dense.forward_gelu(hidden)?)?;
        let logits = self.decoder.forward(&transformed)?.to_dtype(DType::F32)?;
        let n_vocab = logits.dim(D::Minus1)?;
        let mut rows = logits.reshape(((), n_vocab))?.to_vec2::<f32>()?;
        rows.iter_mut().for_each(|row| log_softmax(row));
        Ok(rows)
    }

    /// Of each text, the sum of the log-probabilities of its tokens behind the first, and their
    /// number; `hidden` is `[texts, queries + longest text, width]`.
    pub fn logprobs(&self, hidden: &Tensor, texts: &[Vec<u32>]) -> Result<Vec<(f32, usize)>> {
        let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
        let n_queries = hidden.dim(1)? - longest;
        let sum = |(entry, text): (usize, &Vec<u32>)| {
            let n_tokens = text.len().saturating_sub(1);
            let rows = hidden.narrow(0, entry, 1)?.narrow(1, n_queries, n_tokens)?;
            let rows = self.log_probs(&rows.contiguous()?)?;
            let of_token = |(row, id): (&Vec<f32>, &u32)| row[*id as usize];
            let sum = rows.iter().zip(&text[1..]).map(of_token).sum();
            Ok((sum, n_tokens))
        };
        texts.iter().enumerate().map(sum).collect()
    }
}

/// The search for the caption of one picture.
struct Search {
    /// Index of the picture.
    picture: usize,
    beams: BeamSearch,
    /// Which row of the cache each beam continues.
    rows: Vec<u32>,
}

/// A caption for each picture of `vision` `[batch, positions, vision width]`.
pub(super) fn caption(
    qformer: &QFormerModel,
    head: &LanguageHead,
    tokenizer: &WordPiece,
    vision: &Tensor,
    options: &CaptionOptions,
) -> Result<Vec<Caption>> {
    let pictures = vision.dim(0)?;
    check(options, pictures, qformer.max_text())?;
    let (_, mut cache) = qformer.forward_cached(vision)?;
    let end = head.end as i32;
    let search = |picture: usize| Search {
        picture,
        beams: BeamSearch::new(
            options.num_beams,
            options.length_penalty,
            options.max_tokens,
            1,
        ),
        rows: vec![picture as u32],
    };
    let mut searches: Vec<Search> = (0..pictures).map(search).collect();
    let mut captions = vec![None; pictures];
    while !searches.is_empty() {
        let rows: Vec<u32> = searches.iter().flat_map(|s| s.rows.clone()).collect();
        let beams = searches.iter().flat_map(|s| s.beams.running());
        let last = |ids: &[i32]| ids.last().map_or(head.begin, |id| *id as u32);
        let ids: Vec<u32> = beams.map(|beam| last(&beam.ids)).collect();
        cache = cache.select(&rows)?;
        let hidden = qformer.forward_token(&ids, &mut cache)?;
        let mut log_probs = head.log_probs(&hidden)?.into_iter();
        let mut first = 0;
        let mut going_on = Vec::with_capacity(searches.len());
        for mut search in searches {
            let n_beams = search.beams.running().len();
            for (beam, mut row) in log_probs.by_ref().take(n_beams).enumerate() {
                if search.beams.running()[beam].ids.len() < options.min_tokens {
                    row[head.end as usize] = f32::NEG_INFINITY;
                }
                search.beams.offer(beam, &row);
            }
            match search.beams.step(|_, id| id == end) {
                Step::Continue(parents) => {
                    let row = |beam| (first + beam) as u32;
                    search.rows = parents.into_iter().map(row).collect();
                    going_on.push(search);
                }
                Step::Done => captions[search.picture] = best(&search.beams, tokenizer)?,
            }
            first += n_beams;
        }
        searches = going_on;
    }
    let missing = || Error::Text {
        reason: "no caption was found: the model's probabilities are no numbers".to_owned(),
    };
    let captions = captions.into_iter();
    captions
        .map(|caption| caption.ok_or_else(missing))
        .collect()
}

/// The best of the captions that ended.
fn best(beams: &BeamSearch, tokenizer: &WordPiece) -> Result<Option<Caption>> {
    let caption = |best: &crate::beam::Hypothesis| {
        let ids: Vec<u32> = best.ids.iter().map(|id| *id as u32).collect();
        Ok(Caption {
            text: tokenizer.decode(&ids)?,
            mean_logprob: beams.mean_logprob(best),
            ids,
        })
    };
    beams.finished().first().map(caption).transpose()
}

/// Refuses what cannot be computed of a Q-Former with room for `max_text` tokens.
fn check(options: &CaptionOptions, pictures: usize, max_text: usize) -> Result<()> {
    let refused = |reason: String| Err(Error::Text { reason });
    if options.num_beams == 0 || options.max_tokens == 0 {
        return refused("captions need at least one beam and one token".to_owned());
    }
    if options.min_tokens > options.max_tokens {
        return refused(format!(
            "captions cannot have at least {} tokens and at most {}",
            options.min_tokens, options.max_tokens
        ));
    }
    if options.max_tokens > max_text {
        return refused(format!(
            "captions of {} tokens, and the Q-Former has {max_text} positions",
            options.max_tokens
        ));
    }
    if !options.length_penalty.is_finite() {
        return refused(format!("length_penalty is {}", options.length_penalty));
    }
    let rows = options.num_beams.saturating_mul(pictures);
    if rows > MAX_ROWS {
        return refused(format!(
            "{} beams for {pictures} pictures are {rows} sequences, more than {MAX_ROWS} at once",
            options.num_beams
        ));
    }
    Ok(())
}
