//! What a bundle compares pictures and texts with: BLIP-2's first stage, a CLIP or a BLIP, behind
//! one face.

use candle_core::Tensor;
use qformer::blip::{Blip, Task};
use qformer::checkpoint::Compute;
use qformer::clip::Clip;
use qformer::generate::Generation;
use qformer::stage1::{CaptionOptions, Stage1, Stage1Config, contrastive};
use qformer::wordpiece::Cut;

use crate::bundle::{Bundle, TextTokenizer};
use crate::{Error, Result};

const NO_ITM: &str = "a CLIP has no head that says whether a text is a picture's (ITM)";

/// What ends a text of BERT's word pieces.
const END: &str = "[SEP]";

/// A loaded model.
///
/// A picture is what [`Heads::vision`] makes of it, `[pictures, rows, width]`, which is worth
/// keeping: it is most of the work. Everything that is given back is f32.
#[derive(Debug)]
pub enum Heads {
    /// BLIP-2's first stage: a picture is its ViT's output.
    Stage1(Box<Stage1>),
    /// CLIP: a picture is its features.
    Clip(Box<Clip>),
    /// BLIP: a picture is its ViT's output.
    Blip(Box<Blip>),
}

/// What a model can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// Features of pictures and texts in one space, and so their similarity (ITC).
    pub compares: bool,
    /// The probability that a text is a picture's (ITM).
    pub matches: bool,
    /// Captions (ITG).
    pub captions: bool,
    /// Answers to questions about a picture (BLIP's VQA).
    pub answers: bool,
}

/// A caption or an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Caption {
    /// Its tokens, the one that ended it included.
    pub ids: Vec<u32>,
    /// Its text, which begins with the words that it was begun with.
    pub text: String,
    /// The mean log-probability of its tokens, where the model tells it.
    pub mean_logprob: Option<f32>,
    /// Whether it ended by itself.
    pub is_whole: bool,
}

impl Heads {
    /// Loads what a bundle holds.
    ///
    /// # Errors
    /// [`Error::NoHeads`] for a bundle with a language model; a part cannot be loaded.
    pub(super) fn load(bundle: &Bundle, compute: &Compute) -> Result<Self> {
        let manifest = bundle.manifest();
        let preprocessing = manifest.preprocessing.clone();
        match (&manifest.clip, &manifest.blip, bundle.text_tokenizer()) {
            (Some(clip), _, Some(TextTokenizer::Clip(tokenizer))) => {
                let clip = Clip::load(
                    bundle.checkpoint(),
                    clip.config(&manifest.vision),
                    preprocessing,
                    (**tokenizer).clone(),
                    compute,
                )?;
                return Ok(Self::Clip(Box::new(clip)));
            }
            (_, Some(blip), Some(TextTokenizer::Blip(tokenizer))) => {
                let blip = Blip::load(
                    bundle.checkpoint(),
                    blip.config(&manifest.vision),
                    preprocessing,
                    (**tokenizer).clone(),
                    compute,
                )?;
                return Ok(Self::Blip(Box::new(blip)));
            }
            _ => {}
        }
        let (Some(heads), Some(qformer), Some(tokenizer)) = (
            &manifest.heads,
            &manifest.qformer,
            bundle.qformer_tokenizer(),
        ) else {
            return Err(Error::NoHeads {
                dir: bundle.dir().to_owned(),
            });
        };
        let config = Stage1Config {
            vision: &manifest.vision,
            qformer,
            heads,
            num_query_tokens: manifest.num_query_tokens,
        };
        let stage1 = Stage1::load(bundle.checkpoint(), config, tokenizer.clone(), compute)?;
        Ok(Self::Stage1(Box::new(stage1)))
    }

    /// What the model can do.
    pub fn abilities(&self) -> Abilities {
        let task = match self {
            Self::Blip(blip) => Some(blip.task()),
            _ => None,
        };
        let is_blip_for = |wanted| task.is_none_or(|task| task == wanted);
        Abilities {
            compares: is_blip_for(Task::Retrieval),
            matches: is_blip_for(Task::Retrieval) && !matches!(self, Self::Clip(_)),
            captions: match self {
                Self::Stage1(stage1) => stage1.writes_captions(),
                Self::Clip(_) => false,
                Self::Blip(blip) => blip.task() == Task::Captioning,
            },
            answers: task == Some(Task::QuestionAnswering),
        }
    }

    /// Pixels `[batch, 3, size, size]` to `[batch, rows, width]`, which every other function here
    /// takes for pictures: the ViT's output, of a CLIP its features.
    ///
    /// # Errors
    /// `pixels` has another shape, or the device fails.
    pub fn vision(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Stage1(stage1) => stage1.vision(pixels)?,
            Self::Clip(clip) => clip.image_features(pixels)?.unsqueeze(1)?,
            Self::Blip(blip) => blip.vision(pixels)?,
        })
    }

    /// The features of pictures `[pictures, rows, features]`, each row of length 1: one for each
    /// query of the first stage, and one of any other model.
    ///
    /// # Errors
    /// The model has none, or the device fails.
    pub fn image_features(&self, vision: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Stage1(stage1) => stage1.image_features(vision)?,
            Self::Clip(_) => vision.clone(),
            Self::Blip(blip) => blip.image_features(vision)?.unsqueeze(1)?,
        })
    }

    /// The features of texts `[texts, features]`, each of length 1.
    ///
    /// # Errors
    /// The model has none, no text is given, or the device fails.
    pub fn text_features(&self, texts: &[&str]) -> Result<Tensor> {
        Ok(match self {
            Self::Stage1(stage1) => stage1.text_features(texts)?,
            Self::Clip(clip) => clip.text_features(texts)?,
            Self::Blip(blip) => blip.text_features(texts)?,
        })
    }

    /// The largest cosine of any of a picture's features and the text's, `[pictures, texts]`, of
    /// features as [`Heads::image_features`] and [`Heads::text_features`] give them. No temperature
    /// is applied.
    ///
    /// # Errors
    /// The shapes do not go together, or the device fails.
    pub fn similarities(images: &Tensor, texts: &Tensor) -> Result<Tensor> {
        Ok(contrastive(images, texts)?)
    }

    /// The matching head's two logits of each picture and its text, `[texts, 2]`, of which the
    /// second speaks for a match. One picture may have several texts.
    ///
    /// # Errors
    /// As [`Heads::match_probability`].
    pub fn match_logits(&self, vision: &Tensor, texts: &[&str]) -> Result<Tensor> {
        match self {
            Self::Stage1(stage1) => Ok(stage1.match_logits(vision, texts)?),
            Self::Blip(blip) => Ok(blip.match_logits(vision, texts)?),
            Self::Clip(_) => Err(lacks(NO_ITM)),
        }
    }

    /// The probability that each text is its picture's. One picture may have several texts.
    ///
    /// # Errors
    /// The model has no head for it, the numbers of pictures and texts do not go together, or the
    /// device fails.
    pub fn match_probability(&self, vision: &Tensor, texts: &[&str]) -> Result<Vec<f32>> {
        match self {
            Self::Stage1(stage1) => Ok(stage1.match_probability(vision, texts)?),
            Self::Blip(blip) => Ok(blip.match_probability(vision, texts)?.to_vec1()?),
            Self::Clip(_) => Err(lacks(NO_ITM)),
        }
    }

    /// Whether there is a head that writes captions.
    pub fn writes_captions(&self) -> bool {
        self.abilities().captions
    }

    /// A caption for each picture.
    ///
    /// # Errors
    /// As [`Heads::caption_from`].
    pub fn caption(&self, vision: &Tensor, options: &CaptionOptions) -> Result<Vec<Caption>> {
        self.caption_from(vision, None, options)
    }

    /// A caption for each picture, which goes on from `prefix`: a BLIP's alone can be begun.
    ///
    /// # Errors
    /// The model has no head for it, cannot be begun for, or has no room for such a caption; or
    /// the device fails.
    pub fn caption_from(
        &self,
        vision: &Tensor,
        prefix: Option<&str>,
        options: &CaptionOptions,
    ) -> Result<Vec<Caption>> {
        match (self, prefix) {
            (Self::Clip(_), _) => Err(lacks("a CLIP writes no captions")),
            (Self::Stage1(_), Some(_)) => Err(lacks(
                "a Q-Former that writes its captions itself cannot be told how they begin",
            )),
            (Self::Stage1(stage1), None) => {
                let end = stage1.tokenizer().token_id(END);
                let captions = stage1.caption(vision, options)?.into_iter();
                let caption = |caption: qformer::stage1::Caption| Caption {
                    is_whole: caption.ids.last().copied() == end,
                    mean_logprob: Some(caption.mean_logprob),
                    text: caption.text,
                    ids: caption.ids,
                };
                Ok(captions.map(caption).collect())
            }
            (Self::Blip(blip), _) => {
                // [DEC] counts, and the prefix without its own [SEP].
                let prompt = match prefix {
                    Some(prefix) => blip.tokenizer().encode(prefix)?.len() - 1,
                    None => 1,
                };
                let longest = options.max_tokens.saturating_add(prompt);
                if longest > self.max_tokens() {
                    return Err(lacks(&format!(
                        "a caption of {} tokens behind {prompt}, and the model has {} positions",
                        options.max_tokens,
                        self.max_tokens()
                    )));
                }
                let options = generation(options, prompt);
                let captions = blip.caption(vision, prefix, &options)?;
                Ok(self.generated(blip, captions))
            }
        }
    }

    /// An answer to each question about its picture; one picture may have several questions.
    ///
    /// # Errors
    /// The model does not answer, the numbers of pictures and questions do not go together, or the
    /// device fails.
    pub fn answer(
        &self,
        vision: &Tensor,
        questions: &[&str],
        options: &CaptionOptions,
    ) -> Result<Vec<Caption>> {
        match self {
            Self::Blip(blip) => {
                let answers = blip.answer(vision, questions, &generation(options, 1))?;
                Ok(self.generated(blip, answers))
            }
            _ => Err(lacks("only a BLIP for question answering answers")),
        }
    }

    fn generated(&self, blip: &Blip, texts: Vec<qformer::blip::Generated>) -> Vec<Caption> {
        let end = blip.config().text_config.sep_token_id;
        let caption = |generated: qformer::blip::Generated| Caption {
            is_whole: generated.ids.last() == Some(&end),
            mean_logprob: None,
            text: generated.text,
            ids: generated.ids,
        };
        texts.into_iter().map(caption).collect()
    }

    /// The token ids of a text, those around it included, cut as the model reads it.
    ///
    /// # Errors
    /// The tokenizer refuses the text.
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        Ok(match self {
            Self::Stage1(stage1) => stage1.tokenizer().encode(text)?,
            Self::Clip(clip) => clip.tokenizer().encode(text)?,
            Self::Blip(blip) => blip.tokenizer().encode(text)?,
        })
    }

    /// Most tokens of a text, those around it included; longer ones are cut, or, of a caption and
    /// its beginning, refused.
    pub fn max_tokens(&self) -> usize {
        match self {
            Self::Stage1(_) => Cut::STAGE1.max_length,
            Self::Clip(clip) => clip.config().text_config.max_position_embeddings,
            Self::Blip(blip) => blip.config().text_config.max_position_embeddings,
        }
    }

    /// The model, where it is BLIP-2's first stage.
    pub fn as_stage1(&self) -> Option<&Stage1> {
        match self {
            Self::Stage1(stage1) => Some(stage1),
            _ => None,
        }
    }

    /// The model, where it is a CLIP.
    pub fn as_clip(&self) -> Option<&Clip> {
        match self {
            Self::Clip(clip) => Some(clip),
            _ => None,
        }
    }

    /// The model, where it is a BLIP.
    pub fn as_blip(&self) -> Option<&Blip> {
        match self {
            Self::Blip(blip) => Some(blip),
            _ => None,
        }
    }
}

/// What BLIP's decoder takes, behind a prompt of so many tokens, which its lengths count.
fn generation(options: &CaptionOptions, prompt: usize) -> Generation {
    Generation {
        num_beams: options.num_beams,
        max_length: Some(options.max_tokens.saturating_add(prompt)),
        min_length: options.min_tokens.saturating_add(prompt),
        length_penalty: options.length_penalty,
        ..Generation::default()
    }
}

fn lacks(reason: &str) -> Error {
    Error::InvalidRequest {
        reason: reason.to_owned(),
    }
}
