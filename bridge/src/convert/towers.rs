//! What is converted, where it is a CLIP or a BLIP: a picture side and a text side, and no
//! language model.

use std::path::Path;

use qformer::blip::{Blip, BlipParts, Task};
use qformer::clip::{ClipParts, is_open_clip};
use qformer::config::{Blip2Config, model_type};

use super::checkpoint::{Source, Tensors};
use crate::bundle::{BLIP, BlipTexts, CLIP, ClipTexts, GenerationDefaults, TextTokenizer};
use crate::{Error, Result};

/// What is in a bundle's `vision.safetensors`, by the beginnings of names.
pub(super) const VISION_PART: [&str; 4] = [
    "vision_model.",
    "visual.",
    "visual_projection.",
    "vision_proj.",
];

/// What is in its `text.safetensors`.
pub(super) const TEXT_PART: [&str; 11] = [
    "text_model.",
    "text_projection",
    "logit_scale",
    "token_embedding.",
    "positional_embedding",
    "transformer.",
    "ln_final.",
    "text_encoder.",
    "text_decoder.",
    "text_proj.",
    "itm_head.",
];

/// Tokens behind the prompt where transformers is not told how many (`GenerationConfig`).
const CAPTION_TOKENS: usize = 20;

/// Whether a tensor is computed with: old checkpoints keep a list of numbers beside the positions.
pub(super) fn is_used(name: &str) -> bool {
    let mut prefixes = VISION_PART.iter().chain(&TEXT_PART);
    !name.ends_with("position_ids") && prefixes.any(|prefix| name.starts_with(prefix))
}

/// What a checkpoint directory of Hugging Face or open_clip is, where it is one without a
/// language model.
///
/// # Errors
/// Its `config.json` cannot be read.
pub fn without_language_model(dir: &Path) -> Result<Option<&'static str>> {
    if is_open_clip(dir) {
        return Ok(Some(NAME_CLIP));
    }
    Ok(match model_type(dir)?.as_deref() {
        Some("clip") => Some(NAME_CLIP),
        Some("blip") => Some(NAME_BLIP),
        _ => Blip2Config::read(dir)?
            .is_retrieval()
            .then_some(NAME_STAGE1),
    })
}

const NAME_CLIP: &str = "a CLIP";
const NAME_BLIP: &str = "a BLIP";
/// A Q-Former with heads in place of a language model.
pub(super) const NAME_STAGE1: &str = "a Q-Former with the heads of the first stage";

/// The same of what is converted.
pub(super) fn name_of(source: &Source) -> Option<&'static str> {
    match (&source.clip, &source.blip, &source.heads) {
        (Some(_), ..) => Some(NAME_CLIP),
        (_, Some(_), _) => Some(NAME_BLIP),
        (.., Some(_)) => Some(NAME_STAGE1),
        _ => None,
    }
}

/// Reads the headers of `dir`, where it is a CLIP or a BLIP.
pub(super) fn open(dir: &Path, image_size: Option<usize>) -> Result<Option<Source>> {
    let kind = match is_open_clip(dir) {
        true => Some("clip".to_owned()),
        false => model_type(dir)?,
    };
    let source = match kind.as_deref() {
        Some("clip") => clip(dir)?,
        Some("blip") => blip(dir)?,
        _ => return Ok(None),
    };
    match image_size {
        None => Ok(Some(source)),
        Some(_) => Err(Error::Convert {
            path: dir.to_owned(),
            reason: format!(
                "a {kind} reads pictures of {0} x {0} pixels: leave out --image-size",
                source.vision.image_size,
                kind = source.family,
            ),
        }),
    }
}

fn clip(dir: &Path) -> Result<Source> {
    let parts = ClipParts::open(dir)?;
    Ok(Source {
        name: super::base_name(dir),
        family: CLIP,
        num_query_tokens: 0,
        vision: parts.config.vision_config,
        qformer: None,
        qformer_tokenizer: None,
        heads: None,
        clip: Some(ClipTexts {
            projection_dim: parts.config.projection_dim,
            text: parts.config.text_config,
        }),
        blip: None,
        text_tokenizer: Some(TextTokenizer::Clip(Box::new(parts.tokenizer))),
        preprocessing: parts.preprocessing,
        layout: None,
        generation: GenerationDefaults::default(),
        llm_type: None,
        paths: vec![dir.to_owned()],
        tensors: Tensors::HuggingFace(parts.checkpoint),
    })
}

fn blip(dir: &Path) -> Result<Source> {
    let parts = BlipParts::open(dir)?;
    let task = Blip::task_of(&parts.checkpoint)?;
    Ok(Source {
        name: super::base_name(dir),
        family: BLIP,
        num_query_tokens: 0,
        vision: parts.config.vision_config,
        qformer: None,
        qformer_tokenizer: None,
        heads: None,
        clip: None,
        blip: Some(BlipTexts {
            task,
            image_text_hidden_size: parts.config.image_text_hidden_size,
            text: parts.config.text_config,
        }),
        text_tokenizer: Some(TextTokenizer::Blip(Box::new(parts.tokenizer))),
        preprocessing: parts.preprocessing,
        layout: None,
        generation: match task {
            Task::Retrieval => GenerationDefaults::default(),
            Task::Captioning | Task::QuestionAnswering => generation(dir)?,
        },
        llm_type: None,
        paths: vec![dir.to_owned()],
        tensors: Tensors::HuggingFace(parts.checkpoint),
    })
}

/// What transformers' `generate` does where it is told nothing. The likeliest tokens are what this
/// decoder takes, whatever the file says of sampling and repetition.
fn generation(dir: &Path) -> Result<GenerationDefaults> {
    let unsaid = GenerationDefaults::default();
    let found = GenerationDefaults::from_checkpoint(dir)?;
    Ok(GenerationDefaults {
        max_tokens: match found.max_tokens == unsaid.max_tokens {
            true => CAPTION_TOKENS,
            false => found.max_tokens,
        },
        temperature: unsaid.temperature,
        repetition_penalty: unsaid.repetition_penalty,
        top_k: unsaid.top_k,
        top_p: unsaid.top_p,
        min_p: unsaid.min_p,
        ..found
    })
}
