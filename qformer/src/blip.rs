//! BLIP: captions, answers and matches of pictures and texts (Li et al. 2022,
//! arXiv:2201.12086).
//!
//! A ViT, and a BERT whose every layer may attend to what the ViT sees: without the picture it
//! is a text encoder for contrastive features, with it a matcher, and under a causal mask a
//! decoder. A checkpoint holds the parts of one task. Reference: transformers 5.23,
//! `models/blip/modeling_blip.py` and `modeling_blip_text.py`, whose tensor names are kept.
//!
//! ```no_run
//! use candle_core::Device;
//! use qformer::blip::Blip;
//! use qformer::checkpoint::Compute;
//! use qformer::generate::Generation;
//! use qformer::image::{ImageLimits, decode};
//! # fn main() -> qformer::Result<()> {
//! let dir = "blip-image-captioning-base".as_ref();
//! let blip = Blip::open(dir, &Compute::on(&Device::Cpu))?;
//! # let bytes = Vec::new();
//! let picture = decode(&bytes, &ImageLimits::default())?;
//! let vision = blip.vision(&blip.pixels(&[picture])?)?;
//! let captions = blip.caption(&vision, Some("a picture of"), &Generation::default())?;
//! println!("{}", captions[0].text);
//! # Ok(())
//! # }
//! ```

use std::path::Path;

use candle_core::{DType, Tensor};
use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, Compute, Weights};
use crate::features::normalized;
use crate::generate::{Generation, Step, generate};
use crate::linear::Linear;
use crate::preprocess::Preprocessing;
use crate::vision::VisionModel;
use crate::wordpiece::WordPiece;
use crate::{Error, Result};

pub mod config;
mod text;

pub use config::BlipConfig;

use config::BlipTextConfig;
use text::{TextDecoder, TextModel};

/// Candidate answers that are scored whole: those whose first token is likeliest (LAVIS,
/// `num_ans_candidates`).
pub const RANKED_CANDIDATES: usize = 128;

/// Texts that are encoded at a time: more gain little, and memory grows with them.
const TEXTS_AT_A_TIME: usize = 32;

/// Candidate answers that go through the decoder at a time.
const CANDIDATES_AT_A_TIME: usize = 32;

/// What a checkpoint is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// `BlipForConditionalGeneration`: [`Blip::caption`].
    Captioning,
    /// `BlipForImageTextRetrieval`: [`Blip::image_features`], [`Blip::text_features`] and
    /// [`Blip::match_probability`].
    Retrieval,
    /// `BlipForQuestionAnswering`: [`Blip::answer`] and [`Blip::rank_answers`].
    QuestionAnswering,
}

impl Task {
    /// The reference's class.
    pub fn class(self) -> &'static str {
        match self {
            Task::Captioning => "BlipForConditionalGeneration",
            Task::Retrieval => "BlipForImageTextRetrieval",
            Task::QuestionAnswering => "BlipForQuestionAnswering",
        }
    }
}

/// The first token of a text that is encoded beside a picture, for a match or a question.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EncoderStart {
    /// `[CLS]`, as transformers has it.
    #[default]
    Cls,
    /// `[ENC]`, as LAVIS trained it; scores and answers may differ a little (transformers
    /// issues 22732 and 25629).
    Enc,
}

/// A text that was generated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// Its tokens behind the prompt, the one that ended it included.
    pub ids: Vec<u32>,
    /// The prompt and what was generated, without special tokens.
    pub text: String,
}

/// A candidate answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranked {
    /// Its place among the candidates.
    pub candidate: usize,
    /// Sum of the log-probabilities of its tokens, `[SEP]` included, smoothed as the config
    /// says.
    pub score: f32,
}

/// A BLIP of one [`Task`].
#[derive(Debug)]
pub struct Blip {
    vision_model: VisionModel,
    heads: Heads,
    start: EncoderStart,
    tokenizer: WordPiece,
    preprocessing: Preprocessing,
    config: BlipConfig,
}

#[derive(Debug)]
enum Heads {
    Captioning(TextDecoder),
    Retrieval(Retrieval),
    QuestionAnswering {
        text_encoder: TextModel,
        text_decoder: TextDecoder,
    },
}

#[derive(Debug)]
struct Retrieval {
    text_encoder: TextModel,
    vision_proj: Linear,
    text_proj: Linear,
    itm_head: Linear,
}

/// A BLIP's checkpoint, its weights not read yet.
#[derive(Debug)]
pub struct BlipParts {
    /// The sizes.
    pub config: BlipConfig,
    /// How pictures become pixels.
    pub preprocessing: Preprocessing,
    /// The tokenizer.
    pub tokenizer: WordPiece,
    /// The weights of one of [`Task`]'s classes.
    pub checkpoint: Checkpoint,
}

impl BlipParts {
    /// Opens a directory, as [`Blip::open`] takes it.
    ///
    /// # Errors
    /// A file is missing or holds what is not done here.
    pub fn open(dir: &Path) -> Result<Self> {
        let config = BlipConfig::read(dir)?;
        let preprocessing = match Preprocessing::read(dir)? {
            Some(preprocessing) => preprocessing,
            None => Preprocessing::clip(config.vision_config.image_size),
        };
        Ok(Self {
            tokenizer: WordPiece::open_dir(dir, &config.text_config)?,
            checkpoint: Checkpoint::open(dir)?,
            config,
            preprocessing,
        })
    }
}

impl Blip {
    /// Reads a checkpoint directory: `config.json`, `preprocessor_config.json`, the tokenizer
    /// and the weights of one of [`Task`]'s classes.
    ///
    /// # Errors
    /// A file is missing or holds what is not done here; or as [`Blip::load`]'s.
    pub fn open(dir: &Path, compute: &Compute) -> Result<Self> {
        let parts = BlipParts::open(dir)?;
        Self::load(
            &parts.checkpoint,
            parts.config,
            parts.preprocessing,
            parts.tokenizer,
            compute,
        )
    }

    /// Loads the parts that `checkpoint` holds.
    ///
    /// # Errors
    /// They are those of no [`Task`]; a tensor is missing, has another shape than `config` says,
    /// or a dtype that no weight has; or `preprocessing` makes pictures of another size than the
    /// ViT reads.
    pub fn load(
        checkpoint: &Checkpoint,
        config: BlipConfig,
        preprocessing: Preprocessing,
        tokenizer: WordPiece,
        compute: &Compute,
    ) -> Result<Self> {
        let size = config.vision_config.image_size;
        if preprocessing.size != size {
            return Err(Error::ConfigValue {
                field: "size".to_owned(),
                reason: format!(
                    "{} is not vision_config.image_size = {size}",
                    preprocessing.size
                ),
            });
        }
        let weights = checkpoint.weights(compute);
        let vision_model = VisionModel::load(&weights.pp("vision_model"), &config.vision_config)?;
        let heads = match Self::task_of(checkpoint)? {
            Task::Captioning => Heads::Captioning(TextDecoder::load(
                &weights.pp("text_decoder"),
                &config.text_config,
                config.vision_config.hidden_size,
            )?),
            Task::Retrieval => Heads::Retrieval(Retrieval::load(&weights, &config)?),
            Task::QuestionAnswering => Heads::QuestionAnswering {
                text_encoder: TextModel::load(
                    &weights.pp("text_encoder"),
                    &config.text_config,
                    config.vision_config.hidden_size,
                )?,
                // Its cross-attention reads the encoded question; the reference sizes it by the
                // ViT, and they are of one width in every checkpoint that was trained.
                text_decoder: TextDecoder::load(
                    &weights.pp("text_decoder"),
                    &config.text_config,
                    config.vision_config.hidden_size,
                )?,
            },
        };
        Ok(Self {
            vision_model,
            heads,
            start: EncoderStart::default(),
            tokenizer,
            preprocessing,
            config,
        })
    }

    /// What a checkpoint is for, by the parts that it has.
    ///
    /// # Errors
    /// They are those of no [`Task`].
    pub fn task_of(checkpoint: &Checkpoint) -> Result<Task> {
        let has = |part: &str| checkpoint.names().any(|name| name.starts_with(part));
        match (has("itm_head."), has("text_encoder."), has("text_decoder.")) {
            (true, true, _) => Ok(Task::Retrieval),
            (_, true, true) => Ok(Task::QuestionAnswering),
            (_, false, true) => Ok(Task::Captioning),
            _ => Err(Error::Parts {
                files: checkpoint.describe(),
                reason: format!(
                    "neither text_decoder nor text_encoder with itm_head or text_decoder: give a checkpoint of {}, {} or {}",
                    Task::Captioning.class(),
                    Task::Retrieval.class(),
                    Task::QuestionAnswering.class()
                ),
            }),
        }
    }

    /// The same with another first token for texts that are encoded beside a picture.
    pub fn with_encoder_start(self, start: EncoderStart) -> Self {
        Self { start, ..self }
    }

    /// What the checkpoint is for.
    pub fn task(&self) -> Task {
        match &self.heads {
            Heads::Captioning(_) => Task::Captioning,
            Heads::Retrieval(_) => Task::Retrieval,
            Heads::QuestionAnswering { .. } => Task::QuestionAnswering,
        }
    }

    /// The sizes.
    pub fn config(&self) -> &BlipConfig {
        &self.config
    }

    /// How pictures become pixels.
    pub fn preprocessing(&self) -> &Preprocessing {
        &self.preprocessing
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &WordPiece {
        &self.tokenizer
    }

    /// Decoded pictures as pixels `[pictures, 3, image_size, image_size]`.
    ///
    /// # Errors
    /// There are none, or the device fails.
    pub fn pixels(&self, pictures: &[RgbImage]) -> Result<Tensor> {
        self.preprocessing.batch(pictures)
    }

    /// Normalized pixels `[batch, 3, image_size, image_size]` to what the text models attend to,
    /// `[batch, positions, vision width]`, the class token first.
    ///
    /// # Errors
    /// `pixels` has another shape, or the device fails.
    pub fn vision(&self, pixels: &Tensor) -> Result<Tensor> {
        self.vision_model.forward(pixels)
    }

    /// The ViT's output to features of length 1, `[batch, image_text_hidden_size]`, f32.
    ///
    /// # Errors
    /// The checkpoint is not one of [`Task::Retrieval`], or the device fails.
    pub fn image_features(&self, vision: &Tensor) -> Result<Tensor> {
        let class = vision.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?;
        normalized(&self.retrieval()?.vision_proj.forward(&class)?)
    }

    /// Texts to features of length 1, `[texts, image_text_hidden_size]`, f32.
    ///
    /// # Errors
    /// The checkpoint is not one of [`Task::Retrieval`], there are no texts, or the device fails.
    pub fn text_features(&self, texts: &[impl AsRef<str>]) -> Result<Tensor> {
        let retrieval = self.retrieval()?;
        let hidden = retrieval.first_rows(&self.ids(texts)?, None)?;
        normalized(&retrieval.text_proj.forward(&hidden)?)
    }

    /// Cosines `[images, texts]` of features as [`Blip::image_features`] and
    /// [`Blip::text_features`] give them, without a temperature: the reference's with
    /// `use_itm_head=False`.
    ///
    /// # Errors
    /// The features have other shapes, or the device fails.
    pub fn contrastive(&self, images: &Tensor, texts: &Tensor) -> Result<Tensor> {
        Ok(images.matmul(&texts.t()?)?)
    }

    /// The matching head's logits `[texts, 2]`, of which the second speaks for a match. `vision`
    /// holds one picture for all texts, or one for each.
    ///
    /// # Errors
    /// The checkpoint is not one of [`Task::Retrieval`], there are no texts or not as many as
    /// pictures, or the device fails.
    pub fn match_logits(&self, vision: &Tensor, texts: &[impl AsRef<str>]) -> Result<Tensor> {
        let retrieval = self.retrieval()?;
        let ids = self.ids_beside(vision, texts)?;
        let hidden = retrieval.first_rows(&ids, Some(vision))?;
        let logits = retrieval.itm_head.forward(&hidden)?;
        Ok(logits.to_dtype(DType::F32)?)
    }

    /// The probability that each text matches its picture, `[texts]`: the softmax of
    /// [`Blip::match_logits`].
    ///
    /// # Errors
    /// As [`Blip::match_logits`]'s.
    pub fn match_probability(&self, vision: &Tensor, texts: &[impl AsRef<str>]) -> Result<Tensor> {
        let logits = self.match_logits(vision, texts)?;
        let probabilities = candle_nn::ops::softmax_last_dim(&logits)?;
        Ok(probabilities.narrow(1, 1, 1)?.squeeze(1)?)
    }

    /// A caption of each picture, which goes on from `prefix` where one is given.
    ///
    /// # Errors
    /// The checkpoint is not one of [`Task::Captioning`], the prefix leaves no room, or the
    /// device fails.
    pub fn caption(
        &self,
        vision: &Tensor,
        prefix: Option<&str>,
        options: &Generation,
    ) -> Result<Vec<Generated>> {
        let Heads::Captioning(decoder) = &self.heads else {
            return Err(self.lacks(Task::Captioning));
        };
        let prompt = self.decoder_prompt(prefix)?;
        let prompts = vec![prompt; vision.dim(0)?];
        self.generate(decoder, vision, None, &prompts, options)
    }

    /// An answer to each question. `vision` holds one picture for all questions, or one for each.
    ///
    /// # Errors
    /// The checkpoint is not one of [`Task::QuestionAnswering`], there are no questions or not as
    /// many as pictures, or the device fails.
    pub fn answer(
        &self,
        vision: &Tensor,
        questions: &[impl AsRef<str>],
        options: &Generation,
    ) -> Result<Vec<Generated>> {
        let (encoder, decoder) = self.question_answering()?;
        let ids = self.ids_beside(vision, questions)?;
        let states = encoder.encode(&ids, Some(vision))?;
        let lengths = ids.iter().map(Vec::len).collect();
        let prompts = vec![self.decoder_prompt(None)?; ids.len()];
        self.generate(decoder, &states, Some(lengths), &prompts, options)
    }

    /// Candidate answers to a question about one picture, `vision` `[1, positions, width]`, the
    /// best first: of all of them, the [`RANKED_CANDIDATES`] whose first token is likeliest, by
    /// their log-probability (LAVIS, `blip_vqa.py`, `rank_answers`).
    ///
    /// # Errors
    /// The checkpoint is not one of [`Task::QuestionAnswering`], there is more than one picture, or
    /// the device fails.
    pub fn rank_answers(
        &self,
        vision: &Tensor,
        question: &str,
        candidates: &[impl AsRef<str>],
    ) -> Result<Vec<Ranked>> {
        let (encoder, decoder) = self.question_answering()?;
        let states = encoder.encode(&self.ids_beside(vision, &[question])?, Some(vision))?;
        let mut ids = self.ids(candidates)?;
        let text = &self.config.text_config;
        for ids in &mut ids {
            ids[0] = text.bos_token_id;
        }
        let mut order: Vec<usize> = (0..ids.len()).collect();
        if ids.len() > RANKED_CANDIDATES {
            let first = decoder.start(&states, None)?.step(&Step {
                entries: &[0],
                parents: &[],
                tokens: &[text.bos_token_id],
                length: 1,
            })?;
            let first = first.squeeze(0)?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
            let logit = |candidate: &usize| first[ids[*candidate][1] as usize];
            order.sort_by(|a, b| logit(b).total_cmp(&logit(a)));
            order.truncate(RANKED_CANDIDATES);
        }
        let mut ranked = Vec::with_capacity(order.len());
        for order in order.chunks(CANDIDATES_AT_A_TIME) {
            let candidates: Vec<_> = order.iter().map(|place| ids[*place].clone()).collect();
            let scores = decoder.scores(&states, &candidates)?;
            let scored = order.iter().zip(scores);
            ranked.extend(scored.map(|(&candidate, score)| Ranked { candidate, score }));
        }
        ranked.sort_by(|a, b| b.score.total_cmp(&a.score));
        Ok(ranked)
    }

    fn generate(
        &self,
        decoder: &TextDecoder,
        attended: &Tensor,
        lengths: Option<Vec<usize>>,
        prompts: &[Vec<u32>],
        options: &Generation,
    ) -> Result<Vec<Generated>> {
        let end = self.config.text_config.sep_token_id;
        let mut decoding = decoder.start(attended, lengths)?;
        let all = generate(prompts, end, options, |step| decoding.step(step))?;
        all.into_iter()
            .zip(prompts)
            .map(|(ids, prompt)| {
                let text = self.tokenizer.decode(&[prompt.as_slice(), &ids].concat())?;
                Ok(Generated { ids, text })
            })
            .collect()
    }

    /// What the decoder begins with: `[DEC]` and the prefix.
    fn decoder_prompt(&self, prefix: Option<&str>) -> Result<Vec<u32>> {
        let start = self.config.text_config.bos_token_id;
        let Some(prefix) = prefix else {
            return Ok(vec![start]);
        };
        let mut ids = self.tokenizer.encode(prefix)?;
        ids[0] = start;
        ids.pop();
        Ok(ids)
    }

    fn ids(&self, texts: &[impl AsRef<str>]) -> Result<Vec<Vec<u32>>> {
        let encode = |text: &_| self.tokenizer.encode(AsRef::<str>::as_ref(text));
        texts.iter().map(encode).collect()
    }

    /// Texts that are encoded beside pictures.
    fn ids_beside(&self, vision: &Tensor, texts: &[impl AsRef<str>]) -> Result<Vec<Vec<u32>>> {
        let pictures = vision.dim(0)?;
        if pictures != 1 && pictures != texts.len() {
            return Err(Error::Text {
                reason: format!("{} texts for {pictures} pictures", texts.len()),
            });
        }
        let mut ids = self.ids(texts)?;
        if self.start == EncoderStart::Enc {
            let enc = self.config.text_config.enc_token_id();
            ids.iter_mut().for_each(|ids| ids[0] = enc);
        }
        Ok(ids)
    }

    fn retrieval(&self) -> Result<&Retrieval> {
        match &self.heads {
            Heads::Retrieval(retrieval) => Ok(retrieval),
            _ => Err(self.lacks(Task::Retrieval)),
        }
    }

    fn question_answering(&self) -> Result<(&TextModel, &TextDecoder)> {
        match &self.heads {
            Heads::QuestionAnswering {
                text_encoder,
                text_decoder,
            } => Ok((text_encoder, text_decoder)),
            _ => Err(self.lacks(Task::QuestionAnswering)),
        }
    }

    fn lacks(&self, task: Task) -> Error {
        Error::Task {
            found: self.task().class(),
            needed: task.class(),
        }
    }
}

impl BlipTextConfig {
    /// `[ENC]`, which was added to BERT's vocabulary after `[DEC]`.
    fn enc_token_id(&self) -> u32 {
        self.bos_token_id + 1
    }
}

impl Retrieval {
    fn load(weights: &Weights, config: &BlipConfig) -> Result<Self> {
        let (vision, text) = (
            config.vision_config.hidden_size,
            config.text_config.hidden_size,
        );
        let linear = |name, inputs, outputs| Linear::load(&weights.pp(name), inputs, outputs, true);
        let dim = config.image_text_hidden_size;
        Ok(Self {
            text_encoder: TextModel::load(
                &weights.pp("text_encoder"),
                &config.text_config,
                vision,
            )?,
            vision_proj: linear("vision_proj", vision, dim)?,
            text_proj: linear("text_proj", text, dim)?,
            itm_head: linear("itm_head", text, 2)?,
        })
    }

    /// The first row of each text, `[texts, width]`, read alone or beside its picture.
    fn first_rows(&self, ids: &[Vec<u32>], vision: Option<&Tensor>) -> Result<Tensor> {
        let mut rows = Vec::with_capacity(ids.len().div_ceil(TEXTS_AT_A_TIME));
        for (chunk, ids) in ids.chunks(TEXTS_AT_A_TIME).enumerate() {
            let vision = match vision {
                Some(vision) if vision.dim(0)? > 1 => {
                    Some(vision.narrow(0, chunk * TEXTS_AT_A_TIME, ids.len())?)
                }
                vision => vision.cloned(),
            };
            let hidden = self.text_encoder.encode(ids, vision.as_ref())?;
            rows.push(hidden.narrow(1, 0, 1)?.squeeze(1)?);
        }
        if rows.is_empty() {
            return Err(Error::Text {
                reason: "there is none".to_owned(),
            });
        }
        Ok(Tensor::cat(&rows, 0)?)
    }
}
