//! The three objectives that BLIP-2's Q-Former is trained with in its first stage, at work:
//! features of pictures and texts in one space (ITC), whether a text is a picture's (ITM), and
//! captions by the Q-Former itself (ITG).
//!
//! Source: BLIP-2 (Li et al. 2023, arXiv:2301.12597), section 3.2; LAVIS,
//! `models/blip2_models/blip2_qformer.py` and `blip2_image_text_matching.py`; transformers 5.23,
//! `models/blip_2/modeling_blip_2.py`, `Blip2ForImageTextRetrieval`, whose tensor names are
//! kept. The caption head, which transformers has not, is `cls.*` as in LAVIS's `Qformer.cls.*`.
//!
//! Two branches share their self-attention, masked as each objective wants it
//! ([`Mask`](crate::Mask)):
//!
//! ```text
//!  picture --> ViT --> cross-attention
//!                            |
//!    query tokens --> [ query branch ] --> vision_projection --> 32 features of the picture
//!                            :                                          |  largest cosine (ITC)
//!                            :             text_projection  --> one feature of the text
//!                            :                    |
//!   [CLS] a cat [SEP] --> [ text branch ] --------+
//!                            :
//!                            :.. together:  itm_head over the queries --> match or not (ITM)
//!                            :.. [DEC] a cat:  cls over the text --> the next token (ITG)
//! ```

mod caption;

use candle_core::{DType, Tensor};

use self::caption::LanguageHead;
pub use self::caption::{Caption, CaptionOptions};
use crate::checkpoint::{Checkpoint, Compute};
use crate::config::{HeadsConfig, QFormerConfig, VisionConfig};
use crate::encoder::check_widths;
use crate::features::normalized;
use crate::linear::Linear;
use crate::mask::Mask;
use crate::model::{QFormerModel, TextNames};
use crate::vision::VisionModel;
use crate::{Error, Result, WordPiece};

/// A frozen ViT, and the Q-Former with the heads of its first stage.
///
/// Pictures are pixels `[batch, 3, image_size, image_size]`, as
/// [`Preprocessing`](crate::preprocess::Preprocessing) makes them, or what [`Stage1::vision`]
/// makes of them, which is worth keeping: it is most of the work. Everything that is given back
/// is f32.
#[derive(Debug)]
pub struct Stage1 {
    vision: VisionModel,
    qformer: QFormerModel,
    vision_projection: Linear,
    text_projection: Linear,
    itm_head: Linear,
    language_head: Option<LanguageHead>,
    tokenizer: WordPiece,
}

/// The sizes of a [`Stage1`].
#[derive(Debug, Clone, Copy)]
pub struct Stage1Config<'a> {
    /// The ViT.
    pub vision: &'a VisionConfig,
    /// The Q-Former.
    pub qformer: &'a QFormerConfig,
    /// Its heads.
    pub heads: &'a HeadsConfig,
    /// Learned queries.
    pub num_query_tokens: usize,
}

impl Stage1 {
    /// Loads `vision_model.*`, `query_tokens`, `embeddings.*`, `qformer.*` and the heads.
    ///
    /// # Errors
    /// The config describes no model; a tensor is missing, has another shape than the config
    /// says, or is of a dtype that no weight has; or `tokenizer` lacks a token that captions
    /// need.
    pub fn load(
        checkpoint: &Checkpoint,
        config: Stage1Config,
        tokenizer: WordPiece,
        compute: &Compute,
    ) -> Result<Self> {
        check_widths(config.vision, config.qformer)?;
        config.heads.validate()?;
        if !config.qformer.use_qformer_text_input {
            return Err(Error::ConfigValue {
                field: "qformer_config.use_qformer_text_input".to_owned(),
                reason: "false, and the heads of the first stage read text".to_owned(),
            });
        }
        let weights = checkpoint.weights(compute);
        let (width, features) = (
            config.qformer.hidden_size,
            config.heads.image_text_hidden_size,
        );
        let head = |name, outputs| Linear::load(&weights.pp(name), width, outputs, true);
        Ok(Self {
            vision: VisionModel::load(&weights.pp("vision_model"), config.vision)?,
            qformer: QFormerModel::load(
                &weights,
                config.qformer,
                config.num_query_tokens,
                TextNames::Stage1,
            )?,
            vision_projection: head("vision_projection", features)?,
            text_projection: head("text_projection", features)?,
            itm_head: head("itm_head", 2)?,
            language_head: config
                .heads
                .captions
                .then(|| LanguageHead::load(&weights, config.qformer, &tokenizer))
                .transpose()?,
            tokenizer,
        })
    }

    /// The ViT alone: pixels `[batch, 3, image_size, image_size]` to `[batch, positions, vision
    /// width]`, which every other function here takes for a picture.
    ///
    /// # Errors
    /// `pixels` has another shape, or the device fails.
    pub fn vision(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(self.vision.forward(pixels)?.to_dtype(DType::F32)?)
    }

    /// The features of pictures, one for each query: `vision` `[batch, positions, vision width]`
    /// to `[batch, queries, features]`, each of length 1 (LAVIS, `image_embeds_proj`).
    ///
    /// # Errors
    /// `vision` has another shape, or the device fails.
    pub fn image_features(&self, vision: &Tensor) -> Result<Tensor> {
        let queries = self.qformer.forward(vision)?;
        normalized(&self.vision_projection.forward(&queries)?)
    }

    /// The features of texts, each read alone at its `[CLS]`: `[texts, features]`, each of
    /// length 1.
    ///
    /// # Errors
    /// No text is given, or the device fails.
    pub fn text_features(&self, texts: &[&str]) -> Result<Tensor> {
        let hidden = self.qformer.forward_text(&self.encode(texts)?)?;
        let class = hidden.narrow(1, 0, 1)?.squeeze(1)?;
        normalized(&self.text_projection.forward(&class)?)
    }

    /// The features of every token of a text: `[tokens, features]`, `[CLS]` first and `[SEP]`
    /// last, each of length 1 (LAVIS, `text_embeds_proj`).
    ///
    /// # Errors
    /// The device fails.
    pub fn token_features(&self, text: &str) -> Result<Tensor> {
        let hidden = self.qformer.forward_text(&self.encode(&[text])?)?;
        Ok(normalized(&self.text_projection.forward(&hidden)?)?.squeeze(0)?)
    }

    /// Query embeddings of pictures that were read beside a text each: `[texts, queries, width]`
    /// (LAVIS, `multimodal_embeds`). One picture may have several texts.
    ///
    /// # Errors
    /// The numbers of pictures and texts do not go together, or the device fails.
    pub fn multimodal_features(&self, vision: &Tensor, texts: &[&str]) -> Result<Tensor> {
        let hidden = self
            .qformer
            .forward_with_texts(vision, &self.encode(texts)?)?;
        Ok(hidden.to_dtype(DType::F32)?)
    }

    /// Image-text matching: the two logits of each picture and its text, `[texts, 2]`, no match
    /// first, the mean over the queries. One picture may have several texts.
    ///
    /// # Errors
    /// As [`Stage1::multimodal_features`].
    pub fn match_logits(&self, vision: &Tensor, texts: &[&str]) -> Result<Tensor> {
        let queries = self
            .qformer
            .forward_with_texts(vision, &self.encode(texts)?)?;
        let logits = self.itm_head.forward(&queries)?.to_dtype(DType::F32)?;
        Ok(logits.mean(1)?)
    }

    /// The probability that each text is its picture's: the softmax of
    /// [`Stage1::match_logits`].
    ///
    /// # Errors
    /// As [`Stage1::multimodal_features`].
    pub fn match_probability(&self, vision: &Tensor, texts: &[&str]) -> Result<Vec<f32>> {
        let logits = self.match_logits(vision, texts)?.to_vec2::<f32>()?;
        let probability = |logits: Vec<f32>| match logits[..] {
            [no, yes] => Ok(1.0 / (1.0 + (no - yes).exp())),
            _ => candle_core::bail!("two logits expected, found {}", logits.len()),
        };
        let probabilities = logits.into_iter().map(probability);
        Ok(probabilities.collect::<candle_core::Result<_>>()?)
    }

    /// Whether there is a head that writes captions.
    pub fn writes_captions(&self) -> bool {
        self.language_head.is_some()
    }

    /// A caption for each picture, computed together.
    ///
    /// # Errors
    /// [`Error::Text`] where there is no head for it, or `options` cannot be; `vision` has
    /// another shape, or the device fails.
    pub fn caption(&self, vision: &Tensor, options: &CaptionOptions) -> Result<Vec<Caption>> {
        caption::caption(
            &self.qformer,
            self.head()?,
            &self.tokenizer,
            vision,
            options,
        )
    }

    /// The logarithm of the probability that the Q-Former captions each picture with its text,
    /// `[SEP]` included, and the number of tokens that it is the sum over. One picture may have
    /// several texts.
    ///
    /// # Errors
    /// As [`Stage1::multimodal_features`], and [`Error::Text`] where there is no head for it.
    pub fn caption_logprob(&self, vision: &Tensor, texts: &[&str]) -> Result<Vec<(f32, usize)>> {
        let head = self.head()?;
        // The caption's own beginning stands for [CLS].
        let texts = self.encode(texts)?.into_iter().map(|mut ids| {
            if let Some(first) = ids.first_mut() {
                *first = head.begin();
            }
            ids
        });
        let texts: Vec<Vec<u32>> = texts.collect();
        let hidden = (self.qformer).forward_masked(vision, &texts, Mask::MultimodalCausal)?;
        head.logprobs(&hidden, &texts)
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &WordPiece {
        &self.tokenizer
    }

    fn head(&self) -> Result<&LanguageHead> {
        self.language_head.as_ref().ok_or_else(|| Error::Text {
            reason:
                "this model has no head that writes captions; LAVIS's blip2_pretrained.pth has one"
                    .to_owned(),
        })
    }

    fn encode(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
        if texts.is_empty() {
            return Err(Error::Text {
                reason: "no text is given".to_owned(),
            });
        }
        texts
            .iter()
            .map(|text| self.tokenizer.encode(text))
            .collect()
    }
}

/// Image-text contrast: the largest cosine of any of a picture's features and the text's.
///
/// `images` `[images, queries, features]` and `texts` `[texts, features]`, each of length 1, to
/// `[images, texts]`. The temperature of the training is not applied, as in the references.
///
/// # Errors
/// The shapes do not go together, or the device fails.
pub fn contrastive(images: &Tensor, texts: &Tensor) -> Result<Tensor> {
    let (n_images, queries, features) = images.dims3()?;
    let cosines = images
        .reshape((n_images * queries, features))?
        .matmul(&texts.t()?)?
        .reshape((n_images, queries, texts.dim(0)?))?;
    Ok(cosines.max(1)?)
}
