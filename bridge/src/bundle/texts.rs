//! The text sides of CLIP and BLIP: tables of a manifest, and their tokenizers.

use std::path::{Path, PathBuf};

use qformer::WordPiece;
use qformer::blip::config::BlipTextConfig;
use qformer::blip::{BlipConfig, Task};
use qformer::clip::config::ClipTextConfig;
use qformer::clip::{ClipConfig, ClipTokenizer};
use qformer::config::VisionConfig;
use serde::{Deserialize, Serialize};

use super::{Found, Manifest};
use crate::{Error, Result};

/// `[clip]` of a manifest: the text tower of a CLIP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipTexts {
    /// Width of the features.
    pub projection_dim: usize,
    /// The text tower.
    pub text: ClipTextConfig,
}

impl ClipTexts {
    /// The sizes of the whole model.
    pub fn config(&self, vision: &VisionConfig) -> ClipConfig {
        ClipConfig {
            vision_config: vision.clone(),
            text_config: self.text.clone(),
            projection_dim: self.projection_dim,
        }
    }
}

/// `[blip]` of a manifest: the text models of a BLIP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlipTexts {
    /// What the model is for, and so which text models and heads it has.
    pub task: Task,
    /// Width of the features.
    pub image_text_hidden_size: usize,
    /// The text models.
    pub text: BlipTextConfig,
}

impl BlipTexts {
    /// The sizes of the whole model.
    pub fn config(&self, vision: &VisionConfig) -> BlipConfig {
        BlipConfig {
            vision_config: vision.clone(),
            text_config: self.text.clone(),
            image_text_hidden_size: self.image_text_hidden_size,
        }
    }
}

/// How the texts of a CLIP or a BLIP become token ids.
#[derive(Debug, Clone)]
pub enum TextTokenizer {
    /// CLIP's.
    Clip(Box<ClipTokenizer>),
    /// BLIP's, which is BERT's.
    Blip(Box<WordPiece>),
}

impl TextTokenizer {
    /// Reads `path`, the tokenizer of a model with such a manifest; none where it has no text
    /// side of its own.
    pub(super) fn open(manifest: &Manifest, path: &Path) -> Result<Option<Self>> {
        Ok(match (&manifest.clip, &manifest.blip) {
            (Some(clip), _) => {
                let tokenizer = ClipTokenizer::open(path, &clip.text)?;
                Some(Self::Clip(Box::new(tokenizer)))
            }
            (None, Some(blip)) => {
                let tokenizer = WordPiece::open(path, &blip.text)?;
                Some(Self::Blip(Box::new(tokenizer)))
            }
            (None, None) => None,
        })
    }

    /// Writes everything as one file.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        match self {
            Self::Clip(tokenizer) => tokenizer.save(path)?,
            Self::Blip(tokenizer) => tokenizer.save(path)?,
        }
        Ok(())
    }
}

/// Refuses text sides whose tensors are not as the manifest says.
pub(super) fn check(manifest: &Manifest, find: &dyn Fn(&str) -> Result<Found>) -> Result<()> {
    let vision = &manifest.vision;
    if let Some(clip) = &manifest.clip {
        clip.config(vision).validate()?;
        let (dim, text) = (clip.projection_dim, &clip.text);
        // open_clip's names, whose projections lie the other way round.
        if find("visual.proj").is_ok() {
            expect(find, "visual.proj", [vision.hidden_size, dim])?;
            expect(find, "text_projection", [text.hidden_size, dim])?;
            let words = "token_embedding.weight";
            return expect(find, words, [text.vocab_size, text.hidden_size]);
        }
        expect(find, "visual_projection.weight", [dim, vision.hidden_size])?;
        expect(find, "text_projection.weight", [dim, text.hidden_size])?;
        let words = "text_model.embeddings.token_embedding.weight";
        expect(find, words, [text.vocab_size, text.hidden_size])?;
    }
    if let Some(blip) = &manifest.blip {
        blip.config(vision).validate()?;
        let (dim, width) = (blip.image_text_hidden_size, blip.text.hidden_size);
        let words = [blip.text.vocab_size, width];
        if blip.task != Task::Captioning {
            expect(
                find,
                "text_encoder.embeddings.word_embeddings.weight",
                words,
            )?;
        }
        if blip.task == Task::Retrieval {
            expect(find, "vision_proj.weight", [dim, vision.hidden_size])?;
            expect(find, "text_proj.weight", [dim, width])?;
            expect(find, "itm_head.weight", [2, width])?;
        } else {
            expect(
                find,
                "text_decoder.bert.embeddings.word_embeddings.weight",
                words,
            )?;
        }
    }
    Ok(())
}

fn expect(find: &dyn Fn(&str) -> Result<Found>, name: &str, expected: [usize; 2]) -> Result<()> {
    let (shape, path): (Vec<usize>, PathBuf) = find(name)?;
    match shape == expected {
        true => Ok(()),
        false => Err(Error::Mismatch {
            what: "text side".to_owned(),
            left: format!("{} holds {name} {shape:?}", path.display()),
            right: format!("{} says {expected:?}", super::MANIFEST_FILE),
        }),
    }
}
