//! From the bytes of a picture file, and the instruction where the Q-Former
//! reads one, to a soft prompt, without a language model: preprocessing, ViT,
//! Q-Former, projection.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use qformer::checkpoint::{Checkpoint, Compute, Products};
use qformer::config::{Blip2Config, QFormerConfig, VisionConfig};
use qformer::image::{ImageLimits, RgbImage, decode};
use qformer::preprocess::Preprocessing;
use qformer::wordpiece::TOKENIZER_DIR;
use qformer::{Encoder, JOINED_PATCHES, WordPiece, joined_patches};

use crate::bundle::{Bundle, MANIFEST_FILE};
use crate::projection::Projection;
use crate::{Error, Result};

/// Everything between a picture file and the language model.
pub struct ImageEncoder {
    reader: PictureReader,
    encoder: Encoder,
    /// Of a Q-Former that reads text.
    tokenizer: Option<WordPiece>,
    projection: Projection,
}

/// From a picture file to pixels.
pub(crate) struct PictureReader {
    preprocessing: Preprocessing,
    limits: ImageLimits,
    device: Device,
}

impl PictureReader {
    pub fn new(preprocessing: Preprocessing, device: &Device) -> Self {
        Self {
            preprocessing,
            limits: ImageLimits::default(),
            device: device.clone(),
        }
    }

    /// Normalized pixels `[3, size, size]`, f32.
    pub fn pixels(&self, file: &[u8]) -> Result<Tensor> {
        self.preprocess(&self.decode(file)?)
    }

    pub fn decode(&self, file: &[u8]) -> Result<RgbImage> {
        Ok(decode(file, &self.limits)?)
    }

    pub fn preprocess(&self, image: &RgbImage) -> Result<Tensor> {
        let size = self.preprocessing.size;
        let pixels = self.preprocessing.pixels(image);
        Ok(Tensor::from_vec(pixels, (3, size, size), &self.device)?)
    }
}

/// What a batch of pictures becomes, stage by stage, all f32.
#[derive(Debug)]
pub struct ImageEncoding {
    /// ViT output after the last norm, `[batch, patches + 1, vision width]`.
    pub vision: Tensor,
    /// Query embeddings, `[batch, queries, Q-Former width]`, or joined patches.
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
    pub fn open(dir: &Path, products: Products, device: &Device) -> Result<Self> {
        if dir.join(MANIFEST_FILE).exists() {
            return Self::from_bundle(&Bundle::open(dir)?, products, device);
        }
        let config = Blip2Config::read(dir)?;
        if config.is_retrieval() {
            return Err(Error::NoLanguageModel {
                dir: dir.to_owned(),
            });
        }
        Self::new(
            &Checkpoint::open(dir)?,
            &config.vision_config,
            Some(&config.qformer_config),
            config.num_query_tokens,
            read_qformer_tokenizer(dir, &config)?,
            read_preprocessing(dir, &config)?,
            Compute {
                products,
                ..Compute::on(device)
            },
        )
    }

    /// Loads from an opened bundle.
    ///
    /// # Errors
    /// A tensor is missing or has another shape than the manifest says.
    pub fn from_bundle(bundle: &Bundle, products: Products, device: &Device) -> Result<Self> {
        let manifest = bundle.manifest();
        if !manifest.has_language_model() {
            return Err(bundle.no_language_model());
        }
        Self::new(
            bundle.checkpoint(),
            &manifest.vision,
            manifest.qformer.as_ref(),
            manifest.num_query_tokens,
            bundle.qformer_tokenizer().cloned(),
            manifest.preprocessing.clone(),
            Compute {
                products,
                ..Compute::on(device)
            },
        )
    }

    fn new(
        checkpoint: &Checkpoint,
        vision: &VisionConfig,
        qformer: Option<&QFormerConfig>,
        num_query_tokens: usize,
        tokenizer: Option<WordPiece>,
        preprocessing: Preprocessing,
        compute: Compute,
    ) -> Result<Self> {
        let (encoder, query_width) = match qformer {
            Some(config) => {
                let encoder =
                    Encoder::load(checkpoint, vision, config, num_query_tokens, &compute)?;
                (encoder, config.hidden_size)
            }
            None => (
                Encoder::load_vision(checkpoint, vision, &compute)?,
                JOINED_PATCHES * vision.hidden_size,
            ),
        };
        Ok(Self {
            reader: PictureReader::new(preprocessing, &compute.device),
            encoder,
            tokenizer,
            projection: Projection::load(checkpoint, query_width, &compute.device)?,
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
        self.reader.pixels(file)
    }

    /// The first half of [`ImageEncoder::pixels`]: a picture file to RGB.
    ///
    /// # Errors
    /// As [`ImageEncoder::pixels`].
    pub fn decode(&self, file: &[u8]) -> Result<RgbImage> {
        self.reader.decode(file)
    }

    /// The second half: resizing and normalizing to `[3, size, size]`, f32.
    ///
    /// # Errors
    /// The device fails.
    pub fn preprocess(&self, image: &RgbImage) -> Result<Tensor> {
        self.reader.preprocess(image)
    }

    /// Whether the Q-Former reads an instruction beside the picture
    /// (InstructBLIP).
    pub fn reads_instruction(&self) -> bool {
        self.tokenizer.is_some()
    }

    /// Runs ViT, Q-Former and projection on pixels `[batch, 3, size, size]`,
    /// with one of `instructions` for each picture where the Q-Former reads
    /// them, and none where it does not.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for an instruction too many or too few;
    /// `pixels` has another shape, or the device fails.
    pub fn forward(&self, pixels: &Tensor, instructions: &[&str]) -> Result<ImageEncoding> {
        self.check_instructions(instructions)?;
        let vision = self.vision(pixels)?;
        let queries = self.queries(&vision, instructions)?;
        Ok(ImageEncoding {
            soft_prompt: self.project(&queries)?,
            vision,
            queries,
        })
    }

    /// The ViT alone: pixels `[batch, 3, size, size]` to `[batch, patches + 1,
    /// vision width]`, f32, which depends on nothing but the picture.
    ///
    /// # Errors
    /// `pixels` has another shape, or the device fails.
    pub fn vision(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(self
            .encoder
            .vision()
            .forward(pixels)?
            .to_dtype(DType::F32)?)
    }

    /// Soft prompts `[batch, queries, n_embd]` of what [`ImageEncoder::vision`]
    /// gave, with the instructions that [`ImageEncoder::forward`] takes.
    ///
    /// # Errors
    /// As [`ImageEncoder::forward`].
    pub fn soft_prompts(&self, vision: &Tensor, instructions: &[&str]) -> Result<Tensor> {
        self.project(&self.queries(vision, instructions)?)
    }

    /// The first half of [`ImageEncoder::soft_prompts`]: query embeddings `[batch, queries, Q-Former width]`, f32, or
    /// joined patches where there is no Q-Former.
    ///
    /// # Errors
    /// As [`ImageEncoder::forward`].
    pub fn queries(&self, vision: &Tensor, instructions: &[&str]) -> Result<Tensor> {
        self.check_instructions(instructions)?;
        let queries = match (self.encoder.qformer(), &self.tokenizer) {
            (None, _) => joined_patches(vision)?,
            (Some(qformer), None) => qformer.forward(vision)?,
            (Some(qformer), Some(tokenizer)) => {
                let texts = instructions
                    .iter()
                    .map(|text| tokenizer.encode(text))
                    .collect::<Result<Vec<_>, _>>()?;
                qformer.forward_with_texts(vision, &texts)?
            }
        };
        Ok(queries.to_dtype(DType::F32)?)
    }

    /// The second half: query embeddings to rows of the language model, `[batch, queries, n_embd]`, f32.
    ///
    /// # Errors
    /// `queries` has another shape, or the device fails.
    pub fn project(&self, queries: &Tensor) -> Result<Tensor> {
        self.projection.forward(queries)
    }

    fn check_instructions(&self, instructions: &[&str]) -> Result<()> {
        let reason = match (self.reads_instruction(), instructions.is_empty()) {
            (true, true) => {
                "the Q-Former of this model reads an instruction beside the picture: give one, if only an empty one"
            }
            (false, false) => {
                "the Q-Former of this model reads the picture alone: give no instruction, the answer to a question \
                 comes from the language model"
            }
            _ => return Ok(()),
        };
        Err(Error::InvalidRequest {
            reason: reason.to_owned(),
        })
    }
}

/// The tokenizer in a checkpoint directory whose Q-Former reads text; none
/// where it does not.
///
/// # Errors
/// It is not there, or is no tokenizer of this Q-Former.
pub(crate) fn read_qformer_tokenizer(
    dir: &Path,
    config: &Blip2Config,
) -> Result<Option<WordPiece>> {
    let qformer = &config.qformer_config;
    if config.is_retrieval() {
        return Ok(Some(WordPiece::open_stage1(dir, qformer)?));
    }
    Ok(qformer
        .use_qformer_text_input
        .then(|| WordPiece::open_dir(&dir.join(TOKENIZER_DIR), qformer))
        .transpose()?)
}

/// The preprocessing of a checkpoint directory, or, where only the model was
/// saved, CLIP's normalization at the ViT's size, which every published BLIP-2 has.
///
/// # Errors
/// A file cannot be read, or asks for what is not done here.
pub(crate) fn read_preprocessing(dir: &Path, config: &Blip2Config) -> Result<Preprocessing> {
    if let Some(preprocessing) = Preprocessing::read(dir)? {
        return Ok(preprocessing);
    }
    tracing::warn!(
        "{}: no preprocessor_config.json; pictures are normalized as CLIP's",
        dir.display()
    );
    Ok(Preprocessing::clip(config.vision_config.image_size))
}
