//! CLIP: pictures and texts in one space of features (Radford et al. 2021,
//! arXiv:2103.00020).
//!
//! A ViT reads a picture at its class token, a transformer under a causal mask reads a text at
//! the token that ends it; both are projected, and the angle between them, times a learned
//! temperature, is how well they go together. Reference: transformers 5.23,
//! `models/clip/modeling_clip.py`, `CLIPModel`, whose tensor names are kept; checkpoints of
//! open_clip are read under their own names.
//!
//! ```no_run
//! use candle_core::{Device, Tensor};
//! use qformer::checkpoint::Compute;
//! use qformer::clip::{Clip, IMAGENET_TEMPLATES};
//! use qformer::image::{ImageLimits, decode};
//! # fn main() -> qformer::Result<()> {
//! let clip = Clip::open("clip-vit-base-patch32".as_ref(), &Compute::on(&Device::Cpu))?;
//! # let bytes = Vec::new();
//! let picture = decode(&bytes, &ImageLimits::default())?;
//! let images = clip.image_features(&clip.pixels(&[picture])?)?; // [1, 512]
//! let classes = clip.class_features(&["cat", "dog"], &IMAGENET_TEMPLATES)?; // [2, 512]
//! let probabilities = clip.classify(&images, &classes)?; // [1, 2]
//! # Ok(())
//! # }
//! ```

use std::path::Path;

use candle_core::{D, DType, Tensor};
use image::RgbImage;

use crate::block::Names;
use crate::checkpoint::{Checkpoint, Compute, Weights};
use crate::features::normalized;
use crate::linear::Linear;
use crate::preprocess::Preprocessing;
use crate::vision::VisionModel;
use crate::{Error, Result};

pub mod config;
mod open_clip;
mod templates;
mod text;
mod tokenizer;

pub use config::ClipConfig;
pub use templates::{IMAGENET_TEMPLATES, PLACEHOLDER, fill};
pub use tokenizer::ClipTokenizer;

use text::TextModel;

/// Texts that go through the text tower at a time.
const TEXTS_AT_A_TIME: usize = 32;

/// A CLIP: both towers, both projections and the temperature.
#[derive(Debug)]
pub struct Clip {
    vision_model: VisionModel,
    visual_projection: Linear,
    text_model: TextModel,
    text_projection: Linear,
    /// As stored: a logarithm.
    logit_scale: f32,
    tokenizer: ClipTokenizer,
    preprocessing: Preprocessing,
    config: ClipConfig,
}

/// A CLIP's checkpoint, its weights not read yet.
#[derive(Debug)]
pub struct ClipParts {
    /// The sizes.
    pub config: ClipConfig,
    /// How pictures become pixels.
    pub preprocessing: Preprocessing,
    /// The tokenizer.
    pub tokenizer: ClipTokenizer,
    /// The weights, under Hugging Face's names or open_clip's.
    pub checkpoint: Checkpoint,
}

impl ClipParts {
    /// Opens a directory, as [`Clip::open`] takes it.
    ///
    /// # Errors
    /// A file is missing or holds what is not done here.
    pub fn open(dir: &Path) -> Result<Self> {
        if is_open_clip(dir) {
            let (config, preprocessing) = open_clip::read_config(dir)?;
            return Ok(Self {
                tokenizer: ClipTokenizer::open_dir(dir, &config.text_config)?,
                checkpoint: open_clip::open_checkpoint(dir)?,
                config,
                preprocessing,
            });
        }
        let config = ClipConfig::read(dir)?;
        let preprocessing = match Preprocessing::read(dir)? {
            Some(preprocessing) => preprocessing,
            None => Preprocessing::clip_cropped(config.vision_config.image_size),
        };
        Ok(Self {
            tokenizer: ClipTokenizer::open_dir(dir, &config.text_config)?,
            checkpoint: Checkpoint::open(dir)?,
            config,
            preprocessing,
        })
    }
}

/// Whether `dir` is a checkpoint of open_clip and not one of Hugging Face's too.
pub fn is_open_clip(dir: &Path) -> bool {
    open_clip::is_there(dir)
}

impl Clip {
    /// Reads a checkpoint directory of Hugging Face's `CLIPModel` (`config.json`,
    /// `preprocessor_config.json`, weights, `tokenizer.json` or `vocab.json` with `merges.txt`)
    /// or one of open_clip's (`open_clip_config.json` and `open_clip_model.safetensors` or
    /// `open_clip_pytorch_model.bin` in place of the first three).
    ///
    /// # Errors
    /// A file is missing or holds what is not done here; or as [`Clip::load`]'s.
    pub fn open(dir: &Path, compute: &Compute) -> Result<Self> {
        let parts = ClipParts::open(dir)?;
        Self::load(
            &parts.checkpoint,
            parts.config,
            parts.preprocessing,
            parts.tokenizer,
            compute,
        )
    }

    /// Loads all weights, under Hugging Face's names or open_clip's.
    ///
    /// # Errors
    /// A tensor is missing, has another shape than `config` says, or a dtype that no weight has;
    /// or `preprocessing` makes pictures of another size than the ViT reads.
    pub fn load(
        checkpoint: &Checkpoint,
        config: ClipConfig,
        preprocessing: Preprocessing,
        tokenizer: ClipTokenizer,
        compute: &Compute,
    ) -> Result<Self> {
        let size = config.vision_config.image_size;
        if preprocessing.size != size {
            return Err(Error::ConfigValue {
                field: "crop_size".to_owned(),
                reason: format!(
                    "{} is not vision_config.image_size = {size}",
                    preprocessing.size
                ),
            });
        }
        let weights = checkpoint.weights(compute);
        let (vision, text) = (&config.vision_config, &config.text_config);
        let dim = config.projection_dim;
        let open_clip = weights.contains("visual.proj");
        let (names, tower, text_root) = match open_clip {
            true => (Names::OpenClip, weights.pp("visual"), weights.clone()),
            false => (
                Names::Clip,
                weights.pp("vision_model"),
                weights.pp("text_model"),
            ),
        };
        let (visual_projection, text_projection) = match open_clip {
            true => (
                transposed(&weights, "visual.proj", vision.hidden_size, dim)?,
                transposed(&weights, "text_projection", text.hidden_size, dim)?,
            ),
            false => {
                let linear = |name, inputs| Linear::load(&weights.pp(name), inputs, dim, false);
                (
                    linear("visual_projection", vision.hidden_size)?,
                    linear("text_projection", text.hidden_size)?,
                )
            }
        };
        Ok(Self {
            vision_model: VisionModel::load_named(&tower, vision, names)?,
            visual_projection,
            text_model: TextModel::load(&text_root, text, names)?,
            text_projection,
            logit_scale: weights
                .get("logit_scale", &[])?
                .to_dtype(DType::F32)?
                .to_scalar()?,
            tokenizer,
            preprocessing,
            config,
        })
    }

    /// The sizes.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// How pictures become pixels.
    pub fn preprocessing(&self) -> &Preprocessing {
        &self.preprocessing
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &ClipTokenizer {
        &self.tokenizer
    }

    /// Decoded pictures as pixels `[pictures, 3, image_size, image_size]`.
    ///
    /// # Errors
    /// There are none, or the device fails.
    pub fn pixels(&self, pictures: &[RgbImage]) -> Result<Tensor> {
        self.preprocessing.batch(pictures)
    }

    /// Normalized pixels `[batch, 3, image_size, image_size]` to features of length 1,
    /// `[batch, projection_dim]`, f32.
    ///
    /// # Errors
    /// `pixels` has another shape, or the device fails.
    pub fn image_features(&self, pixels: &Tensor) -> Result<Tensor> {
        let class = self.vision_model.class_token(pixels)?;
        normalized(&self.visual_projection.forward(&class)?)
    }

    /// Texts to features of length 1, `[texts, projection_dim]`, f32. A text is lower-cased and
    /// cut by the tokenizer.
    ///
    /// # Errors
    /// There are no texts, the tokenizer refuses one, or the device fails.
    pub fn text_features(&self, texts: &[impl AsRef<str>]) -> Result<Tensor> {
        let ids = texts
            .iter()
            .map(|text| self.tokenizer.encode(text.as_ref()))
            .collect::<Result<Vec<_>>>()?;
        let features = ids
            .chunks(TEXTS_AT_A_TIME)
            .map(|ids| {
                let pooled = self.text_model.forward(ids)?;
                normalized(&self.text_projection.forward(&pooled)?)
            })
            .collect::<Result<Vec<_>>>()?;
        if features.is_empty() {
            return Err(Error::Text {
                reason: "there is none".to_owned(),
            });
        }
        Ok(Tensor::cat(&features, 0)?)
    }

    /// What cosines are multiplied by before a softmax: the inverse of the learned temperature,
    /// 100 in OpenAI's models.
    pub fn logit_scale(&self) -> f32 {
        self.logit_scale.exp()
    }

    /// The reference's `logits_per_image`, `[images, texts]`: cosines times
    /// [`Clip::logit_scale`], of features as [`Clip::image_features`] and
    /// [`Clip::text_features`] give them.
    ///
    /// # Errors
    /// The features have other shapes, or the device fails.
    pub fn contrastive(&self, images: &Tensor, texts: &Tensor) -> Result<Tensor> {
        Ok((images.matmul(&texts.t()?)? * f64::from(self.logit_scale()))?)
    }

    /// Features of classes, `[labels, projection_dim]`: those of each label in all `templates`,
    /// averaged, and brought back to length 1 (section 3.1.4 of the paper, and OpenAI's
    /// `Prompt_Engineering_for_ImageNet.ipynb`). In a template, [`PLACEHOLDER`] stands for the
    /// label.
    ///
    /// # Errors
    /// There are no labels or no templates, a template lacks the placeholder, or as
    /// [`Clip::text_features`]'s.
    pub fn class_features(
        &self,
        labels: &[impl AsRef<str>],
        templates: &[impl AsRef<str>],
    ) -> Result<Tensor> {
        if templates.is_empty() {
            return Err(Error::Text {
                reason: "there is no template".to_owned(),
            });
        }
        let mut prompts = Vec::with_capacity(labels.len() * templates.len());
        for label in labels {
            for template in templates {
                prompts.push(fill(template.as_ref(), label.as_ref())?);
            }
        }
        let features = self.text_features(&prompts)?;
        let dim = features.dim(D::Minus1)?;
        let features = features.reshape((labels.len(), templates.len(), dim))?;
        normalized(&features.mean(1)?)
    }

    /// Probabilities of the classes for each picture, `[images, classes]`: the softmax of
    /// [`Clip::contrastive`].
    ///
    /// # Errors
    /// As [`Clip::contrastive`]'s.
    pub fn classify(&self, images: &Tensor, classes: &Tensor) -> Result<Tensor> {
        let logits = self.contrastive(images, classes)?;
        Ok(candle_nn::ops::softmax_last_dim(&logits)?)
    }
}

/// A projection that is stored `[inputs, outputs]`.
fn transposed(weights: &Weights, name: &str, inputs: usize, outputs: usize) -> Result<Linear> {
    let weight = weights.get(name, &[inputs, outputs])?;
    Ok(Linear::new(&weight.t()?.contiguous()?, None)?)
}
