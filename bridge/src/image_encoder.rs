//! From the bytes of a picture file to its soft prompt, without a language
//! model: preprocessing, ViT, Q-Former, projection.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use qformer::Encoder;
use qformer::checkpoint::Checkpoint;
use qformer::config::{Blip2Config, QFormerConfig, VisionConfig};
use qformer::image::{ImageLimits, decode};
use qformer::preprocess::Preprocessing;

use crate::bundle::{Bundle, MANIFEST_FILE};
use crate::projection::Projection;
use crate::{Error, Result};

/// Everything between a picture file and the language model.
pub struct ImageEncoder {
    preprocessing: Preprocessing,
    encoder: Encoder,
    projection: Projection,
    limits: ImageLimits,
    device: Device,
}

/// What a batch of pictures becomes, stage by stage, all f32.
#[derive(Debug)]
pub struct ImageEncoding {
    /// ViT output after the last norm, `[batch, patches + 1, vision width]`.
    pub vision: Tensor,
    /// Query embeddings, `[batch, queries, Q-Former width]`.
    pub queries: Tensor,
    /// Rows for the language model, `[batch, queries, n_embd]`.
    pub soft_prompt: Tensor,
}

impl ImageEncoder {
    /// Loads from a bundle, or from a checkpoint directory in Hugging Face's
    /// layout where there is no `bundle.toml`.
    ///
    /// # Errors
    /// A file is missing or unreadable, or the parts do not fit together.
    pub fn open(dir: &Path, device: &Device) -> Result<Self> {
        if dir.join(MANIFEST_FILE).exists() {
            return Self::from_bundle(&Bundle::open(dir)?, device);
        }
        let config = Blip2Config::read(dir)?;
        Self::new(
            &Checkpoint::open(dir)?,
            &config.vision_config,
            &config.qformer_config,
            config.num_query_tokens,
            read_preprocessing(dir, &config)?,
            device,
        )
    }

    /// Loads from an opened bundle.
    ///
    /// # Errors
    /// A tensor is missing or has another shape than the manifest says.
    pub fn from_bundle(bundle: &Bundle, device: &Device) -> Result<Self> {
        let manifest = bundle.manifest();
        Self::new(
            bundle.checkpoint(),
            &manifest.vision,
            &manifest.qformer,
            manifest.num_query_tokens,
            manifest.preprocessing.clone(),
            device,
        )
    }

    fn new(
        checkpoint: &Checkpoint,
        vision: &VisionConfig,
        qformer: &QFormerConfig,
        num_query_tokens: usize,
        preprocessing: Preprocessing,
        device: &Device,
    ) -> Result<Self> {
        Ok(Self {
            preprocessing,
            encoder: Encoder::load(
                checkpoint,
                vision,
                qformer,
                num_query_tokens,
                DType::F32,
                device,
            )?,
            projection: Projection::load(checkpoint, qformer.hidden_size, device)?,
            limits: ImageLimits::default(),
            device: device.clone(),
        })
    }

    /// Width of a soft-prompt row.
    pub fn n_embd(&self) -> usize {
        self.projection.n_embd()
    }

    /// Decodes a picture file into normalized pixels `[3, size, size]`, f32.
    ///
    /// # Errors
    /// The bytes are no picture of a known kind, are damaged, or are over a
    /// limit.
    pub fn pixels(&self, file: &[u8]) -> Result<Tensor> {
        let image = decode(file, &self.limits)?;
        let size = self.preprocessing.size;
        let pixels = self.preprocessing.pixels(&image);
        Ok(Tensor::from_vec(pixels, (3, size, size), &self.device)?)
    }

    /// Runs ViT, Q-Former and projection on `[batch, 3, size, size]`.
    ///
    /// # Errors
    /// `pixels` has another shape, or the device fails.
    pub fn forward(&self, pixels: &Tensor) -> Result<ImageEncoding> {
        let encoding = self.encoder.encode(pixels)?;
        let soft_prompt = self.projection.forward(&encoding.queries)?;
        Ok(ImageEncoding {
            vision: encoding.vision,
            queries: encoding.queries,
            soft_prompt,
        })
    }
}

/// The preprocessing of a checkpoint directory: `preprocessor_config.json`, or
/// the `image_processor` of `processor_config.json` (as transformers 5 writes
/// it), or, where only the model was saved, CLIP's normalization at the ViT's
/// size, which every published BLIP-2 has.
///
/// # Errors
/// A file cannot be read, or asks for what is not done here.
pub(crate) fn read_preprocessing(dir: &Path, config: &Blip2Config) -> Result<Preprocessing> {
    for (file, key) in [
        ("preprocessor_config.json", None),
        ("processor_config.json", Some("image_processor")),
    ] {
        let path = dir.join(file);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => continue,
            Err(source) => return Err(Error::Io { path, source }),
        };
        let invalid = |error: serde_json::Error| Error::Manifest {
            path: path.clone(),
            reason: error.to_string(),
        };
        let mut value: serde_json::Value = serde_json::from_str(&text).map_err(invalid)?;
        if let Some(key) = key {
            let Some(inner) = value.get_mut(key) else {
                continue;
            };
            value = inner.take();
        }
        return serde_json::from_value(value).map_err(invalid);
    }
    tracing::warn!(
        "{}: no preprocessor_config.json; pictures are normalized as CLIP's",
        dir.display()
    );
    Ok(Preprocessing::clip(config.vision_config.image_size))
}
