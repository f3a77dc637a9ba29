//! A bundle of BLIP-2's first stage at work: pictures and texts in one feature space, whether
//! they match, and captions by the Q-Former itself. There is no language model.

use std::path::Path;

use candle_core::{Device, Tensor};
use qformer::checkpoint::{Compute, Products};
use qformer::stage1::{CaptionOptions, Stage1, Stage1Config, contrastive};

use crate::bundle::{Bundle, Manifest};
use crate::image_encoder::PictureReader;
use crate::{Error, Result};

/// Texts that are matched with a picture in one batch: more gain little, and memory grows with
/// them.
const BATCH: usize = 32;

/// A loaded bundle with the heads of the first stage.
pub struct Matcher {
    manifest: Manifest,
    reader: PictureReader,
    stage1: Stage1,
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
        let manifest = bundle.manifest().clone();
        let (Some(heads), Some(qformer), Some(tokenizer)) = (
            &manifest.heads,
            &manifest.qformer,
            bundle.qformer_tokenizer(),
        ) else {
            return Err(Error::NoHeads {
                dir: bundle.dir().to_owned(),
            });
        };
        let compute = Compute {
            products,
            ..Compute::on(device)
        };
        let config = Stage1Config {
            vision: &manifest.vision,
            qformer,
            heads,
            num_query_tokens: manifest.num_query_tokens,
        };
        let stage1 = Stage1::load(bundle.checkpoint(), config, tokenizer.clone(), &compute)?;
        Ok(Self {
            reader: PictureReader::new(manifest.preprocessing.clone(), device),
            stage1,
            manifest,
        })
    }

    /// The bundle's manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The model itself, for features and captions.
    pub fn stage1(&self) -> &Stage1 {
        &self.stage1
    }

    /// A picture file through the ViT: `[1, positions, vision width]`, which [`Stage1`] takes for
    /// a picture.
    ///
    /// # Errors
    /// The bytes are no picture of a known kind, are damaged, or are over a limit.
    pub fn vision(&self, file: &[u8]) -> Result<Tensor> {
        let pixels = self.reader.pixels(file)?.unsqueeze(0)?;
        Ok(self.stage1.vision(&pixels)?)
    }

    /// How well each text fits the picture `vision` `[1, positions, vision width]`.
    ///
    /// # Errors
    /// No text is given, or the device fails.
    pub fn match_texts(&self, vision: &Tensor, texts: &[&str]) -> Result<Vec<Match>> {
        let image = self.stage1.image_features(vision)?;
        let mut matches = Vec::with_capacity(texts.len());
        for texts in texts.chunks(BATCH) {
            let similarities = contrastive(&image, &self.stage1.text_features(texts)?)?;
            let similarities = similarities.flatten_all()?.to_vec1::<f32>()?;
            let probabilities = self.stage1.match_probability(vision, texts)?;
            let both = similarities.into_iter().zip(probabilities);
            matches.extend(both.map(|(similarity, probability)| Match {
                similarity,
                probability,
            }));
        }
        Ok(matches)
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
}
