//! Captions by the Q-Former itself, where a bundle has its head and no language model.

use anyhow::{Result, bail};
use bridge::event::{FinishReason, Usage};
use bridge::matcher::Matcher;
use bridge::model::default_device;
use qformer::stage1::CaptionOptions;

use crate::args::{CaptionArgs, GenerationArgs};
use crate::batch::{Answers, Choice};
use crate::progress;

/// A loaded bundle, and how it chooses captions.
pub struct Writer {
    matcher: Matcher,
    options: CaptionOptions,
}

impl Writer {
    /// Opens the bundle.
    ///
    /// # Errors
    /// It cannot be opened, has no head for captions, or a flag asks for what such a head cannot
    /// do.
    pub fn open(args: &CaptionArgs) -> Result<Self> {
        let generation = &args.generation;
        refuse([
            ("--prompt", args.prompt.is_some()),
            ("--prefix", args.prefix.is_some()),
            ("--captions", args.captions > 1),
            ("--ctx-size", args.engine.ctx_size.is_some()),
        ])?;
        check_generation(generation)?;
        let spinner = progress::spinner(format!("loading {}", args.bundle.display()));
        let products = args.engine.vision.into();
        let matcher = Matcher::open(&args.bundle, products, &default_device()?)?;
        spinner.finish_and_clear();
        if !matcher.stage1().writes_captions() {
            bail!(
                "{}: this bundle matches pictures and texts, and has no head that writes captions: Hugging Face's \
                 conversion drops it; make the bundle of LAVIS's blip2_pretrained.pth",
                args.bundle.display()
            );
        }
        let options = options(generation, matcher.default_caption());
        Ok(Self { matcher, options })
    }

    /// The caption of a picture file.
    ///
    /// # Errors
    /// It is no picture, or the caption cannot be computed.
    pub fn caption(&self, file: &[u8]) -> bridge::Result<Answers> {
        let vision = self.matcher.vision(file)?;
        let stage1 = self.matcher.stage1();
        let mut captions = stage1.caption(&vision, &self.options)?;
        let caption = captions.pop().ok_or(bridge::Error::Stopped)?;
        let n_queries = self.matcher.manifest().num_query_tokens;
        let ended = caption.ids.last().copied() == stage1.tokenizer().token_id("[SEP]");
        let usage = Usage {
            // [DEC] stands behind the queries.
            prompt_tokens: n_queries + 1,
            image_tokens: n_queries,
            cached_tokens: 0,
            completion_tokens: caption.ids.len(),
        };
        let finish_reason = match ended {
            true => FinishReason::Stop,
            false => FinishReason::Length,
        };
        let choice = Choice {
            text: caption.text,
            mean_logprob: Some(caption.mean_logprob),
            tokens: caption.ids.len(),
        };
        Ok(Answers {
            choices: vec![choice],
            finish_reason,
            usage,
        })
    }
}

/// How captions are chosen: as the command line says, else as the bundle does.
pub fn options(generation: &GenerationArgs, own: CaptionOptions) -> CaptionOptions {
    let tokens = |n: u32| n as usize;
    CaptionOptions {
        max_tokens: generation.max_tokens.map_or(own.max_tokens, tokens),
        min_tokens: generation.min_tokens.map_or(own.min_tokens, tokens),
        num_beams: generation.num_beams.map_or(own.num_beams, usize::from),
        length_penalty: generation.length_penalty.unwrap_or(own.length_penalty),
    }
}

/// Refuses flags of sampling, which a Q-Former that writes knows nothing of.
pub fn check_generation(generation: &GenerationArgs) -> Result<()> {
    let unknown = [
        ("--seed", generation.seed.is_some()),
        (
            "--temperature",
            generation.temperature.is_some_and(|t| t > 0.0),
        ),
        (
            "--repetition-penalty",
            generation.repetition_penalty.is_some(),
        ),
    ];
    refuse(unknown)
}

fn refuse<const N: usize>(flags: [(&str, bool); N]) -> Result<()> {
    if let Some((flag, _)) = flags.into_iter().find(|(_, is_given)| *is_given) {
        bail!("a Q-Former that writes its captions itself knows no {flag}: leave it out");
    }
    Ok(())
}
