//! A bundle that compares pictures and texts at work: features in one space, whether a text is a
//! picture's, and captions where there is a head for them. There is no language model.
//!
//! Bundles of BLIP-2's first stage, of CLIP and of BLIP are opened alike; [`Heads`] is what they
//! have in common.

mod heads;

use std::path::Path;

use candle_core::{Device, Tensor};
use qformer::checkpoint::{Compute, Products};
use qformer::image::RgbImage;
use qformer::stage1::CaptionOptions;

pub use self::heads::{Abilities, Caption, Heads};
use crate::bundle::{Bundle, Manifest};
use crate::image_encoder::PictureReader;
use crate::{Error, Result};

/// Texts that are read in one batch: more gain little, and memory grows with them.
pub(crate) const TEXT_BATCH: usize = 32;

/// A loaded bundle that compares pictures and texts.
pub struct Matcher {
    manifest: Manifest,
    reader: PictureReader,
    heads: Heads,
}

/// How well a text fits a picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Match {
    /// The largest cosine of the picture's features and the text's (ITC), from -1 to 1.
    pub similarity: f32,
    /// The probability that the text is the picture's (ITM).
    pub probability: f32,
}

impl Matcher {
    /// Opens and loads a bundle.
    ///
    /// # Errors
    /// The bundle is not whole, or a part cannot be loaded; [`Error::NoHeads`] where it is one
    /// with a language model.
    pub fn open(dir: &Path, products: Products, device: &Device) -> Result<Self> {
        Self::from_bundle(&Bundle::open(dir)?, products, device)
    }

    /// Loads an opened bundle.
    ///
    /// # Errors
    /// As [`Matcher::open`].
    pub fn from_bundle(bundle: &Bundle, products: Products, device: &Device) -> Result<Self> {
        let compute = Compute {
            products,
            ..Compute::on(device)
        };
        let manifest = bundle.manifest().clone();
        Ok(Self {
            heads: Heads::load(bundle, &compute)?,
            reader: PictureReader::new(manifest.preprocessing.clone(), device),
            manifest,
        })
    }

    /// The bundle's manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The model itself, for features and captions.
    pub fn heads(&self) -> &Heads {
        &self.heads
    }

    /// What the model can do.
    pub fn abilities(&self) -> Abilities {
        self.heads.abilities()
    }

    /// A picture file as `[1, rows, width]`, which [`Heads`] takes for a picture.
    ///
    /// # Errors
    /// The bytes are no picture of a known kind, are damaged, or are over a limit.
    pub fn vision(&self, file: &[u8]) -> Result<Tensor> {
        let pixels = self.reader.pixels(file)?.unsqueeze(0)?;
        self.heads.vision(&pixels)
    }

    /// A picture file to RGB.
    ///
    /// # Errors
    /// As [`Matcher::vision`].
    pub fn decode(&self, file: &[u8]) -> Result<RgbImage> {
        self.reader.decode(file)
    }

    /// A decoded picture as normalized pixels `[3, size, size]`, f32.
    ///
    /// # Errors
    /// The device fails.
    pub fn preprocess(&self, image: &RgbImage) -> Result<Tensor> {
        self.reader.preprocess(image)
    }

    /// How near each text is to the picture `vision` `[1, rows, width]`: the largest cosine of
    /// their features (ITC), from -1 to 1.
    ///
    /// # Errors
    /// No text is given, the model has no features, or the device fails.
    pub fn similarities(&self, vision: &Tensor, texts: &[&str]) -> Result<Vec<f32>> {
        let image = self.heads.image_features(vision)?;
        let mut similarities = Vec::with_capacity(texts.len());
        for texts in texts.chunks(TEXT_BATCH) {
            let found = Heads::similarities(&image, &self.heads.text_features(texts)?)?;
            similarities.extend(found.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(similarities)
    }

    /// How well each text fits the picture `vision` `[1, rows, width]`.
    ///
    /// # Errors
    /// No text is given, the model has no head that matches ([`Abilities::matches`]), or the
    /// device fails.
    pub fn match_texts(&self, vision: &Tensor, texts: &[&str]) -> Result<Vec<Match>> {
        if !self.abilities().matches {
            return Err(Error::InvalidRequest {
                reason: format!(
                    "{}: this {} tells how near a text is to a picture, not whether it is the picture's: that takes a head \
                     for matching, as blip2-itm and blip-itm have",
                    self.manifest.name, self.manifest.family
                ),
            });
        }
        let similarities = self.similarities(vision, texts)?;
        let mut probabilities = Vec::with_capacity(texts.len());
        for texts in texts.chunks(TEXT_BATCH) {
            probabilities.extend(self.heads.match_probability(vision, texts)?);
        }
        let both = similarities.into_iter().zip(probabilities);
        let found = both.map(|(similarity, probability)| Match {
            similarity,
            probability,
        });
        Ok(found.collect())
    }

    /// How captions are chosen where a request says nothing.
    pub fn default_caption(&self) -> CaptionOptions {
        let generation = &self.manifest.generation;
        CaptionOptions {
            max_tokens: generation.max_tokens,
            min_tokens: generation.min_tokens,
            num_beams: generation.num_beams,
            length_penalty: generation.length_penalty,
        }
    }

    /// Tokens that a caption is written behind, beside the picture's rows: what the decoder begins
    /// with, and the caption's beginning or the question.
    ///
    /// # Errors
    /// The tokenizer refuses the text.
    pub fn caption_prompt(&self, words: Option<&str>) -> Result<usize> {
        let Some(words) = words else { return Ok(1) };
        let tokens = self.heads.tokens(words)?.len();
        Ok(match self.abilities().answers {
            true => tokens + 1,
            // [DEC] stands for [CLS], and the text goes on where it would end.
            false => tokens.saturating_sub(1),
        })
    }

    /// Rows of features of a picture, and the width of each; none of a model that has no features.
    pub fn feature_shape(&self) -> Option<(usize, usize)> {
        let manifest = &self.manifest;
        if !self.abilities().compares {
            return None;
        }
        match (&manifest.heads, &manifest.clip, &manifest.blip) {
            (Some(heads), ..) => Some((manifest.num_query_tokens, heads.image_text_hidden_size)),
            (_, Some(clip), _) => Some((1, clip.projection_dim)),
            (.., Some(blip)) => Some((1, blip.image_text_hidden_size)),
            _ => None,
        }
    }

    /// Rows of a picture that the model reads: learned queries, or the ViT's positions.
    pub fn picture_rows(&self) -> usize {
        match self.manifest.num_query_tokens {
            0 => self.manifest.vision.positions(),
            queries => queries,
        }
    }
}
