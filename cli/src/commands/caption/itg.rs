//! Captions without a language model: by the Q-Former itself, or by a BLIP.

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
    /// How captions begin, or the question that they answer.
    words: Option<String>,
}

impl Writer {
    /// Opens the bundle.
    ///
    /// # Errors
    /// It cannot be opened, has no head for captions, or a flag asks for what such a head cannot
    /// do.
    pub fn open(args: &CaptionArgs) -> Result<Self> {
        let spinner = progress::spinner(format!("loading {}", args.bundle.display()));
        let products = args.engine.vision.into();
        let matcher = Matcher::open(&args.bundle, products, &default_device()?)?;
        spinner.finish_and_clear();
        let abilities = matcher.abilities();
        let is_blip = matcher.heads().as_blip().is_some();
        if !abilities.captions && !abilities.answers {
            let why = match matcher.heads().as_stage1() {
                Some(_) => {
                    "Hugging Face's conversion drops it; make the bundle of LAVIS's blip2_pretrained.pth"
                }
                None => "make a bundle of blip-image-captioning-base, for one",
            };
            bail!(
                "{}: this bundle matches pictures and texts, and has no head that writes captions: {why}",
                args.bundle.display()
            );
        }
        let generation = &args.generation;
        let who = match is_blip {
            true => "a BLIP",
            false => "a Q-Former that writes its captions itself",
        };
        let unknown = [
            ("--prompt", args.prompt.is_some() && !abilities.answers),
            (
                "--prefix",
                args.prefix.is_some() && !(is_blip && abilities.captions),
            ),
            ("--captions", args.captions > 1),
            ("--ctx-size", args.engine.ctx_size.is_some()),
            ("--scores", args.scores && is_blip),
            ("--min-score", args.min_score.is_some() && is_blip),
        ];
        refuse(who, unknown)?;
        check_generation(who, generation)?;
        let words = match abilities.answers {
            true => args.prompt.clone(),
            false => args.prefix.clone(),
        };
        if abilities.answers && words.is_none() {
            bail!(
                "{}: this BLIP answers questions: give one with --prompt",
                args.bundle.display()
            );
        }
        let options = options(generation, matcher.default_caption());
        Ok(Self {
            matcher,
            options,
            words,
        })
    }

    /// The caption of a picture file.
    ///
    /// # Errors
    /// It is no picture, or the caption cannot be computed.
    pub fn caption(&self, file: &[u8]) -> bridge::Result<Answers> {
        let vision = self.matcher.vision(file)?;
        let heads = self.matcher.heads();
        let words = self.words.as_deref();
        let mut captions = match words {
            Some(question) if heads.abilities().answers => {
                heads.answer(&vision, &[question], &self.options)?
            }
            prefix => heads.caption_from(&vision, prefix, &self.options)?,
        };
        let caption = captions.pop().ok_or(bridge::Error::Stopped)?;
        let rows = self.matcher.picture_rows();
        let usage = Usage {
            prompt_tokens: rows + self.matcher.caption_prompt(words)?,
            image_tokens: rows,
            cached_tokens: 0,
            completion_tokens: caption.ids.len(),
        };
        let finish_reason = match caption.is_whole {
            true => FinishReason::Stop,
            false => FinishReason::Length,
        };
        let choice = Choice {
            text: caption.text,
            mean_logprob: caption.mean_logprob,
            tokens: caption.ids.len(),
            finish_reason,
        };
        Ok(Answers {
            choices: vec![choice],
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

/// Refuses flags of sampling, which `who` knows nothing of.
pub fn check_generation(who: &str, generation: &GenerationArgs) -> Result<()> {
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
    refuse(who, unknown)
}

fn refuse<const N: usize>(who: &str, flags: [(&str, bool); N]) -> Result<()> {
    if let Some((flag, _)) = flags.into_iter().find(|(_, is_given)| *is_given) {
        bail!("{who} knows no {flag}: leave it out");
    }
    Ok(())
}
